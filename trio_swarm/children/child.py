"""A child actor: a process that runs one assignment after another, and is replaced when it dies."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, Literal, TypeAlias

import attrs
import trio

from trio_swarm._io.deadline import remaining_ms
from trio_swarm._io.groups import collapse
from trio_swarm._io.host import Host
from trio_swarm._io.starting import StartLost
from trio_swarm._state.supervise import RestartIntensity
from trio_swarm.children.approval import Decider
from trio_swarm.children.conversation import Conversation, Lost
from trio_swarm.children.incarnation import Blueprint, Embodied, embodied
from trio_swarm.children.run import ChildRun, result_of
from trio_swarm.errors import BusyError, ChildCrashed, RestartIntensityExceeded, SwarmError
from trio_swarm.frames import child as wire
from trio_swarm.frames.record import AgentRecord
from trio_swarm.limits import (
    EVENTS_BUFFERED,
    MAX_PENDING,
)

__all__ = ["Child", "ChildState", "ChildStatistics"]

ChildState: TypeAlias = Literal["starting", "idle", "running", "down", "failed", "closed"]

REMEMBERED: Final = 15
"""Crashes kept, besides the last, for the error that gives up."""

_EXIT_WAIT: Final = 1.0
"""Seconds for the news of a process's end to follow the end of its connection."""


@attrs.frozen
class ChildStatistics:
    """Counts since the child was opened."""

    runs: int
    """Runs that ended in any way, tries not counted."""
    completed: int
    crashes: int
    """Processes that ended on their own."""
    restarts: int
    """Processes started after the first."""
    events: int
    approvals: int
    """Approval requests."""
    denied: int
    malformed: int
    """Messages that were no frame; tolerated."""
    unknown: int
    """Frames of kinds that we do not know; ignored."""
    waiting: int
    """Callers that wait for their turn."""


@attrs.define(eq=False)
class _Incarnation:
    """The process of the moment; ``gone`` is set when nothing of it is left."""

    talk: Conversation
    gone: trio.Event = attrs.field(factory=trio.Event)


class Child:
    """Made by `open_child`. Any task may use it; runs take turns in the order of the calls."""

    def __init__(
        self,
        host: Host,
        blueprint: Blueprint,
        *,
        on_approval: Decider | None,
        intensity: RestartIntensity,
        max_attempts: int,
        nursery: trio.Nursery,
    ) -> None:
        self.name = blueprint.child_id
        self._host = host
        self._blueprint = blueprint
        self._on_approval = on_approval
        self._intensity = intensity
        self._max_attempts = max_attempts
        self._nursery = nursery
        self._turn = trio.Lock()
        self._readying = trio.Lock()
        self._now: _Incarnation | None = None
        self._start = trio.CancelScope()
        self._state: ChildState = "starting"
        self._attempt = 1
        self._fallen: ChildCrashed | None = None
        self._fell_at = 0.0
        self._not_before: float | None = None
        """When the restart that was granted may begin; None: none was."""
        self._crashes: list[ChildCrashed] = []
        self._counts: Counter[str] = Counter()

    def __repr__(self) -> str:
        return f"<Child {self.name} {self._state} pid={self.pid}>"

    @property
    def state(self) -> ChildState:
        """``down``: its process ended and the next run starts another; ``failed``: it ended too often."""
        return self._state

    @property
    def pid(self) -> int | None:
        """Of its process; None while it has none."""
        return None if self._now is None else self._now.talk.body.process.pid

    @property
    def record(self) -> AgentRecord | None:
        """What its process announced when it came up; None while it has none."""
        return None if self._now is None else self._now.talk.body.record

    def statistics(self) -> ChildStatistics:
        """Counts so far."""
        names = (field.name for field in attrs.fields(ChildStatistics) if field.name != "waiting")
        waiting = self._turn.statistics().tasks_waiting
        return ChildStatistics(**{name: self._counts[name] for name in names}, waiting=waiting)

    # -- runs --------------------------------------------------------------------------

    async def run(
        self, assignment: str, *, messages: Sequence[Any] = (), reasoning_effort: str | None = None
    ) -> str:
        """Run ``assignment`` and return its result; events are not kept.

        ``messages`` is the conversation so far, oldest first, with the message that states this
        assignment. The caller's deadline travels along and is kept at the far end. A process that dies is
        replaced and the run sent again, up to ``max_attempts`` times: at least once, not exactly once. The
        first replacement within the window comes at once, later ones after 0.1, 0.2, ... 5 seconds.

        Raises as `ChildRun.result` does, `SpawnError` when a replacement does not come up, `BusyError` when
        1,024 callers wait already, and ``trio.ClosedResourceError`` when the child's block was left.
        Cancelled: the child is told, and has three seconds to end the run, else it is killed.
        """
        frame = wire.Run(assignment, reasoning_effort, messages)
        async with self._taking_turns():
            terminal = await self._attempts(frame, None, lambda _: None)
        return self._settled(terminal)

    @asynccontextmanager
    async def open_run(
        self, assignment: str, *, messages: Sequence[Any] = (), reasoning_effort: str | None = None
    ) -> AsyncIterator[ChildRun]:
        """Run ``assignment`` and iterate its events; see `run` for the rest.

        Leaving the block before the run is over cancels it.
        """
        frame = wire.Run(assignment, reasoning_effort, messages)
        async with self._taking_turns():
            give, take = trio.open_memory_channel[Any](EVENTS_BUFFERED // 4)
            run = ChildRun(assignment, take)
            with collapse(), take:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._drive, frame, run, give)
                    try:
                        yield run
                    finally:
                        nursery.cancel_scope.cancel()

    async def tell(self, text: str) -> bool:
        """Steer the run at work; False if there is none to steer (the contract drops it then)."""
        if self._now is None:
            await trio.lowlevel.checkpoint()
            return False
        return await self._now.talk.tell(text)

    async def _drive(self, frame: wire.Run, run: ChildRun, give: trio.MemorySendChannel[Any]) -> None:
        def trying(attempt: int) -> None:
            run.attempt = attempt

        with give:
            try:
                run._outcome = self._settled(await self._attempts(frame, give, trying))
            except (SwarmError, trio.ClosedResourceError) as error:
                run._outcome = error

    @asynccontextmanager
    async def _taking_turns(self) -> AsyncIterator[None]:
        if self._turn.statistics().tasks_waiting >= MAX_PENDING:
            raise BusyError(f"{MAX_PENDING} callers wait for {self.name} already")
        async with self._turn:
            try:
                yield
            finally:
                self._counts["runs"] += 1
                if self._state == "running":
                    self._state = "idle"

    def _settled(self, terminal: wire.Terminal) -> str:
        self._counts["completed"] += terminal.status == "completed"
        return result_of(terminal)

    # -- attempts and processes ----------------------------------------------------------

    async def _attempts(
        self, frame: wire.Run, give: trio.MemorySendChannel[Any] | None, trying: Callable[[int], None]
    ) -> wire.Terminal:
        for attempt in range(1, self._max_attempts + 1):
            incarnation = await self.ready()
            self._attempt = attempt
            trying(attempt)
            self._state = "running"
            mine = None if give is None else give.clone()
            try:
                return await incarnation.talk.execute(attrs.evolve(frame, deadline_ms=remaining_ms()), mine)
            except Lost:
                await incarnation.gone.wait()
            finally:
                if mine is not None:
                    mine.close()
        if self._state == "closed" or self._fallen is None:
            raise trio.ClosedResourceError(f"{self.name} was closed")
        raise self._fallen

    async def ready(self) -> _Incarnation:
        """The process that is up, or a new one within the restart intensity. Runs call it by themselves."""
        async with self._readying:  # two that find it down need one process
            return await self._ready()

    async def _ready(self) -> _Incarnation:
        if self._now is not None and self._now.talk.over:
            await self._now.gone.wait()
        while self._state != "closed":
            if self._state == "failed":
                raise self._given_up()
            if self._now is not None:
                return self._now
            with trio.CancelScope() as self._start:
                await self._wait_to_restart()
                try:
                    started: _Incarnation = await self._nursery.start(self._live)
                except StartLost as lost:
                    self._fell(lost.crash)
                    continue
                if not self._start.cancel_called:
                    return started
        raise trio.ClosedResourceError(f"{self.name} was closed")

    async def _wait_to_restart(self) -> None:
        """Take one restart out of the intensity and wait for its time; nothing before the first start.

        Cancelled: the restart stays granted, for whoever comes next.
        """
        if self._fallen is None:
            return
        if self._not_before is None:
            delay = self._intensity.restart(trio.current_time())
            if delay is None:
                self._state = "failed"
                raise self._given_up()
            self._not_before = self._fell_at + delay
        await trio.sleep_until(self._not_before)

    def _started(self, incarnation: _Incarnation) -> None:
        self._now, self._fallen, self._not_before = incarnation, None, None
        told = {"child": self.name, "pid": self.pid}
        if self._state == "starting":
            self._host.emit("child_started", told)
        else:
            self._counts["restarts"] += 1
            self._host.emit("child_restarted", told | {"restarts": self._counts["restarts"]})
        self._state = "idle"

    def _given_up(self) -> RestartIntensityExceeded:
        return RestartIntensityExceeded(
            self.name,
            max_restarts=self._intensity.max_restarts,
            within=self._intensity.within,
            attempts=self._crashes,
        )

    async def _live(self, *, task_status: trio.TaskStatus[_Incarnation]) -> None:
        incarnation: _Incarnation | None = None
        try:
            async with embodied(self._host, self._blueprint) as body:
                talk = Conversation(self.name, body, self._on_approval, self._host.emit, self._counts)
                incarnation = _Incarnation(talk)
                if self._state != "closed":
                    self._started(incarnation)
                task_status.started(incarnation)
                await talk.pump()
                if not talk.killed:
                    await self._crashed(body)
        finally:
            if incarnation is not None:
                self._now = None
                if self._state != "closed":
                    self._state = "down"
                incarnation.gone.set()

    async def _crashed(self, body: Embodied) -> None:
        process = body.process
        with trio.move_on_after(_EXIT_WAIT):
            await process.wait()
        how = "closed its connection" if process.exit is None else str(process.exit)
        self._fell(
            ChildCrashed(
                self.name, how, pid=process.pid, attempt=self._attempt, stderr_tail=process.stderr_tail
            )
        )

    def _fell(self, crash: ChildCrashed) -> None:
        self._fallen, self._fell_at, self._not_before = crash, trio.current_time(), None
        self._crashes = [*self._crashes[-REMEMBERED:], crash]
        self._counts["crashes"] += 1
        self._host.emit("child_crashed", {"child": self.name, "pid": crash.pid, "how": crash.how})

    def close(self) -> None:
        """No more runs; `open_child` calls it when its block is left."""
        self._state = "closed"
        # Else the block would wait for a process to come up that nobody wants.
        self._start.cancel()
