"""Large bodies on disk, written as they come and read as they go.

Each is a file of mode 0600 in a private directory (0700), unnamed to anybody else. A body that
did not come about leaves nothing: `spooled` removes what was not kept.
"""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import attrs
import trio

from trio_swarm._io import files
from trio_swarm.errors import BusyError
from trio_swarm.limits import RECEIVE_BUFFER

__all__ = ["DiskFull", "SpoolFile", "free_bytes", "read_spooled", "spooled"]

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class DiskFull(BusyError):
    """The system has no more room for the file, or lets this process have none."""


@attrs.define(eq=False)
class SpoolFile:
    """A file that is being written; made by `spooled`."""

    path: Path
    _fd: int
    kept: bool = False
    """Set it, and the file stays when the block is left."""

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append ``data``. Raises `DiskFull`, and ``OSError`` for anything else; nothing was added then.

        Cancelled: some of it may be written.
        """
        await trio.to_thread.run_sync(self._write, data)

    async def clear(self) -> None:
        """Begin again: nothing was written yet."""
        await trio.to_thread.run_sync(self._clear)

    def _clear(self) -> None:
        os.ftruncate(self._fd, 0)
        os.lseek(self._fd, 0, os.SEEK_SET)

    def _write(self, data: bytes | bytearray | memoryview) -> None:
        left = memoryview(data)
        try:
            while left:
                left = left[os.write(self._fd, left) :]
        except OSError as error:
            self._cut(len(data) - len(left))
            raise _full_or(error) from error

    def _cut(self, size: int) -> None:
        """Take that many bytes back, so that whoever makes room can write them again."""
        if size:
            os.ftruncate(self._fd, os.lseek(self._fd, -size, os.SEEK_CUR))


@asynccontextmanager
async def spooled(directory: Path, name: str) -> AsyncIterator[SpoolFile]:
    """A new file in ``directory``, which is made if it is not there.

    Removed on leaving, unless ``kept``: at once and in this thread, since a thread of Trio's
    may be long in coming, or not come at all.
    Raises `DiskFull`, and ``OSError`` for anything else.
    """
    path = directory / files.check_name(name)
    fd = await trio.to_thread.run_sync(_open_new, path)
    file = SpoolFile(path, fd)
    try:
        yield file
    finally:
        _finish(file, fd)


async def read_spooled(path: Path, send: Callable[[bytes], Awaitable[None]]) -> None:
    """Hand the file on in pieces. It may be removed meanwhile.

    Raises ``FileNotFoundError`` before the first piece if it is not there, ``OSError`` else.
    """
    fd = await trio.to_thread.run_sync(os.open, path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        while data := await trio.to_thread.run_sync(os.read, fd, RECEIVE_BUFFER):
            await send(data)
    finally:
        os.close(fd)


async def free_bytes(directory: Path, size: int) -> int:
    """What its disk has left for a file of ``size`` bytes there, the rest of its last block included.

    0 where that cannot be told. A quota is not seen.
    """
    try:
        found = await trio.to_thread.run_sync(os.statvfs, directory)
    except OSError:
        return 0
    return found.f_bavail * found.f_frsize + -size % max(1, found.f_frsize)


def _open_new(path: Path) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        return os.open(path, flags, 0o600)
    except OSError as error:
        raise _full_or(error) from error


def _finish(file: SpoolFile, fd: int) -> None:
    try:
        os.close(fd)
    finally:
        if not file.kept:
            files.remove(file.path)


def _full_or(error: OSError) -> Exception:
    if error.errno in _FULL:
        return DiskFull(f"no room for the output: {os.strerror(error.errno)}")
    return error
