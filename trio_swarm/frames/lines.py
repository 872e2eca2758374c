"""Bytes cut into lines, for the families that send one JSON object per line."""

from __future__ import annotations

from trio_swarm.errors import FrameError
from trio_swarm.limits import MAX_FRAME

__all__ = ["LineDecoder"]


class LineDecoder:
    r"""Cuts a byte stream at ``b"\n"``, and only there.

    The lines come without their newline and otherwise as they were sent, blank ones too:
    what a blank line means differs from family to family. The answers do not depend on
    how the stream was cut into chunks. At most ``max_line`` bytes are kept.
    """

    def __init__(self, *, max_line: int = MAX_FRAME) -> None:
        if max_line < 1:
            raise ValueError(f"max_line must be positive, not {max_line}")
        self.max_line = max_line
        self._rest = bytearray()
        self._too_long = False

    def feed(self, data: bytes | bytearray) -> list[bytes]:
        """The lines that *data* completes, in order.

        Raises:
            FrameError: a line is longer than ``max_line``. The lines before it are
                returned first, by the call before. The framing is lost: every later call
                raises the same.
        """
        self._check()
        first, *more = data.split(b"\n")
        if len(self._rest) + len(first) > self.max_line:
            return self._overrun([])
        self._rest += first
        if not more:
            return []
        lines = [bytes(self._rest)]
        self._rest = bytearray()
        rest = more.pop()
        for line in more:
            if len(line) > self.max_line:
                return self._overrun(lines)
            lines.append(bytes(line))
        if len(rest) > self.max_line:
            return self._overrun(lines)
        self._rest += rest
        return lines

    def close(self) -> bytes:
        """The last line where the stream ended without a newline, else ``b""``.

        Raises:
            FrameError: as `feed`.
        """
        self._check()
        last, self._rest = bytes(self._rest), bytearray()
        return last

    @property
    def buffered(self) -> int:
        """Bytes of the line that is not complete yet."""
        return len(self._rest)

    def _overrun(self, lines: list[bytes]) -> list[bytes]:
        self._too_long = True
        self._rest = bytearray()
        if not lines:
            self._check()
        return lines

    def _check(self) -> None:
        if self._too_long:
            raise FrameError(f"a line is longer than {self.max_line} bytes")
