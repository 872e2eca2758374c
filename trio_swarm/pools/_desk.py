"""Who gets the next idle worker: the longest waiting job."""

from __future__ import annotations

from collections import deque

import attrs
import trio

from trio_swarm.pools._worker import Worker

__all__ = ["Desk"]


@attrs.define(eq=False)
class Desk:
    """Hands idle workers to waiting jobs, first come, first served; decides without awaiting."""

    closed: bool = False
    _idle: deque[Worker] = attrs.field(factory=deque, init=False)
    _waiting: trio.lowlevel.ParkingLot = attrs.field(factory=trio.lowlevel.ParkingLot, init=False)
    _handed: dict[trio.lowlevel.Task, Worker] = attrs.field(factory=dict, init=False)

    @property
    def idle(self) -> int:
        return len(self._idle)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    async def take(self) -> Worker:
        """An idle worker, now or as soon as there is one. Cancelled, it has taken none.

        A checkpoint only if it has to wait: what follows is one in any case.

        Raises:
            trio.ClosedResourceError: the pool's block is being left.
        """
        if not self.closed:
            if self._idle:
                # The one that worked last: its caches are warm, and the others may rest.
                return self._idle.pop()
            await self._waiting.park()
            worker = self._handed.pop(trio.lowlevel.current_task(), None)
            if worker is not None:
                return worker
        raise trio.ClosedResourceError("the pool's block is being left")

    def offer(self, worker: Worker) -> None:
        """*worker* is idle: it goes straight to the longest waiting job."""
        for task in self._waiting.unpark():
            self._handed[task] = worker
            return
        self._idle.append(worker)

    def withdraw(self, worker: Worker) -> bool:
        """*worker* gets no more jobs; whether it was idle."""
        try:
            self._idle.remove(worker)
        except ValueError:
            return False
        return True

    def close(self) -> None:
        """No job gets a worker any more; those that wait are told."""
        self.closed = True
        self._idle.clear()
        self._waiting.unpark_all()
