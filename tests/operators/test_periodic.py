"""What a server does by itself from time to time (contract 8.6 E86 to E93)."""

from __future__ import annotations

import itertools

import attrs
import trio
from trio.testing import wait_all_tasks_blocked

from tests.operators.test_expiry import House
from trio_swarm.errors import StoreError


@attrs.define
class Slow:
    """A disk that takes its time; the most that it was asked at the same time."""

    takes: float
    at_work: int = 0
    most: int = 0
    begun: list[float] = attrs.field(factory=list)

    async def delete(self, sid: str) -> None:
        self.at_work += 1
        self.most = max(self.most, self.at_work)
        self.begun.append(trio.current_time())
        try:
            await trio.sleep(self.takes)
        finally:
            self.at_work -= 1
        raise StoreError("disk on fire")

    async def insert(self, row) -> None:
        await trio.lowlevel.checkpoint()


async def test_a_sweep_repeats_and_never_meets_itself(autojump_clock) -> None:
    """One that takes longer than its period delays the next; no run is made up for."""
    house = House(sweep_every=2)
    house.sessions.store = disk = Slow(takes=5)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(house.expiry.run_sweeps)
        began = trio.current_time()
        await house.log_in("stuck")
        await trio.sleep(40)
        nursery.cancel_scope.cancel()
    assert disk.most == 1
    gaps = [round(time - began) for time in disk.begun]
    assert gaps[0] == 3
    assert len(gaps) >= 4
    assert all(later - earlier >= 5 for earlier, later in itertools.pairwise(gaps))
    about = house.expiry.sweeps.about()
    assert about["errors"] == len(gaps) - 1  # The last of them is cut short.


async def test_its_end_is_the_end_of_its_owner(autojump_clock) -> None:
    """In the middle of a run too: nothing of it goes on, and none is begun."""
    house = House(sweep_every=2)
    house.sessions.store = disk = Slow(takes=5)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(house.expiry.run_sweeps)
        await house.log_in("stuck")
        await trio.sleep(4)
        assert disk.at_work == 1
        nursery.cancel_scope.cancel()
    await trio.sleep(40)
    await wait_all_tasks_blocked()
    assert (disk.at_work, len(disk.begun)) == (0, 1)
