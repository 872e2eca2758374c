"""A pod as its owner holds it: one process, kept alive, one turn at a time."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Final, Literal

import attrs
import trio

from trio_swarm._io.deadline import remaining_ms
from trio_swarm._io.process import ManagedProcess
from trio_swarm.errors import BusyError, ChildCrashed, PeerError, SlowPeerError
from trio_swarm.frames import pod as frames
from trio_swarm.frames.pod import MessageItem, PodEvent, PodMethod, ScopeRule, TextPart
from trio_swarm.limits import EVENTS_BUFFERED, MAX_PENDING, POD_STEP, REAP_DEADLINE
from trio_swarm.pods.client import ANSWER_DEADLINE, PodClient
from trio_swarm.pods.turn import Turn, TurnEvents, TurnResult

__all__ = ["LOST", "Pod", "PodStatistics"]

PodState = Literal["starting", "idle", "running", "closed"]

LOST: Final = (PeerError, trio.BrokenResourceError, trio.ClosedResourceError)

_CANCEL_LIMIT: Final = POD_STEP + REAP_DEADLINE
"""Seconds for the end of a cancelled turn, or else of its process."""

_COMPARED: Final = 64 * 2**10
"""Characters of an input that are compared with the history's, which shortens long ones."""


@attrs.frozen
class PodStatistics:
    """Counts since the pod was opened."""

    state: PodState
    """What it does now, as far as its events tell."""
    pid: int
    """Its process; 0 between two."""
    turns: int
    """Runs of ours that ended, however."""
    waiting: int
    """Callers that wait for their turn."""
    restarts: int
    """Processes that were started after the first."""
    events: int
    """Events received over the present connection."""
    unknown_events: int
    """Those of them that this version does not know; they were skipped."""


@attrs.define(eq=False)
class Pod:
    """A pod; made by `open_pod`. Any task may use it; callers take turns in the order in which they came."""

    name: str
    """Its name."""
    scope: tuple[ScopeRule, ...]
    """What it may read and write, resolved."""
    _max_attempts: int = attrs.field(repr=False)
    _token: str = attrs.field(factory=lambda: secrets.token_hex(4), repr=False)
    _lock: trio.Lock = attrs.field(factory=trio.Lock, repr=False)
    _client: PodClient | None = attrs.field(default=None, repr=False)
    _process: ManagedProcess | None = attrs.field(default=None, repr=False)
    _changed: trio.Event = attrs.field(factory=trio.Event, repr=False)
    _closed: Callable[[], Exception] | None = attrs.field(default=None, repr=False)
    _notified: bool = attrs.field(default=False, repr=False)
    _turns: int = attrs.field(default=0, repr=False)
    _restarts: int = attrs.field(default=0, repr=False)

    @property
    def pid(self) -> int:
        """Its process id; 0 between a crash and the restart."""
        return self._process.pid if self._process is not None else 0

    @property
    def state(self) -> PodState:
        """``starting`` (also again, after a crash), ``idle``, ``running`` or ``closed``."""
        if self._closed is not None:
            return "closed"
        if self._client is None:
            return "starting"
        return "running" if self._client.running else "idle"

    def statistics(self) -> PodStatistics:
        """Counts so far."""
        client = self._client
        return PodStatistics(
            state=self.state,
            pid=self.pid,
            turns=self._turns,
            waiting=self._lock.statistics().tasks_waiting,
            restarts=self._restarts,
            events=client.events if client is not None else 0,
            unknown_events=client.unknown if client is not None else 0,
        )

    # -- turns ---------------------------------------------------------------------------

    async def run(self, text: str, /, *, idempotent: bool = False) -> TurnResult:
        """Give the pod a message and return what its turn came to.

        Turns of one pod never overlap: callers wait for each other. The time left to the caller travels
        along and is enforced by the pod too.

        Args:
            text: the user's message.
            idempotent: say so where running it twice does no harm; then a crash of the process makes it
                run again on a new one, a limited number of times.

        Raises:
            RemoteError: the turn failed; ``remote_type`` is the code (``tool_error``, ``provider_error``,
                ``internal``), the message the pod's.
            BusyError: somebody else's run goes on in the pod, or too many wait here.
            ChildCrashed: its process went down with the turn, ``attempt`` says which try; a new process
                is on its way.
            SlowPeerError: it did not take the run in time; its process is replaced.
            ProtocolError: its turn was larger than is kept; it was cancelled.
            RestartIntensityExceeded: it crashed too often and was given up.
            trio.ClosedResourceError: the pod was left.

        When cancelled, the turn is cancelled too and its end waited for, a few seconds at most; a pod
        that does not end it then gets a new process. Pods contract, B2.5.
        """
        for attempt in range(1, self._max_attempts + 1):
            try:
                async with self._turn(text) as turn:
                    await turn.ended.wait()
                    return await self._finish(turn, attempt)
            except ChildCrashed as error:
                if not idempotent or attempt == self._max_attempts:
                    raise _at_attempt(error, attempt) from error.__cause__
        raise AssertionError("at least one attempt is made")

    @asynccontextmanager
    async def open_turn(self, text: str, /, *, buffered: int = EVENTS_BUFFERED) -> AsyncIterator[TurnEvents]:
        """Like `run`, with its events: ``async with pod.open_turn(t) as events: async for event in events``.

        Leaving the block before the turn has ended cancels the turn, as a cancellation does. ``buffered``
        events may wait for the loop; beyond that it gets `SlowPeerError`, and the turn goes on.
        """
        shown, events = trio.open_memory_channel[PodEvent](buffered)
        with shown, events:
            async with self._turn(text, watcher=shown) as turn:
                yield TurnEvents(turn, events, self._finish)

    async def resume(self) -> TurnResult:
        """Continue a turn that ended as ``paused``. Raises as `run` does; `BusyError` if nothing is."""
        async with self._turn(None) as turn:
            await turn.ended.wait()
            return await self._finish(turn)

    async def cancel_turn(self) -> None:
        """Stop the turn that goes on; whoever waits for it gets `RemoteError` (``internal``)."""
        await self._send(await self._connected(), frames.Cancel())

    async def notify(self, source: str, message: str) -> None:
        """Tell the model something; where the pod is idle, that starts a turn that nobody waits for.

        A `run` after it waits for that turn. Raises `ChildCrashed` where the connection is lost.
        """
        client = await self._connected()
        self._notified = True
        await self._send(client, frames.Notify(source, message, deadline_ms=remaining_ms()))

    async def history(self) -> frames.History:
        """The conversation as of the end of the last run, and the pod's greeting.

        Raises:
            SlowPeerError: no answer within half a minute.
            ChildCrashed: the connection was lost.
        """
        client = await self._connected()
        try:
            return await client.history()
        except LOST:
            if not client.ended.is_set():
                raise
        raise await self._fate_of(client)

    # -- one turn ------------------------------------------------------------------------

    @asynccontextmanager
    async def _turn(
        self, text: str | None, *, watcher: trio.MemorySendChannel[PodEvent] | None = None
    ) -> AsyncIterator[Turn]:
        if self._lock.statistics().tasks_waiting >= MAX_PENDING:
            raise BusyError(f"{MAX_PENDING} callers wait for the pod {self.name} already")
        async with self._lock:
            client = await self._connected()
            turn = Turn(text, f"{self._token}-{self._turns}", watcher=watcher)
            try:
                await self._begin(client, turn)
                yield turn
            finally:
                if turn.sent and not turn.over.is_set():
                    with trio.move_on_after(_CANCEL_LIMIT, shield=True):
                        await self._cancel(client, turn)
                client.turn = None
                self._turns += 1

    async def _begin(self, client: PodClient, turn: Turn) -> None:
        """Send it, and wait until the pod has taken it or not."""
        if self._notified:
            await self._settle_notified(client)
        method: PodMethod = frames.Resume(deadline_ms=remaining_ms(), run_id=turn.run_id)
        if turn.input is not None:
            method = frames.Run(turn.input, deadline_ms=remaining_ms(), run_id=turn.run_id)
        client.turn = turn
        await self._send(client, method)
        turn.sent = True
        with trio.move_on_after(ANSWER_DEADLINE):
            await turn.answered.wait()
        if not turn.answered.is_set():
            turn.fail(SlowPeerError(f"the pod {self.name} did not take a run within {ANSWER_DEADLINE:g} s"))
            await self._replace_process()

    async def _settle_notified(self, client: PodClient) -> None:
        """Let the turn that our own notification began come to its end, so that it is not taken for ours."""
        try:
            # The answer comes after the turn_start of what was sent before the question.
            await client.history()
            lost = False
        except LOST:
            lost = True
        if lost:
            raise await self._fate_of(client)
        if client.running:
            await client.idle.wait()
        self._notified = False

    async def _cancel(self, client: PodClient, turn: Turn) -> None:
        with trio.move_on_after(POD_STEP):
            # Before it is taken a cancel might hit the run of somebody else.
            await turn.answered.wait()
            if not turn.over.is_set():
                # Lost: then the turn ends with the connection.
                with suppress(*LOST):
                    await client.send(frames.Cancel())
                await turn.over.wait()
        if not turn.over.is_set():
            turn.fail(
                SlowPeerError(f"the pod {self.name} did not end a cancelled turn within {POD_STEP:g} s")
            )
            await self._replace_process()

    async def _finish(self, turn: Turn, attempt: int = 1) -> TurnResult:
        await turn.ended.wait()
        if turn.contested and turn.input is not None:
            told = [item for item in (await self.history()).items if isinstance(item, MessageItem)]
            users = [item for item in told if item.role == "user"]
            if not users or _start_of(users[-1]) != turn.input[:_COMPARED]:
                raise BusyError(f"the pod {self.name} was running the turn of another client")
        return turn.result(attempt)

    # -- the connection ------------------------------------------------------------------

    async def _connected(self) -> PodClient:
        """The present connection; waits for a restart. Raises what `close` was told."""
        while True:
            if self._closed is not None:
                # Whoever is in the pod's own block is being cancelled for the same reason.
                await trio.lowlevel.checkpoint()
                raise self._closed()
            if self._client is not None and not self._client.ended.is_set():
                return self._client
            await self._changed.wait()

    async def _send(self, client: PodClient, method: PodMethod) -> None:
        with suppress(*LOST):
            return await client.send(method)
        raise await self._fate_of(client)

    async def _fate_of(self, client: PodClient) -> Exception:
        """What became of the process behind a lost connection."""
        with trio.move_on_after(POD_STEP):
            await client.failed.wait()
        if client.fate is not None:
            return client.fate()
        pid = self.pid
        await self._replace_process()
        return ChildCrashed(f"pod {self.name}", "lost its connection", pid=pid)

    async def _replace_process(self) -> None:
        """It does not do what it should: kill it, and the supervisor starts another."""
        if self._process is not None:
            await self._process.kill()

    # -- for the supervisor --------------------------------------------------------------

    def connect(self, process: ManagedProcess, client: PodClient) -> None:
        """There is a process again."""
        self._process, self._client = process, client
        self._pulse()

    def disconnect(self) -> None:
        """There is none for now."""
        self._process, self._client = None, None
        self._notified = False
        self._pulse()

    def count_restart(self) -> int:
        """One process more than the first; returns how many."""
        self._restarts += 1
        return self._restarts

    def close(self, why: Callable[[], Exception] | None = None) -> None:
        """It was left, or given up: ``why`` makes what callers get. The first reason is the right one."""
        if self._closed is None:
            self._closed = why or self._left
        self._pulse()

    def _left(self) -> Exception:
        return trio.ClosedResourceError(f"the pod {self.name} was left")

    def _pulse(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


def _at_attempt(error: ChildCrashed, attempt: int) -> ChildCrashed:
    """The same crash, its text included, as that of a later try."""
    return ChildCrashed(error.name, error.how, pid=error.pid, attempt=attempt, stderr_tail=error.stderr_tail)


def _start_of(item: MessageItem) -> str:
    text = "".join(part.text for part in item.content if isinstance(part, TextPart))
    return text[:_COMPARED]
