"""The chaos of one run of the codemod: processes are killed and the operator's socket is cut under it."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Final, TypeVar

import attrs
import trio
from attrs import field

from trio_swarm import Child, ManagedProcess, OperatorServer, PeerGoneError, Pool, Seat, Swarm
from trio_swarm.jobs.codemod.chaos import ChaosPlan

__all__ = ["Strikes"]

T = TypeVar("T")

RECOVERY: Final = 10.0
"""Seconds to wait at the end for who was killed to be there again; the run does not need them."""
_STEPS: Final = 100
"""Of the scheduler, to wait for a request to be written."""


@attrs.define(eq=False)
class Strikes:
    """What is to fall, what fell, and what found nothing to hit."""

    plan: ChaosPlan
    struck: list[str] = field(factory=list)
    """What fell."""
    missed: list[str] = field(factory=list)
    """What found nothing to hit."""
    nursery: trio.Nursery = field(init=False)
    """Where a process is killed while the work goes on."""
    _due: list[str] = field(factory=list)
    _cut_due: int = 0
    _killed: set[int | None] = field(factory=set)
    _swarm: Swarm = field(init=False)
    _server: OperatorServer = field(init=False)
    _seat: Seat = field(init=False)
    _pool: Pool = field(init=False)
    _children: list[Child] = field(init=False)

    def aim(
        self, swarm: Swarm, server: OperatorServer, seat: Seat, pool: Pool, children: list[Child]
    ) -> None:
        """Who can be hit; to be called before anything falls."""
        self._swarm, self._server, self._seat = swarm, server, seat
        self._pool, self._children = pool, children

    def fall(self, done: int, total: int) -> None:
        """Let fall what is due when *done* of *total* files are settled."""
        self._due += self.plan.due(done, total)
        # What finds nobody at work waits for the next file: idle, nobody would miss the dead.
        self._due = [kind for kind in self._due if not self._strike(kind)]

    async def at_operator(self, request: Callable[[], Awaitable[T]]) -> T:
        """Make a request of the operator, and cut its socket under it if that is due."""
        if not self._cut_due:
            return await request()
        self._cut_due -= 1
        before, cutting = self._redelivered, trio.CancelScope()
        self.nursery.start_soon(self._cut_under_requests, cutting)
        try:
            return await request()
        finally:
            cutting.cancel()
            if self._redelivered > before:
                self._fell("drop-operator")
            else:
                self._cut_due += 1  # The answers were quicker than the cut: the next request is to see one.

    @property
    def needs_a_child(self) -> bool:
        """Whether `fall_on_the_idle` would have a child to kill."""
        return "kill-child" in self._due

    async def fall_on_the_idle(self) -> None:
        """After the last file: what waited for somebody at work hits the idle.

        Returns when everybody who was killed is there again: a restart under way is not counted yet.
        """
        async with self._swarm.subscribe() as events:
            if self._due:
                await self._recovered(events)  # Else there might be nobody left to hit.
            async with trio.open_nursery() as self.nursery:
                for _ in range(self._cut_due):
                    self.nursery.start_soon(self._cut_the_idle)
                self.missed = [kind for kind in self._due if not await self._strike_the_idle(kind, events)]
            await self._recovered(events)

    async def _strike_the_idle(self, kind: str, events: AsyncIterator[object]) -> bool:
        with trio.move_on_after(RECOVERY if kind == "kill-worker" else 0.0):
            while not self._strike(kind, idle_too=True):
                await anext(events)  # A restart is counted before the new worker is there: wait for it.
            return True
        return False

    async def _recovered(self, events: AsyncIterator[object]) -> None:
        with trio.move_on_after(RECOVERY):
            while self._restarts_noticed() < len(self._killed):
                await anext(events)
            for child in self._children if self._killed else ():
                await child.ready()

    def _restarts_noticed(self) -> int:
        """Of workers, those that were done; of children, those that their next run would find due."""
        children = sum(child.statistics().crashes for child in self._children)
        return self._pool.statistics().restarts + children

    async def _cut_under_requests(self, until_answered: trio.CancelScope) -> None:
        # The request is made before its caller first waits, and the seat's task takes it to write it:
        # that is a few steps of the scheduler, and the answer comes too soon to wait for anything else.
        with until_answered, suppress(PeerGoneError):
            for _ in range(_STEPS):
                await self._seat.wait_connected()  # After a cut that nobody felt it is away for a while.
                if self._seat.statistics().delivery.offered:
                    await self._server.disconnect(self._seat.sid)
                    return

    @property
    def _redelivered(self) -> int:
        return self._seat.statistics().redelivered

    async def _cut_the_idle(self) -> None:
        await self._server.disconnect(self._seat.sid)
        self._fell("drop-operator")

    def _strike(self, kind: str, *, idle_too: bool = False) -> bool:
        """Let it fall; False if there is nothing for it to hit yet."""
        if kind == "drop-operator":
            self._cut_due += 1
            return True
        pids = self._pids_of_children(idle_too) if kind == "kill-child" else self._pids_of_workers(idle_too)
        # Through its owner, which reaps it: a pid that we remember may be another's by now.
        victims = [process for process in self._swarm.processes() if process.pid in pids]
        if victims:
            self._killed.add(victims[0].pid)
            self.nursery.start_soon(self._kill, victims[0], kind)
        return bool(victims)

    async def _kill(self, victim: ManagedProcess, kind: str) -> None:
        await victim.signal(signal.SIGKILL)
        self._fell(kind)

    def _fell(self, kind: str) -> None:
        self.struck.append(kind)
        self._swarm.emit("chaos", {"kind": kind})

    def _pids_of_children(self, idle_too: bool) -> set[int | None]:
        running = {child.pid for child in self._children if idle_too or child.state == "running"}
        return running - self._killed

    def _pids_of_workers(self, idle_too: bool) -> set[int | None]:
        busy: set[int | None] = {one.pid for one in self._pool.workers() if idle_too or one.state == "busy"}
        return busy - self._killed
