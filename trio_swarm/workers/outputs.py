"""The data store: what workers emit, small in memory, large on disk (operators contract 1.5)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import attrs

from trio_swarm._io import files
from trio_swarm._io.spool import DiskFull, SpoolFile, read_spooled, spooled
from trio_swarm._state.board import Denied
from trio_swarm._state.outputs import Output, OutputIndex, Room

__all__ = ["Draft", "Output", "OutputStore"]


@attrs.define(eq=False)
class Draft:
    """An output that is being received; made by `OutputStore.draft`."""

    out_id: str
    _index: OutputIndex = attrs.field(repr=False)
    _room: Room = attrs.field(repr=False)
    _open_file: Callable[[], Awaitable[SpoolFile]] = attrs.field(repr=False)
    _buffer: bytearray = attrs.field(factory=bytearray, repr=False)
    _file: SpoolFile | None = attrs.field(default=None, repr=False)
    kept: Output | None = None

    @property
    def size(self) -> int:
        """Bytes so far."""
        return self._room.size

    async def write(self, data: bytes | bytearray) -> None:
        """Append ``data``. Raises `Denied` 410, 413 or 507."""
        self._index.take(self._room, len(data))
        if self._file is None and self._index.fits_inline(self.size):
            self._buffer += data
            return
        try:
            if self._file is None:
                self._file = await self._open_file()
                buffered, self._buffer = self._buffer, bytearray()
                await self._file.write(buffered)
            await self._file.write(data)
        except DiskFull as error:
            raise Denied(507, str(error)) from None

    def keep(self, attempt: int, producer: str, **about: Any) -> Output:
        """It is complete: from now on it can be found. Takes the other fields of `Output`."""
        output = Output(
            out_id=self.out_id,
            task_id=self._room.task_id,
            attempt=attempt,
            producer=producer,
            size=self.size,
            content=bytes(self._buffer) if self._file is None else None,
            file=None if self._file is None else self._file.path,
            **about,
        )
        self.kept = self._index.add(output)
        if self._file is not None:
            self._file.kept = True
        return self.kept


class OutputStore:
    """The outputs of one board. ``spool`` names the directory for the large ones."""

    def __init__(
        self,
        *,
        new_hex: Callable[[int], str],
        spool: Callable[[], Path],
        index: OutputIndex | None = None,
    ) -> None:
        self._new_hex = new_hex
        self._spool = spool
        self._index = index if index is not None else OutputIndex()

    @property
    def size(self) -> int:
        """Bytes of all outputs, those that are being received included."""
        return self._index.size

    def find(self, key: str, *, task_id: str | None) -> Output | None:
        """By id or name, as a reader of that task sees it; None is a reader of no task."""
        return self._index.find(key, task_id)

    def sees(self, out_id: str, *, task_id: str) -> bool:
        """There is an output of that id, and a reader of that task may see it."""
        return self._index.sees(out_id, task_id)

    def of(self, task_id: str, attempt: int | None = None) -> tuple[Output, ...]:
        """All outputs of a task, or of one of its attempts, oldest first."""
        return self._index.of(task_id, attempt)

    @asynccontextmanager
    async def draft(self, task_id: str) -> AsyncIterator[Draft]:
        """Receive an output. Unless the block keeps it, nothing is left of it.

        Raises `Denied` 413 where the task has too many.
        """
        room = self._index.room(task_id)
        async with AsyncExitStack() as stack:

            async def open_file() -> SpoolFile:
                return await stack.enter_async_context(spooled(self._spool(), draft.out_id))

            draft = Draft(self._fresh_id(), self._index, room, open_file)
            try:
                yield draft
            finally:
                if draft.kept is None:
                    self._index.give_back(room)

    def _fresh_id(self) -> str:
        while True:
            out_id = f"out-{self._new_hex(5)}"
            if self._index.is_free(out_id):
                return out_id

    async def read(self, output: Output, send: Callable[[bytes], Awaitable[None]]) -> None:
        """Hand the content on, in pieces if it is large.

        Raises ``FileNotFoundError`` if the output was forgotten meanwhile.
        """
        if output.content is not None:
            await send(output.content)
        else:
            await read_spooled(output.file, send)

    def forget(self, task_id: str) -> None:
        """Remove all outputs of a task, their files too."""
        for output in self._index.forget(task_id):
            if output.file is not None:
                with suppress(OSError):  # What cannot be removed now goes with the directory.
                    files.remove(output.file)
