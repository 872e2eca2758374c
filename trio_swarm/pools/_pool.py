"""A pool of worker processes that run jobs, ask, and go on with the answer."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from random import Random
from typing import Any, Final, TypeVar, final

import attrs
import trio

from trio_swarm._io.groups import collapse
from trio_swarm._io.host import Host
from trio_swarm._io.target import Target, name_target
from trio_swarm._state.supervise import RestartIntensity
from trio_swarm.errors import ChildCrashed
from trio_swarm.limits import MAX_ATTEMPTS, MAX_RESTARTS, RESTART_WITHIN
from trio_swarm.pools._desk import Desk
from trio_swarm.pools._job import Job, drive
from trio_swarm.pools._keeper import Keeper, Upkeep
from trio_swarm.pools._map import Results, open_map
from trio_swarm.pools._values import JobQuery, PoolStatistics, WorkerInfo
from trio_swarm.pools._worker import WorkerLost

__all__ = ["OnQuery", "Pool", "open_pool"]

T = TypeVar("T")
OnQuery = Callable[[JobQuery], Awaitable[str]]

VERSION: Final = "trio-swarm/1"
"""What a pool and its own workers call their protocol; the two always come from one installation."""


@final
@attrs.define(eq=False, repr=False)
class Pool:
    """Made by `open_pool`; any task may use it."""

    name: str
    size: int
    _upkeep: Upkeep
    _code: str | None
    _on_query: OnQuery | None
    _lib_paths: tuple[str, ...]
    _max_attempts: int
    _jobs: int = 0
    _completed: int = 0
    _failed: int = 0
    _crashed: int = 0
    _retried: int = 0

    def __repr__(self) -> str:
        return f"<Pool {self.name} size={self.size} waiting={self._upkeep.desk.waiting}>"

    async def run(self, ctx: Any = None, *, code: str | None = None) -> Any:
        """Run one job and return its result, JSON as *ctx* is.

        Waits for an idle worker. If the worker goes down, the job is run again on a fresh one, up to
        the pool's ``max_attempts``: a job may therefore begin more than once. The caller's remaining
        time goes to the worker and ends the job there.

        Args:
            ctx: what the job gets.
            code: Python source, run as a function body with ``ctx``, ``query`` and ``query_all`` in
                scope; the default calls the pool's target.

        Cancelled while it waits, nothing happened. Cancelled later, the worker is killed and replaced,
        for the job may not go on; if it was the job's own deadline that passed, the worker gets a
        moment to end the job by itself and lives on.

        Raises:
            Exception: what the job raised: as its own type if that is a built-in one that a message
                makes (``__cause__`` holds the remote traceback), a group as a group, all else as
                `RemoteError`. Also whatever ``on_query`` raised, which ends the job.
            ChildCrashed: it took down a worker at each attempt.
            FrameError: *ctx* is not JSON; the job was not run.
            trio.ClosedResourceError: the pool's block is being left.
        """
        return await self._settle(self._new_job(ctx, code))

    def map(
        self,
        items: Iterable[T] | AsyncIterable[T],
        *,
        ordered: bool = False,
        code: str | None = None,
        ahead: int | None = None,
    ) -> AbstractAsyncContextManager[Results[T]]:
        """Run a job for each item::

            async with pool.map(paths) as results:
                async for path, outcome in results:
                    ...

        Each item is settled exactly once, in an `Outcome`; outcomes come as they are ready, or in the
        order of the items if *ordered*. No item is taken before there is room for it: at most *ahead*
        (default: one waiting for each one running, twice the pool's size) are taken and not yet
        received here, so a slow consumer slows the workers down and memory stays bounded.

        Leaving the block early cancels what is under way, as cancelling `run` does.

        Raises:
            Exception: what *items* itself raised; errors of the jobs are outcomes.
        """

        return open_map(
            items,
            self._settle,
            lambda item: self._new_job(item, code),
            ordered=ordered,
            ahead=2 * self.size if ahead is None else ahead,
            left=lambda: self._upkeep.desk.closed,
        )

    def workers(self) -> tuple[WorkerInfo, ...]:
        """The workers that are up, in the order of their start."""
        return tuple(
            WorkerInfo(
                pid=one.pid,
                sid=one.sid,
                state="leaving" if one.leaving else "idle" if one.job is None else "busy",
                job=one.job,
            )
            for one in self._upkeep.workers.values()
        )

    def statistics(self) -> PoolStatistics:
        """Counts, as they are now."""
        workers = self._upkeep.workers.values()
        return PoolStatistics(
            size=self.size,
            idle=self._upkeep.desk.idle,
            busy=sum(1 for one in workers if one.job is not None and not one.leaving),
            waiting=self._upkeep.desk.waiting,
            completed=self._completed,
            failed=self._failed,
            crashed=self._crashed,
            retried=self._retried,
            restarts=self._upkeep.restarts,
            replaced=self._upkeep.replaced,
        )

    def _new_job(self, ctx: Any, code: str | None) -> Job:
        source = self._code if code is None else code
        if source is None:
            raise ValueError("the pool has no target: say code=...")
        self._jobs += 1
        return Job(self._jobs, source, ctx, self._lib_paths, self._on_query)

    async def _settle(self, job: Job) -> Any:
        """Attempt after attempt, until the job has an end."""
        while True:
            try:
                value = await self._attempt(job)
            except WorkerLost as lost:
                self._after_loss(job, lost)
            except Exception:
                self._failed += 1
                raise
            else:
                self._completed += 1
                return value

    async def _attempt(self, job: Job) -> Any:
        desk = self._upkeep.desk
        worker = await desk.take()
        worker.job = job.number
        job.attempts += 1
        try:
            value = await drive(worker, job)
        finally:
            if worker.verdict is None:
                worker.job = None
                if worker.leaving:
                    worker.returned.set()
                else:
                    desk.offer(worker)
        return value

    def _after_loss(self, job: Job, lost: WorkerLost) -> None:
        """Count the loss; returns if the job is to be run again."""
        if self._upkeep.desk.closed:
            raise trio.ClosedResourceError("the pool's block was left under a job") from lost
        if not lost.begun:
            # It was dead before it could be asked: that was no attempt.
            job.attempts -= 1
            return
        crash = ChildCrashed(
            lost.crash.name,
            lost.crash.how,
            pid=lost.crash.pid,
            attempt=job.attempts,
            stderr_tail=lost.crash.stderr_tail,
        )
        told = {"job": job.number, "attempt": job.attempts, "pid": crash.pid, "how": crash.how}
        if job.attempts >= self._max_attempts:
            self._crashed += 1
            self._upkeep.emit("job_crashed", **told)
            raise crash from job.last_crash
        job.last_crash = crash
        self._retried += 1
        self._upkeep.emit("job_retried", **told)


def _code_of(target: Target) -> str:
    named = name_target(target)
    return f"from trio_swarm._child.target import load_target\nreturn load_target({named!r})(ctx, query)\n"


@asynccontextmanager
async def open_pool(
    host: Host,
    target: Target | None = None,
    *,
    size: int = 2,
    on_query: OnQuery | None = None,
    name: str = "pool",
    max_attempts: int = MAX_ATTEMPTS,
    max_restarts: int = MAX_RESTARTS,
    within: float = RESTART_WITHIN,
    lib_paths: Sequence[str] = (),
    seed: int | None = None,
) -> AsyncIterator[Pool]:
    """Start *size* workers, concurrently, and keep that many until the block is left.

    Does not wait for them: the first job does.

    Args:
        target: ``'package.module:function'``, or a function of a module's top level (the main script's
            too); called as ``function(ctx, query)`` in the worker.
        size: workers, each a process of its own with one job at a time.
        on_query: awaited for each query of a job, in the task that runs the job; several queries of
            one pause are answered concurrently. What it raises ends the job with that error.
        name: for events, reports and errors.
        max_attempts: times that one job may take down its worker before it is given up.
        max_restarts: deaths of workers that had done nothing, within *within* seconds, before the
            pool gives up. The death of a worker under a job is charged to that job.
        lib_paths: put in front of the workers' ``sys.path``.
        seed: for the jitter between restarts; default: unpredictable.

    Leaving the block in any way asks idle workers to end and stops the others, all at the same
    time and bounded; then no process and no socket file of the pool is left.

    Raises:
        RestartIntensityExceeded: out of the block, which is cancelled: workers do not come up.
        ValueError: a bad *target*, *size* or limit.
    """
    if size < 1 or max_attempts < 1:
        raise ValueError("size and max_attempts must be at least 1")
    code = None if target is None else _code_of(target)
    upkeep = Upkeep(
        host=host,
        name=name,
        version=VERSION,
        desk=Desk(),
        intensity=RestartIntensity(max_restarts=max_restarts, within=within),
        random=Random(seed).random,
    )
    pool = Pool(name, size, upkeep, code, on_query, tuple(lib_paths), max_attempts)
    with collapse():
        async with trio.open_nursery() as nursery:
            for _ in range(size):
                nursery.start_soon(Keeper(upkeep).keep)
            try:
                yield pool
            finally:
                upkeep.desk.close()
                nursery.cancel_scope.cancel()
