"""Whose session makes room for another login, where there are as many as there may be."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.operators.support import Login, Result, log_in, rest, serving, socket_of
from tests.operators.test_sessions import known, sql, the_disk_waits, told
from trio_swarm._io.memory import memory_transport_pair
from trio_swarm.errors import BusyError
from trio_swarm.operators.login import LoginRequest
from trio_swarm.operators.server import OperatorServer

STEP = {"task_id": "ST-1", "agent": "coder", "attempt": 1}


@pytest.fixture
def state(tmp_path) -> Path:
    return tmp_path / "state"


async def touch_and_go(server: OperatorServer, login: Login) -> None:
    """A socket for a moment."""
    async with socket_of(server, login):
        await server.wait_seat(login.sid)
    while server.seat(login.sid).connected:
        await trio.sleep(0.001)


def sids(server: OperatorServer) -> set[str]:
    return {seat.sid for seat in server.seats()}


async def status_of_a_login(server: OperatorServer) -> int:
    async with rest(server) as client:
        return (await client.post("/v1/operators", json={})).status_code


@pytest.mark.parametrize("restarted", [False, True])
async def test_a_socket_for_a_moment_holds_no_place(state, restarted) -> None:
    """Anybody can have that: else a thousand logins would keep everybody out for a day."""
    async with serving(state=state, max_sessions=2) as server:
        old = [await log_in(server) for _ in range(2)]
        for each in old:
            await touch_and_go(server, each)
        if not restarted:
            new = await log_in(server)
            assert sids(server) == {old[1].sid, new.sid}
    if restarted:
        async with serving(state=state, max_sessions=2) as server:
            new = await log_in(server)
            assert sids(server) == {old[1].sid, new.sid}
    assert {sid for (sid,) in sql(state, "SELECT sid FROM sessions")} == {old[1].sid, new.sid}


async def test_who_never_had_a_socket_goes_before_who_had_one() -> None:
    """However long ago that was; among each the one that was accessed the longest ago."""
    async with serving(max_sessions=4) as server:
        seated = [await log_in(server) for _ in range(2)]
        for each in seated:
            await touch_and_go(server, each)
        first, second = await log_in(server), await log_in(server)
        assert (await known(server, first)).status_code == 200  # Not the one that logged in first.
        there = [seated[0], seated[1], first, second]
        for goes in (second, first):
            there.append(await log_in(server))
            await touch_and_go(server, there[-1])
            there.remove(goes)
            assert sids(server) == {each.sid for each in there}
        await log_in(server)
        assert seated[0].sid not in sids(server)
        assert seated[1].sid in sids(server)


async def be_asked(server: OperatorServer, login: Login) -> None:
    await server.seat(login.sid).ask("?", task_id="ST-1")


@pytest.mark.parametrize(
    "given", ["a request", "a request that was given up", "a notice", "a step", "a socket"]
)
@pytest.mark.parametrize("seated", [False, True])
async def test_who_was_given_something_stays(given, seated) -> None:
    """It may come back for it; so does who is connected now. Where nobody can go a login is 503."""
    async with serving(max_sessions=2) as server, trio.open_nursery() as nursery:
        busy, other = await log_in(server), await log_in(server)
        if seated:
            await touch_and_go(server, busy)
        if given == "a request":
            nursery.start_soon(Result().run, be_asked, server, busy)
        elif given == "a request that was given up":
            with trio.move_on_after(0):
                await be_asked(server, busy)
        elif given == "a notice":
            server.seat(busy.sid).hook_after(**STEP, result=1)
        elif given == "a step":
            server.observe(busy.sid, told(1))
        else:
            near, _far = memory_transport_pair()
            nursery.start_soon(partial(server.seat(busy.sid).serve, near))
            await server.wait_seat(busy.sid)
        await wait_all_tasks_blocked(0.01)
        new = await log_in(server)
        assert sids(server) == {busy.sid, new.sid}
        server.observe(new.sid, told(2))
        assert await status_of_a_login(server) == 503
        assert sids(server) == {busy.sid, new.sid}
        assert other.sid not in sids(server)
        nursery.cancel_scope.cancel()


async def test_what_it_was_given_counts_after_a_restart(state) -> None:
    """As far as it is in its log."""
    async with serving(state=state) as server:
        busy, other = await log_in(server), await log_in(server)
        server.observe(busy.sid, told(1))
    async with serving(state=state, max_sessions=2) as server:
        new = await log_in(server)
        assert sids(server) == {busy.sid, new.sid}
        assert other.sid not in sids(server)


@pytest.mark.parametrize("given", ["a step", "a request"])
async def test_who_is_given_something_while_it_makes_room_stays(state, given) -> None:
    """Its row is being deleted then: it has it again."""
    async with serving(state=state, max_sessions=1) as server, trio.open_nursery() as nursery:
        login = await log_in(server)
        await touch_and_go(server, login)
        with the_disk_waits(server, "DELETE") as (begun, go_on):
            refused = Result()
            nursery.start_soon(refused.run, status_of_a_login, server)
            with trio.fail_after(10):
                await begun.wait()
            if given == "a step":
                server.observe(login.sid, told(1))
            else:
                nursery.start_soon(Result().run, be_asked, server, login)
                await wait_all_tasks_blocked()
            go_on()
            await refused.done.wait()
        assert refused.value == 503
        assert sids(server) == {login.sid}
        nursery.cancel_scope.cancel()
    assert sql(state, "SELECT sid FROM sessions") == [(login.sid,)]


async def test_who_comes_for_a_moment_while_it_makes_room_stays_too(state) -> None:
    """It has just shown that it is there; another goes in its place."""
    async with serving(state=state, max_sessions=2) as server, trio.open_nursery() as nursery:
        login, other = await log_in(server), await log_in(server)
        for each in (login, other):
            await touch_and_go(server, each)
        with the_disk_waits(server, "DELETE") as (begun, go_on):
            beyond = Result()
            nursery.start_soon(beyond.run, status_of_a_login, server)
            with trio.fail_after(10):
                await begun.wait()
            near, far = memory_transport_pair()
            nursery.start_soon(server.seat(login.sid).serve, near)
            await server.wait_seat(login.sid)
            await far.aclose()
            while server.seat(login.sid).connected:
                await wait_all_tasks_blocked()
            go_on()
            await beyond.done.wait()
        assert beyond.value == 200
        assert login.sid in sids(server)
        assert other.sid not in sids(server)


async def test_nobody_goes_where_that_would_not_be_enough(state) -> None:
    """A server that is started again with a smaller bound."""
    async with serving(state=state) as server:
        for number in range(3):
            login = await log_in(server)
            if number:
                server.observe(login.sid, told(number))
    async with serving(state=state, max_sessions=2) as server:
        assert await status_of_a_login(server) == 503
        assert len(server.seats()) == 3


async def test_the_count_is_exact_when_who_makes_room_is_removed_meanwhile(state) -> None:
    """It does not make room twice: the next login waits for nobody in vain, and takes nobody's place."""
    async with serving(state=state, max_sessions=2) as server, trio.open_nursery() as nursery:
        first, second = await log_in(server), await log_in(server)
        table = server._table
        with the_disk_waits(server, "DELETE") as (begun, go_on):
            nursery.start_soon(log_in, server)
            with trio.fail_after(10):
                await begun.wait()
            assert (table.surplus, table._leaving) == (0, {first.sid})
            session = table.find(first.sid)
            assert session is not None
            server._sessions.forget(session, "over")
            assert table.surplus == 0
            go_on()
        while len(server.seats()) < 2:
            await trio.sleep(0.001)
        assert table.surplus == 0
        assert second.sid in sids(server)


async def test_what_was_put_back_is_known_to_be_written(state) -> None:
    """There is nothing to write of it until it is accessed again; but its log had gone with the row."""
    async with serving(state=state) as server:
        login = await log_in(server)
        sessions, session = server._sessions, server._table.find(login.sid)
        assert session is not None
        assert sessions.store is not None
        session.observed.add(told(1))
        assert await sessions.write_observed() == 1
        await sessions.store.delete(login.sid)
        sessions.touch(session)
        await sessions._put_back(session)
        assert await sessions.write_accesses() == 0
        assert await sessions.write_observed() == 1
        sessions.touch(session)
        assert await sessions.write_accesses() == 1


async def test_a_login_that_is_cancelled_while_a_row_is_put_back_costs_nobody_its_session(
    state, monkeypatch
) -> None:
    """However long the disk takes for it."""
    async with serving(state=state, max_sessions=1) as server:
        login = await log_in(server, roles=["r"])
        store, given = server._sessions.store, trio.Event()
        assert store is not None
        delete, disk = store.delete, store._one_at_a_time

        async def be_given_a_step_meanwhile(sid: str) -> None:
            await delete(sid)
            server.observe(sid, told(1))
            await disk.acquire_on_behalf_of("somebody else's call")
            given.set()

        monkeypatch.setattr(store, "delete", be_given_a_step_meanwhile)
        scope = trio.CancelScope()

        async def beyond() -> None:
            with scope, pytest.raises(BusyError):
                await server._sessions.mint(LoginRequest())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(beyond)
            await given.wait()
            await wait_all_tasks_blocked()
            scope.cancel()
            await wait_all_tasks_blocked()
            disk.release_on_behalf_of("somebody else's call")
    assert sql(state, "SELECT sid FROM sessions") == [(login.sid,)]
