"""Answers that are being written, and clients that do not wait for theirs."""

from __future__ import annotations

import ssl
from functools import partial

import pytest
import trio
import trustme
from trio.testing import wait_all_tasks_blocked

from tests.io.test_http import front
from trio_swarm._io.http import serve_http
from trio_swarm._io.http_answers import Answers
from trio_swarm._io.http_messages import Request, Response
from trio_swarm._io.http_routes import Route, RouteTable
from trio_swarm._state.policy import EdgePolicy, loopback_hosts


async def test_only_what_is_being_written_now_is_waited_for() -> None:
    """Not what begins later: else clients that come and come keep a server from leaving."""
    answers, done = Answers(), trio.Event()

    async def wait() -> None:
        await answers.wait_written()
        done.set()

    async with trio.open_nursery() as nursery:
        with answers.writing():
            nursery.start_soon(wait)
            await wait_all_tasks_blocked()
            later = answers.writing()
            later.__enter__()
            await wait_all_tasks_blocked()
            assert not done.is_set()
        await wait_all_tasks_blocked()
        assert done.is_set()
        later.__exit__(None, None, None)


async def test_an_answer_is_under_way_until_the_client_has_room_for_it() -> None:
    """Fifty megabytes, to a client that begins to read later."""
    answers, done = Answers(), trio.Event()
    async with front(answers=answers) as port, trio.open_nursery() as nursery:
        await answers.wait_written()  # There is none.
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            await stream.send_all(
                b"GET /large HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nConnection: close\r\n\r\n" % port
            )
            received = len(await stream.receive_some())

            async def wait() -> None:
                await answers.wait_written()
                done.set()

            nursery.start_soon(wait)
            await wait_all_tasks_blocked()
            assert not done.is_set()
            async for piece in stream:
                received += len(piece)
            await done.wait()
    assert received > 50_000_000


class Waits:
    """An endpoint that waits until it may go on, or its client is gone."""

    def __init__(self) -> None:
        self.begun, self.go, self.gone = trio.Event(), trio.Event(), trio.Event()

    async def __call__(self, request: Request) -> Response:
        self.begun.set()
        async with trio.open_nursery() as nursery:

            async def watch() -> None:
                await request.wait_gone()
                self.gone.set()
                nursery.cancel_scope.cancel()

            nursery.start_soon(watch)
            await self.go.wait()
            nursery.cancel_scope.cancel()
        if self.gone.is_set():
            raise trio.BrokenResourceError
        return Response.text(200, request.query["n"])


AUTHORITY = trustme.CA()


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("hangs_up", [False, True])
async def test_an_endpoint_learns_that_its_client_is_gone(secure, hangs_up) -> None:
    """And nothing else that it sends is taken for that: a request that comes ahead has its answer."""
    endpoint, errors = Waits(), []
    client, server = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    AUTHORITY.configure_trust(client)
    AUTHORITY.issue_cert("127.0.0.1").configure_cert(server)
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    served = [trio.SSLListener(each, server, https_compatible=True) if secure else each for each in listeners]
    get = f"GET /?n=%d HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n%s\r\n"
    received = b""
    async with trio.open_nursery() as nursery:
        await nursery.start(
            partial(
                serve_http,
                served,
                RouteTable([Route("GET", "/", endpoint)]),
                policy=EdgePolicy(loopback_hosts(port), frozenset()),
                on_error=lambda name, error: errors.append(error),
            )
        )
        plain = await trio.open_tcp_stream("127.0.0.1", port)
        stream = (
            trio.SSLStream(plain, client, server_hostname="127.0.0.1", https_compatible=True)
            if secure
            else plain
        )
        async with stream:
            await stream.send_all((get % (1, "")).encode())
            await endpoint.begun.wait()
            await stream.send_all((get % (2, "Connection: close\r\n")).encode())
            await wait_all_tasks_blocked(0.02)
            assert not endpoint.gone.is_set()
            if hangs_up:
                await plain.aclose()
                with trio.fail_after(5):
                    await endpoint.gone.wait()
            else:
                endpoint.go.set()
                async for piece in stream:
                    received += bytes(piece)
        await wait_all_tasks_blocked(0.02)
        nursery.cancel_scope.cancel()
    bodies = [each.rpartition(b"\r\n\r\n")[2][:1] for each in received.split(b"HTTP/1.1 200")[1:]]
    assert bodies == ([] if hangs_up else [b"1", b"2"])
    assert len(errors) <= int(hangs_up)
