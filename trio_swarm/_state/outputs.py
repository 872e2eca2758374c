"""Outputs of workers: which there are, who may read them, how much room they take.

The index of the data store (operators contract 1.5). An output is found by its id, else as the
latest of its producer's name, else as the latest artifact of that name: among those of the
reader's own task, and only where they have none of that name, among the public ones of all
tasks. Otherwise any task could put something of its own in the place of another's.

Where the bound of all outputs is reached, those of ended tasks give way to one that is being
received: their content goes, and that they were there is known until their task is forgotten, so
that nothing else is found in their place. None of them goes for one of a known size that would find
no room even so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, TypeAlias

import attrs

from trio_swarm._state.board import Denied
from trio_swarm.limits import (
    INLINE_OUTPUT,
    INLINE_OUTPUTS,
    MAX_ALL_OUTPUTS,
    MAX_OUTPUT,
    MAX_TASK_OUTPUTS,
    MAX_TASK_RECORDS,
)

__all__ = ["Output", "OutputIndex", "Room"]


Where: TypeAlias = Literal["anywhere", "disk", "memory"]


@attrs.frozen(eq=False)
class Output:
    """One output, and where its content is."""

    out_id: str
    task_id: str
    attempt: int
    producer: str
    parent_refs: tuple[str, ...]
    public: bool
    size: int
    """Bytes of the content."""
    content: bytes | None = attrs.field(repr=False)
    """The event as JSON, or the raw body; None if it is in a file, or was given up."""
    file: Any = attrs.field(default=None, repr=False)
    """The path of that file."""
    content_type: str | None = None
    """Of a raw body; None for an event."""
    artifact: str | None = None
    """The name of an artifact's event."""
    given_up: bool = False
    """Its content gave way to another's."""


@attrs.define(eq=False)
class Room:
    """Bytes taken for one output that is not complete yet."""

    task_id: str
    expected: int = 0
    """Bytes that it will have in the end; 0 if that is not known."""
    size: int = 0

    def to_come(self, size: int) -> int:
        """Bytes from now on, of which ``size`` are there."""
        return max(size, self.expected - self.size)


@attrs.define(eq=False)
class _TaskOutputs:
    size: int = 0
    records: int = 0
    whole: int = 0
    """Outputs that were not given up."""
    outputs: dict[str, Output] = attrs.field(factory=dict)


_Names: TypeAlias = dict[tuple[str | None, str], dict[str, Output]]
"""Outputs of one name by id, the latest last; under their task, and the public under None too."""


class OutputIndex:
    """See the module's text. Sizes in bytes."""

    def __init__(
        self,
        *,
        max_output: int = MAX_OUTPUT,
        max_task: int = MAX_TASK_OUTPUTS,
        max_all: int = MAX_ALL_OUTPUTS,
        max_records: int = MAX_TASK_RECORDS,
    ) -> None:
        self.max_output = max_output
        self._max_task = max_task
        self._max_all = max_all
        self._max_records = max_records
        self._by_id: dict[str, Output] = {}
        self._by_producer: _Names = {}
        self._by_artifact: _Names = {}
        self._tasks: dict[str, _TaskOutputs] = {}
        self._read: Counter[str] = Counter()
        """How often each output is being read now."""
        self._all = 0
        self._inline = 0

    @property
    def size(self) -> int:
        """Bytes of all outputs, and of those that are being received."""
        return self._all

    def room(self, task_id: str, expected: int = 0) -> Room:
        """Begin an output, of ``expected`` bytes if that is known.

        Raises `Denied` 413 where the task has too many.
        """
        known = self._tasks.setdefault(task_id, _TaskOutputs())
        if known.records >= self._max_records:
            raise Denied(413, f"a task has at most {self._max_records} outputs")
        known.records += 1
        return Room(task_id, expected)

    def take(self, room: Room, size: int, yielding: Iterable[str] = ()) -> tuple[Output, ...]:
        """So many bytes more. Returns the outputs that were given up for them, of ``yielding`` tasks.

        Raises `Denied`: 413 for the output's or its task's bound, 507 for that of all; for those that
        are expected too, and nothing is given up then. With 0 bytes it only looks.
        """
        known = self._tasks.get(room.task_id)
        if known is None:
            raise Denied(410, "the task has ended")
        to_come = room.to_come(size)
        if room.size + to_come > self.max_output:
            raise Denied(413, f"an output has at most {self.max_output} bytes")
        if known.size + to_come > self._max_task:
            raise Denied(413, f"the outputs of a task have at most {self._max_task} bytes")
        missing = self._all + size - self._max_all
        gone: list[Output] | None = []
        if missing > 0 or not size:
            gone = self._choose(missing, self._all + to_come - self._max_all, yielding)
        if gone is None:
            raise Denied(507, "there is no room for more outputs")
        for output in gone:
            self._empty(output)
        room.size += size
        known.size += size
        self._all += size
        return tuple(gone)

    def give_back(self, room: Room) -> None:
        """The output did not come about."""
        known = self._tasks.get(room.task_id)
        if known is not None:
            known.size -= room.size
            known.records -= 1
            self._all -= room.size

    def give_up(
        self, size: int, yielding: Iterable[str], *, where: Where = "anywhere", in_all: int = 0
    ) -> tuple[Output, ...]:
        """Give up outputs of ``size`` bytes or more, of those tasks in that order, the oldest first.

        None of them if there are not so many, or not ``in_all`` with those that would have to go
        later; never one that is being read. ``where`` says which room is wanted. Returns them as
        they were.
        """
        gone = self._choose(size, in_all, yielding, where) or ()
        for output in gone:
            self._empty(output)
        return tuple(gone)

    def _choose(
        self, size: int, in_all: int, yielding: Iterable[str], where: Where = "anywhere"
    ) -> list[Output] | None:
        """What `give_up` gives up; None where there is not enough."""
        chosen: list[Output] = []
        found, wanted = 0, max(size, in_all)
        for output in self._may_go(yielding):
            if found >= wanted:
                break
            if output.size > 0 and where in ("anywhere", "memory" if output.file is None else "disk"):
                if found < size:
                    chosen.append(output)
                found += output.size
        return chosen if found >= wanted else None

    def _may_go(self, yielding: Iterable[str]) -> Iterator[Output]:
        for task_id in yielding:
            known = self._tasks.get(task_id)
            if known is not None and known.whole:
                yield from (
                    each
                    for each in known.outputs.values()
                    if not each.given_up and each.out_id not in self._read
                )

    def _empty(self, output: Output) -> None:
        empty = attrs.evolve(output, content=None, file=None, given_up=True)
        known = self._tasks[output.task_id]
        known.outputs[output.out_id] = self._by_id[output.out_id] = empty
        for names, key in self._names_of(output):
            names[key][output.out_id] = empty
        known.whole -= 1
        known.size -= output.size
        self._all -= output.size
        if output.content is not None:
            self._inline -= output.size

    @contextmanager
    def reading(self, output: Output) -> Iterator[None]:
        """It is being read, and not given up meanwhile."""
        self._read[output.out_id] += 1
        try:
            yield
        finally:
            self._read[output.out_id] -= 1
            if not self._read[output.out_id]:
                del self._read[output.out_id]

    def gave_up(self, out_id: str) -> bool:
        """The output of that id is known, and its content has given way."""
        output = self._by_id.get(out_id)
        return output is not None and output.given_up

    def fits_inline(self, size: int) -> bool:
        """It may be kept in memory."""
        return size <= INLINE_OUTPUT and self.missing_inline(size) <= 0

    def missing_inline(self, size: int) -> int:
        """Bytes that are too many in memory for one of that size."""
        return self._inline + size - INLINE_OUTPUTS

    def add(self, output: Output) -> Output:
        """The output whose room was taken is complete. Raises `Denied` 410 if its task is forgotten."""
        known = self._tasks.get(output.task_id)
        if known is None:
            raise Denied(410, "the task has ended")
        known.outputs[output.out_id] = self._by_id[output.out_id] = output
        known.whole += 1
        for names, key in self._names_of(output):
            names.setdefault(key, {})[output.out_id] = output
        if output.content is not None:
            self._inline += output.size
        return output

    def is_free(self, out_id: str) -> bool:
        """No output has that id."""
        return out_id not in self._by_id

    def sees(self, out_id: str, task_id: str | None) -> bool:
        """There is an output of that id that a reader of that task may see."""
        output = self._by_id.get(out_id)
        return output is not None and (output.public or output.task_id == task_id)

    def find(self, key: str, task_id: str | None) -> Output | None:
        """By id or name, for a reader of that task; None for one of no task."""
        if self.sees(key, task_id):
            return self._by_id[key]
        for scope in (None,) if task_id is None else (task_id, None):
            for names in (self._by_producer, self._by_artifact):
                seen = names.get((scope, key))
                if seen:
                    return next(reversed(seen.values()))
        return None

    def of(self, task_id: str, attempt: int | None = None) -> tuple[Output, ...]:
        """All of a task or of one attempt, oldest first."""
        known = self._tasks.get(task_id)
        outputs = () if known is None else known.outputs.values()
        return tuple(each for each in outputs if attempt in (None, each.attempt))

    def forget(self, task_id: str) -> tuple[Output, ...]:
        """A task is forgotten: so are its outputs, which are returned."""
        gone = self.of(task_id)
        known = self._tasks.pop(task_id, None)
        self._all -= 0 if known is None else known.size
        for output in gone:
            del self._by_id[output.out_id]
            for names, key in self._names_of(output):
                del names[key][output.out_id]
                if not names[key]:
                    del names[key]
            if output.content is not None:
                self._inline -= output.size
        return gone

    def _names_of(self, output: Output) -> Iterator[tuple[_Names, tuple[str | None, str]]]:
        for scope in (output.task_id, None) if output.public else (output.task_id,):
            yield self._by_producer, (scope, output.producer)
            if output.artifact is not None:
                yield self._by_artifact, (scope, output.artifact)
