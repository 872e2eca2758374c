"""Replies find their requests: one-shot memory channels of capacity 1, by request id.

A request leaves the table in every way out: reply, cancellation, teardown. What arrives
for a request that is not waiting is told apart: it is *late* (the waiter gave up),
a *duplicate* (it was answered already), of the *wrong kind*, or *unknown*. Nothing of
that is an error here; it is counted, and reported to the owner's ``on_stray``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, Generic, Literal, TypeAlias, TypeVar

import attrs
import trio

from trio_swarm.errors import BusyError
from trio_swarm.limits import MAX_PENDING, SETTLED_REMEMBERED

__all__ = ["ReplyStatistics", "ReplyTable", "Resolution", "Stray", "Waiter"]

R = TypeVar("R")

Resolution: TypeAlias = Literal["accepted", "late", "duplicate", "unknown", "wrong_kind"]

_SPARE_CHANNELS: Final = 64
"""Channels kept for re-use: opening one is most of a slot's cost, and few are open at a time."""


@attrs.frozen
class Stray:
    """A reply that no request took."""

    req_id: str
    """The id that it carries; opaque, chosen by whoever made the request."""
    verdict: Resolution
    """Why: ``late``, ``duplicate``, ``unknown`` or ``wrong_kind``."""
    kind: str
    """The class of the reply."""


@attrs.frozen
class ReplyStatistics:
    """Counts since the table was made."""

    pending: int
    """Requests that wait now."""
    accepted: int
    """Replies that their request took."""
    late: int
    """Replies to requests whose waiter had given up."""
    duplicate: int
    """Replies to requests that were answered already."""
    unknown: int
    """Replies to requests never made, or made too long ago to be remembered."""
    wrong_kind: int
    """Replies of a class that the request does not expect."""


@attrs.define(eq=False)
class _Channel(Generic[R]):
    """A one-shot channel; its two ends travel together so that a spare can be used again."""

    give: trio.MemorySendChannel[R | _Failure]
    take: trio.MemoryReceiveChannel[R | _Failure]


@attrs.frozen(eq=False)
class _Failure:
    """Put in a channel in place of a reply: what the waiter raises."""

    error: Exception


@attrs.define(eq=False)
class Waiter(Generic[R]):
    """The waiting end of one request; made by `ReplyTable.expect`."""

    req_id: str
    """The request's id."""
    kinds: tuple[type, ...]
    """The classes of reply that it takes."""
    _channel: _Channel[R]
    _settled_as: Literal["late", "duplicate"] | None = None
    _received: bool = False

    async def wait(self) -> R:
        """The reply. Raises what `ReplyTable.fail_all` was given.

        Cancellable: the request then stays in the table until its ``expect`` block is
        left, and a reply that came meanwhile is handed to the next call. A second call
        after a reply raises ``trio.EndOfChannel``.
        """
        if self._received:
            raise trio.EndOfChannel
        reply = await self._channel.take.receive()
        self._received = True
        if isinstance(reply, _Failure):
            raise reply.error
        return reply

    def _put(self, reply: R | _Failure) -> None:
        # What comes after a failure is no second answer: it is the first one, too late.
        self._settled_as = "late" if isinstance(reply, _Failure) else "duplicate"
        self._channel.give.send_nowait(reply)


class ReplyTable(Generic[R]):
    """Requests that wait for their reply, by id.

    ``max_pending`` requests wait at most; ``remembered`` ids of settled ones are kept, so
    that a duplicate is told from an unknown reply. ``on_stray`` is called, synchronously,
    for each reply that nobody took.
    """

    def __init__(
        self,
        *,
        max_pending: int = MAX_PENDING,
        remembered: int = SETTLED_REMEMBERED,
        on_stray: Callable[[Stray], None] | None = None,
    ) -> None:
        self._max_pending = max_pending
        self._remembered = remembered
        self._on_stray = on_stray
        self._waiting: dict[str, Waiter[R]] = {}
        self._settled: dict[str, Literal["late", "duplicate"]] = {}
        self._spare: list[_Channel[R]] = []
        self._counts: dict[Resolution, int] = dict.fromkeys(
            ("accepted", "late", "duplicate", "unknown", "wrong_kind"), 0
        )

    def __repr__(self) -> str:
        return f"<ReplyTable {len(self._waiting)} pending of {self._max_pending}>"

    @contextmanager
    def expect(self, req_id: str, kinds: tuple[type, ...] = (object,)) -> Iterator[Waiter[R]]:
        """Enter a request; it is gone from the table when the block is left, however.

        ``kinds`` are the classes of reply that settle it. Send the request inside the
        block, so that its reply cannot come too early. Raises `BusyError` when the table
        is full and ``ValueError`` when the id waits already.
        """
        if req_id in self._waiting:
            raise ValueError(f"request {req_id!r} waits already")
        if len(self._waiting) >= self._max_pending:
            raise BusyError(f"{self._max_pending} requests wait for their reply already")
        waiter: Waiter[R] = Waiter(req_id, kinds, self._channel())
        self._waiting[req_id] = waiter
        try:
            yield waiter
        finally:
            del self._waiting[req_id]
            self._remember(req_id, waiter._settled_as or "late")
            self._recycle(waiter)

    def resolve(self, req_id: str, reply: R) -> Resolution:
        """Hand ``reply`` to its request; says what became of it.

        A reply of the wrong kind does not use the request up: the right one may still come.
        """
        waiter = self._waiting.get(req_id)
        verdict: Resolution
        if waiter is None:
            verdict = self._settled.get(req_id, "unknown")
        elif waiter._settled_as is not None:
            verdict = waiter._settled_as
        elif not isinstance(reply, waiter.kinds):
            verdict = "wrong_kind"
        else:
            waiter._put(reply)
            verdict = "accepted"
        self._counts[verdict] += 1
        if verdict != "accepted" and self._on_stray is not None:
            self._on_stray(Stray(req_id, verdict, type(reply).__name__))
        return verdict

    def fail_all(self, error: Exception) -> int:
        """Raise ``error`` in every request that has no reply yet; says how many there were.

        Each waiter raises this very object: give one made for the occasion.
        """
        failed = [waiter for waiter in self._waiting.values() if waiter._settled_as is None]
        for waiter in failed:
            waiter._put(_Failure(error))
        return len(failed)

    def pending(self) -> tuple[str, ...]:
        """The ids that wait for a reply, oldest first."""
        return tuple(req_id for req_id, waiter in self._waiting.items() if waiter._settled_as is None)

    def statistics(self) -> ReplyStatistics:
        """Counts so far."""
        return ReplyStatistics(pending=len(self.pending()), **self._counts)

    def _channel(self) -> _Channel[R]:
        if self._spare:
            return self._spare.pop()
        return _Channel(*trio.open_memory_channel[R | _Failure](1))

    def _recycle(self, waiter: Waiter[R]) -> None:
        # Only a channel whose one message was received is surely empty with nobody parked
        # on it. One whose waiter was cancelled is left to the garbage collector.
        if waiter._received and len(self._spare) < _SPARE_CHANNELS:
            self._spare.append(waiter._channel)

    def _remember(self, req_id: str, verdict: Literal["late", "duplicate"]) -> None:
        self._settled.pop(req_id, None)
        self._settled[req_id] = verdict
        while len(self._settled) > self._remembered:
            del self._settled[next(iter(self._settled))]
