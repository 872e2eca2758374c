"""How a lost socket is opened again."""

from __future__ import annotations

import random

import attrs

__all__ = ["Reconnect"]


@attrs.frozen
class Reconnect:
    """How a lost socket is opened again; times in seconds.

    A connection that ended within a few seconds, before any frame came on it, counts as a
    try that failed. The n-th try waits ``first * 2**n``, ``longest`` at most, times a random
    factor between one half and one, so that many clients do not come back in step.
    """

    first: float = 0.05
    longest: float = 5.0
    give_up_after: float = 60.0
    """Without a connection for so long, the operator ends with `PeerGoneError`."""

    def delay(self, tries: int, rng: random.Random) -> float:
        """Before the try after ``tries`` failed ones."""
        return min(self.longest, self.first * 2.0 ** min(tries, 30)) * rng.uniform(0.5, 1.0)
