"""Credentials in requests that have waited: renewed just before they go out (contract: operators 3.5).

A spawn that was parked until its operator came back would hand its worker credentials that are
dead, or nearly so. `SeatMachine.is_stale` decides which those are; here the new ones are got.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

import attrs

from trio_swarm._state.seat import Due, SeatMachine
from trio_swarm.errors import Refused
from trio_swarm.frames.operator import Spawn

__all__ = ["Renewable", "Renewals"]


class Renewable(Protocol):
    """The credential in a spawn; an `Attempt` of `trio_swarm.workers` is one."""

    @property
    def good_for(self) -> float:
        """Seconds that it has left."""

    def renew(self) -> str:
        """A fresh token with the same rights; the handle stays, and is good for as long.

        Raises `Refused` where there is none: then the old one is handed out.
        """


@attrs.define(eq=False)
class Renewals:
    """The credentials in the spawns of one seat that wait for their answer."""

    _sid: str
    _machine: SeatMachine = attrs.field(repr=False)
    _emit: Callable[[str, Mapping[str, object]], None] = attrs.field(repr=False)
    _of: dict[str, Renewable] = attrs.field(factory=dict, repr=False)

    @contextmanager
    def holding(self, req_id: str, credential: Renewable | None) -> Iterator[None]:
        """It can be renewed for as long as the block lasts."""
        if credential is not None:
            self._of[req_id] = credential
        try:
            yield
        finally:
            self._of.pop(req_id, None)

    def good_for(self, req_id: str) -> float:
        """Seconds that the request's credential has left; ``math.inf`` if it has none."""
        credential = self._of.get(req_id)
        return math.inf if credential is None else credential.good_for

    def fresh(self, due: Due) -> Due:
        """What is to be written, with a fresh token where the old one has waited too long.

        A refusal is told, and is no failure: the original is written then.
        """
        frame = due.frame
        if not isinstance(frame, Spawn) or not self._machine.is_stale(due, self.good_for(frame.req_id)):
            return due
        try:
            return self._machine.renew(due, self._of[frame.req_id].renew())
        except Refused as refused:
            about = {"sid": self._sid, "req_id": frame.req_id, "task_id": frame.task_id}
            self._emit("renewal_refused", {**about, "error": str(refused)})
            return due
