"""The phases of one pool worker: what it answers, when a job begins, resumes and ends.

Rule 1: every transition of the phase is in this file, in the table ``_RULES`` and in
the three methods that a job's own progress calls (``pause``, ``finish``, and the
resumption inside ``_continue``).

Rule 2: a request that is refused changes nothing.

::

    IDLE --run--> RUNNING --pause--> PAUSED --last answer--> RUNNING --finish--> FINISHED
                     ^                                                              |
                     +------------- run, if the worker is reusable ----------------+

RUNNING is not in the contract: a worker reads no request while its job runs, so a client
never sees it. It is here because the machine must know that a job is under way.

Contract: pools.md C3.3, with defects 1 and 6 of C3.4 repaired: a stored answer leaves
the phase at PAUSED, and an answer is validated before it is counted.
"""

from __future__ import annotations

import enum
import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import attrs

from trio_swarm.frames import PoolRequest, PoolResponse, pool
from trio_swarm.limits import POOL_HISTORY

__all__ = ["Asked", "Begin", "Effect", "Exit", "Phase", "PoolWorker", "Reply", "Resume", "estimate_tokens"]

_BUSY: Final = "worker already has an active session"
_NOTHING_PAUSED: Final = "no paused session to continue"
_DEFAULT_QUERY: Final = "q-0"


class Phase(enum.Enum):
    IDLE = "idle"
    RUNNING = "running"
    PAUSED = "paused"
    FINISHED = "finished"


@attrs.frozen
class Asked:
    """One query of a pause, as the job put it."""

    prompt: str
    system: str | None = None
    max_tokens: int = 1024


@attrs.frozen
class Reply:
    """Answer; nothing else happens."""

    response: PoolResponse


@attrs.frozen
class Begin:
    """Start the job; its first pause or its end is the answer."""

    run: pool.Run


@attrs.frozen
class Resume:
    """All answers are there, in query order; the next pause or the end is the answer."""

    texts: tuple[str, ...]
    deadline_ms: int | None


@attrs.frozen
class Exit:
    """Answer, then end the process."""

    response: PoolResponse


Effect = Reply | Begin | Resume | Exit


@attrs.define(eq=False)
class _Exchange:
    """One query and, in time, its answer: a line of the history."""

    query_id: str
    prompt: str
    prompt_tokens: int
    started_at: int
    response: str | None = None
    response_tokens: int = 0
    completed_at: int | None = None
    provided: bool = False


@attrs.define(eq=False)
class _Session:
    """One job from its start to its end."""

    id: str
    started_at: int
    pending: dict[str, _Exchange] = attrs.field(factory=dict)
    """The exchanges of the current pause, in query order."""
    history: deque[_Exchange] = attrs.field(factory=lambda: deque(maxlen=POOL_HISTORY))
    calls: int = 0
    pauses: int = 0
    rounds: int = 0
    prompt_chars: int = 0
    response_chars: int = 0
    prompt_tokens: int = 0
    response_tokens: int = 0
    provided: int = 0


def estimate_tokens(text: str) -> int:
    """The contract's guess where the client did not say: C3.3, last line."""
    ascii_chars = sum(1 for char in text if char < "\x80")
    return math.ceil(ascii_chars / 4) + math.ceil((len(text) - ascii_chars) * 2 / 3)


@attrs.define(eq=False)
class PoolWorker:
    """Decides; reads no clock (``now_ms`` is wall time in milliseconds) and does no IO."""

    version: str
    """What a handshake must name, character by character."""

    new_session_id: Callable[[], str]
    """Called once for each job that begins."""

    reusable: bool = False
    """Our launch-time extension: a finished worker takes another ``run``."""

    phase: Phase = attrs.field(default=Phase.IDLE, init=False)
    foreign_sids: int = attrs.field(default=0, init=False)
    """``continue`` requests that named another session. They are served all the same."""

    _session: _Session | None = attrs.field(default=None, init=False)

    # -- what a client asks ------------------------------------------------------------

    def receive(self, request: PoolRequest, now_ms: int) -> Effect:
        """One request in, one effect out; never raises for what a client can send."""
        match request:
            case pool.Handshake():
                return self._handshake(request)
            case pool.Shutdown():
                return Exit(pool.ShutdownOk())
            case pool.Status():
                return self._status(request)
        return _RULES[self.phase][type(request)](self, request, now_ms)

    def malformed(self, reason: str) -> Reply:
        """The line was no request: it is answered, and the connection stays."""
        return Reply(pool.Failure(error=f"malformed request: {reason}"))

    def disconnected(self) -> bool:
        """The client has left. True: wait for the next one; False: there is nothing to wait for."""
        return self.phase is Phase.PAUSED

    # -- what the job does -------------------------------------------------------------

    def pause(self, asked: Sequence[Asked], now_ms: int) -> Reply:
        """The job needs answers to *asked* (at least one) before it can go on."""
        session = self._running()
        assert asked, "a pause without a query would never end"
        self.phase = Phase.PAUSED
        session.pauses += 1
        session.calls += len(asked)
        session.pending = {}
        queries = []
        for number, one in enumerate(asked):
            query_id = f"q-{number}"
            tokens = estimate_tokens(one.prompt) + estimate_tokens(one.system or "")
            exchange = _Exchange(query_id, one.prompt, tokens, now_ms)
            session.pending[query_id] = exchange
            session.history.append(exchange)
            session.prompt_chars += len(one.prompt) + len(one.system or "")
            queries.append(
                {"id": query_id, "prompt": one.prompt, "system": one.system, "max_tokens": one.max_tokens}
            )
        return self._feed({"Paused": {"queries": queries}})

    def finish(self, state: str | Mapping[str, Any], now_ms: int) -> Reply:
        """The job has ended as *state*: ``{"Completed": ...}``, ``{"Failed": ...}`` or ``"Cancelled"``.

        A second call, before the next request, takes the place of the first: only
        encoding the answer shows whether a result can travel at all.
        """
        assert self.phase in (Phase.RUNNING, Phase.FINISHED)
        assert self._session is not None
        self.phase = Phase.FINISHED
        metrics = _metrics(self._session, now_ms)
        return self._feed({"Finished": {"state": state, "metrics": metrics}})

    # -- rules -------------------------------------------------------------------------

    def _handshake(self, request: pool.Handshake) -> Reply:
        if request.version == self.version:
            return Reply(pool.HandshakeOk(version=self.version))
        text = f"version mismatch: client={request.version}, server={self.version}"
        return Reply(pool.Failure(error=text))

    def _status(self, request: pool.Status) -> Reply:
        session = self._session
        if session is None or self.phase not in (Phase.PAUSED, Phase.RUNNING):
            return Reply(pool.StatusReport(has_session=False, session_id=None))
        history: list[dict[str, Any]] | None = None
        if request.include_history and self.phase is Phase.PAUSED:
            history = [attrs.asdict(one, filter=_is_public) for one in session.history]
        return Reply(pool.StatusReport(has_session=True, session_id=session.id, conversation_history=history))

    def _run(self, request: PoolRequest, now_ms: int) -> Effect:
        assert isinstance(request, pool.Run)
        self._session = _Session(self.new_session_id(), now_ms)
        self.phase = Phase.RUNNING
        return Begin(request)

    def _run_again(self, request: PoolRequest, now_ms: int) -> Effect:
        return self._run(request, now_ms) if self.reusable else self._refuse_run(request, now_ms)

    def _refuse_run(self, request: PoolRequest, now_ms: int) -> Effect:
        return Reply(pool.Failure(error=_BUSY))

    def _refuse_continue(self, request: PoolRequest, now_ms: int) -> Effect:
        return Reply(pool.Failure(error=_NOTHING_PAUSED))

    def _continue(self, request: PoolRequest, now_ms: int) -> Effect:
        assert isinstance(request, pool.Continue)
        session = self._session
        assert session is not None
        if request.sid not in ("", session.id):
            self.foreign_sids += 1
        query_id = _DEFAULT_QUERY if request.query_id is None else request.query_id
        exchange = session.pending.get(query_id)
        if exchange is None:
            return Reply(pool.Failure(error=f"continue failed: unknown query_id: {query_id}"))
        if exchange.response is not None:
            return Reply(pool.Failure(error=f"continue failed: already responded to query_id: {query_id}"))
        _settle(session, exchange, request, now_ms)
        remaining = sum(1 for one in session.pending.values() if one.response is None)
        if remaining:
            return self._feed({"Accepted": {"remaining": remaining}})
        texts = tuple(one.response or "" for one in session.pending.values())
        session.pending = {}
        session.rounds += 1
        self.phase = Phase.RUNNING
        return Resume(texts, request.deadline_ms)

    # -- parts -------------------------------------------------------------------------

    def _running(self) -> _Session:
        assert self.phase is Phase.RUNNING, self.phase
        assert self._session is not None
        return self._session

    def _feed(self, feed_result: Mapping[str, Any]) -> Reply:
        assert self._session is not None
        return Reply(pool.Feed(session_id=self._session.id, feed_result=feed_result))


_Rule = Callable[[PoolWorker, PoolRequest, int], Effect]

_RULES: Final[Mapping[Phase, Mapping[type, _Rule]]] = {
    Phase.IDLE: {pool.Run: PoolWorker._run, pool.Continue: PoolWorker._refuse_continue},
    Phase.RUNNING: {pool.Run: PoolWorker._refuse_run, pool.Continue: PoolWorker._refuse_continue},
    Phase.PAUSED: {pool.Run: PoolWorker._refuse_run, pool.Continue: PoolWorker._continue},
    Phase.FINISHED: {pool.Run: PoolWorker._run_again, pool.Continue: PoolWorker._refuse_continue},
}


def _is_public(attribute: attrs.Attribute[Any], value: Any) -> bool:
    return attribute.name != "provided"


def _settle(session: _Session, exchange: _Exchange, request: pool.Continue, now_ms: int) -> None:
    usage = request.usage
    exchange.response = request.response
    exchange.completed_at = now_ms
    exchange.response_tokens = estimate_tokens(request.response)
    if usage is not None and usage.prompt_tokens is not None:
        exchange.prompt_tokens = usage.prompt_tokens
        exchange.provided = True
    if usage is not None and usage.completion_tokens is not None:
        exchange.response_tokens = usage.completion_tokens
        exchange.provided = True
    session.response_chars += len(request.response)
    session.prompt_tokens += exchange.prompt_tokens
    session.response_tokens += exchange.response_tokens
    session.provided += exchange.provided


def _metrics(session: _Session, now_ms: int) -> dict[str, Any]:
    auto: dict[str, Any] = {
        "elapsed_ms": max(0, now_ms - session.started_at),
        "llm_calls": session.calls,
    }
    if session.calls:
        # Opaque to every client, and a third of the cost of a short job that asked nothing.
        auto |= _asked_metrics(session)
    return {"auto": auto, "custom": {}}


def _asked_metrics(session: _Session) -> dict[str, Any]:
    source = "provided" if session.provided == session.calls else "estimated"

    def tokens(count: int) -> dict[str, Any]:
        return {"tokens": count, "source": source}

    return {
        "pauses": session.pauses,
        "rounds": session.rounds,
        "total_prompt_chars": session.prompt_chars,
        "total_response_chars": session.response_chars,
        "prompt_tokens": tokens(session.prompt_tokens),
        "response_tokens": tokens(session.response_tokens),
        "total_tokens": tokens(session.prompt_tokens + session.response_tokens),
    }
