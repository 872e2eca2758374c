"""Bodies that need not fit into memory: where the worker's client takes them from, and puts them."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, AsyncIterable, Callable
from pathlib import Path
from typing import Final, Protocol, TypeAlias

import attrs
import trio

from trio_swarm._io.spool import SpoolFile

__all__ = ["FileSink", "Pieces", "Sink", "StreamSink", "pieces_of_file", "pieces_of_iterable"]

Pieces: TypeAlias = Callable[[], AsyncGenerator[bytes, None]]
_PIECE: Final = 256 * 2**10


def pieces_of_file(path: Path) -> Pieces:
    """Makes the file's content, from its beginning each time. Raises ``OSError`` as it is read."""

    async def read() -> AsyncGenerator[bytes, None]:
        fd = await trio.to_thread.run_sync(os.open, path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            while piece := await trio.to_thread.run_sync(os.read, fd, _PIECE):
                yield piece
        finally:
            os.close(fd)

    return read


def pieces_of_iterable(pieces: AsyncIterable[bytes]) -> Pieces:
    """Makes what ``pieces`` gives: once only."""

    async def read() -> AsyncGenerator[bytes, None]:
        async for piece in pieces:
            yield piece

    return read


class Sink(Protocol):
    """Where a body goes as it comes."""

    async def take(self, data: bytes) -> None:
        """The next piece."""

    async def again(self) -> bool:
        """The connection was lost: forget what came. False if that cannot be done any more."""


@attrs.frozen
class FileSink:
    """Into a file that is being written."""

    file: SpoolFile

    async def take(self, data: bytes) -> None:
        """Append it."""
        await self.file.write(data)

    async def again(self) -> bool:
        """From the file's beginning."""
        await self.file.clear()
        return True


@attrs.define
class StreamSink:
    """To somebody who reads along."""

    channel: trio.MemorySendChannel[bytes]
    begun: bool = False

    async def take(self, data: bytes) -> None:
        """Wait until it is wanted."""
        self.begun = True
        await self.channel.send(data)

    async def again(self) -> bool:
        """Only if nothing was handed on."""
        await trio.lowlevel.checkpoint()
        return not self.begun
