"""A job's deadline, enforced where the job runs: an interval timer that raises inside it."""

from __future__ import annotations

import signal
from types import FrameType

import attrs

__all__ = ["Alarm", "DeadlineExceeded"]


class DeadlineExceeded(BaseException):
    """The caller's time is over.

    Not an ``Exception``: like a cancellation it must get through a job's own
    ``except Exception``.
    """


@attrs.define(eq=False)
class Alarm:
    """One timer for the one job. The time that a job waits for answers is not counted.

    Uses SIGALRM, so a job that wants that signal for itself runs without a deadline.
    """

    _armed: bool = attrs.field(default=False, init=False)

    def install(self) -> None:
        signal.signal(signal.SIGALRM, self._ring)

    def arm(self, deadline_ms: int | None) -> None:
        """Count down from now, or not at all.

        Raises:
            DeadlineExceeded: there is no time left.
        """
        if deadline_ms is None:
            return
        if deadline_ms <= 0:
            raise DeadlineExceeded("no time was left")
        self._armed = True
        signal.setitimer(signal.ITIMER_REAL, deadline_ms / 1000)

    def disarm(self) -> None:
        # The flag first: a timer that fires between the two lines finds nobody.
        if self._armed:
            self._armed = False
            signal.setitimer(signal.ITIMER_REAL, 0)

    def _ring(self, signum: int, frame: FrameType | None) -> None:
        if self._armed:
            self._armed = False
            raise DeadlineExceeded("the caller's time is over")
