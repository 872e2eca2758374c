"""JSON lines over any Trio stream: pods and pools over Unix sockets, children over pipes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import trio

from trio_swarm._io.transport import Transport
from trio_swarm.errors import FrameError, ProtocolError
from trio_swarm.frames.lines import LineDecoder
from trio_swarm.limits import CLOSE_DEADLINE, MAX_FRAME, RECEIVE_BUFFER

__all__ = ["LineTransport"]

_HEAD: Final = 64 * 2**10
"""Bytes that the buffer of an idle socket has room for: they go out at once or not at all."""


class LineTransport(Transport):
    """One message per line over ``stream``, which it owns: a socket, a ``trio.StapledStream``.

    ``max_line`` is in bytes, without the newline. A longer line has lost the framing and
    ends the connection. A last line without a newline counts: the originals take it too.
    """

    def __init__(self, stream: trio.abc.Stream, *, max_line: int = MAX_FRAME, name: str = "") -> None:
        self.name = name
        self.max_message = max_line
        self.begun = False
        """Whether any of the last batch has gone out: the peer may have acted on it, or choked on it."""
        self._stream = stream
        self._lines = LineDecoder(max_line=max_line)
        self._poisoned = self._closed = self._ended = False
        self._writes = self._reads = 0

    @property
    def writes(self) -> int:
        return self._writes

    @property
    def reads(self) -> int:
        return self._reads

    async def send_batch(self, messages: Sequence[str]) -> None:
        """See `Transport`: one ``send_all``, or two where there is much, so that `begun` can tell."""
        self.begun = False
        if self._poisoned and not self._closed:
            raise trio.BrokenResourceError("a send was cancelled here")
        data = ("\n".join(messages) + "\n").encode()
        self._writes += 1
        try:
            await self._stream.send_all(data[:_HEAD])
            self.begun = True
            if len(data) > _HEAD:
                await self._stream.send_all(memoryview(data)[_HEAD:])
        except trio.Cancelled:
            # Some, all or none of it went out (trio.abc.SendStream.send_all): whatever
            # came next would be read as the rest of this line.
            self._poisoned = True
            await trio.aclose_forcefully(self._stream)
            raise

    async def receive_batch(self) -> Sequence[str | bytes]:
        """See `Transport`: all lines that one read completes."""
        try:
            # Raises now what the last read found behind the lines that it completed.
            self._lines.feed(b"")
            while not self._ended:
                data = await self._read()
                if not data:
                    self._ended = True
                    last = self._lines.close()
                    return (last,) if last else ()
                if lines := self._lines.feed(data):
                    return lines
        except FrameError as error:
            raise ProtocolError(f"{self.name or 'peer'}: {error}") from error
        await trio.lowlevel.checkpoint()
        return ()

    async def aclose(self, code: int = 1000, reason: str = "", *, listening: bool = False) -> None:
        """See `Transport`; lines have no word for goodbye."""
        self._closed = True
        with trio.move_on_after(CLOSE_DEADLINE):
            await self._stream.aclose()

    async def _read(self) -> bytes:
        data = bytes(await self._stream.receive_some(RECEIVE_BUFFER))
        self._reads += 1
        return data
