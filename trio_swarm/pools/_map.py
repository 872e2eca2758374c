"""A job for each item of a stream, bounded in both directions."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from typing import Any, Generic, TypeVar, final

import attrs
import trio

from trio_swarm._io.groups import collapse
from trio_swarm.errors import ChildCrashed
from trio_swarm.pools._job import Job
from trio_swarm.pools._values import Outcome

__all__ = ["Results", "open_map"]

T = TypeVar("T")


@final
@attrs.define(eq=False)
class Results(Generic[T]):
    """Async iterator of ``(item, outcome)``; one task at a time may iterate."""

    _received: trio.MemoryReceiveChannel[tuple[int, T, Outcome]]
    _room: trio.Semaphore
    _ordered: bool
    _next: int = 0
    _early: dict[int, tuple[T, Outcome]] = attrs.field(factory=dict)
    """In order only: outcomes whose turn has not come; at most as many as there is room."""

    def __aiter__(self) -> Results[T]:
        return self

    async def __anext__(self) -> tuple[T, Outcome]:
        while not (self._ordered and self._next in self._early):
            try:
                index, item, outcome = await self._received.receive()
            except trio.EndOfChannel:
                raise StopAsyncIteration from None
            if not self._ordered:
                self._room.release()
                return item, outcome
            self._early[index] = item, outcome
        found = self._early.pop(self._next)
        self._next += 1
        self._room.release()
        return found


@attrs.define(eq=False)
class _Source(Generic[T]):
    """Numbers the items; an async one is asked by one task at a time."""

    _items: Iterator[T] | AsyncIterator[T]
    _turn: trio.Lock = attrs.field(factory=trio.Lock)
    _taken: int = 0
    _over: bool = False

    async def take(self) -> tuple[int, T] | None:
        """The next item and its number, None at the end. Of a plain iterable: no checkpoint."""
        if not isinstance(self._items, AsyncIterator):
            for item in self._items:
                return self._number(item)
            return None
        async with self._turn:
            if not self._over:
                async for item in self._items:
                    return self._number(item)
                self._over = True
            return None

    def _number(self, item: T) -> tuple[int, T]:
        self._taken += 1
        return self._taken - 1, item


@asynccontextmanager
async def open_map(
    items: Iterable[T] | AsyncIterable[T],
    settle: Callable[[Job], Awaitable[Any]],
    new_job: Callable[[T], Job],
    *,
    ordered: bool,
    ahead: int,
    left: Callable[[], bool],
) -> AsyncIterator[Results[T]]:
    """See `Pool.map`. Each item holds a place from before it is taken until its outcome is received."""
    if ahead < 1:
        raise ValueError("ahead must be at least 1")
    source = _Source(aiter(items) if isinstance(items, AsyncIterable) else iter(items))
    room = trio.Semaphore(ahead)
    send, receive = trio.open_memory_channel[tuple[int, T, Outcome]](ahead)

    async def work(channel: trio.MemorySendChannel[tuple[int, T, Outcome]]) -> None:
        with channel:
            while True:
                try:
                    room.acquire_nowait()
                except trio.WouldBlock:
                    await room.acquire()
                taken = await source.take()
                if taken is None:
                    # The next one must find out, too.
                    room.release()
                    return
                index, item = taken
                # Never full: it has as many places as there is room.
                channel.send_nowait((index, item, await _outcome(settle, new_job(item), left)))

    with collapse(), receive:
        async with trio.open_nursery() as nursery:
            with send:
                for _ in range(ahead):
                    nursery.start_soon(work, send.clone())
            yield Results(receive, room, ordered)
            nursery.cancel_scope.cancel()


async def _outcome(settle: Callable[[Job], Awaitable[Any]], job: Job, left: Callable[[], bool]) -> Outcome:
    try:
        return Outcome("ok", value=await settle(job), attempts=job.attempts)
    except ChildCrashed as crash:
        return Outcome("crashed", error=crash, attempts=job.attempts)
    except Exception as error:
        # Of the pool itself; else it is on_query's, about something of its own.
        if isinstance(error, trio.ClosedResourceError) and left():
            raise
        return Outcome("error", error=error, attempts=job.attempts)
