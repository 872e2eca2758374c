"""A pod's clients: everybody sees the same events, each reads and writes at its own pace (B2.4).

Reading a client's methods never waits for writing to it, so a client that sends and never reads is
heard. One that falls behind by more than 256 events loses its connection; the engine gives it a
moment first, once, so that a burst costs nobody who does read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import attrs
import trio

from trio_swarm._child.pod_lines import PodLines
from trio_swarm._io.link import Link, Malformed, open_link
from trio_swarm._io.unix import peer_is_ours
from trio_swarm._state.pod_controller import Method, Notifier
from trio_swarm.errors import PeerError
from trio_swarm.frames import encode
from trio_swarm.frames.pod import Error, GetHistory, History, Notification, PodMethod
from trio_swarm.limits import CLOSE_DEADLINE, MAX_FRAME, POD_LAG, POD_NOTIFICATIONS

__all__ = ["PACE", "PodClients"]

PACE: Final = 1.0
"""Seconds that the engine waits, once, for a client that has half of its lag used up."""

_GONE: Final = (PeerError, trio.BrokenResourceError, trio.ClosedResourceError)


@attrs.define(eq=False)
class _Client:
    """One connection."""

    link: Link[PodMethod]
    connection: trio.CancelScope
    """Cancelled to hang up at once."""
    reading: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    """Cancelled to stop hearing it and let what is queued leave."""
    live: int = 0
    """Events queued for it since it came; the replay is not lag."""
    given_time: bool = True
    """Whether the engine still waits for it when it falls behind."""
    asked_history: int = 0
    """How many times it asked and has not been answered."""
    asked: trio.Event = attrs.field(factory=trio.Event)

    def lag(self) -> int:
        """Events of ours that still wait to be written."""
        return min(self.live, self.link.statistics().queued)

    def put(self, event: object) -> None:
        """Queue an event, or hang up where that is one too many."""
        behind = self.lag()
        if behind == 0:
            self.given_time = True
        try:
            if behind >= POD_LAG:
                raise trio.WouldBlock
            self.link.send_nowait(event)
            self.live += 1
        except (trio.WouldBlock, *_GONE):
            # Methods of it that have arrived are still read: only who lags is cut off at once.
            if behind >= POD_LAG:
                self.connection.cancel()


class PodClients:
    """All connections of one pod."""

    def __init__(
        self,
        notifier: Notifier,
        on_method: Callable[[Method], None],
        history: Callable[[], History],
        *,
        max_line: int = MAX_FRAME,
        pace: float = PACE,
    ) -> None:
        self._notifier = notifier
        self._on_method = on_method
        self._history = history
        self._max_line = max_line
        self._pace = pace
        self._clients: set[_Client] = set()
        self._closing = False
        self._all_gone = trio.Event()

    def __len__(self) -> int:
        return len(self._clients)

    def broadcast(self, event: object) -> None:
        """Queue an event for every client; never waits.

        Raises `FrameError` for an event that cannot be encoded, whoever listens.
        """
        text = encode(event)
        # The peer counts bytes; most events are ASCII and need no second encoding to be counted.
        if len(text) > self._max_line or (not text.isascii() and len(text.encode()) > self._max_line):
            raise ValueError(f"an event of {len(text)} characters is more than clients take")
        if isinstance(event, Notification):
            self._notifier.add(event)
        for client in tuple(self._clients):
            client.put(event)

    async def pace(self) -> None:
        """Let clients that fall behind catch up, for a moment; always a checkpoint."""
        for client in tuple(self._clients):
            if client.given_time and client.lag() > POD_LAG // 2:
                with trio.move_on_after(self._pace) as scope:
                    try:
                        await client.link.flush()
                    except _GONE:
                        continue
                client.given_time = not scope.cancelled_caught
        await trio.lowlevel.checkpoint()

    async def serve_one(self, stream: trio.abc.Stream) -> None:
        """Serve one connection to its end; raises what its peer brought about."""
        if self._closing or not peer_is_ours(stream):
            return
        transport = PodLines(stream, max_line=self._max_line)
        with trio.CancelScope() as connection:
            async with open_link(
                transport, PodMethod, outgoing_frames=POD_NOTIFICATIONS + POD_LAG + 1
            ) as link:
                client = _Client(link, connection)
                self._subscribe(client)
                try:
                    await self._talk(client)
                finally:
                    self._unsubscribe(client)

    async def close(self) -> None:
        """Hear nobody any more and let what is queued leave; bounded."""
        self._closing = True
        for client in self._clients:
            client.reading.cancel()
        with trio.move_on_after(2 * CLOSE_DEADLINE):
            if self._clients:
                await self._all_gone.wait()

    # -- one connection ------------------------------------------------------------------

    def _subscribe(self, client: _Client) -> None:
        """The replay and the subscription are one step: each notification is seen exactly once."""
        for notification in self._notifier.snapshot():
            client.link.send_nowait(notification)
        self._clients.add(client)

    def _unsubscribe(self, client: _Client) -> None:
        self._clients.discard(client)
        if self._closing and not self._clients:
            self._all_gone.set()

    async def _talk(self, client: _Client) -> None:
        with client.reading:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._tell_history, client)
                await self._hear(client)
                nursery.cancel_scope.cancel()
        # What it asked for before it closed its own side is still owed to it.
        while client.asked_history:
            client.asked_history -= 1
            await client.link.send(self._history())

    async def _hear(self, client: _Client) -> None:
        async for method in client.link:
            if isinstance(method, Malformed):
                # To the offender alone; the original told everybody.
                client.put(Error("internal", f"invalid method: {method.error}"[:1024]))
            elif isinstance(method, GetHistory):
                client.asked_history += 1
                client.asked.set()
            else:
                self._on_method(method)

    async def _tell_history(self, client: _Client) -> None:
        """One answer at a time: they may be large, and who does not read them gets no more."""
        try:
            while True:
                await client.asked.wait()
                client.asked = trio.Event()
                while client.asked_history:
                    await client.link.send(self._history())
                    client.asked_history -= 1
                    await client.link.flush()
        except _GONE:
            # The writing side is over; what it still says is heard.
            return
