"""Leaving a server: whatever waits for it ends, and nothing new begins."""

from __future__ import annotations

from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio
from trio.testing import wait_all_tasks_blocked
from websockets.exceptions import ConnectionClosed

from tests.io.hostile import GOOD_HEAD
from tests.operators.support import Events, Result, log_in, rest, serving, socket_of
from trio_swarm.errors import PeerGoneError


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
    assert statuses == dict.fromkeys(("login", "status", "quit", "upgrade"), 503)


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
