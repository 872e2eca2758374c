"""Sessions that nobody comes back to end by themselves, and free their roles."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import attrs
import trio

from trio_swarm.operators.login import Session, SessionTable
from trio_swarm.operators.seat import Seat

__all__ = ["IDLE_WITHIN", "JOIN_WITHIN", "Expiry"]

JOIN_WITHIN: Final = 60.0
"""From a login to its first socket. A login needs no token, so that those left behind must go."""

IDLE_WITHIN: Final = 86400.0
"""Without a socket. The original's idle horizon, 24 h."""


@attrs.define(eq=False)
class Expiry:
    """One task that ends the sessions of a table whose time is over."""

    sessions: SessionTable[Seat]
    end: Callable[[Session[Seat], str], None]
    """Ends one, with the reason."""
    join_within: float = JOIN_WITHIN
    idle_within: float = IDLE_WITHIN
    _earlier: trio.lowlevel.ParkingLot = attrs.field(factory=trio.lowlevel.ParkingLot, repr=False)

    def check(self) -> None:
        """A session was begun or lost its socket: there is a new deadline."""
        self._earlier.unpark_all()

    async def run(self) -> None:
        """Until cancelled. Sleeps from deadline to deadline."""
        while True:
            with trio.move_on_at(self._end_those_due()):
                await self._earlier.park()

    def _end_those_due(self) -> float:
        """Returns when the next is due, infinity if none is."""
        now, earliest = trio.current_time(), math.inf
        for session in self.sessions:
            due = session.seat.expires(join_within=self.join_within, idle_within=self.idle_within)
            if due <= now:
                self.end(session, self._reason(session.seat))
            else:
                earliest = min(earliest, due)
        return earliest

    def _reason(self, seat: Seat) -> str:
        if seat.ever_connected:
            return f"nobody was connected for {self.idle_within:g} s"
        return f"nobody connected within {self.join_within:g} s of the login"
