"""What every operator is to those who ask it, wherever it is."""

from __future__ import annotations

import abc
from typing import Any

import attrs

from trio_swarm.frames.operator import Worker
from trio_swarm.operators.lineage import identity
from trio_swarm.operators.renewal import Renewable

__all__ = ["VERBS", "AnySeat", "WorkerResult"]

VERBS = ("ask", "before_spawn", "after_spawn", "execute")
"""What an operator may be able to do, under the names of an in-process operator's methods."""


@attrs.frozen
class WorkerResult:
    """What executing a step gave."""

    value: Any
    """Any JSON."""
    ok: bool = True
    """Whether the one who did it calls it a success."""
    stats: Any = attrs.field(default=None, repr=False)
    """What the operator told about the work (model, usage and so on), as it told it."""


class AnySeat(abc.ABC):
    """One operator's seat: four verbs, in process or across a WebSocket alike.

    Each wait is ended by the caller's cancel scope alone; the time that is left travels
    with the request, by the deadline that there was at the call: a wait ends by one that was
    moved meanwhile, but the operator is not told of the move. The seat may be used from any
    task, by any number at a time.
    """

    @property
    @abc.abstractmethod
    def sid(self) -> str:
        """Its id; opaque."""

    @property
    @abc.abstractmethod
    def name(self) -> str:
        """For people: its first role or its name."""

    @property
    def identity(self) -> str:
        """Who it is in the lineage of a request: ``name#id``."""
        return identity(self.name, self.sid)

    @property
    @abc.abstractmethod
    def connected(self) -> bool:
        """There is somebody at the other end at this moment."""

    @property
    @abc.abstractmethod
    def verbs(self) -> frozenset[str]:
        """Which of `VERBS` it has. A remote operator has them all."""

    @abc.abstractmethod
    async def ask(self, question: Any, *, task_id: str, parent_req_id: str | None = None) -> Any:
        """Put a question; returns the answer (contract 2.2, 2.6).

        Args:
            question: any JSON.
            task_id: the step that it is about.
            parent_req_id: the request while answering which this one is made; by default
                the one that is being answered in this context (`lineage.answering`).

        Raises:
            AskCycle: this operator is being asked already, and the answer waits for this.
            BusyError: too many requests wait for this operator already.
            PeerGoneError: the operator's session ended.
        """

    @abc.abstractmethod
    async def hook_before(
        self, *, task_id: str, agent: str, attempt: int, parent_req_id: str | None = None
    ) -> None:
        """Ask for leave to start attempt ``attempt`` (from 1) of a step; returns if it is given.

        Raises:
            ApprovalDenied: it is not given; ``reason`` is what the operator said.
            AskCycle, BusyError, PeerGoneError: as `ask`.
        """

    @abc.abstractmethod
    def hook_after(
        self, *, task_id: str, agent: str, attempt: int, result: Any, parent_req_id: str | None = None
    ) -> None:
        """Tell what became of an attempt. Never waits and is never answered (contract 2.4).

        Queued, bounded; the oldest is dropped, with an event, when the operator does not
        keep up.
        """

    @abc.abstractmethod
    async def spawn(
        self,
        *,
        task_id: str,
        agent: str,
        attempt: int,
        directive: str,
        capability_token: str = "",
        worker_handle: str | None = None,
        worker: Worker | None = None,
        credential: Renewable | None = None,
        parent_req_id: str | None = None,
    ) -> WorkerResult:
        """Have the operator do a step (contract 2.5, 2.8, 2.9).

        ``credential`` is that of ``capability_token``, if it can be renewed: it is when the
        request has waited and is about to be sent with 60 seconds left or less (3.5).

        A controlled halt comes back as ``ok=True`` with the value
        ``{"halted": true, "reason": ..., "value": ...}``.

        Raises:
            RemoteError: the operator reported an error; its text, verbatim.
            AskCycle, BusyError, PeerGoneError: as `ask`.
        """
