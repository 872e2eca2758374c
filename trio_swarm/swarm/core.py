"""`open_swarm`: the one nursery that owns everything.

Who owns what::

    open_swarm
    ├── signal watcher                only if stop_signals were given; to the very end
    ├── runtime directory (0700)      removed last; by the warden if this process is killed
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

import signal
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import attrs
import trio
from attrs import field

from trio_swarm._io.groups import collapse
from trio_swarm._io.host import Host
from trio_swarm._io.process import ManagedProcess, ProcessReport, open_warden
from trio_swarm._io.runtime import make_private, private_dir
from trio_swarm._io.target import Target
from trio_swarm.children import Child, open_child
from trio_swarm.errors import Terminated
from trio_swarm.frames.pod import ScopeRule
from trio_swarm.frames.record import Executor
from trio_swarm.limits import EVENTS_BUFFERED, TERM_GRACE
from trio_swarm.operators import LocalSeat, OperatorServer, serve_operators
from trio_swarm.pods import Pod, open_pod
from trio_swarm.pools import Pool, open_pool
from trio_swarm.swarm.events import EventHub, Overflow, Subscription

__all__ = ["Swarm", "SwarmReport", "open_swarm"]

T = TypeVar("T")


@attrs.frozen
class SwarmReport:
    """What became of the swarm's processes."""

    name: str
    seconds: float
    """Since the block was entered."""
    processes: tuple[ProcessReport, ...]
    """A receipt for each process that has ended, strays included, in the order of their ends."""
    survivors: tuple[int, ...]
    """Pids of processes of the swarm that are there now, as the system tells, not as we remember:
    those at work while the block is open, none after it."""


@attrs.define(eq=False)
class _Hold:
    """One started thing: told to end by one event, has ended by the other."""

    leave: trio.Event = field(factory=trio.Event)
    gone: trio.Event = field(factory=trio.Event)

    async def end(self) -> None:
        self.leave.set()
        await self.gone.wait()


@attrs.define(eq=False)
class Swarm:
    """Everything that one `open_swarm` block owns. Any task may use it.

    Once the block has been left, whatever would start something raises ``trio.ClosedResourceError``.
    """

    name: str
    _host: Host = field(repr=False)
    _nursery: trio.Nursery = field(repr=False)
    _hub: EventHub = field(repr=False)
    _opened: float = field(repr=False)
    _held: dict[int, _Hold] = field(factory=dict, repr=False)
    _seats: dict[str, LocalSeat | None] = field(factory=dict, repr=False)
    """None while one is being seated: its name is taken already."""
    _over: bool = field(default=False, repr=False)
    """The block has been left."""

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

    def serve_operators(self, **options: Any) -> AbstractAsyncContextManager[OperatorServer]:
        """Let operators join over HTTP and WebSocket while the block is open.

        Takes the keyword arguments of `trio_swarm.operators.serve_operators`.
        """
        self._check()
        return serve_operators(self._host, **options)

    async def start_operators(self, **options: Any) -> OperatorServer:
        """Like `serve_operators`, until the swarm ends or `stop` is called."""
        return await self._start(partial(serve_operators, self._host, **options))

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
        await trio.lowlevel.checkpoint()
        if (hold := self._held.get(id(handle))) is not None:
            await hold.end()

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

    # -- ownership -------------------------------------------------------------------

    async def _start(self, opener: Callable[[], AbstractAsyncContextManager[T]]) -> T:
        self._check()
        return cast(T, await self._nursery.start(self._keep, opener))

    def _check(self) -> None:
        if self._over:
            raise trio.ClosedResourceError(f"the swarm {self.name!r} was left: nothing can be started in it")

    async def _keep(
        self,
        opener: Callable[[], AbstractAsyncContextManager[T]],
        *,
        task_status: trio.TaskStatus[T],
    ) -> None:
        """Keep one context manager open in a task of its own, so that its errors reach the swarm."""
        hold = _Hold()
        key: int | None = None
        try:
            with collapse():
                async with opener() as handle:
                    key = id(handle)
                    self._held[key] = hold
                    task_status.started(handle)
                    await hold.leave.wait()
        finally:
            if key is not None:
                del self._held[key]
            hold.gone.set()

    async def _end_all(self) -> None:
        """End what was started, the last first: what came later may use what was there."""
        while self._held:
            await self._held[next(reversed(self._held))].end()


@asynccontextmanager
async def _stopped_by(signals: Iterable[int]) -> AsyncIterator[None]:
    """The first of these signals cancels the block, and `Terminated` leaves it.

    Later ones are taken too, until the block has been left: its end is under way and bounded, and neither
    a second Ctrl-C nor a second SIGTERM may cut it short.
    """
    numbers = [signal.Signals(number) for number in signals]
    if not numbers:
        yield
        return
    first: list[int] = []

    async def watch(*, task_status: trio.TaskStatus[None]) -> None:
        with trio.open_signal_receiver(*numbers) as received:
            task_status.started()
            async for number in received:
                first.append(number)
                scope.cancel()

    async with trio.open_nursery() as nursery:
        scope = trio.CancelScope()
        await nursery.start(watch)
        try:
            with scope:
                yield
        except Exception as error:
            if not first:
                raise
            raise ExceptionGroup("stopped by a signal", [Terminated(first[0]), error]) from None
        finally:
            nursery.cancel_scope.cancel()
    if first:
        raise Terminated(first[0])


@asynccontextmanager
async def open_swarm(
    name: str = "swarm",
    *,
    grace: float = TERM_GRACE,
    stop_signals: Iterable[int] = (),
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

    Raises:
        Terminated: one of ``stop_signals`` arrived.
        Unreaped: something survived SIGKILL; names the pids.
        Exception: whatever the body, or anything started in the block, raised; alone if it is
            one, in a group if there are several.
    """
    hub = EventHub()
    with collapse():
        async with (
            _stopped_by(stop_signals),
            private_dir("trio-swarm-", make=False) as directory,
            open_warden(grace=grace, remove=[directory]) as warden,
        ):
            make_private(directory)
            try:
                async with trio.open_nursery() as nursery:
                    host = Host(warden, directory, hub.emit)
                    swarm = Swarm(name, host, nursery, hub, trio.current_time())
                    try:
                        yield swarm
                        await swarm._end_all()
                    finally:
                        # Now: a nursery that has closed answers with an error of its own.
                        swarm._over = True
                    nursery.cancel_scope.cancel()
            finally:
                hub.close()
