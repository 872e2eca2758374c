"""When a discovery record is alive, and when its owner writes it again.

Two clocks meet here on purpose. A lease is a promise between processes and so an instant
of the wall clock; when to renew is the owner's own affair and runs on its monotonic clock,
so that a clock jump moves no renewal. The contract's original stops renewing for good after
one failed write; here a failed renewal is tried again, sooner the first time.
"""

from __future__ import annotations

from datetime import datetime, timedelta

import attrs

from trio_swarm.limits import LEASE, LEASE_RENEW

__all__ = ["RETRY_FIRST", "Lease", "is_live"]

RETRY_FIRST = 1.0
"""Seconds to the second try of a failed renewal; it doubles from there, up to the period."""


def is_live(expires_at: datetime, now: datetime) -> bool:
    """Whether a lease is running; at its very end it is over (children contract, A3)."""
    return expires_at > now


@attrs.define(eq=False)
class Lease:
    """The owner's side of one lease: ``renewed`` and ``failed`` in, ``deadline`` out.

    ``now`` is monotonic seconds; the wall clock enters only where an expiry is written.
    """

    duration: float = attrs.field(default=LEASE, validator=attrs.validators.gt(0))
    """Seconds that one write is good for."""
    period: float = attrs.field(default=LEASE_RENEW, validator=attrs.validators.gt(0))
    """Seconds between renewals."""
    failures: int = attrs.field(default=0, init=False)
    """Renewals that failed since the last one that did not."""
    _due: float | None = attrs.field(default=None, init=False)

    @period.validator
    def _shorter_than_the_lease(self, attribute: object, value: float) -> None:
        if value >= self.duration:
            raise ValueError(f"a lease of {self.duration:g} s is over before {value:g} s have passed")

    def expiry(self, wall: datetime) -> datetime:
        """What a record written at ``wall`` says about its own end."""
        return wall + timedelta(seconds=self.duration)

    def renewed(self, now: float) -> None:
        """The record was written (the first time, too)."""
        self.failures = 0
        self._due = now + self.period

    def failed(self, now: float) -> None:
        """The write failed; the next try comes after 1, 2, 4 ... seconds, never later than a period."""
        self.failures += 1
        self._due = now + min(RETRY_FIRST * 2.0 ** min(self.failures - 1, 16), self.period)

    def released(self) -> None:
        """The record is withdrawn: nothing is due any more."""
        self._due = None

    def deadline(self) -> float | None:
        """When the next write is due, or None if none is."""
        return self._due

    def due(self, now: float) -> bool:
        """Whether the next write is due."""
        return self._due is not None and now >= self._due
