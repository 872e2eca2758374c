"""What a server does by itself from time to time (contract 8.6 E86 to E93)."""

from __future__ import annotations

import itertools

import attrs
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.operators.support import log_in, rest, serving
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


@pytest.mark.parametrize(
    ("name", "method"), [("session_sweep", "sweep"), ("session_access_write", "write_observed")]
)
async def test_a_fault_of_ours_is_counted_and_ends_nothing(
    tmp_path, monkeypatch, caplog, name, method
) -> None:
    """E88: the server goes on and so does the job; its traceback is logged once, and nobody is told it."""

    async def once(client, key: str, least: int):
        with trio.fail_after(10):
            while True:
                jobs = (await client.get("/v1/status")).json()["periodic_jobs"]
                (about,) = (job for job in jobs if job["name"] == name)
                if about[key] >= least:
                    return about
                server._expiry.write_soon()
                await trio.sleep(0.005)

    async def broken() -> int:
        await trio.lowlevel.checkpoint()
        raise RuntimeError("at /home/somebody")

    async with serving(state=tmp_path / "state", sweep_every=0.01) as server, rest(server) as client:
        login = await log_in(server, roles=["r"])
        with monkeypatch.context() as patch:
            patch.setattr(type(server._sessions), method, lambda self: broken())
            failed = await once(client, "panics", 2)
        assert failed["errors"] >= failed["panics"]
        assert failed["last_outcome"] == "error: a fault of the server"
        fine = await once(client, "runs", failed["runs"] + 3)
        assert fine["last_outcome"] == "ok"
        assert server.seat("r").sid == login.sid
    crashed = [record for record in caplog.records if record.getMessage() == f"{name} crashed: RuntimeError"]
    assert len(crashed) == fine["panics"] > 1
    assert [bool(record.exc_info) for record in crashed] == [True] + [False] * (len(crashed) - 1)
