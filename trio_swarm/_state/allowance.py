"""So many of something in so many seconds: a bucket that refills steadily. Pure."""

from __future__ import annotations

import attrs

__all__ = ["Allowance"]


@attrs.define
class Allowance:
    """``most`` at once, and ``most`` within each ``per`` seconds in the long run.

    Time comes in as ``now``, seconds on any clock that does not go back.
    """

    most: int
    per: float = 60.0
    _spent: float = 0.0
    _as_of: float = 0.0

    def take(self, now: float) -> bool:
        """One more. False if it is one too many; that one is not counted."""
        refilled = max(0.0, now - self._as_of) * self.most / self.per
        self._spent = max(0.0, self._spent - refilled)
        self._as_of = now
        if self._spent + 1 > self.most:
            return False
        self._spent += 1
        return True
