"""The data store: what workers emit, small in memory, large on disk (operators contract 1.5)."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final, TypeVar

import attrs

from trio_swarm._io import files
from trio_swarm._io.spool import DiskFull, SpoolFile, free_bytes, read_spooled, spooled
from trio_swarm._state.board import Denied
from trio_swarm._state.outputs import Output, OutputIndex, Room
from trio_swarm.limits import INLINE_OUTPUT

__all__ = ["Draft", "Output", "OutputStore"]

T = TypeVar("T")

_NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
"""Of a full disk: that others go helps. It does not help against a limit on the size of a file."""


@attrs.define(eq=False)
class Draft:
    """An output that is being received; made by `OutputStore.draft`."""

    out_id: str
    _store: OutputStore = attrs.field(repr=False)
    _room: Room = attrs.field(repr=False)
    _open_file: Callable[[], Awaitable[SpoolFile]] = attrs.field(repr=False)
    _buffer: bytearray = attrs.field(factory=bytearray, repr=False)
    _in_memory: bool = attrs.field(default=True, repr=False)
    _file: SpoolFile | None = attrs.field(default=None, repr=False)
    """Opened when it was first needed; empty as long as the content is in memory."""
    _on_file: int = attrs.field(default=0, repr=False)
    """Bytes in it."""
    kept: Output | None = None

    @property
    def size(self) -> int:
        """Bytes so far."""
        return self._room.size

    async def write(self, data: bytes | bytearray) -> None:
        """Append ``data``; outputs of ended tasks give way. Raises `Denied` 410, 413 or 507."""
        self._store._take(self._room, len(data))
        if not self._in_memory:
            await self._append(data)
            return
        self._buffer += data
        if self._store._index.fits_inline(self.size):
            return
        try:
            await self._append(bytes(self._buffer))
        except Denied:
            if not self._store._clear_memory(max(self.size, self._room.expected)):
                raise
        else:
            self._in_memory, self._buffer = False, bytearray()

    async def _append(self, data: bytes | bytearray) -> None:
        file = self._file
        if file is None:
            file = self._file = await self._on_disk(self._open_file, 1)
        await self._on_disk(lambda: file.write(data), len(data))
        self._on_file += len(data)

    async def _on_disk(self, act: Callable[[], Awaitable[T]], size: int) -> T:
        """Do it; again, as long as the disk is full and others can give way for all that is to come."""
        while True:
            try:
                return await act()
            except DiskFull as error:
                full = error
            whole = max(self._on_file + size, self._room.expected)
            if not await self._store._clear_disk(full, size, self._on_file, whole):
                raise Denied(507, str(full)) from None

    def keep(self, attempt: int, producer: str, **about: Any) -> Output:
        """It is complete: from now on it can be found. Takes the other fields of `Output`."""
        file = None if self._in_memory else self._file
        output = Output(
            out_id=self.out_id,
            task_id=self._room.task_id,
            attempt=attempt,
            producer=producer,
            size=self.size,
            content=bytes(self._buffer) if file is None else None,
            file=None if file is None else file.path,
            **about,
        )
        self.kept = self._store._index.add(output)
        if file is not None:
            file.kept = True
        return self.kept


class OutputStore:
    """The outputs of one board.

    Args:
        new_hex: ``new_hex(n)`` gives n random bytes in hex, for ids.
        spool: names the directory for large outputs.
        index: with other bounds.
        yielding: the ended tasks, in the order in which their outputs give way where there is no
            room for another.
        gave_way: told which outputs did.
    """

    def __init__(
        self,
        *,
        new_hex: Callable[[int], str],
        spool: Callable[[], Path],
        index: OutputIndex | None = None,
        yielding: Callable[[], Iterable[str]] = tuple,
        gave_way: Callable[[tuple[Output, ...]], None] = lambda gone: None,
    ) -> None:
        self._new_hex = new_hex
        self._spool = spool
        self._index = index if index is not None else OutputIndex()
        self._yielding = yielding
        self._gave_way = gave_way

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
    async def draft(self, task_id: str, *, expected: int = 0) -> AsyncIterator[Draft]:
        """Receive an output. Unless the block keeps it, nothing is left of it.

        ``expected`` is its size in bytes; 0 if that is not known. No output gives way to one that
        would find no room even so. Raises `Denied` 413 where the task has too many, and what
        `Draft.write` raises where an output of that size has no room.
        """
        room = self._index.room(task_id, expected)
        async with AsyncExitStack() as stack:

            async def open_file() -> SpoolFile:
                return await stack.enter_async_context(spooled(self._spool(), draft.out_id))

            draft = Draft(self._fresh_id(), self, room, open_file)
            try:
                self._take(room, 0)
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
        """Hand the content on, in pieces if it is large; it does not give way meanwhile.

        Raises ``FileNotFoundError`` if the output was forgotten, or given up (`gave_up`), before.
        """
        if output.content is not None:
            await send(output.content)
        else:
            with self._index.reading(output):
                await read_spooled(output.file, send)

    def gave_up(self, output: Output) -> bool:
        """Its content has given way to that of a running task."""
        return self._index.gave_up(output.out_id)

    def _take(self, room: Room, size: int) -> None:
        self._remove(self._index.take(room, size, self._yielding()))

    async def _clear_disk(self, error: DiskFull, size: int, written: int, whole: int) -> bool:
        """Make so much room on a disk that is full; False where nothing can be done.

        Nor is it where a file of which so much is written would not be ``whole`` with all that may go.
        """
        if not isinstance(error.__cause__, OSError) or error.__cause__.errno not in _NO_ROOM:
            return False
        in_all = whole - written - await free_bytes(self._spool(), written)
        gone = self._index.give_up(size, self._yielding(), where="disk", in_all=in_all)
        self._remove(gone)
        return bool(gone)

    def _clear_memory(self, size: int) -> bool:
        """Make room in memory for an output that finds none on disk; False if it is too large for that."""
        if size <= INLINE_OUTPUT:
            self._remove(
                self._index.give_up(self._index.missing_inline(size), self._yielding(), where="memory")
            )
        return self._index.fits_inline(size)

    def _remove(self, gone: tuple[Output, ...]) -> None:
        if gone:
            _remove_files(gone)
            self._gave_way(gone)

    def forget(self, task_id: str) -> None:
        """Remove all outputs of a task, their files too."""
        _remove_files(self._index.forget(task_id))


def _remove_files(outputs: Iterable[Output]) -> None:
    for output in outputs:
        if output.file is not None:
            with suppress(OSError):  # What cannot be removed now goes with the directory.
                files.remove(output.file)
