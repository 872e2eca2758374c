"""What an operator is shown: typed requests with the replies that fit them, and notices."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Final, Protocol, TypeAlias

import attrs
import trio

from trio_swarm.errors import PeerGoneError
from trio_swarm.frames import ClientMsg
from trio_swarm.frames.operator import (
    Answer,
    Ask,
    HookAck,
    HookAfter,
    HookBefore,
    Spawn,
    SpawnAck,
    SpawnHalt,
)
from trio_swarm.limits import MAX_LINEAGE
from trio_swarm.operators.ledger import Orphans
from trio_swarm.operators.lineage import Answering, answering

__all__ = [
    "SERVER_RESTARTED",
    "AskRequest",
    "GateRequest",
    "OperatorItem",
    "OperatorRequest",
    "ReplyRefused",
    "Settled",
    "SpawnRequest",
    "Withdrawn",
    "disown",
    "request_for",
]

SERVER_RESTARTED: Final = "server_restarted"
"""Why a request is withdrawn that another server had made than the one that has the session now."""


class _Desk(Protocol):
    @property
    def identity(self) -> str: ...

    @property
    def receipts(self) -> bool: ...

    def reply(self, frame: ClientMsg) -> bool: ...


@attrs.frozen
class Settled:
    """What became of a reply; true if it counts."""

    reason: str | None = None
    """Why it does not count: ``late``, with what had settled the request before behind a colon
    where the server says so (``late:deadline``, ``late:settled_by:alice``), ``duplicate``,
    ``unknown`` or ``wrong_kind``. Also ``unknown``: a server that is gone had made the request, and
    had not said so; another has the session now, and no one can say what became of the reply."""

    def __bool__(self) -> bool:
        return self.reason is None


@attrs.define(eq=False, kw_only=True)
class _Request:
    """A request that waits for this operator's reply.

    Every way to reply is synchronous: the reply is kept until the server has it, across
    reconnects. It returns False, and nothing is sent, when the server has withdrawn the
    request meanwhile; a second reply raises ``RuntimeError``.
    """

    kind: ClassVar[str] = ""

    req_id: str
    """Its id; opaque."""
    task_id: str
    """The step that it belongs to."""
    parent_req_id: str | None = None
    """The request while answering which the asker made this one."""
    deadline: float = math.inf
    """When the asker gives up, on ``trio.current_time()``'s clock."""
    lineage: tuple[str, ...] = ()
    """Who is being asked above this and waits for it, outermost first, as ``name#id``."""
    _desk: _Desk = attrs.field(repr=False)
    _replied: bool = attrs.field(default=False, init=False)
    _withdrawn: str | None = attrs.field(default=None, init=False)
    _seen: bool = attrs.field(default=False, init=False, repr=False)
    _outcome: Settled | None = attrs.field(default=None, init=False, repr=False)
    _over: trio.Event = attrs.field(factory=trio.Event, init=False, repr=False)
    _answering: list[Answering] = attrs.field(factory=list, init=False, repr=False)

    @property
    def withdrawn(self) -> str | None:
        """Why the server took it back (``cancelled`` and so on, see `Withdrawn`), if it did."""
        return self._withdrawn

    @property
    def replied(self) -> bool:
        """A reply was given."""
        return self._replied

    def show(self) -> None:
        """The user sees it now."""
        self._seen = True

    def take_back(self, reason: str) -> bool:
        """The server withdrew it. False if the user has not seen it yet, and never will."""
        self._withdrawn = reason
        self._end_answering()
        return self._seen

    @contextmanager
    def answering(self) -> Iterator[None]:
        """What is asked of any seat in the block, and in tasks started there, is asked for this.

        Such a request names this one as its parent, tells who waits for it, and raises
        `AskCycle` if it would go to one of those. As soon as there is a reply, or the server
        has withdrawn the request, nobody waits, and what is asked then is no part of it.
        """
        with answering(self.req_id, self.lineage, self._desk.identity) as here:
            here.over = self._replied or self._withdrawn is not None
            self._answering.append(here)
            try:
                yield
            finally:
                self._answering.remove(here)

    def _end_answering(self) -> None:
        for here in self._answering:
            here.over = True

    async def settled(self) -> Settled:
        """Wait until the server has said whether the reply counts; until the caller cancels.

        Raises ``RuntimeError`` before a reply was given, and where the server gives no
        receipts (`OperatorClient.receipts`); `PeerGoneError` when the session ended first.
        """
        await trio.lowlevel.checkpoint()
        if not self._replied:
            if self._withdrawn is None:
                raise RuntimeError(f"request {self.req_id} was not replied to")
            return Settled(f"late:{self._withdrawn}")
        if not self._desk.receipts:
            raise RuntimeError("this server gives no receipts")
        await self._over.wait()
        if self._outcome is None:
            raise PeerGoneError("the session was over before the server had said if the reply counts")
        return self._outcome

    def settle(self, outcome: Settled | None) -> None:
        """The server has said what became of the reply; None: it never will."""
        self._outcome = outcome
        self._over.set()

    def _reply(self, frame: ClientMsg) -> bool:
        if self._replied:
            raise RuntimeError(f"request {self.req_id} was replied to already")
        if self._withdrawn is not None:
            return False
        accepted = self._desk.reply(frame)
        self._replied = accepted
        self._end_answering()
        return accepted


@attrs.define(eq=False, kw_only=True)
class AskRequest(_Request):
    """A question (contract 2.2)."""

    kind: ClassVar[str] = "ask"

    question: Any
    """Any JSON."""

    def answer(self, value: Any) -> bool:
        """Any JSON; None is an answer too. Raises `FrameError` for what is no JSON."""
        return self._reply(Answer(req_id=self.req_id, value=value))


@attrs.define(eq=False, kw_only=True)
class GateRequest(_Request):
    """May this attempt start? (contract 2.3)"""

    kind: ClassVar[str] = "hook_before"

    agent: str
    attempt: int

    def ack(self) -> bool:
        """It may."""
        return self._reply(HookAck(req_id=self.req_id, ok=True))

    def reject(self, reason: str | None = None) -> bool:
        """It may not; ``reason`` is told to whoever wanted it."""
        return self._reply(HookAck(req_id=self.req_id, ok=False, reason=reason))


@attrs.define(eq=False, kw_only=True)
class SpawnRequest(_Request):
    """Do this step (contract 2.5). The frame holds the directive and the worker's credentials."""

    kind: ClassVar[str] = "spawn"

    agent: str
    attempt: int
    frame: Spawn = attrs.field(repr=False)

    @property
    def directive(self) -> str:
        """What to do, in words."""
        return self.frame.directive

    def ack(self, value: Any = None, ok: bool = True, *, stats: Any = None) -> bool:
        """It is done. ``value`` is ``{}`` unless given, by convention (contract 2.11)."""
        kept = {} if value is None else value
        return self._reply(SpawnAck(req_id=self.req_id, value=kept, ok=ok, stats=stats))

    def fail(self, error: str) -> bool:
        """It failed: the step's caller gets ``error`` verbatim."""
        return self._reply(SpawnAck(req_id=self.req_id, value={}, ok=False, error=error))

    def halt(self, value: Any = None, *, reason: str | None = None) -> bool:
        """It was stopped on purpose, which counts as success (contract 2.9).

        The first originals do not know this reply and drop it without a word (contract 0.3).
        """
        kept = {} if value is None else value
        return self._reply(SpawnHalt(req_id=self.req_id, value=kept, reason=reason))


@attrs.frozen
class ReplyRefused:
    """The server did not take a reply: it changed nothing. Only from servers with receipts."""

    request: AskRequest | GateRequest | SpawnRequest
    reason: str
    """As in `Settled`."""

    @property
    def req_id(self) -> str:
        """The id of the request."""
        return self.request.req_id


@attrs.frozen
class Withdrawn:
    """A request that was shown before is over without a reply; one has no effect any more."""

    request: AskRequest | GateRequest | SpawnRequest
    reason: str
    """``cancelled``, ``deadline`` or ``settled_by:`` and a name, as the server said when it took it
    back; ``server_restarted`` when the session came back to another server than had made it."""

    @property
    def req_id(self) -> str:
        """The id of the request."""
        return self.request.req_id


OperatorRequest: TypeAlias = AskRequest | GateRequest | SpawnRequest
"""What wants a reply."""

OperatorItem: TypeAlias = OperatorRequest | HookAfter | Withdrawn | ReplyRefused
"""What an operator is shown: requests, and notices that nothing answers."""


def request_for(frame: Ask | HookBefore | Spawn, desk: _Desk) -> OperatorRequest:
    """What the user is shown of ``frame``."""
    deadline = deadline_of(frame)
    lineage = frame.lineage[: MAX_LINEAGE + 1]  # One more than may be: nothing can be nested below.
    if isinstance(frame, Ask):
        return AskRequest(
            req_id=frame.req_id,
            task_id=frame.task_id,
            parent_req_id=frame.parent_req_id,
            deadline=deadline,
            lineage=lineage,
            desk=desk,
            question=frame.question,
        )
    if isinstance(frame, HookBefore):
        return GateRequest(
            req_id=frame.req_id,
            task_id=frame.task_id,
            parent_req_id=frame.parent_req_id,
            deadline=deadline,
            lineage=lineage,
            desk=desk,
            agent=frame.agent,
            attempt=frame.attempt,
        )
    return SpawnRequest(
        req_id=frame.req_id,
        task_id=frame.task_id,
        parent_req_id=frame.parent_req_id,
        deadline=deadline,
        lineage=lineage,
        desk=desk,
        agent=frame.agent,
        attempt=frame.attempt,
        frame=frame,
    )


def disown(orphans: Orphans[OperatorRequest]) -> list[Withdrawn | ReplyRefused]:
    """End what nobody waits for any more; returns what the user is to be told of it."""
    told: list[Withdrawn | ReplyRefused] = [
        Withdrawn(request, SERVER_RESTARTED)
        for request in orphans.open
        if request.take_back(SERVER_RESTARTED)
    ]
    for request in orphans.replied:
        # What the server that has the session now would say to the reply, if it was sent again.
        request.settle(Settled("unknown"))
        told.append(ReplyRefused(request, "unknown"))
    return told


def deadline_of(frame: Ask | HookBefore | Spawn) -> float:
    """When the asker gives up, as far as it said so."""
    if frame.deadline_ms is None:
        return math.inf
    return trio.current_time() + frame.deadline_ms / 1000
