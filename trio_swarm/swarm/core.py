"""`open_swarm`: the one nursery that owns everything.

Who owns what::

    open_swarm
    ├── signal watcher                only if stop_signals were given; to the very end
    ├── two directories (0700)        removed last; by the warden if this process is killed
    ├── warden process                parent and reaper of every other process
    │   └── all processes of the swarm, and whatever they leave behind
    └── nursery
        └── one task per start_*      holds that thing's own context manager open

Leaving the block ends what was started, the last first (each room asks its peers to end, bounded);
an error or a cancellation ends all of it at once. Then the warden is stopped (SIGTERM, grace, SIGKILL
until nothing is left) and the directory removed. An error of anything that was started comes out of
the block.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import attrs
import trio
from attrs import field

from trio_swarm._io.groups import collapse
from trio_swarm._io.host import Host
from trio_swarm._io.process import ManagedProcess
from trio_swarm._io.target import Target
from trio_swarm._state.copies import json_copy
from trio_swarm.children import Child, open_child
from trio_swarm.frames.operator import Worker
from trio_swarm.frames.pod import ScopeRule
from trio_swarm.frames.record import Executor
from trio_swarm.limits import EVENTS_BUFFERED, RESULT_GRACE, TERM_GRACE, WORKER_TOKEN_TTL
from trio_swarm.operators import AnySeat, ApprovalPolicy, LocalSeat, OperatorServer, WorkerResult
from trio_swarm.operators.directive import DirectiveContext
from trio_swarm.pods import Pod, open_pod
from trio_swarm.pools import Pool, open_pool
from trio_swarm.swarm.dispatch import Dispatcher
from trio_swarm.swarm.events import EventHub, Overflow, Subscription
from trio_swarm.swarm.holding import Holdings
from trio_swarm.swarm.places import open_places
from trio_swarm.swarm.report import SwarmReport
from trio_swarm.swarm.serving import Serving, serve
from trio_swarm.swarm.signals import stopped_by
from trio_swarm.swarm.steps import Execute, OperatorBinding, RetryPolicy
from trio_swarm.workers import TaskBoard

__all__ = ["Swarm", "SwarmReport", "open_swarm"]

T = TypeVar("T")

_ENDING = "the swarm is ending"


@attrs.define(eq=False)
class Swarm:
    """Everything that one `open_swarm` block owns. Any task may use it.

    Once the block has been left, whatever would start something raises ``trio.ClosedResourceError``.
    """

    name: str
    _host: Host = field(repr=False)
    _holdings: Holdings = field(repr=False)
    _hub: EventHub = field(repr=False)
    _opened: float = field(repr=False)
    _token_ttl: float = field(repr=False)
    _spool: Path = field(repr=False)
    _seats: dict[str, LocalSeat | None] = field(factory=dict, repr=False)
    """None while one is being seated: its name is taken already."""
    _over: bool = field(default=False, repr=False)
    """The block has been left."""
    _serving: Serving = field(init=False, repr=False)
    _dispatcher: Dispatcher = field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        self._serving = Serving(lambda: [seat for seat in self._seats.values() if seat is not None])
        board = TaskBoard(emit=self._hub.emit, token_ttl=self._token_ttl, spool=lambda: self._spool)
        self._dispatcher = Dispatcher(board, self._serving, self._hub.emit)

    @property
    def directory(self) -> Path:
        """A private directory (0700) for files of your own; removed with the swarm, however it ends."""
        return self._host.runtime_dir

    # -- operators -------------------------------------------------------------------

    async def attach(self, obj: object, *, name: str | None = None) -> LocalSeat:
        """Seat an object of this process as an operator until the block ends.

        Args:
            obj: has some of ``ask``, ``before_spawn``, ``after_spawn`` and ``execute``; each takes
                the frame (`Ask`, `HookBefore`, `HookAfter`, `Spawn`) and may be async.
            name: unique among the attached; the class's name if not given.

        Raises:
            TypeError: it has none of the four.
            ValueError: the name is taken.
            trio.ClosedResourceError: the swarm was left.
        """
        self._check()
        name = name if name is not None else type(obj).__name__
        if name in self._seats:
            raise ValueError(f"an operator named {name!r} is attached already")
        self._seats[name] = None
        return await self._start(partial(self._seated, obj, name))

    @asynccontextmanager
    async def _seated(self, obj: object, name: str) -> AsyncIterator[LocalSeat]:
        try:
            async with LocalSeat.open(self._host, obj, name=name) as seat:
                self._seats[name] = seat
                yield seat
        finally:
            del self._seats[name]

    def seat(self, name: str) -> LocalSeat:
        """The attached operator of that name; KeyError where there is none."""
        seat = self._seats[name]
        if seat is None:
            raise KeyError(name)
        return seat

    def serve_operators(
        self, *, workers: bool = True, admin_token: str | None = None, **options: Any
    ) -> AbstractAsyncContextManager[OperatorServer]:
        """Let operators join over HTTP and WebSocket while the block is open, and workers fetch and post.

        Takes the keyword arguments of `trio_swarm.operators.server.serve_operators` too, and raises as
        that does; ``ValueError`` for a setting that cannot work.

        Args:
            workers: serve the prompts, results and data of `dispatch`'s workers on the same port.
            admin_token: with it, steps can be started, watched and cancelled at ``/v1/tasks`` by
                whoever shows it as a bearer. At most ``max_running`` at a time, and ``max_waiting`` whose
                client waits (a quarter of the connections, 64 at most, if not given), then 503; one
                whose client waits and set no time has ``sync_ceiling`` seconds (then 504); ``default_kind``
                is the operator's kind where a request names none (contract: operators 1.4).
            options: also ``base_url``, the address that workers are told, if it is not the server's
                own. On Unix sockets alone there is none to tell: give one, or workers learn it otherwise.
        """
        self._check()
        return serve(
            self._host,
            self._serving,
            self._dispatcher,
            workers=workers,
            admin_token=admin_token,
            **options,
        )

    async def start_operators(self, **options: Any) -> OperatorServer:
        """Like `serve_operators`, until the swarm ends or `stop` is called."""
        return await self._start(partial(self.serve_operators, **options))

    # -- steps -----------------------------------------------------------------------

    @property
    def tasks(self) -> TaskBoard:
        """The dispatched steps, running and ended."""
        return self._dispatcher.board

    async def dispatch(
        self,
        agent: str,
        prompt: Any,
        *,
        system: str | None = None,
        operator: AnySeat | str | OperatorBinding | None = None,
        layers: Sequence[str] | None = None,
        attempts: int = 1,
        retry: RetryPolicy | None = None,
        approval: ApprovalPolicy | None = None,
        approvers: Sequence[AnySeat | str] = (),
        execute: Execute | None = None,
        grace: float = RESULT_GRACE,
        metadata: Mapping[str, Any] | None = None,
        worker: Worker | None = None,
        context: DirectiveContext | None = None,
    ) -> WorkerResult:
        """Have one step done (contract: operators 6.1): leave to start, execution, the senior's word.

        Args:
            agent: who is to do it.
            prompt: what to do; a text, or other JSON, which is made one. Workers fetch it; an operator
                in process has it from ``swarm.tasks.find(frame.task_id)``.
            system: the persona, fetched with it.
            operator: a seat (or a sid, a role, an attached name) for all parts that it is able to
                take; an `OperatorBinding` for several.
            layers: some of ``operator_delegate``, ``senior_escalation`` and ``main_ai``, from the
                inside out; unless given, all, or the last two where there is ``execute``.
            attempts: at most so many (1), each with credentials of its own; ``retry`` says after which
                outcomes (unless given: failed) and waits.
            approval: how many of ``approvers`` (or the operator) must give leave, and until when.
            execute: does the step in place of an operator: ``await execute(step)``.
            grace: seconds (5) for a worker that has its prompt to post, after its operator acknowledged.
            metadata: JSON, told to the worker and in the directive; 126 levels deep at most.
            worker: the type of sub-agent that the spawn is bound to.
            context: more lines of the directive.

        Returns:
            A `WorkerResult` of the caller's own; ``ok=False`` is a blocked step, which has a value.

        Raises:
            ValueError: what was asked for cannot work, or is of the wrong type; nothing was done.
            TypeError: there is no such argument.
            StepFailed: no result; ``reason`` as contract 6.4 words it, the cause chained.
            StepCancelled: the task was cancelled (``swarm.tasks.find(...).cancel``, or over HTTP).
            Refused, BusyError: too deep below other steps; too many steps.

        Its time is the caller's cancel scope. When that is cancelled, operators are told, the task
        ends as ``cancelled``, or ``timeout`` if the deadline has passed, and ``Cancelled`` goes on.
        """
        order = self._dispatcher.order(
            agent,
            prompt,
            system=system,
            operator=operator,
            layers=layers,
            attempts=attempts,
            retry=retry,
            approval=approval,
            approvers=approvers,
            execute=execute,
            grace=grace,
            metadata=metadata,
            worker=worker,
            context=context,
        )
        result = await self._dispatcher.run(order, self._dispatcher.create(order))
        return WorkerResult(json_copy(result.value), result.ok, json_copy(result.stats))

    # -- child actors ----------------------------------------------------------------

    def open_child(self, target: Target | Executor, **options: Any) -> AbstractAsyncContextManager[Child]:
        """A child actor for the block; the arguments of `trio_swarm.children.open_child`."""
        self._check()
        return open_child(self._host, target, **options)

    async def start_child(self, target: Target | Executor, **options: Any) -> Child:
        """A child actor until the swarm ends or `stop`; returns when it is registered."""
        return await self._start(partial(open_child, self._host, target, **options))

    # -- pools -----------------------------------------------------------------------

    def open_pool(self, target: Target | None = None, **options: Any) -> AbstractAsyncContextManager[Pool]:
        """A pool of workers for the block; the arguments of `trio_swarm.pools.open_pool`."""
        self._check()
        return open_pool(self._host, target, **options)

    async def start_pool(self, target: Target | None = None, **options: Any) -> Pool:
        """A pool of workers until the swarm ends or `stop`."""
        return await self._start(partial(open_pool, self._host, target, **options))

    # -- pods ------------------------------------------------------------------------

    def open_pod(
        self, target: Target, *, name: str, scope: Sequence[ScopeRule], **options: Any
    ) -> AbstractAsyncContextManager[Pod]:
        """A pod for the block; the arguments of `trio_swarm.pods.open_pod`."""
        self._check()
        return open_pod(self._host, target, name=name, scope=scope, **options)

    async def start_pod(
        self, target: Target, *, name: str, scope: Sequence[ScopeRule], **options: Any
    ) -> Pod:
        """A pod until the swarm ends or `stop`; returns when it listens."""
        return await self._start(partial(open_pod, self._host, target, name=name, scope=scope, **options))

    # -- anything else ---------------------------------------------------------------

    async def start_process(
        self,
        argv: Sequence[str],
        *,
        name: str,
        stdin: bytes | Literal["null", "pipe", "inherit"] = "null",
        stdout: Literal["null", "pipe", "inherit"] = "null",
        stderr: Literal["tail", "null", "inherit"] = "tail",
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
    ) -> ManagedProcess:
        """Start any program; it, and all that it leaves behind, ends with the swarm.

        Raises:
            SpawnError: it could not be started; says why.
            trio.ClosedResourceError: the swarm was left.
        """
        self._check()
        return await self._host.warden.start(
            argv, name=name, stdin=stdin, stdout=stdout, stderr=stderr, env=env, cwd=cwd
        )

    def processes(self) -> tuple[ManagedProcess, ...]:
        """The processes that are running, of all the parts, in the order of their start."""
        return self._host.warden.processes()

    async def stop(self, handle: object) -> None:
        """End something that a ``start_*`` or `attach` returned, and wait until it is gone.

        It ends as its own block would: in order, and bounded. Does nothing for a handle that
        has ended already. Cancelled: it goes on ending.
        """
        await self._holdings.end(handle)

    # -- watching --------------------------------------------------------------------

    @asynccontextmanager
    async def subscribe(
        self, *, capacity: int = EVENTS_BUFFERED, overflow: Overflow = "drop_oldest"
    ) -> AsyncIterator[Subscription]:
        """Events from now on: ``async with swarm.subscribe() as events: async for event in events``.

        Args:
            capacity: events buffered for this subscriber.
            overflow: ``"drop_oldest"`` (a gap in ``event.seq`` shows it) or ``"close"``.
        """
        with self._hub.subscribe(capacity=capacity, overflow=overflow) as events:
            yield events

    def emit(self, kind: str, data: Mapping[str, object] | None = None) -> None:
        """Tell the subscribers something of your own; never blocks."""
        self._hub.emit(kind, data or {})

    def report(self) -> SwarmReport:
        """How each process ended, and who is there. Complete once the block has been left."""
        warden = self._host.warden
        seconds = trio.current_time() - self._opened
        return SwarmReport(self.name, seconds, warden.report(), warden.survivors())

    async def _start(self, opener: Callable[[], AbstractAsyncContextManager[T]]) -> T:
        self._check()
        return await self._holdings.start(opener)

    def _check(self) -> None:
        if self._over:
            raise trio.ClosedResourceError(f"the swarm {self.name!r} was left: nothing can be started in it")


@asynccontextmanager
async def open_swarm(
    name: str = "swarm",
    *,
    grace: float = TERM_GRACE,
    stop_signals: Iterable[int] = (),
    token_ttl: float = WORKER_TOKEN_TTL,
) -> AsyncIterator[Swarm]:
    """Own a swarm for the block: when the block has been left, nothing of it is left.

    Leaving it by return, error, cancellation or Ctrl-C ends every process that was started and
    whatever those left behind, and removes every socket and file in the runtime directory.
    If this process is killed outright, the warden does the same within a second (on Linux;
    elsewhere it reaches process groups only).

    Args:
        name: for events and reports.
        grace: seconds from SIGTERM to SIGKILL for each process at the end.
        stop_signals: signals that end the block with `Terminated`, for example
            ``[signal.SIGTERM]``. Only in the main thread. Without them a signal does what it
            does in the program at large; even if that kills it, nothing survives.
        token_ttl: seconds for which the credentials of an attempt's worker (`Swarm.dispatch`) are good;
            renewed after a wait for leave or for an absent operator if no more than 60 are left.

    Raises:
        Terminated: one of ``stop_signals`` arrived.
        Unreaped: something survived SIGKILL; names the pids.
        Exception: whatever the body, or anything started in the block, raised; alone if it is
            one, in a group if there are several.
    """
    hub = EventHub()
    with collapse():
        async with (
            stopped_by(stop_signals),
            open_places(grace=grace) as places,
        ):
            try:
                async with trio.open_nursery() as nursery:
                    host = Host(places.warden, places.runtime, hub.emit)
                    holdings = Holdings(nursery)
                    swarm = Swarm(name, host, holdings, hub, trio.current_time(), token_ttl, places.spool)
                    try:
                        try:
                            yield swarm
                            await swarm._dispatcher.end(_ENDING)
                        finally:
                            swarm._dispatcher.close(_ENDING)
                        await holdings.end_all()
                    finally:
                        # Now: a nursery that has closed answers with an error of its own.
                        swarm._over = True
                    nursery.cancel_scope.cancel()
            finally:
                hub.close()
