"""Keeps one place of a pool filled: a worker lives in it, and another after it."""

from __future__ import annotations

from collections.abc import Callable

import attrs
import trio

from trio_swarm._io.host import Host
from trio_swarm._state.supervise import Backoff, RestartIntensity
from trio_swarm.errors import ChildCrashed, PeerError, RestartIntensityExceeded, SpawnError
from trio_swarm.frames import pool
from trio_swarm.limits import REAP_DEADLINE, TERM_GRACE
from trio_swarm.pools._desk import Desk
from trio_swarm.pools._worker import Worker, start_worker

__all__ = ["Keeper", "Upkeep"]

_LATE = TERM_GRACE
"""Seconds past a job's deadline for the worker's own answer; then it is killed. A machine on its knees
takes a while to raise inside the job and to tell of it; a fresh worker would take longer."""

_EXIT_SEEN = 1.0
"""Seconds from the loss of a connection to the news of the process's end; then it lives, and is killed."""

_RETURN = 2.0
"""Seconds for the job of a dead worker to read what is left in the connection."""

_PART = 2 * (TERM_GRACE + REAP_DEADLINE)
"""Seconds for all steps that end a worker; each has a limit of its own, far below."""


@attrs.define(eq=False)
class Upkeep:
    """What the keepers of one pool share."""

    host: Host
    name: str
    version: str
    desk: Desk
    intensity: RestartIntensity
    random: Callable[[], float]
    backoff: Backoff = attrs.field(factory=Backoff)
    workers: dict[str, Worker] = attrs.field(factory=dict)
    restarts: int = 0
    replaced: int = 0
    crashes: list[ChildCrashed] = attrs.field(factory=list)
    """Those that counted towards the intensity, the last ones."""

    def emit(self, kind: str, **data: object) -> None:
        self.host.emit(kind, {"pool": self.name, **data})


@attrs.define(eq=False)
class Keeper:
    """One place.

    What counts towards the restart intensity: the death of a worker that answered no job and
    had none, or none that it had been sent any of: at its start above all. Nothing else could
    end such a loop. The death of a worker under a job is charged to the job, which has its own
    limit (``max_attempts``) and ends as an outcome; were both to count, two jobs that kill
    their workers would end a pool whose other jobs are fine. A worker that answered a job has
    shown that workers can work.
    """

    upkeep: Upkeep
    _fruitless: int = attrs.field(default=0, init=False)
    """Deaths in a row that counted."""

    async def keep(self) -> None:
        """Run until cancelled.

        Raises:
            RestartIntensityExceeded: too many workers died without having done anything.
        """
        while True:
            await trio.sleep(self.upkeep.backoff.delay(self._fruitless, self.upkeep.random()))
            crash, counts = await self._one_life()
            if crash is None:
                self.upkeep.replaced += 1
                continue
            self._fruitless = self._fruitless + 1 if counts else 0
            if counts:
                self._count(crash)
            self.upkeep.restarts += 1
            self.upkeep.emit("restart", restarts=self.upkeep.restarts)

    def _count(self, crash: ChildCrashed) -> None:
        upkeep = self.upkeep
        upkeep.crashes = [*upkeep.crashes[-upkeep.intensity.max_restarts :], crash]
        if not upkeep.intensity.allow(trio.current_time()):
            raise RestartIntensityExceeded(
                upkeep.name,
                max_restarts=upkeep.intensity.max_restarts,
                within=upkeep.intensity.within,
                attempts=upkeep.crashes,
            ) from crash

    async def _one_life(self) -> tuple[ChildCrashed | None, bool]:
        """Start a worker and see it to its end: its crash, if it was one, and whether that counts."""
        upkeep = self.upkeep
        try:
            async with start_worker(upkeep.host, name=upkeep.name, version=upkeep.version) as worker:
                upkeep.workers[worker.sid] = worker
                upkeep.emit("worker_started", pid=worker.pid, sid=worker.sid)
                upkeep.desk.offer(worker)
                try:
                    worker.crashed = await self._tend(worker)
                finally:
                    with trio.move_on_after(_PART, shield=True):
                        await self._part(worker)
        except (SpawnError, PeerError, OSError) as error:
            crash = ChildCrashed(upkeep.name, f"did not come up ({error})")
            crash.__cause__ = error
            upkeep.emit("worker_crashed", pid=0, sid="", how=crash.how)
            return crash, True
        if not worker.crashed:
            return None, False
        assert worker.crash is not None
        return worker.crash, worker.job is None and not worker.completed

    async def _tend(self, worker: Worker) -> bool:
        """Wait until *worker* is handed back unfit, or dead; whether it crashed."""
        while True:
            await self._until_something_happens(worker)
            match worker.verdict:
                case "late":
                    if await self._late(worker):
                        continue
                    await worker.process.kill()
                    return False
                case "cancelled":
                    # The job may not go on, not even through its own clean-up.
                    await worker.process.kill()
                    return False
                case "dismissed":
                    await worker.end(ask=True)
                    return False
            if not worker.how:
                with trio.move_on_after(_EXIT_SEEN):
                    await worker.process.wait()
            if worker.process.exit is None:
                worker.how = worker.how or "hung up on a job and lived on"
                await worker.process.kill()
            return True

    async def _until_something_happens(self, worker: Worker) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch, worker, nursery.cancel_scope)
            await worker.returned.wait()
            nursery.cancel_scope.cancel()

    async def _watch(self, worker: Worker, scope: trio.CancelScope) -> None:
        await worker.process.wait()
        worker.leaving = True
        if not self.upkeep.desk.withdraw(worker) and worker.verdict is None:
            # Somebody is about to read its end, or a last answer that got through before it.
            with trio.move_on_after(_RETURN):
                await worker.returned.wait()
        scope.cancel()

    async def _late(self, worker: Worker) -> bool:
        """Whether the worker ended the job by itself, as the deadline told it to."""
        with trio.move_on_after(_LATE):
            try:
                answer = await worker.client.late_answer()
            except PeerError:
                return False
            if isinstance(answer.feed, pool.Completed | pool.Failed | pool.Cancelled):
                worker.returned = trio.Event()
                worker.verdict, worker.job, worker.leaving = None, None, False
                self.upkeep.desk.offer(worker)
                return True
        return False

    async def _part(self, worker: Worker) -> None:
        """In every way out: no more jobs for it, its process ended, its end told."""
        worker.leaving = True
        idle = self.upkeep.desk.withdraw(worker) or worker.job is None
        try:
            await worker.end(ask=idle and worker.process.exit is None)
        finally:
            self._bury(worker)

    def _bury(self, worker: Worker) -> None:
        del self.upkeep.workers[worker.sid]
        exit_ = worker.process.exit
        how = worker.how or (f"{exit_}" if exit_ is not None else "could not be ended")
        worker.crash = ChildCrashed(
            f"{self.upkeep.name}/{worker.sid}",
            how,
            pid=worker.pid,
            stderr_tail=worker.process.stderr_tail,
        )
        if worker.crashed:
            self.upkeep.emit("worker_crashed", pid=worker.pid, sid=worker.sid, how=how)
        worker.gone.set()
