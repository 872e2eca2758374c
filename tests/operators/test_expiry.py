"""When a session that has no socket ends, on a clock that jumps."""

from __future__ import annotations

import math
from functools import partial

import attrs
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from trio_swarm._io.memory import memory_transport_pair
from trio_swarm.errors import StoreError
from trio_swarm.operators.expiry import Expiry, PeriodicJob
from trio_swarm.operators.login import LoginRequest, Session
from trio_swarm.operators.seat import Seat
from trio_swarm.operators.sessions import Sessions
from trio_swarm.operators.table import SessionTable


@attrs.define
class House:
    """Sessions without a server: what is told of sockets reaches them as a server would see to it."""

    join_within: float = 3.0
    idle_within: float = 20.0
    sweep_every: float = 300.0
    ended: list[tuple[str, float, str]] = attrs.field(factory=list)
    sessions: Sessions = attrs.field(init=False)
    expiry: Expiry = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        began = trio.current_time()

        def emit(kind, data) -> None:
            if kind in {"operator_connected", "operator_back", "operator_away"}:
                self.sessions.seated(data["sid"])
                self.expiry.check()

        def end(session: Session[Seat], reason: str) -> None:
            session.seat._close(reason)
            self.ended.append((session.roles[0], round(trio.current_time() - began, 3), reason))

        table = SessionTable(lambda sid, request: Seat(sid, roles=request.roles, emit=emit))
        self.sessions = Sessions(
            table, None, end, emit, join_within=self.join_within, idle_within=self.idle_within
        )
        self.expiry = Expiry(self.sessions, self.sweep_every)

    async def log_in(self, role: str) -> Session[Seat]:
        minted = await self.sessions.mint(LoginRequest((role,)))
        self.expiry.check()
        return minted.session

    def when(self) -> list[tuple[str, float]]:
        return [(role, at) for role, at, _ in self.ended]


async def test_it_sleeps_from_deadline_to_deadline(autojump_clock) -> None:
    """The first by the login, the later by the last socket's end; none while there is one."""
    house = House()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(house.expiry.run_sweeps)
        await wait_all_tasks_blocked()
        late, comes = await house.log_in("late"), await house.log_in("comes")
        near, far = memory_transport_pair()
        nursery.start_soon(partial(comes.seat.serve, near))
        await trio.sleep(10)
        assert house.when() == [("late", 3.0)]
        assert late.seat.gone
        assert house.sessions.expires(comes) == math.inf
        await trio.sleep(25)  # Longer than the horizon: what counts is when the socket went.
        await far.aclose()
        await trio.sleep(21)
        nursery.cancel_scope.cancel()
    assert house.when() == [("late", 3.0), ("comes", 55.0)]
    assert [reason for _, _, reason in house.ended] == [
        "nobody connected within 3 s of the login",
        "nobody was connected for 20 s",
    ]


async def test_an_access_begins_the_time_anew_and_only_for_that_session(autojump_clock) -> None:
    """8.3 J37 to J41: judged before the touch, so that a late call ends what it came for."""
    house = House()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(house.expiry.run_sweeps)
        await house.log_in("quiet")
        reader = await house.log_in("reader")
        for _ in range(4):
            await trio.sleep(2)
            assert not await house.sessions.judge(reader)
            house.sessions.touch(reader)
        assert house.when() == [("quiet", 3.0)]
        nursery.cancel_scope.cancel()
    await trio.sleep(3)  # No sweep any more: the next read is what finds out.
    assert await house.sessions.judge(reader)
    assert house.when() == [("quiet", 3.0), ("reader", 11.0)]


async def test_without_sweeps_a_role_of_the_expired_is_free_all_the_same(autojump_clock) -> None:
    """A login judges who holds what it wants."""
    house = House(sweep_every=0)
    await house.expiry.run_sweeps()
    await house.log_in("role")
    await trio.sleep(3)
    assert not house.ended
    await house.log_in("role")
    assert house.when() == [("role", 3.0)]
    assert house.expiry.sweeps.about()["enabled"] is False


async def test_a_sweep_that_fails_is_repeated_at_its_period_and_spares_the_others(autojump_clock) -> None:
    """8.3 J47: one failed teardown does not stop the sweep, and does not make it run all the time."""
    house = House(sweep_every=30)
    broken = {"stuck"}

    @attrs.define
    class Store:
        async def delete(self, sid: str) -> None:
            await trio.lowlevel.checkpoint()
            session = house.sessions.table.find(sid)
            if session is not None and session.roles[0] in broken:
                raise StoreError("disk on fire")

        async def insert(self, row) -> None:
            await trio.lowlevel.checkpoint()

    house.sessions.store = Store()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(house.expiry.run_sweeps)
        stuck = await house.log_in("stuck")
        await trio.sleep(1)
        await house.log_in("second")
        await trio.sleep(20)
        assert house.when() == [("second", 4.0)]
        assert not stuck.seat.gone
        about = house.expiry.sweeps.about()
        assert (about["errors"], about["acted_total"]) == (2, 1)
        assert about["last_outcome"] == "error: the state could not be written"
        broken.clear()
        await trio.sleep(20)
        nursery.cancel_scope.cancel()
    assert house.when() == [("second", 4.0), ("stuck", 30.0)]
    assert house.expiry.sweeps.about()["last_outcome"] == "ok"


async def test_a_job_tells_how_it_went(autojump_clock) -> None:
    """In the words of contract 1.7; nothing is known of one that did not run yet."""
    job = PeriodicJob("sweep", 300.0)
    assert job.about() == {
        "name": "sweep",
        "period_secs": 300.0,
        "enabled": True,
        "runs": 0,
        "errors": 0,
        "panics": 0,
        "acted_total": 0,
        "last_started_secs": None,
        "last_finished_secs": None,
        "last_duration_ms": None,
        "last_outcome": None,
    }

    async def work() -> tuple[int, list[StoreError]]:
        await trio.sleep(1.5)
        return 4, []

    await job.run(work)
    about = job.about()
    assert (about["runs"], about["acted_total"], about["last_duration_ms"]) == (1, 4, 1500)
    assert isinstance(about["last_started_secs"], int)


@pytest.mark.parametrize("cancel_first", [True, False])
async def test_a_login_that_is_cancelled_is_whole_or_nothing(cancel_first) -> None:
    """Between the disk and the table nothing can come; before the disk everything is free again."""
    house = House()
    rows: list[str] = []
    scope = trio.CancelScope()

    @attrs.define
    class Store:
        async def insert(self, row) -> None:
            if cancel_first:
                scope.cancel()
                await trio.lowlevel.checkpoint()
            rows.append(row.sid)
            scope.cancel()  # While the thread wrote: not to be noticed by its caller.

    house.sessions.store = Store()
    with scope:
        await house.log_in("role")
    assert [session.sid for session in house.sessions.table] == rows
    assert len(rows) == (0 if cancel_first else 1)
    assert (house.sessions.table.find("role") is None) is cancel_first
    house.sessions.store = None
    if cancel_first:
        assert (await house.log_in("role")).roles == ("role",)
