"""Sessions that outlive their server (contract 8.3 J5 to J11, J37 to J49; 8.4 I1 to I13)."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import pytest
import trio
import trio.testing
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.operators.support import Events, Login, Result, log_in, rest, serving, socket_of
from trio_swarm._io.memory import memory_transport_pair
from trio_swarm._io.session_db import FILE_NAME
from trio_swarm.errors import BadTokenError, PeerGoneError, StoreError
from trio_swarm.operators.login import Moment, Presented
from trio_swarm.operators.observed import observation
from trio_swarm.operators.server import OperatorServer


@pytest.fixture
def state(tmp_path) -> Path:
    return tmp_path / "state"


def sql(state: Path, statement: str, *values: object) -> list[Any]:
    """What a statement gives, on a store that no server has open."""
    connection = sqlite3.connect(state / FILE_NAME)
    try:
        with connection:
            return connection.execute(statement, values).fetchall()
    finally:
        connection.close()


def fail(state: Path, verb: str, when: str = "1") -> None:
    """From now on SQLite refuses to do that to a row; it is part of the database, as a damage would be."""
    sql(
        state,
        f"CREATE TRIGGER broken BEFORE {verb} ON sessions WHEN {when}"
        " BEGIN SELECT RAISE(ABORT, 'disk on fire'); END",
    )


async def make_store(state: Path) -> None:
    async with serving(state=state):
        pass


async def known(server: OperatorServer, login: Login) -> httpx2.Response:
    async with rest(server) as client:
        return await client.get(f"/v1/operators/{login.sid}", headers=login.bearer)


async def delete(server: OperatorServer, login: Login) -> httpx2.Response:
    async with rest(server) as client:
        return await client.delete(f"/v1/operators/{login.sid}", headers=login.bearer)


def age(server: OperatorServer, login: Login, seconds: float) -> None:
    """As if its operator had done nothing for so long."""
    session = server._table.find(login.sid)
    assert session is not None
    session.seated = True
    session.last_access = Moment(time.time() - seconds, trio.current_time() - seconds)


async def test_a_session_survives_a_restart(state) -> None:
    """I1, I3: same sid and token, disconnected, registered; its roles are still its own."""
    manifest = {"provider_id": "p", "capabilities": [{"launch_variant": "v"}]}
    async with serving(state=state) as server:
        login = await log_in(server, roles=["main", "x"], desc="me", capability_manifest=manifest)
        async with socket_of(server, login):
            await server.wait_seat("main")
    async with serving(state=state) as server:
        seat = server.seat("main")
        assert (seat.sid, seat.connected, seat.roles, seat.desc) == (login.sid, False, ("main", "x"), "me")
        about = (await known(server, login)).json()
        assert about["capability_manifest"] == manifest
        assert about["connected"] is False
        async with rest(server) as client:
            taken = await client.post("/v1/operators", json={"roles": ["x", "free"]})
            assert taken.json() == {"error": "roles conflict", "conflicts": ["x"]}
            wrong = await client.get(f"/v1/operators/{login.sid}", headers={"Authorization": "Bearer x"})
            assert wrong.status_code == 401
        asked = Result()
        async with trio.open_nursery() as nursery:
            # Before it has connected: the request waits for it.
            nursery.start_soon(asked.run, lambda: seat.ask("?", task_id="ST-1"))
            async with socket_of(server, login) as peer:
                frame = await peer.next()
                await peer.send(type="answer", req_id=frame["req_id"], value="!")
                await asked.done.wait()
        assert asked.value == "!"


async def test_a_deleted_session_does_not_come_back(state) -> None:
    """I2."""
    async with serving(state=state) as server:
        gone, stays = await log_in(server, roles=["a"]), await log_in(server, roles=["b"])
        assert (await delete(server, gone)).status_code == 204
        assert (await delete(server, gone)).status_code == 404
    async with serving(state=state) as server:
        assert [seat.sid for seat in server.seats()] == [stays.sid]
        assert (await known(server, gone)).status_code == 404


def told(number: int) -> dict[str, Any]:
    return observation(f"ST-{number}", "coder", "do it", at=number, metadata={"n": number})


async def shown(server: OperatorServer, login: Login) -> tuple[list[str], int]:
    about = (await known(server, login)).json()
    return [each["run_id"] for each in about["observed"]], about["observed_total"]


async def test_what_an_operator_was_given_to_do_survives_a_restart(state) -> None:
    """Its latest 32 entries and their count, over several; those of others are theirs."""
    async with serving(state=state) as server:
        login, other = await log_in(server, roles=["a"]), await log_in(server, roles=["b"])
        for number in range(1, 41):
            server.observe(login.sid, told(number))
        server.observe(other.sid, told(99))
        before = (await known(server, login)).json()
    async with serving(state=state) as server:
        assert (await known(server, login)).json() == before
        assert await shown(server, other) == (["ST-99"], 1)
        server.observe(login.sid, told(41))
    async with serving(state=state) as server:
        assert await shown(server, login) == ([f"ST-{number}" for number in range(10, 42)], 41)
        assert (await delete(server, login)).status_code == 204
    assert sql(state, "SELECT sid, count(*) FROM observed GROUP BY sid") == [(other.sid, 1)]


async def test_what_an_operator_was_given_to_do_is_on_disk_soon(state, monkeypatch) -> None:
    """Not only at the end in order, nor a minute later."""
    async with serving(state=state) as server:
        login = await log_in(server)
        store = server._sessions.store
        assert store is not None
        written, note = trio.Event(), store.note_observed

        async def note_and_tell(*args: Any, **options: Any) -> None:
            await note(*args, **options)
            written.set()

        monkeypatch.setattr(store, "note_observed", note_and_tell)
        server.observe(login.sid, told(1))
        with trio.fail_after(10):
            await written.wait()
        assert [row.entry["run_id"] for row in (await store.load_observed())[0]] == ["ST-1"]


async def test_a_log_that_cannot_be_written_is_written_later(state, caplog) -> None:
    """It is told, and nothing is lost but time; of entries that cannot be read the others are there."""
    async with serving(state=state) as server:
        login = await log_in(server)
        sessions = server._sessions
        assert sessions.store is not None
        log = sessions.table.find(login.sid).observed

        async def run(statement: str) -> None:
            await sessions.store._call(sessions.store._execute, statement, [()])

        await run(
            "CREATE TRIGGER broken BEFORE INSERT ON observed BEGIN SELECT RAISE(ABORT, 'disk on fire'); END"
        )
        log.add(told(1))
        log.add(told(2))
        with pytest.raises(StoreError, match="disk on fire"):
            await sessions.write_observed()
        await run("DROP TRIGGER broken")
        log.add(told(3))
        log.add(told(4))
        assert await sessions.write_observed() == 4
        assert await sessions.write_observed() == 0
    sql(state, "UPDATE observed SET entry_json = 'x' WHERE number = 2")
    async with serving(state=state) as server:
        assert await shown(server, login) == (["ST-1", "ST-3", "ST-4"], 4)
    assert "observation was skipped" in caplog.text


async def test_a_log_is_never_counted_on_from_the_end_of_all_numbers(state, caplog) -> None:
    """A row that is damaged so: it is skipped, and what comes later is written as ever."""
    async with serving(state=state) as server:
        login = await log_in(server)
        server.observe(login.sid, told(1))
    sql(state, "INSERT INTO observed VALUES (?, ?, '{}')", login.sid, 2**63 - 1)
    for number in (2, 3):
        async with serving(state=state) as server:
            server.observe(login.sid, told(number))
            assert await server._sessions.write_observed() == 1
            assert await shown(server, login) == ([f"ST-{each}" for each in range(1, number + 1)], number)
    assert "observed.number: not a number from 1 to 2^53" in caplog.text


async def test_without_a_state_nothing_is_kept(tmp_path, monkeypatch) -> None:
    """And nothing is written."""
    monkeypatch.chdir(tmp_path)
    async with serving() as server:
        login = await log_in(server)
    async with serving() as server:
        assert (await known(server, login)).status_code == 404
    assert list(tmp_path.iterdir()) == []


async def test_the_disk_holds_the_tokens_digest_only(state) -> None:
    """In none of its files is the token, as text or as bytes."""
    async with serving(state=state) as server:
        login = await log_in(server, roles=["r"])
        content = b"".join(each.read_bytes() for each in state.iterdir())
        assert login.sid.encode() in content
        assert login.token.encode() not in content
        assert bytes.fromhex(login.token) not in content


async def test_a_login_that_cannot_be_written_registers_nothing(state, caplog) -> None:
    """J10: 500 as JSON; the role is free; nothing is announced; the server goes on.

    Where the state is, is told to the log alone: anybody may log in.
    """
    await make_store(state)
    fail(state, "INSERT")
    events = Events()
    async with serving(events, state=state) as server, rest(server) as client:
        for _ in range(2):
            answer = await client.post("/v1/operators", json={"roles": ["r"]})
            assert answer.status_code == 500
            assert answer.headers["content-type"] == "application/json"
            assert answer.json()["error"].startswith("session persist failed: ")
            assert str(state) not in answer.text
        assert server.seats() == ()
        assert server._table.find("r") is None
        assert events.kinds() == []
    assert "disk on fire" in caplog.text


@pytest.mark.parametrize("how", ["removed", "moved", "replaced"])
async def test_a_store_that_is_not_where_it_was_takes_no_login(state, how, caplog) -> None:
    """As by whoever clears up /tmp: what was answered after it would be gone with the server."""
    async with serving(state=state) as server, rest(server) as client:
        before = await log_in(server)
        file = state / FILE_NAME
        if how == "removed":
            shutil.rmtree(state)
        else:
            file.rename(state / "elsewhere")
            if how == "replaced":
                file.write_bytes(b"")
        answer = await client.post("/v1/operators", json={"roles": ["r"]})
        assert answer.status_code == 500
        assert server._table.find("r") is None
        assert (await known(server, before)).status_code == 200
    assert f"cannot write {file}: it was removed or replaced; start the server again" in caplog.text


async def test_a_session_whose_row_cannot_be_deleted_is_whole(state) -> None:
    """I8: 500 with a hint; its socket stays, its waits go on; the same request works later."""
    await make_store(state)
    fail(state, "DELETE", "(SELECT count(*) FROM sessions) = 1")
    async with serving(state=state) as server, trio.open_nursery() as nursery:
        login = await log_in(server, roles=["r"])
        async with socket_of(server, login) as peer:
            asked = Result()
            nursery.start_soon(asked.run, lambda: server.seat("r").ask("?", task_id="ST-1"))
            frame = await peer.next()
            refused = await delete(server, login)
            assert refused.status_code == 500
            assert refused.json().keys() == {"error", "sid", "hint"}
            assert str(state) not in refused.text
            assert refused.json()["sid"] == login.sid
            with pytest.raises(StoreError):
                await server.remove("r")
            assert server.seat("r").connected
            await peer.send(type="answer", req_id=frame["req_id"], value=1)
            await asked.done.wait()
            assert asked.value == 1
            await log_in(server)  # Two rows now: the disk is well again.
            assert (await delete(server, login)).status_code == 204
            with pytest.raises(ConnectionClosed) as closed:
                await peer.next()
            assert closed.value.rcvd is not None
            assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (1000, "the session was deleted")


async def test_a_row_that_is_gone_already_is_a_success(state) -> None:
    """I13."""
    async with serving(state=state) as server:
        login = await log_in(server)
        server._sessions.store._connection.execute("DELETE FROM sessions")
        assert (await delete(server, login)).status_code == 204


async def test_a_connect_that_meets_a_deletion_is_not_seated(state) -> None:
    """I10: it comes while the row is being deleted; its socket is closed, the session is gone."""
    async with serving(state=state) as server:
        login = await log_in(server, roles=["r"])
        with the_disk_waits(server, "DELETE") as (begun, go_on):
            async with trio.open_nursery() as nursery:
                answer = Result()
                nursery.start_soon(answer.run, delete, server, login)
                await begun.wait()
                async with socket_of(server, login) as peer:
                    await server.wait_seat("r")
                    go_on()
                    with pytest.raises(ConnectionClosed):
                        await peer.next()
        assert answer.value.status_code == 204
        assert server.seats() == ()
        with pytest.raises(InvalidStatus):
            async with socket_of(server, login):
                raise AssertionError("it was let in")


async def test_a_role_is_taken_while_its_login_is_being_written(state) -> None:
    """J5, J6: exactly one of two logins gets it; nobody sees the session before it is on the disk."""
    async with serving(state=state) as server:
        with the_disk_waits(server, "INSERT") as (begun, go_on):
            async with trio.open_nursery() as nursery:
                first = Result()
                nursery.start_soon(lambda: first.run(log_in, server, roles=["r"]))
                await begun.wait()
                assert server.seats() == ()
                async with rest(server) as client:
                    second = await client.post("/v1/operators", json={"roles": ["r"]})
                assert second.status_code == 409
                go_on()
        assert server.seat("r").sid == first.value.sid


async def test_of_two_deletions_at_once_one_succeeds(state) -> None:
    """J9: the other finds nothing."""
    events = Events()
    async with serving(events, state=state) as server:
        login = await log_in(server)
        with the_disk_waits(server, "DELETE") as (begun, go_on):
            async with trio.open_nursery() as nursery:
                answers = [Result(), Result()]
                for answer in answers:
                    nursery.start_soon(answer.run, delete, server, login)
                await begun.wait()
                go_on()
        assert sorted(answer.value.status_code for answer in answers) == [204, 404]
    assert len(events.of("operator_left")) == 1


@contextmanager
def the_disk_waits(server: OperatorServer, verb: str) -> Iterator[Any]:
    """The next such statement waits until it is told to go on; the event says that it has begun."""
    begun, gate = trio.Event(), threading.Event()
    token = trio.lowlevel.current_trio_token()
    store = server._sessions.store
    assert store is not None

    def wait() -> int:
        token.run_sync_soon(begun.set)
        gate.wait(10)
        return 1

    store._connection.create_function("wait_for_test", 0, wait)
    store._connection.execute(
        f"CREATE TEMP TRIGGER waits BEFORE {verb} ON sessions BEGIN SELECT wait_for_test(); END"
    )
    try:
        yield begun, gate.set
    finally:
        gate.set()


# -- making room -----------------------------------------------------------------------


@asynccontextmanager
async def meeting(
    server: OperatorServer, login: Login, meanwhile: Callable[[], Awaitable[object]] | None = None
) -> AsyncIterator[int]:
    """A socket that passed the door before its session was chosen to make room for another login.

    It is seated while its row is being deleted. Gives the status of that login.
    """
    session = server._table.find(login.sid)
    assert session is not None
    near, far = memory_transport_pair()
    with the_disk_waits(server, "DELETE") as (begun, go_on):
        async with trio.open_nursery() as nursery, rest(server) as client:
            login_beyond = Result()
            nursery.start_soon(lambda: login_beyond.run(client.post, "/v1/operators", json={}))
            with trio.fail_after(10):
                await begun.wait()
            nursery.start_soon(session.seat.serve, near)
            await server.wait_seat(login.sid)
            if meanwhile is not None:
                nursery.start_soon(meanwhile)
                await trio.testing.wait_all_tasks_blocked()
            go_on()
            await login_beyond.done.wait()
            yield login_beyond.value.status_code
            await far.aclose()


async def test_of_two_logins_at_once_each_has_room_made(state) -> None:
    """By another session each; who makes room is let in no more, and may ask again: it may be put back."""
    async with serving(state=state, max_sessions=2) as server:
        old = [await log_in(server) for _ in range(2)]
        with the_disk_waits(server, "DELETE") as (begun, go_on):
            async with trio.open_nursery() as nursery:
                new = [Result(), Result()]
                for number, result in enumerate(new):
                    nursery.start_soon(lambda n=number, r=result: r.run(log_in, server, roles=[f"r{n}"]))
                with trio.fail_after(10):
                    await begun.wait()
                    while len(server._table._leaving) < 2:  # The second one comes over its own socket.
                        await trio.testing.wait_all_tasks_blocked(0.01)
                for each in old:
                    assert (await known(server, each)).status_code == 503
                    with pytest.raises(InvalidStatus) as refused:
                        async with socket_of(server, each):
                            raise AssertionError("it was let in")
                    assert refused.value.response.status_code == 503
                    assert refused.value.response.headers["Retry-After"] == "1"
                async with rest(server) as client:
                    assert (await client.post("/v1/operators", json={})).status_code == 503
                go_on()
        sids = {result.value.sid for result in new}
        assert {seat.sid for seat in server.seats()} == sids
    assert {sid for (sid,) in sql(state, "SELECT sid FROM sessions")} == sids


async def test_one_who_was_at_the_door_already_does_not_make_room(state) -> None:
    """Seated while its row was being deleted: it has the row again, with its log, and stays."""
    async with serving(state=state, max_sessions=1) as server:
        login = await log_in(server, roles=["r"])

        async def be_given_a_step() -> None:
            server.observe(login.sid, told(1))
            await server._sessions.write_observed()  # Behind the deletion: nothing is there to write to.

        async with meeting(server, login, be_given_a_step) as status:
            assert status == 503
            assert [seat.sid for seat in server.seats()] == [login.sid]
            assert (await known(server, login)).json()["connected"] is True
    async with serving(state=state) as server:
        assert server.seat("r").sid == login.sid
        assert await shown(server, login) == (["ST-1"], 1)


async def test_one_that_cannot_be_put_back_is_told(state) -> None:
    """Neither here nor on the disk, rather than here alone."""
    await make_store(state)
    fail(state, "INSERT", "NEW.seated")
    events = Events()
    async with serving(events, state=state, max_sessions=1) as server:
        login = await log_in(server, roles=["r"])
        async with meeting(server, login) as status:
            assert status == 500
            assert server.seats() == ()
        assert [each["reason"] for each in events.of("operator_left")] == ["its state could not be written"]
        await log_in(server, roles=["r"])


async def test_one_that_was_deleted_while_it_was_put_back_stays_deleted(state) -> None:
    """Also on the disk."""
    async with serving(state=state, max_sessions=1) as server:
        login = await log_in(server, roles=["r"])
        # Its deletion waits for the disk behind the first one, and before the row that is put back.
        async with meeting(server, login, partial(server.remove, "r")) as status:
            assert status == 200
    assert [roles for (roles,) in sql(state, "SELECT roles_json FROM sessions")] == ["[]"]


async def test_one_that_was_deleted_and_written_again_is_deleted_when_the_disk_is_well(state, caplog) -> None:
    """It was answered that it is ended: it does not come back. The login that was in the way is fine."""
    async with serving(state=state, max_sessions=1) as server:
        login = await log_in(server, roles=["r"])
        sessions = server._sessions
        assert sessions.store is not None
        delete, insert, removing = sessions.store.delete, sessions.store.insert, trio.Event()

        async def broken(sid: str) -> None:
            await trio.lowlevel.checkpoint()
            raise StoreError("disk on fire")

        async def insert_late(row: Any) -> None:
            if row.sid == login.sid:  # The other's deletion came before.
                removing.set()
                while server._table.find(login.sid) is not None:
                    await trio.testing.wait_all_tasks_blocked()
                sessions.store.delete = broken
            await insert(row)

        async def remove() -> None:
            await removing.wait()
            assert await server.remove(login.sid)

        sessions.store.insert = insert_late
        async with meeting(server, login, remove) as status:
            assert status == 200
        assert f"the ended session {login.sid} could not be deleted: disk on fire" in caplog.text
        assert len((await sessions.store.load())[0]) == 2
        count, errors = await sessions.sweep()
        assert (count, [str(each) for each in errors]) == (0, ["disk on fire"])
        sessions.store.delete = delete
    assert [roles for (roles,) in sql(state, "SELECT roles_json FROM sessions")] == ["[]"]


async def test_one_whose_row_cannot_be_deleted_makes_no_room(state) -> None:
    """It is as it was; the login is 500."""
    await make_store(state)
    fail(state, "DELETE")
    async with serving(state=state, max_sessions=1) as server, rest(server) as client:
        login = await log_in(server, roles=["r"])
        assert (await client.post("/v1/operators", json={})).status_code == 500
        async with socket_of(server, login):
            await server.wait_seat("r")
            assert (await client.post("/v1/operators", json={})).status_code == 503
    assert sql(state, "SELECT sid FROM sessions") == [(login.sid,)]


async def test_bad_rows_are_skipped_with_a_warning(state, caplog) -> None:
    """Also those that contradict each other; the others are there."""
    async with serving(state=state) as server:
        good, poisoned = await log_in(server, roles=["a"]), await log_in(server, roles=["b"])
        double, large = await log_in(server, roles=["c"]), await log_in(server, roles=["d"])
        posing = await log_in(server, roles=["e"])
    sql(state, "UPDATE sessions SET roles_json = '7' WHERE sid = ?", poisoned.sid)
    sql(state, "UPDATE sessions SET roles_json = '[\"a\"]', joined_at_secs = 9e9 WHERE sid = ?", double.sid)
    sql(state, "UPDATE sessions SET desc_json = ? WHERE sid = ?", json.dumps("x" * 70_000), large.sid)
    sql(state, "UPDATE sessions SET roles_json = ? WHERE sid = ?", json.dumps([good.sid]), posing.sid)
    events = Events()
    with caplog.at_level(logging.WARNING, "trio_swarm.operators"):
        async with serving(events, state=state) as server:
            assert [seat.sid for seat in server.seats()] == [good.sid]
            assert server.seat("a").sid == good.sid
    bad = {poisoned.sid, double.sid, large.sid, posing.sid}
    assert {data["sid"] for data in events.of("session_skipped")} == bad
    assert all(sid in caplog.text for sid in bad)


async def test_a_second_server_with_the_same_state_is_refused(state) -> None:
    """And the listeners that it was given are closed."""
    async with serving(state=state) as server:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        with pytest.raises(StoreError, match="another server is using it"):
            async with serving(state=state, listeners=listeners):
                raise AssertionError("two at once")
        assert [listener.socket.fileno() for listener in listeners] == [-1]
        await log_in(server)


# -- expiry ----------------------------------------------------------------------------


async def test_expired_rows_are_dropped_at_boot(state) -> None:
    """I12, J44: neither returned nor kept; the token is told that it expired; roles are free."""
    async with serving(state=state) as server:
        old, fresh = await log_in(server, roles=["old"]), await log_in(server, roles=["fresh"])
    sql(state, "UPDATE sessions SET last_access_secs = ?, seated = 1", time.time() - 80_000)
    sql(state, "UPDATE sessions SET last_access_secs = ? WHERE sid = ?", time.time() - 86_401, old.sid)
    async with serving(state=state) as server, rest(server) as client:
        assert [seat.sid for seat in server.seats()] == [fresh.sid]
        assert (await known(server, old)).status_code == 404
        listed = await client.get("/v1/operators", headers=old.bearer)
        assert (listed.status_code, listed.json()["error"]) == (401, "your session expired")
    assert sql(state, "SELECT sid FROM sessions") == [(fresh.sid,)]


async def test_an_expired_row_that_cannot_be_dropped_keeps_no_server_from_starting(state, caplog) -> None:
    """It is not brought back, its token is told that it expired; the others are there as ever."""
    async with serving(state=state) as server:
        old, fresh = await log_in(server, roles=["r"]), await log_in(server, roles=["fresh"])
    sql(state, "UPDATE sessions SET last_access_secs = ?, seated = 1 WHERE sid = ?", 0.0, old.sid)
    fail(state, "DELETE")
    for _ in range(2):
        async with serving(state=state) as server, rest(server) as client:
            assert [seat.sid for seat in server.seats()] == [fresh.sid]
            listed = await client.get("/v1/operators", headers=old.bearer)
            assert (listed.status_code, listed.json()["error"]) == (401, "your session expired")
            assert (await known(server, fresh)).status_code == 200
        assert f"the expired session {old.sid} could not be dropped: " in caplog.text
        caplog.clear()


async def test_a_sweep_takes_the_row_of_who_does_not_come_back_too(state) -> None:
    """I17: nobody asks for that session any more; and one that is connected keeps its row."""
    events = Events()
    async with serving(events, state=state) as server:
        stays, gone = await log_in(server, roles=["stays"]), await log_in(server, roles=["gone"])
        async with socket_of(server, stays):
            await server.wait_seat("stays")
            for login in (stays, gone):
                age(server, login, 86_399.9)  # Due in a moment, after the last sweep.
            server._expiry.check()
            with trio.fail_after(10):
                while not events.of("operator_left"):
                    await trio.sleep(0.005)
            assert [left["sid"] for left in events.of("operator_left")] == [gone.sid]
            store = server._sessions.store
            assert store is not None
            rows, _ = await store.load()
            assert [row.sid for row in rows] == [stays.sid]
            assert gone.sid not in server._sessions._written


async def test_the_time_away_of_the_server_counts(state) -> None:
    """A session that was idle for 23 h ends an hour after the restart, not a day."""
    async with serving(state=state) as server:
        login = await log_in(server)
    sql(state, "UPDATE sessions SET last_access_secs = ?, seated = 1", time.time() - 82_800)
    async with serving(state=state) as server:
        session = server._table.find(login.sid)
        assert session is not None
        left = server._sessions.expires(session) - trio.current_time()
        assert left == pytest.approx(3600, abs=30)


async def test_who_had_not_come_yet_has_its_time_again_after_a_restart(state) -> None:
    """It could not come while no server was there; a whole ``join_within``, and no more."""
    async with serving(state=state) as server:
        login = await log_in(server)
    sql(state, "UPDATE sessions SET last_access_secs = ?", time.time() - 3600)
    async with serving(state=state, join_within=500) as server:
        session = server._table.find(login.sid)
        assert session is not None
        left = server._sessions.expires(session) - trio.current_time()
        assert left == pytest.approx(500, abs=30)


async def test_a_wall_clock_that_went_back_gives_no_more_than_a_full_horizon(state) -> None:
    """A row from the future counts as one of now."""
    async with serving(state=state) as server:
        login = await log_in(server)
    sql(state, "UPDATE sessions SET last_access_secs = ?, seated = 1", time.time() + 1e6)
    async with serving(state=state) as server:
        session = server._table.find(login.sid)
        assert session is not None
        assert server._sessions.expires(session) - trio.current_time() <= 86_400


async def test_an_expired_session_is_ended_by_whoever_asks_for_it(state) -> None:
    """J42, J43: judged before the touch; 404; row and role are gone. Inside the horizon it lives."""
    async with serving(state=state) as server:
        late, intime = await log_in(server, roles=["late"]), await log_in(server, roles=["in time"])
        age(server, late, 86_401)
        age(server, intime, 86_300)
        assert (await known(server, late)).status_code == 404
        assert (await known(server, intime)).status_code == 200
        age(server, intime, 86_300)
        with pytest.raises(InvalidStatus) as refused:
            async with socket_of(server, late):
                raise AssertionError("it was let in")
        assert refused.value.response.status_code == 404
        async with socket_of(server, intime):
            await server.wait_seat("in time")
            session = server._table.find(intime.sid)
            assert session is not None
            age(server, intime, 1e6)
            assert not await server._sessions.judge(session), "one that is connected never expires"
        await log_in(server, roles=["late"])
    assert len(sql(state, "SELECT sid FROM sessions")) == 2


async def test_an_expired_session_that_a_socket_asks_for_is_ended_too() -> None:
    """1.7: torn down, then 404."""
    async with serving() as server:
        login = await log_in(server)
        age(server, login, 86_401)
        with pytest.raises(InvalidStatus) as refused:
            async with socket_of(server, login):
                raise AssertionError("it was let in")
        assert refused.value.response.status_code == 404
        assert server.seats() == ()


async def test_last_accesses_reach_the_disk(state) -> None:
    """J48: on the first connect at once, at the end of the server, and each minute for who is connected."""
    async with serving(state=state) as server:
        login = await log_in(server, roles=["r"])
        sessions = server._sessions
        assert sessions.store is not None
        sessions._written[login.sid] = (0.0, False)
        async with socket_of(server, login):
            await server.wait_seat("r")
            with trio.fail_after(10):
                while not (await sessions.store.load())[0][0].seated:
                    await trio.sleep(0.005)
            assert await sessions.write_accesses() == 1
            assert await sessions.write_accesses() == 1, "it is connected: its clock goes on"
        while server.seat("r").connected:
            await trio.sleep(0.001)
        await sessions.write_accesses()
        assert await sessions.write_accesses() == 0
        last = time.time()
        await known(server, login)
    ((last_access, seated),) = sql(state, "SELECT last_access_secs, seated FROM sessions")
    assert seated == 1
    assert last_access >= last, "the last one is written at the end of the server"


async def test_what_was_written_of_a_session_that_ended_meanwhile_is_not_kept(state) -> None:
    """Nothing of it stays in memory."""
    async with serving(state=state) as server:
        login = await log_in(server)
        session = server._table.find(login.sid)
        assert session is not None
        server._sessions.touch(session)
        with the_disk_waits(server, "UPDATE") as (begun, go_on):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(server._sessions.write_accesses)
                await begun.wait()
                server._sessions.forget(session, "over")
                go_on()
        assert server._sessions._written == {}


async def test_only_an_expiry_that_ended_it_says_that_it_expired(state) -> None:
    """One that was deleted while its expiry waited for the disk was deleted."""
    async with serving(state=state, sweep_every=0) as server:
        login = await log_in(server)
        age(server, login, 86_401)
        session = server._table.find(login.sid)
        assert session is not None
        with the_disk_waits(server, "DELETE") as (begun, go_on):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(server._sessions.end, session, "the session was deleted")
                await begun.wait()
                nursery.start_soon(server._sessions.judge, session)
                await trio.testing.wait_all_tasks_blocked()
                go_on()
        with pytest.raises(BadTokenError) as told_it:
            server._table.identify(Presented.of(login.token))
        assert str(told_it.value) == "no such token"


async def test_what_is_told_during_a_write_is_written_behind_it(state, monkeypatch) -> None:
    """Not a minute later."""
    async with serving(state=state) as server:
        login = await log_in(server)
        store = server._sessions.store
        assert store is not None
        note, numbers, twice = store.note_observed, list[int](), trio.Event()

        async def told_meanwhile(rows: Any, *, most: int) -> None:
            numbers.extend(row.number for row in rows)
            if numbers == [1]:
                server.observe(login.sid, told(2))
            else:
                twice.set()
            await note(rows, most=most)

        monkeypatch.setattr(store, "note_observed", told_meanwhile)
        server.observe(login.sid, told(1))
        with trio.fail_after(5):
            await twice.wait()
        assert numbers == [1, 2]


async def test_accesses_that_cannot_be_written_are_told_and_change_nothing_else(state, caplog) -> None:
    """The log names the error, the status that there was one; the server ends as it would."""
    await make_store(state)
    fail(state, "UPDATE")
    async with serving(state=state) as server, rest(server) as client:
        login = await log_in(server, roles=["r"])
        async with socket_of(server, login):
            await server.wait_seat("r")
            with trio.fail_after(10):
                while not (job := (await client.get("/v1/status")).json()["periodic_jobs"][1])["runs"]:
                    await trio.sleep(0.005)
        assert job["name"] == "session_access_write"
        assert (job["errors"], job["last_outcome"]) == (1, "error: the state could not be written")
    assert "could not be noted" in caplog.text
    assert "session_access_write failed: " in caplog.text


async def test_a_peer_that_stops_answering_is_detached_and_can_expire() -> None:
    """J49: a dead peer is found by its silence."""
    events = Events()
    async with serving(events, ping_every=0.05, silence=0.2, idle_within=0.2) as server:
        login = await log_in(server, roles=["r"])
        host, _, port = server.url.removeprefix("http://").partition(":")
        async with await trio.open_tcp_stream(host, int(port)) as stream:
            await stream.send_all(
                f"GET /v1/operators/{login.sid}/ws HTTP/1.1\r\nHost: {host}:{port}\r\n"
                f"Authorization: Bearer {login.token}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
                "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode()
            )
            await server.wait_seat("r")
            with trio.fail_after(20):
                while not events.of("operator_left"):
                    await trio.sleep(0.01)
    assert events.kinds().index("operator_away") < events.kinds().index("operator_left")


# -- a server that is killed ---------------------------------------------------------------

SERVER = """
import sys
from pathlib import Path
import trio
import trio.testing
from trio_swarm._io.host import Host
from trio_swarm.operators import serve_operators

async def ask(seat, number):
    await seat.ask(number, task_id="ST-1")

async def main():
    host = Host(warden=None, runtime_dir=Path("/nonexistent"))
    async with serve_operators(host, state=sys.argv[1]) as server, trio.open_nursery() as nursery:
        print(server.url, flush=True)
        seat = await server.wait_seat()
        for number in range(int(sys.argv[2])):
            nursery.start_soon(ask, seat, number)

trio.run(main)
"""


@contextmanager
def a_server_process(state: Path, requests: int = 0) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    argv = [sys.executable, "-c", SERVER, str(state), str(requests)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip(), process
        finally:
            process.kill()


class _At:
    """As much of a server as the peers of these tests need."""

    def __init__(self, url: str) -> None:
        self.url = url


async def test_a_login_that_was_answered_is_there_after_a_kill(state) -> None:
    """Several rounds: killed at once after the answer; every session of every round is there."""
    logins: list[Login] = []
    for _ in range(4):
        with a_server_process(state) as (url, process):
            at: Any = _At(url)
            for login in logins:
                assert (await known(at, login)).status_code == 200
            for number in range(5):
                logins.append(await log_in(at, roles=[f"r{len(logins)}"], desc=str(number)))
            process.send_signal(signal.SIGKILL)
    async with serving(state=state) as server:
        assert [seat.sid for seat in server.seats()] == [login.sid for login in logins]
        assert server.seat("r7").sid == logins[7].sid
        for login in logins:
            assert (await known(server, login)).json()["sid"] == login.sid


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
async def test_a_restart_in_the_middle_of_100_pending_requests(state, how) -> None:
    """The requests go with the program that made them; the session works in the next one."""
    with a_server_process(state, 100) as (url, process):
        at: Any = _At(url)
        login = await log_in(at, roles=["r"])
        async with socket_of(at, login) as peer:
            lost = [(await peer.next())["req_id"] for _ in range(100)]
            os.kill(process.pid, how)
            with pytest.raises(ConnectionClosed):
                while True:
                    await peer.next()
        process.wait()
    async with serving(state=state) as server, trio.open_nursery() as nursery:
        asked = Result()
        async with socket_of(server, login) as peer:
            for req_id in lost[:50]:
                await peer.send(type="answer", req_id=req_id, value="late")  # Unknown here: ignored.
            seat = await server.wait_seat("r")
            nursery.start_soon(lambda: asked.run(seat.ask, "new", task_id="ST-1"))
            frame = await peer.next()
            assert frame["question"] == "new"
            assert frame["req_id"] not in lost
            await peer.send(type="answer", req_id=frame["req_id"], value="works")
            await asked.done.wait()
        assert asked.value == "works"
        assert seat.pending() == ()


async def test_what_waits_when_the_server_ends_in_order_is_told(state) -> None:
    """In process: its askers learn that the session is over here; the row stays."""
    asked = Result()
    async with trio.open_nursery() as nursery:
        async with serving(state=state) as server:
            login = await log_in(server, roles=["r"])
            nursery.start_soon(lambda: asked.run(server.seat("r").ask, 1, task_id="ST-1"))
            await trio.testing.wait_all_tasks_blocked()
        await asked.done.wait()
    assert isinstance(asked.error, PeerGoneError)
    assert sql(state, "SELECT sid FROM sessions") == [(login.sid,)]
