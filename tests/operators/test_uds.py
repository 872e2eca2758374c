"""Operators of a server that listens on a Unix socket alone."""

from __future__ import annotations

import ssl
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio
import trustme

from tests.operators.support import Result, serving
from trio_swarm._io.unix import open_unix_listener
from trio_swarm.errors import HandshakeError
from trio_swarm.operators import Reconnect, RolesTaken, connect_operator

URL = "http://localhost"
QUICK = Reconnect(first=0.01, longest=0.05, give_up_after=20.0)


@asynccontextmanager
async def serving_at(path, **options):
    async with open_unix_listener(path) as listener, serving(listeners=[listener], **options) as server:
        assert (server.url, server.tcp_url) == (URL, None)
        yield server


async def answer_all(client) -> None:
    async for request in client:
        request.answer(request.question)


async def test_a_question_and_its_answer(tmp_path) -> None:
    """Login, socket and logout all go there; the path may be a ``Path`` or a text."""
    async with serving_at(tmp_path / "s") as server:
        for uds in (tmp_path / "s", str(tmp_path / "s")):
            async with connect_operator(URL, roles=["main"], uds=uds) as client:
                seat = await server.wait_seat("main")
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(answer_all, client)
                    assert await seat.ask({"a": 1}, task_id="ST-1") == {"a": 1}
                    nursery.cancel_scope.cancel()
                with pytest.raises(RolesTaken):
                    async with connect_operator(URL, roles=["main"], uds=uds):
                        pytest.fail("connected")
            assert server.seats() == ()


async def test_it_comes_back_when_the_server_does(tmp_path) -> None:
    """At the same path, which was gone for a while; what is asked then is answered."""
    path, state, over = tmp_path / "s", tmp_path / "state", trio.Event()

    async def first(task_status) -> None:
        async with serving_at(path, state=state) as server:
            task_status.started(server)
            await over.wait()
        gone.set()

    gone = trio.Event()
    async with trio.open_nursery() as nursery:
        server = await nursery.start(first)
        async with connect_operator(URL, roles=["main"], uds=path, reconnect=QUICK) as client:
            await server.wait_seat("main")
            over.set()
            await gone.wait()
            assert not path.exists()
            while client.connected:
                await client.connection_changed()
            async with serving_at(path, state=state) as server:
                seat, result = await server.wait_seat("main"), Result()
                nursery.start_soon(result.run, partial(seat.ask, "again", task_id="ST-1"))
                (await client.receive()).answer("there")
                await result.done.wait()
                assert (result.value, client.connections) == ("there", 2)
                kept = client.session
                # Who takes a session over goes there, too.
                async with connect_operator(URL, session=kept, uds=path, keep=True) as other:
                    assert other.sid == seat.sid


async def test_tls_there(tmp_path) -> None:
    """For login and socket."""
    authority = trustme.CA()
    theirs, ours = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.issue_cert("localhost").configure_cert(theirs)
    authority.configure_trust(ours)
    async with open_unix_listener(tmp_path / "s") as listener:
        secured = trio.SSLListener(listener, theirs, https_compatible=True)
        async with serving(listeners=[secured]) as server:
            assert server.url == "https://localhost"
            known = {"uds": tmp_path / "s", "roles": ["main"]}
            async with connect_operator(server.url, ssl_context=ours, **known) as client:
                assert await server.wait_seat("main")
                assert client.connected
            with pytest.raises(HandshakeError, match="certificate verify failed"):
                async with connect_operator(server.url, **known):
                    pytest.fail("connected")


async def test_nobody_there_is_a_handshake_error_that_names_the_path(tmp_path) -> None:
    """At a login, and where a session is come back to."""
    with pytest.raises(HandshakeError, match=f"^cannot connect to {tmp_path}/s: No such file or directory$"):
        async with connect_operator(URL, uds=tmp_path / "s"):
            pytest.fail("connected")
    async with serving_at(tmp_path / "s"), connect_operator(URL, uds=tmp_path / "s") as client:
        kept = client.session
    once = Reconnect(give_up_after=0.0)
    with pytest.raises(HandshakeError, match=f"^cannot connect to {tmp_path}/s: No such file"):
        async with connect_operator(URL, uds=tmp_path / "s", session=kept, reconnect=once):
            pytest.fail("connected")


@pytest.mark.parametrize("uds", ["", "/" + "x" * 200])
async def test_a_path_that_cannot_be_one_is_the_callers_mistake(uds) -> None:
    with pytest.raises(ValueError, match="path"):
        async with connect_operator(URL, uds=uds):
            pytest.fail("connected")
