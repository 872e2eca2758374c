"""A person's terminal, or two pipes in its place: lines in, text out, and nobody's event loop held up.

Neither thread nor ``O_NONBLOCK`` on what we were given: a thread in ``read`` cannot be stopped, and the
flag would be shared with the shell and every program there. Instead each read waits until there is
something to read, each write until there is room, and takes no more than is there; a terminal is opened
once more for the writing (`unshared`).
"""

from __future__ import annotations

import os
import select
import shlex
import sys
import tempfile
import termios
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final, Self

import attrs
import trio

from trio_swarm._io.unshared import unshared
from trio_swarm.limits import MAX_FRAME

__all__ = ["LineInput", "TextOutput", "edit", "editor_argv"]

_PIECE: Final = 512
"""Bytes of one write: a pipe that has room has room for so much (PIPE_BUF of POSIX; a page, of Linux).

A terminal may have less: there the write takes what fits, see `unshared`.
"""
_READ: Final = 64 * 2**10
_MAX_QUEUED: Final = 4 * 2**20
"""Bytes that wait for a terminal that takes none (Ctrl-S); the oldest texts go first."""


@attrs.define(eq=False)
class LineInput:
    """The lines of a descriptor, which stays open and as it was. One task may read."""

    fd: int
    max_line: int = MAX_FRAME
    _buffer: bytearray = attrs.field(factory=bytearray, repr=False)
    _searched: int = 0
    _ended: bool = False

    @property
    def interactive(self) -> bool:
        """It is a terminal."""
        return os.isatty(self.fd)

    async def receive(self) -> str | None:
        """The next line without its end; None when there are no more.

        What is no UTF-8 is replaced. Raises ``ValueError`` for a line longer than ``max_line``
        bytes. When cancelled, nothing is lost.
        """
        await trio.lowlevel.checkpoint()
        while True:
            end = self._buffer.find(b"\n", self._searched)
            if end >= 0:
                return self._cut(end + 1)
            if self._ended:
                return self._cut(len(self._buffer)) if self._buffer else None
            self._searched = len(self._buffer)
            if self._searched > self.max_line:
                raise ValueError(f"a line of the input is longer than {self.max_line} bytes")
            await _wait(trio.lowlevel.wait_readable, self.fd)
            try:
                data = os.read(self.fd, _READ)
            except BlockingIOError:
                continue  # Somebody else made it not block, and took what was there.
            except OSError:  # EIO: the terminal was hung up.
                data = b""
            self._buffer += data
            self._ended = not data

    def _cut(self, end: int) -> str:
        line = bytes(self._buffer[:end])
        del self._buffer[:end]
        self._searched = 0
        return line.decode("utf-8", "replace").rstrip("\r\n")


@attrs.define(eq=False)
class TextOutput:
    """Text for a descriptor, written by one task (`run`); `write` never waits.

    All of it belongs to one thread. A context manager, which opens a terminal once more: only in its block
    is a terminal sure to hold nobody up. Afterwards nothing is written any more.
    """

    fd: int
    lasting: bool = False
    """An error loses what waits, and the next text is tried: a disk that is full may have room later."""
    _own: int = attrs.field(init=False, default=attrs.Factory(lambda self: self.fd, takes_self=True))
    """What is written to."""
    _opened: ExitStack = attrs.field(init=False, factory=ExitStack, repr=False)
    _waiting: deque[bytes] = attrs.field(factory=deque, repr=False)
    _size: int = 0
    _lost: int = 0
    _telling: int = 0
    """Those of the lost that the text tells of that is partly written."""
    _begun: memoryview = attrs.field(default=memoryview(b""), repr=False)
    """What is left of a text that is partly written."""
    _held: bool = False
    _gone: bool = False
    """Nobody can read it any more."""
    _changed: trio.lowlevel.ParkingLot = attrs.field(factory=trio.lowlevel.ParkingLot, repr=False)

    def __enter__(self) -> Self:
        self._own = self._opened.enter_context(unshared(self.fd))
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._fail()
        self._gone, self._own = True, self.fd
        self._opened.close()

    def write(self, text: str) -> None:
        """Queue ``text`` and a line's end."""
        if self._gone:
            return
        data = f"{text}\n".encode("utf-8", "backslashreplace")
        self._waiting.append(data)
        self._size += len(data)
        while self._size > _MAX_QUEUED and len(self._waiting) > 1:
            self._size -= len(self._waiting.popleft())
            self._lost += 1
        self._changed.unpark_all()

    def write_now(self) -> None:
        """Write what is queued as far as there is room for it at this moment."""
        room = select.poll()
        room.register(self._own, select.POLLOUT)
        while self._begin() and room.poll(0) and self._write_piece():
            pass

    @contextmanager
    def held(self) -> Iterator[None]:
        """Nothing is written in the block: the terminal is somebody else's."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
            self._changed.unpark_all()

    async def run(self) -> None:
        """Write until cancelled, or until nobody can read it any more.

        When cancelled, the rest of a text is written by the next call, or by `write_now`.
        """
        while not self._gone:
            if not self._begin():
                await self._changed.park()
                continue
            try:
                await _wait(trio.lowlevel.wait_writable, self._own)
            except OSError:
                self._fail()
            else:
                if self._begin():  # `write_now` may have been there meanwhile.
                    self._write_piece()

    async def drain(self) -> None:
        """Wait until all that was queued is written, or is lost."""
        await trio.lowlevel.checkpoint()
        while self._waiting or self._begun:
            await self._changed.park()

    def _begin(self) -> bool:
        """There is something to write now."""
        if not self._begun and self._waiting and not self._held:
            data = self._waiting.popleft()
            self._size -= len(data)
            self._telling, self._lost = self._lost, 0
            if self._telling:
                data = b"(%d texts were lost here)\n%s" % (self._telling, data)
            self._begun = memoryview(data)
        return bool(self._begun)

    def _write_piece(self) -> bool:
        """Where there is room. False: nothing was written."""
        try:
            written = os.write(self._own, self._begun[:_PIECE])
        except BlockingIOError:
            return False
        except OSError:
            self._fail()
            return False
        self._begun = self._begun[written:]
        if not self._begun:
            self._changed.unpark_all()
        return written > 0

    def _fail(self) -> None:
        if self._begun:
            self._lost += self._telling + 1
        self._lost += len(self._waiting)
        self._waiting.clear()
        self._size, self._begun = 0, memoryview(b"")
        self._gone = not self.lasting
        self._changed.unpark_all()


async def write_text(fd: int, text: str) -> None:
    """Write all of it to a pipe, a terminal or a file, and block nobody else meanwhile.

    Raises ``OSError``. Cancelled: some of it may be written.
    """
    left = memoryview(text.encode("utf-8", "backslashreplace"))
    with unshared(fd) as own:
        while left:
            await _wait(trio.lowlevel.wait_writable, own)
            with suppress(BlockingIOError):
                left = left[os.write(own, left[:_PIECE]) :]


async def _wait(ready: Callable[[int], Awaitable[None]], fd: int) -> None:
    try:
        await ready(fd)
    except PermissionError:
        # A regular file: always ready, and nothing that can be waited for.
        await trio.lowlevel.checkpoint()


def editor_argv(environ: Mapping[str, str]) -> list[str]:
    """The command of the person's editor: ``VISUAL``, ``EDITOR`` or else ``vi``."""
    for name in ("VISUAL", "EDITOR"):
        if environ.get(name, "").strip():
            return shlex.split(environ[name])
    return ["vi"]


async def edit(text: str, argv: list[str], *, suffix: str = ".txt") -> str | None:
    """Let the person edit ``text``; what is in the file then, or None if the editor failed.

    The file is in a directory of its own that nobody else can read, and gone afterwards. The
    editor has the terminal meanwhile, and the terminal is set as before when it is over,
    however it ended. When cancelled, the editor is ended. Raises ``OSError`` if it cannot be
    started.
    """
    with tempfile.TemporaryDirectory(prefix="trio-swarm-") as directory, _terminal_restored():
        path = Path(directory) / f"answer{suffix}"
        path.write_text(text, encoding="utf-8")
        done = await trio.run_process([*argv, str(path)], stdin=None, check=False)
        if done.returncode != 0:
            return None
        return path.read_text(encoding="utf-8", errors="replace")


@contextmanager
def _terminal_restored() -> Iterator[None]:
    fd = sys.__stdin__.fileno() if sys.__stdin__ is not None else -1
    known = termios.tcgetattr(fd) if fd >= 0 and os.isatty(fd) else None
    try:
        yield
    finally:
        if known is not None:
            termios.tcsetattr(fd, termios.TCSADRAIN, known)
