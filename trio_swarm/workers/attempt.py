"""One try of a task: who works on it, with which credentials, and what they sent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import attrs
import trio

from trio_swarm._state.board import AttemptRecord, FinalValue
from trio_swarm.errors import PeerGoneError
from trio_swarm.limits import MAX_REPORTS

__all__ = ["Attempt", "Final"]

Final: TypeAlias = FinalValue
"""A terminal output of an attempt: ``value``, ``ok``, and ``by`` whom."""


@attrs.define(eq=False)
class Attempt:
    """One try of a task: its credentials, and what its worker has sent."""

    _record: AttemptRecord
    capability_token: str = attrs.field(repr=False)
    """For the worker, the latest; dies with the attempt."""
    worker_handle: str = attrs.field(repr=False)
    """The same as ``wh-`` and 8 hex digits."""
    degradations: list[Any] = attrs.field(factory=list, repr=False)
    """What the worker reported, oldest first; at most ``MAX_REPORTS``."""
    stats: Any = attrs.field(default=None, repr=False)
    """What the worker said last of its use of tokens and the like."""
    _renewed: Callable[[AttemptRecord], str] = attrs.field(kw_only=True, repr=False)
    _grew: Callable[[], None] = attrs.field(kw_only=True, repr=False)
    _clock: Callable[[], float] = attrs.field(kw_only=True, repr=False)
    _changed: trio.lowlevel.ParkingLot = attrs.field(factory=trio.lowlevel.ParkingLot, repr=False)

    @property
    def number(self) -> int:
        """Counts from 1."""
        return self._record.number

    @property
    def task_id(self) -> str:
        """Of which task."""
        return self._record.task_id

    @property
    def fetched(self) -> bool:
        """A worker has fetched the prompt."""
        return self._record.fetched

    @property
    def ended(self) -> bool:
        """Its token and handle are dead."""
        return self._record.ended

    @property
    def final(self) -> Final | None:
        """The last Final: it decides (contract: operators 4.8)."""
        return self._record.final

    @property
    def finals(self) -> int:
        """How many there were."""
        return self._record.finals

    def append_final(self, value: Any, ok: bool, *, by: str) -> None:
        """Add a Final, which from now on is the last. Also after the end: this is not the worker's way."""
        self._record.give(Final(value, ok, by))
        self._changed.unpark_all()
        self._grew()

    def keep_stats(self, stats: Any) -> None:
        """Replace what was said of the use of tokens and the like. Also after the end."""
        self.stats = stats
        self._grew()

    async def wait_final(self) -> Final:
        """The last Final, as soon as there is one.

        Raises `PeerGoneError` when the attempt ends without. Cancelled: nothing is lost.
        """
        await trio.lowlevel.checkpoint()
        while self._record.final is None:
            if self._record.ended:
                raise PeerGoneError(f"attempt {self.number} of {self.task_id} ended without a Final")
            await self._changed.park()
        return self._record.final

    async def wait_fetched(self) -> bool:
        """Wait until a worker has fetched the prompt; False if the attempt ended before."""
        await trio.lowlevel.checkpoint()
        while not self._record.fetched:
            if self._record.ended:
                return False
            await self._changed.park()
        return True

    @property
    def good_for(self) -> float:
        """Seconds that its latest token and its handle have left; 0 when they are dead."""
        return 0.0 if self._record.ended else max(0.0, self._record.expire_at - self._clock())

    def renew(self) -> str:
        """A fresh token: the same rights, a whole life from now on; the handle is good for as long.

        Tokens from before stay good until their own time is over. Raises `Refused` if the
        attempt has ended, or was renewed too often (contract: operators 3.5).
        """
        self.capability_token = self._renewed(self._record)
        return self.capability_token

    def end(self) -> None:
        """Its token and handle are dead from now on. A second call changes nothing."""
        self._record.ended = True
        self._changed.unpark_all()

    def _mark_fetched(self) -> None:
        self._record.fetched = True
        self._changed.unpark_all()

    def _report(self, report: Any) -> bool:
        if len(self.degradations) >= MAX_REPORTS:
            return False
        self.degradations.append(report)
        return True
