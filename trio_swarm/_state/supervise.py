"""When a supervisor restarts, how long it waits first, and when it gives up.

Erlang/OTP's restart intensity as a pure counter: time and randomness are arguments.
"""

from __future__ import annotations

from collections import deque

import attrs

from trio_swarm.limits import BACKOFF_CEILING, BACKOFF_FIRST, MAX_RESTARTS, RESTART_WITHIN

__all__ = ["Backoff", "RestartIntensity"]


@attrs.define(eq=False)
class RestartIntensity:
    """Counts restarts; more than ``max_restarts`` within ``within`` seconds is one too many."""

    max_restarts: int = attrs.field(default=MAX_RESTARTS, validator=attrs.validators.ge(0))
    """Restarts that are still fine within the window; 0 means that none is."""

    within: float = attrs.field(default=RESTART_WITHIN, validator=attrs.validators.gt(0))
    """The window, in seconds. A restart exactly this old no longer counts."""

    _recent: deque[float] = attrs.field(factory=deque, init=False)

    def allow(self, now: float) -> bool:
        """Ask for one restart at *now* (seconds, never going back).

        True: it is granted and counted. False: it would be one too many; it is not
        counted, and the supervisor has to give up.
        """
        self._forget(now)
        if len(self._recent) >= self.max_restarts:
            return False
        self._recent.append(now)
        return True

    def recent(self, now: float) -> int:
        """Restarts that count at *now*."""
        self._forget(now)
        return len(self._recent)

    def restart(self, now: float) -> float | None:
        """Like `allow`; the seconds to wait from *now* before the restart, or None where it is refused.

        The first within the window is immediate, the second waits for `BACKOFF_FIRST` seconds, and
        each further one twice as long, up to `BACKOFF_CEILING`. What has been well for a
        window's length is restarted at once again.
        """
        before = self.recent(now)
        return Backoff().delay(before) if self.allow(now) else None

    def _forget(self, now: float) -> None:
        while self._recent and now - self._recent[0] >= self.within:
            self._recent.popleft()


@attrs.frozen
class Backoff:
    """Exponential; with jitter, what fails together does not come back together."""

    first: float = BACKOFF_FIRST
    ceiling: float = BACKOFF_CEILING

    def delay(self, failures: int, random: float = 1.0) -> float:
        """Seconds to wait after *failures* failures in a row, 0.0 for none.

        *random* is from [0, 1): the delay is between half of the step and the whole of it, and without
        it the whole.
        """
        if failures <= 0:
            return 0.0
        # 2 ** 64 times any first step is beyond every ceiling, and still a float.
        step = min(self.ceiling, self.first * 2.0 ** min(failures - 1, 64))
        return step * (0.5 + random / 2)
