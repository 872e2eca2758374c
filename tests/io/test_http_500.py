"""An endpoint's fault: its client is told, whoever stops the server, and we are told what it was."""

from __future__ import annotations

import os
from contextlib import asynccontextmanager
from functools import partial

import attrs
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.io.hostile import drain
from trio_swarm._io.http import serve_http
from trio_swarm._io.http_answers import Answers
from trio_swarm._io.http_messages import Request, Response
from trio_swarm._io.http_routes import Route, RouteTable
from trio_swarm._io.unix import connect_unix, open_unix_listener
from trio_swarm._state.policy import EdgePolicy, loopback_hosts

GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


@attrs.define(eq=False)
class Accepting(trio.abc.Listener):
    """A listener that keeps the server's end of what it accepts."""

    inner: trio.SocketListener
    stream: trio.SocketStream | None = None

    async def accept(self) -> trio.SocketStream:
        self.stream = await self.inner.accept()
        return self.stream

    async def aclose(self) -> None:
        await self.inner.aclose()

    def fill(self) -> None:
        """Write until the client must read before there is room for more."""
        with pytest.raises(BlockingIOError):
            while True:
                os.write(self.stream.socket.fileno(), bytes(2**16))


@asynccontextmanager
async def asking(tmp_path, endpoint, **options):
    """Yields a client that has asked ``endpoint(listener, request)``; its room is exact."""
    async with open_unix_listener(tmp_path / "s") as inner, trio.open_nursery() as nursery:
        listener = Accepting(inner)
        await nursery.start(
            partial(
                serve_http,
                [listener],
                RouteTable([Route("GET", "/", partial(endpoint, listener))]),
                policy=EdgePolicy(loopback_hosts(None)),
                **options,
            )
        )
        async with await connect_unix(tmp_path / "s") as client:
            await client.send_all(GET)
            yield client
        nursery.cancel_scope.cancel()


async def test_who_stops_the_server_waits_until_the_client_is_told(tmp_path) -> None:
    """As for any answer."""
    answers, at_work, stopped = Answers(), trio.Event(), trio.Event()

    async def without_room(listener: Accepting, request: Request) -> Response:
        listener.fill()
        at_work.set()
        raise RuntimeError("a bug")

    async def stop() -> None:
        await answers.wait_written()
        stopped.set()

    async with asking(tmp_path, without_room, answers=answers) as client, trio.open_nursery() as nursery:
        await at_work.wait()
        await wait_all_tasks_blocked()
        nursery.start_soon(stop)
        await wait_all_tasks_blocked()
        assert not stopped.is_set()
        said = await drain(client)
        await stopped.wait()
    assert said.lstrip(b"\0").startswith(b"HTTP/1.1 500 ")
    assert said.endswith(b"internal error")


async def test_a_bug_is_reported_where_nobody_is_there_to_be_told(tmp_path) -> None:
    """As what it was, not as what became of its answer."""
    errors: list[Exception] = []
    reported = trio.Event()

    def on_error(name: str, error: Exception) -> None:
        errors.append(error)
        reported.set()

    async def of_a_client_that_is_gone(listener: Accepting, request: Request) -> Response:
        await request.wait_gone()
        raise RuntimeError("a bug")

    async with asking(tmp_path, of_a_client_that_is_gone, on_error=on_error) as client:
        await client.aclose()
        with trio.fail_after(5):
            await reported.wait()
    assert [str(each) for each in errors] == ["a bug"]
