"""What a server does by itself from time to time, and how that went.

Sessions that nobody comes back to end, and free their roles; last accesses go to disk.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import attrs
import trio

from trio_swarm.errors import StoreError
from trio_swarm.operators.sessions import Sessions

__all__ = ["SWEEP_EVERY", "WRITE_EVERY", "Expiry", "PeriodicJob"]

_log: Final = logging.getLogger("trio_swarm.operators")

SWEEP_EVERY: Final = 300.0
"""Between two sweeps where no deadline asks for one before (the original's period)."""

WRITE_EVERY: Final = 60.0
"""Last accesses go to disk so often (the original's, too)."""


@attrs.define(eq=False)
class PeriodicJob:
    """One job: what it did so far, in the original's words (contract: operators 1.7)."""

    name: str
    period: float
    """Seconds; 0 for never."""
    runs: int = 0
    errors: int = 0
    """Runs that failed, at the disk or by a fault of ours."""
    panics: int = 0
    """Of these, such as a fault of ours ended."""
    acted: int = 0
    """Things that all the runs changed together."""
    started: float | None = None
    """The last run, in seconds since 1970; and its end."""
    finished: float | None = None
    duration: float | None = None
    """Of the last run, in seconds."""
    outcome: str | None = None

    async def run(self, job: Callable[[], Awaitable[tuple[int, list[StoreError]]]]) -> bool:
        """Do it once; ``job`` says how much it changed, and what it failed at. True if at nothing.

        What else it raises is a fault of ours. That is no reason to end everybody's session: it is
        counted, logged with its traceback the first time, and the job runs again.
        """
        self.started, began = time.time(), trio.current_time()
        acted, failed = 0, list[StoreError]()
        bug: Exception | None = None
        try:
            acted, failed = await job()
        except Exception as raised:
            bug = raised
        self.runs += 1
        self.acted += acted
        self.errors += bool(failed or bug)
        self.finished, self.duration = time.time(), trio.current_time() - began
        # Anybody may read the outcome, and what failed names paths of this machine.
        self.outcome = "error: the state could not be written" if failed else "ok"
        for error in failed[:1]:
            _log.warning("%s failed: %s", self.name, error)
        if bug is not None:
            self._panicked(bug)
        return self.outcome == "ok"

    def _panicked(self, bug: Exception) -> None:
        self.outcome = "error: a fault of the server"
        first = not self.panics
        self.panics += 1
        _log.error("%s crashed: %s", self.name, type(bug).__name__, exc_info=bug if first else None)

    def about(self) -> Mapping[str, Any]:
        """As JSON for ``GET /v1/status``."""
        return {
            "name": self.name,
            "period_secs": self.period,
            "enabled": self.period > 0,
            "runs": self.runs,
            "errors": self.errors,
            "panics": self.panics,
            "acted_total": self.acted,
            "last_started_secs": _whole(self.started),
            "last_finished_secs": _whole(self.finished),
            "last_duration_ms": None if self.duration is None else round(self.duration * 1000),
            "last_outcome": self.outcome,
        }


def _whole(seconds: float | None) -> int | None:
    return None if seconds is None else int(seconds)


@attrs.define(eq=False)
class Expiry:
    """The task that ends sessions whose time is over, and the one that notes who was there."""

    sessions: Sessions
    sweep_every: float = SWEEP_EVERY
    write_every: float = WRITE_EVERY
    sweeps: PeriodicJob = attrs.field(init=False)
    writes: PeriodicJob = attrs.field(init=False)
    _earlier: trio.lowlevel.ParkingLot = attrs.field(factory=trio.lowlevel.ParkingLot, repr=False)
    _write_now: trio.Event = attrs.field(factory=trio.Event, repr=False)

    def __attrs_post_init__(self) -> None:
        self.sweeps = PeriodicJob("session_sweep", self.sweep_every)
        stored = self.sessions.store is not None
        self.writes = PeriodicJob("session_access_write", self.write_every if stored else 0.0)

    @property
    def jobs(self) -> tuple[PeriodicJob, ...]:
        """For the status."""
        return (self.sweeps, self.writes)

    def check(self) -> None:
        """A session was begun or lost its socket: there is a new deadline."""
        self._earlier.unpark_all()

    def write_soon(self) -> None:
        """Something about a session changed that should be on disk sooner than in a minute."""
        self._write_now.set()

    async def run_sweeps(self) -> None:
        """Until cancelled: at each deadline of a session, and each ``sweep_every`` seconds.

        With 0 never: sessions are judged only when somebody asks for them then.
        """
        if self.sweep_every <= 0:
            return
        next_regular = swept = trio.current_time()
        while True:
            # What the last sweep failed at was due then, and waits for the regular time.
            with trio.move_on_at(min(self.sessions.next_expiry(after=swept), next_regular)):
                await self._earlier.park()
                continue
            swept = trio.current_time()
            if swept >= next_regular:
                next_regular = swept + self.sweep_every
            await self.sweeps.run(self.sessions.sweep)

    async def run_writes(self) -> None:
        """Until cancelled: each ``write_every`` seconds, and when `write_soon` asks for it."""
        if self.writes.period <= 0:
            return
        while True:
            with trio.move_on_after(self.write_every):
                await self._write_now.wait()
            self._write_now = trio.Event()
            await self.writes.run(self._write)

    async def _write(self) -> tuple[int, list[StoreError]]:
        try:
            return await self.sessions.write_accesses() + await self.sessions.write_observed(), []
        except StoreError as error:
            return 0, [error]
