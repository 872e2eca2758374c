"""What happened in a swarm, for whoever wants to watch, without ever slowing it.

The swarm never waits for a subscriber. Each subscription has its own bounded buffer and
its own answer to falling behind: ``"drop_oldest"`` loses the oldest events, ``"close"`` ends the
subscription. Events are numbered, so that a loss is visible as a gap in ``seq``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Literal

import attrs
import trio
from attrs import field

from trio_swarm.limits import EVENTS_BUFFERED

__all__ = ["Event", "EventHub", "Overflow", "Subscription"]

Overflow = Literal["drop_oldest", "close"]


@attrs.frozen
class Event:
    """One thing that happened."""

    seq: int
    """Counts from 1 within one swarm; a gap means that the subscriber lost events."""
    at: float
    """``trio.current_time()`` of the emission, in seconds."""
    kind: str
    """What it was, for example ``worker_crashed``."""
    data: Mapping[str, object] = field(factory=dict)
    """JSON values only, no secrets."""


@attrs.define(eq=False)
class Subscription:
    """An asynchronous iterator of events; made by `EventHub.subscribe`. Several readers share the events."""

    _capacity: int
    _overflow: Overflow
    _buffer: deque[Event] = field(factory=deque, repr=False)
    _ready: trio.Event = field(factory=trio.Event, repr=False)
    _closed: bool = False
    lost: int = 0
    """Events that were dropped because nobody read them in time."""

    def _push(self, event: Event) -> None:
        if self._closed:
            return
        if len(self._buffer) >= self._capacity:
            self.lost += 1
            if self._overflow == "close":
                self._close()
                return
            self._buffer.popleft()
        self._buffer.append(event)
        self._ready.set()

    def _close(self) -> None:
        self._closed = True
        self._ready.set()

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> Event:
        """The next event; ends when the swarm, or an overflowing subscription, is over.

        Cancelled: no event is lost.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        while not self._buffer:
            if self._closed:
                await trio.lowlevel.cancel_shielded_checkpoint()
                raise StopAsyncIteration
            if self._ready.is_set():
                self._ready = trio.Event()
            await self._ready.wait()
        event = self._buffer.popleft()
        await trio.lowlevel.cancel_shielded_checkpoint()
        return event


@attrs.define(eq=False)
class EventHub:
    """Numbers events and hands each to every subscription."""

    _seq: int = 0
    _subscriptions: list[Subscription] = field(factory=list, repr=False)
    _closed: bool = False

    def emit(self, kind: str, data: Mapping[str, object]) -> None:
        """Tell all subscribers; never blocks, never raises because of a subscriber."""
        self._seq += 1
        event = Event(self._seq, trio.current_time(), kind, dict(data))
        for subscription in self._subscriptions:
            subscription._push(event)

    @contextmanager
    def subscribe(
        self, *, capacity: int = EVENTS_BUFFERED, overflow: Overflow = "drop_oldest"
    ) -> Iterator[Subscription]:
        """Events from now on, until the block is left.

        Args:
            capacity: events buffered for this subscriber; at least 1.
            overflow: what gives way when the buffer is full.
        """
        if capacity < 1:
            raise ValueError(f"capacity must be at least 1, not {capacity}")
        if overflow not in ("drop_oldest", "close"):
            raise ValueError(f"overflow must be 'drop_oldest' or 'close', not {overflow!r}")
        subscription = Subscription(capacity, overflow, closed=self._closed)
        self._subscriptions.append(subscription)
        try:
            yield subscription
        finally:
            self._subscriptions.remove(subscription)
            subscription._close()

    def close(self) -> None:
        """No more events: every subscription ends after what it still holds."""
        self._closed = True
        for subscription in self._subscriptions:
            subscription._close()
