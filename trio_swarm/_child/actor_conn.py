"""Drives one parent's connection: the machine decides, this moves bytes and runs the engine."""

from __future__ import annotations

import math
import uuid
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import attrs
import trio

from trio_swarm import frames
from trio_swarm._child.actor_engines import Engine, describe
from trio_swarm._child.actor_run import ActorRun
from trio_swarm._io.calls import ReplyTable
from trio_swarm._io.deadline import scope_for
from trio_swarm._io.groups import collapse
from trio_swarm._io.transport import Transport, too_large
from trio_swarm._state import child_conn as machine
from trio_swarm.errors import FrameError, PeerError
from trio_swarm.frames.child import ApprovalRequest, Event, Terminal
from trio_swarm.limits import APPROVAL_WAIT, MAX_FRAME, SEND_DEADLINE

__all__ = ["APPROVAL_BACKSTOP", "Connection"]

APPROVAL_BACKSTOP: Final = APPROVAL_WAIT + 30.0
"""Seconds after which an engine stops waiting for a parent that should have denied by itself."""

RUNAWAY_LIMIT: Final = 5.0
"""Seconds for an actor to end itself around an engine that does not end."""

_LOST = (PeerError, trio.BrokenResourceError, trio.ClosedResourceError)


class _Signal:
    """Wakes whoever waits for a change that it cannot miss: take `event`, look, then wait."""

    def __init__(self) -> None:
        self.event = trio.Event()

    def pulse(self) -> None:
        self.event.set()
        self.event = trio.Event()


@attrs.define(eq=False)
class _Work:
    """An engine at work."""

    scope: trio.CancelScope
    steer: trio.MemorySendChannel[str]


class Connection:
    """One connection of one parent; `serve` runs it to its end.

    ``on_runaway`` is awaited when the connection is over and an engine is not: in an actor it ends
    the process and does not return.
    """

    def __init__(
        self,
        transport: Transport,
        engine: Engine,
        *,
        on_runaway: Callable[[], Awaitable[None]],
        drain: float = machine.DRAIN,
        send_deadline: float = SEND_DEADLINE,
        approval_wait: float = APPROVAL_BACKSTOP,
    ) -> None:
        self._transport = transport
        self._engine = engine
        self._on_runaway = on_runaway
        self._drain = drain
        self._send_deadline = send_deadline
        self._approval_wait = approval_wait
        self._machine = machine.ChildConnection(drain=drain)
        self._approvals: ReplyTable[bool] = ReplyTable()
        self._work: dict[int, _Work] = {}
        self._hangup = False
        self._queued, self._room, self._time, self._ended = (_Signal() for _ in range(4))
        self.malformed = 0
        """Messages that were no frame; they are ignored (A5)."""

    @property
    def tainted(self) -> bool:
        """Whether a run had to be abandoned: this process should get no more work."""
        return self._machine.tainted

    async def serve(self) -> None:
        """Serve until the peer is gone or had to be hung up on; raises nothing of the peer's doing.

        However it is left, the engine is cancelled and has ``drain`` seconds to end (none if it was
        abandoned before). Closing the transport is its owner's affair.
        """
        with collapse():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write)
                nursery.start_soon(self._watch_time, nursery)
                try:
                    await self._read(nursery)
                finally:
                    self._apply(self._machine.disconnect(trio.current_time()), nursery)
                    with trio.move_on_after(self._drain + RUNAWAY_LIMIT, shield=True):
                        await self._drained()
                    nursery.cancel_scope.cancel()

    async def _drained(self) -> None:
        with trio.move_on_after(0 if self.tainted else self._drain):
            while self._work:
                await self._ended.event.wait()
        if self._work:
            await self._on_runaway()

    # -- from the parent ---------------------------------------------------------------

    async def _read(self, nursery: trio.Nursery) -> None:
        try:
            while batch := await self._transport.receive_batch():
                for message in batch:
                    self._one(message, nursery)
        except _LOST:
            return

    def _one(self, message: str | bytes, nursery: trio.Nursery) -> None:
        if isinstance(message, bytes):
            return  # binary messages are ignored by both sides (A2)
        try:
            frame = frames.decode(message, frames.ParentFrame)
        except FrameError:
            self.malformed += 1  # ignored, the connection stays (A5)
            return
        self._apply(self._machine.receive(frame, trio.current_time()), nursery)

    def _apply(self, effects: list[machine.Effect], nursery: trio.Nursery) -> None:
        for effect in effects:
            match effect:
                case machine.Start():
                    self._start(effect, nursery)
                case machine.Trip(run=run) if run in self._work:
                    self._work[run].scope.cancel()
                case machine.Steer(run=run, text=text) if run in self._work:
                    self._steer(self._work[run], text)
                case machine.Decide(id=request, approved=approved):
                    self._approvals.resolve(request, approved)
                case machine.Hangup():
                    self._hangup = True
        for signal in (self._queued, self._room, self._time):
            signal.pulse()

    def _steer(self, work: _Work, text: str) -> None:
        try:
            work.steer.send_nowait(text)
        except (trio.WouldBlock, trio.BrokenResourceError):
            return  # full, or the engine closed its inbox: dropped, as the contract drops it

    # -- the engine --------------------------------------------------------------------

    def _start(self, start: machine.Start, nursery: trio.Nursery) -> None:
        steer, inbox = trio.open_memory_channel[str](machine.MAX_STEERING)
        for text in start.steering:
            steer.send_nowait(text)
        frame = start.frame
        run = ActorRun(start.run, frame.assignment, frame.messages, frame.reasoning_effort, inbox, self)
        work = self._work[start.run] = _Work(scope_for(frame.deadline_ms), steer)
        nursery.start_soon(self._run, run, work, nursery)

    async def _run(self, run: ActorRun, work: _Work, nursery: trio.Nursery) -> None:
        outcome: str | None = None
        try:
            with work.scope:
                outcome = _terminal(Terminal(status="completed", result=await self._engine(run)))
        except (Exception, SystemExit) as error:  # a crashed engine is a terminal error (A5)
            outcome = _terminal(Terminal(status="error", error=describe(error)))
        finally:
            work.steer.close()
            run.inbox.close()
            del self._work[run.number]
            self._ended.pulse()
        self._apply(self._machine.finish(run.number, outcome, trio.current_time()), nursery)

    async def emit(self, run: int, event: Mapping[str, Any]) -> None:
        """See `ActorRun.emit`."""
        await trio.lowlevel.checkpoint()
        text = frames.encode(Event(event=dict(event)))
        if too_large(text, MAX_FRAME):
            raise FrameError(f"an event of {len(text)} characters does not fit into a frame")
        while not self._machine.event_room() and self._machine.speaks(run):
            await self._room.event.wait()
        if not self._machine.event(run, text):
            raise trio.BrokenResourceError("this run is not heard any more")
        self._queued.pulse()

    async def ask(self, run: int, body: Mapping[str, Any]) -> bool:
        """See `ActorRun.request_approval`."""
        await trio.lowlevel.checkpoint()
        request = f"sa-{uuid.uuid4()}"
        text = frames.encode(ApprovalRequest(id=request, body=dict(body)))
        if too_large(text, MAX_FRAME):
            raise FrameError(f"an approval request of {len(text)} characters does not fit into a frame")
        with trio.move_on_after(self._approval_wait), self._approvals.expect(request) as waiter:
            while not self._machine.control_room() and self._machine.speaks(run):
                await self._room.event.wait()
            if not self._machine.ask(run, request, text):
                return False
            self._queued.pulse()
            try:
                return await waiter.wait()
            finally:
                self._machine.withdraw(request)
                self._room.pulse()
        return False

    # -- to the parent -----------------------------------------------------------------

    async def _write(self) -> None:
        while True:
            queued = self._queued.event
            batch = self._machine.take(machine.EVENT_QUEUE)
            if batch:
                self._room.pulse()
                await self._send([item if isinstance(item, str) else frames.encode(item) for item in batch])
            elif self._hangup:
                await self._transport.aclose(1011, "this actor takes no more work")
                return
            else:
                await queued.wait()

    async def _send(self, batch: list[str]) -> None:
        try:
            with trio.move_on_after(self._send_deadline) as scope:
                await self._transport.send_batch(batch)
            if scope.cancelled_caught:  # a peer that does not read is dropped
                await self._transport.aclose_forcefully()
        except _LOST:
            return  # the reader sees the same end, and that one counts

    async def _watch_time(self, nursery: trio.Nursery) -> None:
        while True:
            changed = self._time.event
            due = self._machine.deadline()
            with trio.CancelScope(deadline=math.inf if due is None else due):
                await changed.wait()
            if effects := self._machine.tick(trio.current_time()):
                self._apply(effects, nursery)


def _terminal(terminal: Terminal) -> str:
    """The frame as text; one that cannot travel becomes an error that says so."""
    try:
        text = frames.encode(terminal)
        size = len(text.encode())
    except (ValueError, TypeError) as error:
        return frames.encode(
            Terminal(status="error", error=f"result has no JSON form: {type(error).__name__}")
        )
    if size > MAX_FRAME:
        return frames.encode(
            Terminal(status="error", error=f"a result of {size} bytes does not fit into a frame")
        )
    return text
