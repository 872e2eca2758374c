"""How many credentials may be guessed: so many a minute from one place, so many in all.

A worker's handle has 32 bits by contract (operators 5.3). That is enough against chance, and
against a guesser only if it is not let try often.
"""

from __future__ import annotations

import ipaddress
import math
from collections import deque
from typing import Final

from trio_swarm.limits import GUESSES_IN_SPITE, GUESSES_PER_PEER, GUESSES_PER_SERVER

__all__ = ["GuessLimit", "place_of"]

_WITHIN: Final = 60.0
"""The window that both numbers are for, in seconds."""
_MAX_PEERS: Final = 1024
"""Addresses watched one by one; each holds an entry for a minute after its last miss."""


class GuessLimit:
    """Counts misses in a sliding minute. Times are seconds of any one clock.

    An IPv6 peer is its /64: that is what one customer is given. Peers without an address (a
    Unix socket) count as one.

    Whoever guesses shares an address with honest workers, all of loopback with one. What speaks
    for itself (``vouched``) is therefore let in while the place is limited, until ``in_spite``
    guesses have come within the minute: that many cost a guesser years, and lock nobody out.
    """

    def __init__(
        self,
        *,
        per_peer: int = GUESSES_PER_PEER,
        per_server: int = GUESSES_PER_SERVER,
        in_spite: int = GUESSES_IN_SPITE,
    ) -> None:
        self._per_peer = per_peer
        self._all: deque[float] = deque(maxlen=per_server)
        self._in_spite: deque[float] = deque(maxlen=in_spite)
        self._by_peer: dict[str, deque[float]] = {}

    def wait(self, peer: str, now: float, *, vouched: bool = False) -> float:
        """Seconds until that peer may try again; 0 if it may now."""
        if vouched:
            return _left(self._in_spite, now)
        mine = self._by_peer.get(place_of(peer))
        return max(_left(self._all, now), 0.0 if mine is None else _left(mine, now))

    def missed_in_spite(self, now: float) -> None:
        """Somebody who may not try has shown a credential that nobody has."""
        self._in_spite.append(now)

    def missed(self, peer: str, now: float) -> None:
        """That peer has shown a credential that nobody has."""
        self._all.append(now)
        place = place_of(peer)
        times = self._by_peer.pop(place, None)
        if times is None:
            self._forget_old(now)
            times = deque(maxlen=self._per_peer)
        times.append(now)
        self._by_peer[place] = times  # the latest last

    def _forget_old(self, now: float) -> None:
        while self._by_peer:
            oldest = next(iter(self._by_peer))
            if len(self._by_peer) < _MAX_PEERS and 0 <= now - self._by_peer[oldest][-1] < _WITHIN:
                return
            del self._by_peer[oldest]


def _left(times: deque[float], now: float) -> float:
    """How long until fewer than the most are within the window. A clock set back lets everyone in."""
    if len(times) < (times.maxlen or 0):
        return 0.0
    passed = now - times[0]
    return max(0.0, math.ceil(_WITHIN - passed)) if passed >= 0 else 0.0


def place_of(peer: str) -> str:
    """What counts as one peer."""
    try:
        address = ipaddress.ip_address(peer.partition("%")[0])
    except ValueError:
        return peer
    if address.version == 4:
        return str(address)
    mapped = getattr(address, "ipv4_mapped", None)
    return str(mapped or ipaddress.ip_network((address, 64), strict=False))
