"""One connection of a child actor: what its frames mean (children contract, A5).

The machine decides; whoever drives it runs engines and moves bytes. It keeps four promises:

* at most one run is active; a second ``run`` cancels the first and waits for its end;
* each ``run`` gets exactly one terminal, and terminals come in the order of their runs;
* all events of a run leave before its terminal; an approval request overtakes events that wait,
  but never the terminal of an earlier run;
* a run that does not end within ``drain`` seconds of being cancelled is *abandoned*: its
  terminal is sent for it, what it still says is refused, and after the next terminal the connection is
  hung up, because a process with a runaway in it should not get more work.

The contract lets the frames of a superseded run and of its successor interleave. Here they
never do: a run starts when its predecessor's terminal is queued. Only the drain bound makes
that wait short, and a client that counts terminals cannot tell the difference.
"""

from __future__ import annotations

from collections import deque
from typing import Final, TypeAlias

import attrs

from trio_swarm.frames.child import ApprovalReply, Cancel, Message, Run, Terminal

__all__ = [
    "CONTROL_QUEUE",
    "DRAIN",
    "EVENT_QUEUE",
    "MAX_STEERING",
    "MAX_SUPERSEDED",
    "Abandon",
    "ChildConnection",
    "Decide",
    "Effect",
    "Hangup",
    "Start",
    "Steer",
    "Trip",
]

DRAIN: Final = 3.0
"""Seconds that a cancelled run has to end (A5, later hardening)."""

EVENT_QUEUE: Final = 64
"""Events that wait for the writer before the engine waits (A5, later hardening)."""

CONTROL_QUEUE: Final = 32
"""Approval requests that wait for the writer or for their answer (A5, later hardening)."""

MAX_SUPERSEDED: Final = 32
"""Runs superseded before they could start; a parent that sends more is hung up on. Ours."""

MAX_STEERING: Final = 64
"""Steering messages kept for a run that could not start yet; more are dropped. Ours."""


@attrs.frozen
class Start:
    """Start the engine for ``frame`` as run number ``run``; ``steering`` came ahead of it."""

    run: int
    frame: Run
    steering: tuple[str, ...] = ()


@attrs.frozen
class Trip:
    """Cancel the engine of ``run``."""

    run: int


@attrs.frozen
class Abandon:
    """The engine of ``run`` did not end in time; nobody waits for it any more."""

    run: int


@attrs.frozen
class Steer:
    """Hand ``text`` to the inbox of ``run``."""

    run: int
    text: str


@attrs.frozen
class Decide:
    """The approval request ``id`` is decided."""

    id: str
    approved: bool


@attrs.frozen
class Hangup:
    """Send what is queued, then close the connection."""

    reason: str


Effect: TypeAlias = Start | Trip | Abandon | Steer | Decide | Hangup


@attrs.define(eq=False)
class _Active:
    number: int
    deadline: float | None
    """When its own time is up."""
    drained_by: float | None = None
    """When it is abandoned, once it was cancelled."""
    late: bool = False
    """Whether it was its own deadline that cancelled it."""


@attrs.define(eq=False)
class ChildConnection:
    """The child's end of one connection. ``now`` is monotonic seconds everywhere.

    What is queued for the peer are frames, or texts encoded already; the machine never looks into them.
    """

    drain: float = DRAIN
    started: int = attrs.field(default=0, init=False)
    """Runs handed out with `Start` so far; also the last run's number."""
    ignored: int = attrs.field(default=0, init=False)
    """Frames that meant nothing here: no run to steer or cancel, no such approval, another kind."""
    gone: bool = attrs.field(default=False, init=False)
    """Whether the peer has gone."""
    tainted: bool = attrs.field(default=False, init=False)
    """Whether a run was abandoned: something may still be at work in this process."""
    _active: _Active | None = attrs.field(default=None, init=False)
    _next: Run | None = attrs.field(default=None, init=False)
    _steering: list[str] = attrs.field(factory=list, init=False)
    _owed: int = attrs.field(default=0, init=False)
    _approvals: dict[str, int] = attrs.field(factory=dict, init=False)
    _control: deque[object] = attrs.field(factory=deque, init=False)
    _stream: deque[object] = attrs.field(factory=deque, init=False)
    _behind: int = attrs.field(default=0, init=False)
    """How many of ``_stream`` must leave before an approval request may."""

    # -- from the parent ---------------------------------------------------------------

    def receive(self, frame: object, now: float) -> list[Effect]:
        """One frame of the parent, decoded. Unknown kinds are ignored (A5)."""
        match frame:
            case _ if self.gone:
                return []
            case Run():
                return self._run(frame, now)
            case Cancel():
                return self._cancel(now)
            case Message(text=text):
                return self._message(text)
            case ApprovalReply(id=request, approved=approved) if request in self._approvals:
                del self._approvals[request]
                return [Decide(request, approved)]
            case _:
                self.ignored += 1
                return []

    def disconnect(self, now: float) -> list[Effect]:
        """The peer is gone: cancel the run, deny what waits for approval, forget the rest."""
        self.gone = True
        self._next, self._owed = None, 0
        self._control.clear()
        self._stream.clear()
        effects: list[Effect] = [Decide(request, False) for request in self._approvals]
        self._approvals.clear()
        return effects + self._trip(now)

    def _run(self, frame: Run, now: float) -> list[Effect]:
        if self._active is None:
            return [self._start(frame, now)]
        if self._next is not None:
            self._owed += 1
            if self._owed > MAX_SUPERSEDED:
                return [Hangup(f"more than {MAX_SUPERSEDED} runs superseded before they began")]
        self._next, self._steering = frame, []
        return self._trip(now)

    def _cancel(self, now: float) -> list[Effect]:
        if self._next is not None:
            self._next = None
            self._owed += 1
        elif self._active is None:
            self.ignored += 1
        return self._trip(now)

    def _message(self, text: str) -> list[Effect]:
        if self._next is not None and len(self._steering) < MAX_STEERING:
            self._steering.append(text)
        elif self._next is None and self._active is not None:
            return [Steer(self._active.number, text)]
        else:
            self.ignored += 1
        return []

    def _start(self, frame: Run, now: float) -> Start:
        self.started += 1
        limit = frame.deadline_ms
        self._active = _Active(self.started, None if limit is None else now + max(limit, 0) / 1000)
        steering, self._steering = tuple(self._steering), []
        return Start(self.started, frame, steering)

    def _trip(self, now: float) -> list[Effect]:
        active = self._active
        if active is None or active.drained_by is not None:
            return []
        active.drained_by = now + self.drain
        return [Trip(active.number)]

    # -- from the engine ---------------------------------------------------------------

    @property
    def active(self) -> int | None:
        """The number of the run at work (or being cancelled), or None."""
        return None if self._active is None else self._active.number

    def speaks(self, run: int) -> bool:
        """Whether ``run`` is still heard: not ended, not abandoned, and the peer is there."""
        return not self.gone and self.active == run

    def event_room(self) -> bool:
        """Whether an event may be queued now."""
        return len(self._stream) < EVENT_QUEUE

    def control_room(self) -> bool:
        """Whether an approval may be asked for now."""
        return len(self._control) < CONTROL_QUEUE and len(self._approvals) < CONTROL_QUEUE

    def event(self, run: int, item: object) -> bool:
        """Queue an event of ``run``; False if it is not heard any more. Ask `event_room` first."""
        if not self.speaks(run):
            return False
        self._stream.append(item)
        return True

    def ask(self, run: int, request: str, item: object) -> bool:
        """Queue an approval request; False means denied: the run is cancelled or not heard."""
        if not self.speaks(run) or (self._active is not None and self._active.drained_by is not None):
            return False
        self._approvals[request] = run
        self._control.append(item)
        return True

    def withdraw(self, request: str) -> None:
        """Nobody waits for this approval any more; its answer will be ignored."""
        self._approvals.pop(request, None)

    def finish(self, run: int, outcome: object | None, now: float) -> list[Effect]:
        """The engine of ``run`` ended: with ``outcome``, its terminal, or None if it was cancelled."""
        active = self._active
        if active is None or active.number != run:
            return []
        return self._settle(active, self._cancelled(active) if outcome is None else outcome, now)

    def _cancelled(self, active: _Active) -> Terminal:
        # Cancelled by nobody: the engine's own scope ended with its time, just before our tick.
        if active.late or active.drained_by is None:
            return Terminal(status="error", error="deadline exceeded")
        return Terminal(status="cancelled")

    def _settle(self, active: _Active, terminal: object, now: float) -> list[Effect]:
        self._active = None
        for request in [r for r, run in self._approvals.items() if run == active.number]:
            del self._approvals[request]
        if self.gone:
            return []
        # Requests of this run that are still queued would arrive after it: nobody waits for them.
        self._control.clear()
        self._stream.append(terminal)
        self._stream.extend(Terminal(status="cancelled") for _ in range(self._owed))
        self._owed = 0
        self._behind = len(self._stream)
        following, self._next = self._next, None
        if following is not None:
            return [self._start(following, now)]
        return [Hangup("a cancelled run did not end")] if self.tainted else []

    # -- time --------------------------------------------------------------------------

    def deadline(self) -> float | None:
        """When `tick` is due, or None."""
        if self._active is None:
            return None
        return self._active.deadline if self._active.drained_by is None else self._active.drained_by

    def tick(self, now: float) -> list[Effect]:
        """Time has passed: cancel a run whose own time is up, abandon one that does not end."""
        active, due = self._active, self.deadline()
        if active is None or due is None or now < due:
            return []
        if active.drained_by is None:
            active.late = True
            return self._trip(now)
        self.tainted = True
        return [Abandon(active.number), *self._settle(active, self._cancelled(active), now)]

    # -- to the parent -----------------------------------------------------------------

    def waiting(self) -> int:
        """Frames that wait for the writer."""
        return len(self._control) + len(self._stream)

    def take(self, limit: int) -> list[object]:
        """Up to ``limit`` queued frames in the order in which they are to leave."""
        taken: list[object] = []
        while len(taken) < limit and (self._stream or self._control):
            if self._control and not self._behind:
                taken.append(self._control.popleft())
            else:
                taken.append(self._stream.popleft())
                self._behind = max(self._behind - 1, 0)
        return taken
