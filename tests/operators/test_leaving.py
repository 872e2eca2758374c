"""Leaving a server: whatever waits for it ends, and nothing new begins."""

from __future__ import annotations

from contextlib import asynccontextmanager
from functools import partial

import httpx2
import pytest
import trio
from trio.testing import wait_all_tasks_blocked
from websockets.exceptions import ConnectionClosed

from tests.io.hostile import GOOD_HEAD
from tests.operators.support import Events, Result, log_in, rest, serving, socket_of
from tests.operators.test_sessions import sql
from trio_swarm.errors import BusyError, PeerGoneError
from trio_swarm.operators.login import LoginRequest, Moment


@asynccontextmanager
async def held_open(server):
    """An operator that does not answer the closing handshake: while it lasts the port is open."""
    login, port = await log_in(server, roles=["slow"]), int(server.url.rpartition(":")[2])
    head = GOOD_HEAD.replace(b"GET /", b"GET /v1/operators/%b/ws" % login.sid.encode())
    head = head.replace(b"127.0.0.1", b"127.0.0.1:%d" % port)
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(head[:-2] + f"Authorization: {login.bearer['Authorization']}\r\n\r\n".encode())
        await server.wait_seat("slow")
        yield login


async def test_who_waits_for_a_seat_is_told() -> None:
    """One that waits already, and one that comes to wait later."""
    waiting, late = Result(), Result()
    async with trio.open_nursery() as nursery:
        async with serving() as server:
            nursery.start_soon(waiting.run, server.wait_seat, "boss")
            await wait_all_tasks_blocked()
        with trio.fail_after(5):
            await waiting.done.wait()
            await late.run(server.wait_seat)
    for each in (waiting, late):
        assert isinstance(each.error, PeerGoneError)
        assert str(each.error) == "the server is going away"


async def test_nobody_logs_in_to_a_server_that_is_leaving() -> None:
    """503, as long as its port is open: not 404, which would tell an operator that its session is over."""
    statuses = {}
    async with trio.open_nursery() as nursery:
        left = trio.Event()

        async def come(server, login) -> None:
            path = f"/v1/operators/{login.sid}"
            async with rest(server) as client:
                await client.get("/v1/healthz")
                await left.wait()
                login_answer = await client.post("/v1/operators", json={"roles": ["late"]})
                statuses["login"] = login_answer.status_code
                listed = await client.get("/v1/operators", headers=login.bearer)
                statuses["list"] = listed.status_code
                assert listed.json() == {"error": "the server is going away"}
                assert (await client.get("/v1/operators?limit=x")).status_code == 400
                statuses["status"] = (await client.get(path, headers=login.bearer)).status_code
                statuses["quit"] = (await client.delete(path, headers=login.bearer)).status_code
                upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
                upgrade |= {"Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==", **login.bearer}
                statuses["upgrade"] = (await client.get(f"{path}/ws", headers=upgrade)).status_code
                assert server.seats() == ()

        def leaving(kind, data) -> None:
            if kind == "operator_left":
                left.set()

        async with serving(leaving) as server:
            other = await log_in(server, roles=["other"])
            slow = await nursery.start(_hold, server)
            nursery.start_soon(come, server, other)
            await wait_all_tasks_blocked(0.05)
        nursery.cancel_scope.cancel()
    assert slow.sid != other.sid
    assert statuses == dict.fromkeys(("login", "list", "status", "quit", "upgrade"), 503)


async def _hold(server, *, task_status) -> None:
    async with held_open(server) as login:
        task_status.started(login)
        await trio.sleep_forever()


async def test_a_login_that_was_being_written_ends_with_the_others(tmp_path, monkeypatch) -> None:
    """Whoever has its seat is told; on disk it is there for the next server."""
    events, go, begun, asked = Events(), trio.Event(), trio.Event(), Result()
    async with trio.open_nursery() as nursery:

        def on_event(kind, data) -> None:
            events(kind, data)
            if kind == "operator_left":
                go.set()
            if kind == "operator_joined" and server.seats()[-1].roles == ("late",):
                nursery.start_soon(lambda seat: asked.run(seat.ask, 1, task_id="T"), server.seat("late"))

        async with serving(on_event, state=tmp_path / "state") as server:
            await nursery.start(_hold, server)
            store = server._sessions.store
            insert = store.insert

            async def held(row) -> None:
                begun.set()
                await go.wait()
                await insert(row)

            monkeypatch.setattr(store, "insert", held)
            late = Result()
            nursery.start_soon(lambda: late.run(log_in, server, roles=["late"]))
            await begun.wait()
        with trio.fail_after(5):
            await asked.done.wait()
            await late.done.wait()
        assert server.seats() == ()
        nursery.cancel_scope.cancel()
    assert isinstance(asked.error, PeerGoneError)
    async with serving(state=tmp_path / "state") as server:
        assert server.seat("late").sid == late.value.sid
        async with socket_of(server, late.value):
            assert (await server.wait_seat("late")).connected


@asynccontextmanager
async def a_slow_disk(server, monkeypatch, call):
    """The next such call waits, with no hold on the disk; gives what happens when, and what lets it go on."""
    begun, go, real = trio.Event(), trio.Event(), getattr(server._sessions.store, call)

    async def held(*args) -> None:
        begun.set()
        await go.wait()
        await real(*args)

    monkeypatch.setattr(server._sessions.store, call, held)
    yield begun, go


def when_left(server_left: trio.Event):
    """An event sink that says when the first session has gone."""

    def on_event(kind, data) -> None:
        if kind == "operator_left":
            server_left.set()

    return on_event


async def until_then(event: trio.Event, go: trio.Event) -> None:
    await event.wait()
    await wait_all_tasks_blocked(0.05)
    go.set()


async def test_a_login_that_is_under_way_is_carried_out(tmp_path, monkeypatch) -> None:
    """No socket keeps the server: its client is answered, and the session is there for the next one."""
    left, late = trio.Event(), Result()
    async with trio.open_nursery() as nursery:
        async with serving(when_left(left), state=tmp_path / "state") as server:
            await log_in(server)
            async with a_slow_disk(server, monkeypatch, "insert") as (begun, go):
                nursery.start_soon(lambda: late.run(log_in, server, roles=["late"]))
                await begun.wait()
                nursery.start_soon(until_then, left, go)
        with trio.fail_after(5):
            await late.done.wait()
    assert late.error is None
    async with serving(state=tmp_path / "state") as server:
        assert server.seat("late").sid == late.value.sid


async def test_a_logout_that_is_under_way_is_carried_out(tmp_path, monkeypatch) -> None:
    """204, and the next server does not have it."""
    left, answer = trio.Event(), Result()
    async with trio.open_nursery() as nursery:
        async with serving(when_left(left), state=tmp_path / "state") as server:
            login = await log_in(server, roles=["r"])

            async def log_out() -> httpx2.Response:
                async with rest(server) as client:
                    return await client.delete(f"/v1/operators/{login.sid}", headers=login.bearer)

            async with a_slow_disk(server, monkeypatch, "delete") as (begun, go):
                nursery.start_soon(answer.run, log_out)
                await begun.wait()
                nursery.start_soon(until_then, left, go)
        with trio.fail_after(5):
            await answer.done.wait()
    assert answer.error is None
    assert answer.value.status_code == 204
    async with serving(state=tmp_path / "state") as server:
        assert server.seats() == ()


async def test_a_login_that_has_not_begun_gets_no_role_of_a_stored_session(tmp_path) -> None:
    """It passed the door before: by now nobody has the role here, but the next server knows who has."""
    async with serving(state=tmp_path / "state") as server:
        await log_in(server, roles=["r"])
        sessions = server._sessions
    with pytest.raises(BusyError, match=r"^the server is going away$"):
        await sessions.mint(LoginRequest(("r",)))


async def test_a_session_whose_row_is_being_put_back_is_there_for_the_next_server(
    tmp_path, monkeypatch
) -> None:
    """It was chosen to make room, and was given a step; then the server was left."""
    left, beyond = trio.Event(), Result()
    async with trio.open_nursery() as nursery:
        async with serving(when_left(left), state=tmp_path / "state", max_sessions=1) as server:
            login = await log_in(server, roles=["r"])
            session = server._table.find("r")
            delete, store = server._sessions.store.delete, server._sessions.store

            async def be_given_a_step_meanwhile(sid) -> None:
                await delete(sid)
                session.observed.add({"run_id": "ST-1"})

            monkeypatch.setattr(store, "delete", be_given_a_step_meanwhile)
            async with a_slow_disk(server, monkeypatch, "insert") as (begun, go):
                nursery.start_soon(lambda: beyond.run(log_in, server, roles=["new"]))
                await begun.wait()
                nursery.start_soon(until_then, left, go)
        with trio.fail_after(5):
            await beyond.done.wait()
    async with serving(state=tmp_path / "state") as server:
        assert server.seat("r").sid == login.sid


async def test_who_comes_in_as_the_server_leaves_is_told_that_it_is_going_away(monkeypatch) -> None:
    """1001, and not 1000, which says that the session was deleted."""
    told = Result()
    async with trio.open_nursery() as nursery:
        async with serving() as server:
            login, at_the_door = await log_in(server), trio.Event()
            seat = server.seat(login.sid)
            serve = seat.serve

            async def serve_late(transport, **options) -> None:
                at_the_door.set()
                while not seat.gone:
                    await wait_all_tasks_blocked()
                await serve(transport, **options)

            monkeypatch.setattr(seat, "serve", serve_late)

            async def come() -> None:
                async with socket_of(server, login) as peer:
                    await told.run(peer.next)

            nursery.start_soon(come)
            await at_the_door.wait()
        with trio.fail_after(5):
            await told.done.wait()
    assert isinstance(told.error, ConnectionClosed)
    assert (told.error.rcvd.code, told.error.rcvd.reason) == (1001, "the server is going away")


async def test_a_cancelled_server_notes_who_was_there(tmp_path) -> None:
    """As one that is left in order does."""
    with trio.CancelScope() as scope:
        async with serving(state=tmp_path / "state") as server:
            login = await log_in(server)
            session = server._table.find(login.sid)
            session.last_access = Moment(12345.0, trio.current_time())
            scope.cancel()
    assert scope.cancelled_caught
    assert sql(tmp_path / "state", "SELECT last_access_secs FROM sessions") == [(12345.0,)]


async def test_a_disk_that_hangs_holds_nobody_up_for_long(tmp_path) -> None:
    """What is noted at the end has 2 seconds."""
    done = trio.Event()
    async with trio.open_nursery() as nursery:
        async with serving(state=tmp_path / "state") as server:
            login = await log_in(server)
            server._sessions.touch(server._table.find(login.sid))
            disk = server._sessions.store._one_at_a_time
            await disk.acquire_on_behalf_of("a call that hangs")

            async def come_back() -> None:
                with trio.move_on_after(10):
                    await done.wait()
                disk.release_on_behalf_of("a call that hangs")

            nursery.start_soon(come_back)
            began = trio.current_time()
        took = trio.current_time() - began
        done.set()
    assert 1.9 < took < 5


class Fatal(BaseException):
    """What not even a fault of ours is."""


@pytest.mark.parametrize("fault", [RuntimeError, Fatal])
async def test_leaving_survives_what_goes_wrong_before(fault, monkeypatch, caplog) -> None:
    """Accesses that cannot be noted leave nobody waiting; by a fault of ours nobody is even cut off."""
    asked, told, seen = Result(), Result(), trio.Event()

    async def broken() -> int:
        await trio.lowlevel.checkpoint()
        raise fault("broken")

    async def listen(server, login, *, task_status) -> None:
        async with socket_of(server, login) as peer:
            task_status.started()
            await peer.next()
            seen.set()
            await told.run(peer.next)

    async def be_left(nursery) -> None:
        async with serving() as server:
            login = await log_in(server, roles=["main"])
            await nursery.start(listen, server, login)
            seat = await server.wait_seat("main")
            monkeypatch.setattr(type(server._sessions), "write_accesses", lambda self: broken())
            nursery.start_soon(lambda: asked.run(partial(seat.ask, 1, task_id="T")))
            await seen.wait()

    async with trio.open_nursery() as nursery:
        if fault is Fatal:
            with pytest.raises(Fatal):
                await be_left(nursery)
        else:
            await be_left(nursery)
    assert isinstance(asked.error, PeerGoneError)
    assert isinstance(told.error, ConnectionClosed)
    if fault is RuntimeError:
        assert told.error.rcvd.code == 1001
        assert "could not be noted" in caplog.text
