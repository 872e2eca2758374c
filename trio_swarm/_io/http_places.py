"""The places of one HTTP front: who has one, who must give it up, and whose turn it is to be answered."""

from __future__ import annotations

import logging
import math
import resource
from typing import Final

import attrs
import trio

from trio_swarm._io.http_messages import HttpError
from trio_swarm._state.crowd import Crowd, Entry, Guest
from trio_swarm.limits import MIN_CONNECTIONS, SPARE_DESCRIPTORS

__all__ = ["Places", "hurried", "within_descriptors"]

_log: Final = logging.getLogger("trio_swarm.http")

_TOLD_EVERY: Final = 1.0
"""Seconds between two lines in the log about who was hung up on: they must not fill it."""
_AGAIN: Final = ((b"retry-after", b"1"),)


def hurried() -> HttpError:
    """For who must go, or came beyond the share of its place and is late."""
    text = "too many connections from your address that have shown no credential of an admin or a worker"
    return HttpError(429, text, headers=_AGAIN)


def within_descriptors(connections: int, name: str) -> int:
    """So many connections, or fewer, where the process may not open as many descriptors: told in the log.

    While there are some left, the oldest connection goes for the next; where there are none, nobody can come.
    """
    may_open = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if may_open == resource.RLIM_INFINITY:
        return connections
    most = min(connections, max(MIN_CONNECTIONS, may_open - SPARE_DESCRIPTORS))
    if most < connections:
        text = "%s: at most %d connections instead of %d: the process may open %d files (RLIMIT_NOFILE)"
        _log.warning(text, name, most, connections, may_open)
    return most


@attrs.define(eq=False)
class Places:
    """Carries out what a `Crowd` decides. Each guest is one task's, which ends with it."""

    name: str
    crowd: Crowd
    patience: float
    """Seconds that a request waits for its turn."""
    _scopes: dict[Guest, trio.CancelScope] = attrs.field(factory=dict, init=False)
    """Of each guest, what ends its connection."""
    _turns: dict[Guest, trio.Event] = attrs.field(factory=dict, init=False)
    """Of those that wait for their turn."""
    _hung_up: int = attrs.field(default=0, init=False)
    _told: float = attrs.field(default=-math.inf, init=False)

    def enter(self, place: str) -> tuple[Guest, trio.CancelScope] | None:
        """One more connection; its scope is cancelled when it must go. None: there is no room for it."""
        entry: Entry | None = self.crowd.enter(place)
        if entry is None:
            self._tell_of_hanging_up()
            return None
        if entry.ousted is not None:
            self._scopes[entry.ousted].cancel()
        scope = self._scopes[entry.guest] = trio.CancelScope()
        return entry.guest, scope

    def leave(self, guest: Guest) -> None:
        """Its connection is over."""
        del self._scopes[guest]
        self.crowd.leave(guest)
        self._call()

    async def ask(self, guest: Guest) -> None:
        """Its request is whole: wait until it may be answered, and is not cut off any more.

        Raises `HttpError` 429 if that takes longer than ``patience``. Who must go is cancelled here at the
        latest, and whoever is cancelled waits no more.
        """
        if self.crowd.ask(guest):
            return
        if guest.gone:
            await trio.lowlevel.checkpoint()
        turn = self._turns[guest] = trio.Event()
        try:
            with trio.move_on_after(self.patience):
                await turn.wait()
        finally:
            del self._turns[guest]
            self.crowd.give_up(guest)
        if not guest.asking:  # Its turn may have come just when its patience ended.
            text = "too many requests at a time that show no credential of an admin or a worker"
            raise HttpError(429, text, headers=_AGAIN)

    def know(self, guest: Guest) -> None:
        """It has shown a good credential."""
        self.crowd.know(guest)
        self._call()

    def sit(self, guest: Guest, *, replacing: bool = False) -> None:
        """It becomes a WebSocket, perhaps instead of another. Raises `HttpError` 503: too many are."""
        if not self.crowd.sit(guest, replacing=replacing):
            raise HttpError(503, "too many seats are taken", headers=_AGAIN)
        self._call()

    def answered(self, guest: Guest) -> None:
        """It has its answer."""
        self.crowd.answered(guest)
        self._call()

    def _call(self) -> None:
        for guest in self.crowd.call():
            self._turns[guest].set()

    def _tell_of_hanging_up(self) -> None:
        self._hung_up += 1
        if trio.current_time() >= self._told + _TOLD_EVERY:
            text = "%s: %d connections already, hanging up (%d since the last such line)"
            _log.warning(text, self.name, self.crowd.inside, self._hung_up)
            self._hung_up, self._told = 0, trio.current_time()
