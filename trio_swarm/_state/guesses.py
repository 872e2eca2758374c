"""How many credentials may be guessed: so many a minute from one place, so many in all.

A worker's handle has 32 bits by contract (operators 5.3). That is enough against chance, and
against a guesser only if it is not let try often.

Whoever guesses shares an address with honest workers, all of loopback with one. To refuse a good
handle because others guess would shut those out; to let it pass at once would tell a guesser which
one is good, as fast as it can ask. So where there were too many misses every handle, good or bad,
waits for its turn before it is looked at (`trio_swarm.limits.GUESS_TURN`), or is told to come again
where too many wait (``WAITING_HANDLES``); it is the bad ones that are refused for being guesses.
"""

from __future__ import annotations

import ipaddress
import math
from collections import deque
from typing import Final, TypeAlias

from trio_swarm.limits import GUESSES_PER_PEER, GUESSES_PER_SERVER

__all__ = ["GuessLimit", "Misses", "left", "no_misses", "place_of"]

_WITHIN: Final = 60.0
"""The window that both numbers are for, in seconds."""
_MAX_PEERS: Final = 1024
"""Addresses watched one by one; each holds an entry for a minute after its last miss."""

Misses: TypeAlias = deque[float]
"""When the latest were; there are too many when it is full."""


def no_misses(most: int = GUESSES_PER_PEER) -> Misses:
    """None yet, and at most so many within a minute."""
    return deque(maxlen=most)


def left(misses: Misses, now: float) -> float:
    """How long until fewer than the most are within the window. A clock set back lets everyone in."""
    if len(misses) < (misses.maxlen or 0):
        return 0.0
    passed = now - misses[0]
    return max(0.0, math.ceil(_WITHIN - passed)) if passed >= 0 else 0.0


class GuessLimit:
    """Counts misses in a sliding minute. Times are seconds of any one clock.

    An IPv6 peer is its /64: that is what one customer is given. Peers without an address (a
    Unix socket) count as one.
    """

    def __init__(self, *, per_peer: int = GUESSES_PER_PEER, per_server: int = GUESSES_PER_SERVER) -> None:
        self._per_peer = per_peer
        self._all = no_misses(per_server)
        self._by_peer: dict[str, Misses] = {}

    def wait(self, peer: str, now: float) -> float:
        """Seconds until that peer has missed less often than is too often; 0 if it has now."""
        mine = self._by_peer.get(place_of(peer))
        return max(left(self._all, now), 0.0 if mine is None else left(mine, now))

    def missed(self, peer: str, now: float) -> None:
        """That peer has shown a credential that nobody has."""
        self._all.append(now)
        place = place_of(peer)
        times = self._by_peer.pop(place, None)
        if times is None:
            self._forget_old(now)
            times = no_misses(self._per_peer)
        times.append(now)
        self._by_peer[place] = times  # the latest last

    def _forget_old(self, now: float) -> None:
        while self._by_peer:
            oldest = next(iter(self._by_peer))
            if len(self._by_peer) < _MAX_PEERS and 0 <= now - self._by_peer[oldest][-1] < _WITHIN:
                return
            del self._by_peer[oldest]


def place_of(peer: str) -> str:
    """What counts as one peer."""
    try:
        address = ipaddress.ip_address(peer.partition("%")[0])
    except ValueError:
        return peer
    address = getattr(address, "ipv4_mapped", None) or address
    if address.is_loopback:
        return "loopback"  # Whoever is on this machine has sixteen million addresses of it.
    if address.version == 4:
        return str(address)
    return str(ipaddress.ip_network((address, 64), strict=False))
