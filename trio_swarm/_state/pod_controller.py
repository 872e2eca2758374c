"""What a pod does with each method: idle, running, paused (pods contract, B2.5).

Everything that moves the machine is here; it returns the effects, in the order in which
the world must see them, and never waits. The turn's items are in the history *before*
clients learn that the run has ended, and the state is idle by then, so that a ``run`` right
after ``run_end`` is accepted; the original did both later.

::

    method      idle              running                  paused
    run         start             error already_running    error already_running
    resume      error not_paused  error already_running    start
    cancel      error not_running cancel the turn          error not_running
    notify      queue and start   queue                    queue
    shutdown    end               cancel, finish, end      end

``get_history`` is answered by the connection that it came on and never gets here.
"""

from __future__ import annotations

from collections import deque
from typing import Final, Literal, TypeAlias

import attrs

from trio_swarm.frames import pod as frames
from trio_swarm.limits import POD_MODEL_QUEUE, POD_NOTIFICATIONS

__all__ = [
    "Broadcast",
    "CancelTurn",
    "Commit",
    "Effect",
    "End",
    "ErrorCode",
    "Failed",
    "Finished",
    "Method",
    "Notifier",
    "PodController",
    "RunResult",
    "SaveStatus",
    "StartTurn",
    "State",
    "notification_text",
]

State: TypeAlias = Literal["idle", "running", "paused"]
RunResult: TypeAlias = Literal["finished", "paused", "limit_reached"]
ErrorCode: TypeAlias = Literal[
    "already_running", "not_running", "not_paused", "provider_error", "tool_error", "internal"
]
Method: TypeAlias = frames.Run | frames.Notify | frames.Resume | frames.Cancel | frames.Shutdown

_TEXTS: Final[dict[ErrorCode, str]] = {
    "already_running": "Pod is already executing a turn",
    "not_running": "Pod is not running",
    "not_paused": "Pod is not paused",
}


# -- effects -----------------------------------------------------------------------------


@attrs.frozen
class Broadcast:
    """Send an event to every client."""

    event: object


@attrs.frozen
class StartTurn:
    """Start the engine."""

    input: str | None
    """The user's message; None for a resumed run or one that a notification started."""
    notifications: tuple[frames.Notify, ...]
    """What the model is to be told, oldest first."""
    resumed: bool
    """Whether it goes on after a pause."""
    deadline_ms: int | None
    """Milliseconds that the run may take; None: no limit."""


@attrs.frozen
class CancelTurn:
    """Cancel the engine; it then ends with `Failed`."""


@attrs.frozen
class Commit:
    """Let the run's items become part of the history that clients are told."""


@attrs.frozen
class SaveStatus:
    """Write the state to disk."""

    state: State


@attrs.frozen
class End:
    """Let what was broadcast leave, then end the process."""


Effect: TypeAlias = Broadcast | StartTurn | CancelTurn | Commit | SaveStatus | End


# -- how a run ended ---------------------------------------------------------------------


@attrs.frozen
class Finished:
    """The engine returned."""

    result: RunResult = "finished"


@attrs.frozen
class Failed:
    """The engine raised, or was cancelled (``internal``)."""

    code: ErrorCode
    message: str


# -- the machine -------------------------------------------------------------------------


@attrs.define(eq=False)
class PodController:
    """One pod's state; see the module's table."""

    model_queue: int = POD_MODEL_QUEUE
    """Notifications that wait for the model at most; the oldest are dropped."""
    state: State = attrs.field(default="idle", init=False)
    """What ``status.json`` says."""
    ended: bool = attrs.field(default=False, init=False)
    """After `End`: nothing has any effect."""
    _ending: bool = attrs.field(default=False, init=False)
    _request_open: bool = attrs.field(default=False, init=False)
    _turn: int = attrs.field(default=0, init=False)
    _run_id: str | None = attrs.field(default=None, init=False)
    _waiting: deque[frames.Notify] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        """The queue needs its bound."""
        self._waiting = deque(maxlen=self.model_queue)

    def receive(self, method: Method) -> list[Effect]:
        """Decide on one method of any client."""
        if self.ended:
            return []
        match method:
            case frames.Run():
                return self._run(method)
            case frames.Resume():
                return self._resume(method)
            case frames.Cancel():
                return [CancelTurn()] if self.state == "running" else [_refusal("not_running")]
            case frames.Notify():
                self._waiting.append(method)
                return self._start(None, method.deadline_ms) if self.state == "idle" else []
            case frames.Shutdown():
                return self.shutdown()

    def shutdown(self) -> list[Effect]:
        """The ``shutdown`` method, or SIGTERM: end now, or when the running turn has ended."""
        if self.ended or self._ending:
            return []
        self._ending = True
        return [CancelTurn()] if self.state == "running" else self._end()

    def begin_request(self) -> list[Effect]:
        """The engine begins a request to its model: ``turn_start``, numbered over the pod's life."""
        if self.state != "running" or self._request_open:
            return []
        self._request_open = True
        self._turn += 1
        return [Broadcast(frames.TurnStart(self._turn - 1, run_id=self._run_id))]

    def end_request(self) -> list[Effect]:
        """The request's answer is complete (tools run after this): ``turn_end``."""
        if not self._request_open:
            return []
        self._request_open = False
        return [Broadcast(frames.TurnEnd(self._turn - 1, "finished"))]

    def take_notifications(self) -> tuple[frames.Notify, ...]:
        """What came for the model since it was last asked, oldest first; gone from the queue."""
        taken = tuple(self._waiting)
        self._waiting.clear()
        return taken

    def finish(self, outcome: Finished | Failed) -> list[Effect]:
        """The engine has ended: exactly one of ``run_end`` and ``error``."""
        if self.state != "running":
            raise RuntimeError(f"a run ended while the pod was {self.state}")
        effects: list[Effect] = []
        if isinstance(outcome, Finished):
            effects += self.end_request()
            self.state = "paused" if outcome.result == "paused" else "idle"
            last: object = frames.RunEnd(outcome.result)
        else:
            # A stream that failed has no turn_end (B2.5).
            self._request_open = False
            self.state = "idle"
            last = frames.Error(outcome.code, outcome.message, run_id=self._run_id)
        effects += [Commit(), Broadcast(last), SaveStatus(self.state)]
        return effects + (self._end() if self._ending else [])

    def _run(self, method: frames.Run) -> list[Effect]:
        if self.state != "idle":
            return [_refusal("already_running", method.run_id)]
        return self._start(method.input, method.deadline_ms, run_id=method.run_id)

    def _resume(self, method: frames.Resume) -> list[Effect]:
        if self.state == "idle":
            return [_refusal("not_paused", method.run_id)]
        if self.state == "running":
            return [_refusal("already_running", method.run_id)]
        return self._start(None, method.deadline_ms, resumed=True, run_id=method.run_id)

    def _start(
        self, text: str | None, deadline_ms: int | None, *, resumed: bool = False, run_id: str | None = None
    ) -> list[Effect]:
        self.state, self._run_id = "running", run_id
        start = StartTurn(text, self.take_notifications(), resumed, deadline_ms)
        # turn_start is all the acknowledgement that there is: it goes out at once.
        return [start, *self.begin_request(), SaveStatus("running")]

    def _end(self) -> list[Effect]:
        self.ended = True
        return [Broadcast(frames.ShutdownEvent()), End()]


def _refusal(code: ErrorCode, run_id: str | None = None) -> Broadcast:
    return Broadcast(frames.Error(code, _TEXTS[code], run_id=run_id))


def notification_text(notify: frames.Notify) -> str:
    """How the model is told of a notification; it does not become part of the history (B2.5)."""
    return (
        f"[Notification from {notify.source}]\n{notify.message}\n"
        "(This is for your information and does not block your current work.)"
    )


@attrs.define(eq=False)
class Notifier:
    """The notifications that a client which connects later is shown once (B2.4 rule 1)."""

    limit: int = POD_NOTIFICATIONS
    """Kept at most; the oldest are dropped."""
    _kept: deque[frames.Notification] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        """The buffer needs its bound."""
        self._kept = deque(maxlen=self.limit)

    def add(self, notification: frames.Notification) -> None:
        """Keep it for those who come later; those who are here get it live."""
        self._kept.append(notification)

    def snapshot(self) -> tuple[frames.Notification, ...]:
        """All that are kept, oldest first."""
        return tuple(self._kept)
