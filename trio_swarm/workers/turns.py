"""Handles are looked at in turn while many unknown ones come (contract: operators 5.3 gives them 32 bits)."""

from __future__ import annotations

from collections import Counter

import attrs
import trio

from trio_swarm._state.board import Denied
from trio_swarm._state.guesses import place_of
from trio_swarm.limits import GUESS_TURN, WAITING_HANDLES, WAITING_HANDLES_PER_PEER

__all__ = ["Turns"]


@attrs.define(eq=False)
class Turns:
    """First come, first served; each has ``GUESS_TURN`` seconds."""

    _lock: trio.Lock = attrs.field(factory=trio.Lock, init=False)
    _waiting: Counter[str] = attrs.field(factory=Counter, init=False)

    async def take(self, peer: str) -> None:
        """Wait for a turn. Cancelled: it goes to the next.

        Raises `Denied` 429 where too many wait: who waits holds a connection that others need.
        """
        place = place_of(peer)
        if self._waiting.total() >= WAITING_HANDLES or self._waiting[place] >= WAITING_HANDLES_PER_PEER:
            raise Denied(429, "too many unknown handles: others wait for their turn", retry_after=1)
        self._waiting[place] += 1
        try:
            async with self._lock:
                await trio.sleep(GUESS_TURN)
        finally:
            self._waiting[place] -= 1
            self._waiting += Counter()  # Nothing is left of a place where nobody waits.
