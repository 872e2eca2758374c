"""Operators over ``https://`` and ``wss://``, with certificates of an authority made here."""

from __future__ import annotations

import ssl
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio
import trustme

from tests.io.hostile import drain
from tests.operators.support import Result, serving
from trio_swarm._io.http import FrontLimits
from trio_swarm._io.ws import open_ws_client
from trio_swarm.errors import HandshakeError
from trio_swarm.operators import OperatorServer, Reconnect, connect_operator

QUICK = Reconnect(first=0.01, longest=0.05, give_up_after=5.0)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(context)
    return context


@asynccontextmanager
async def serving_tls(authority: trustme.CA, name: str = "127.0.0.1", **options):
    """A server whose only listener speaks TLS, with a certificate for ``name``."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    plain = await trio.open_tcp_listeners(0, host="127.0.0.1")
    listeners = [trio.SSLListener(each, context, https_compatible=True) for each in plain]
    async with serving(listeners=listeners, **options) as server:
        assert server.url.startswith("https://127.0.0.1:")
        yield server


@asynccontextmanager
async def together(authority: trustme.CA):
    async with (
        serving_tls(authority) as server,
        connect_operator(
            server.url, roles=["main"], ssl_context=trusting(authority), reconnect=QUICK
        ) as client,
    ):
        yield server, await server.wait_seat("main"), client


async def answer_all(client) -> None:
    async for request in client:
        request.answer(request.question)


async def test_a_question_and_its_answer(authority) -> None:
    """Login, handshake and frames, all over TLS."""
    async with together(authority) as (_, seat, client), trio.open_nursery() as nursery:
        nursery.start_soon(answer_all, client)
        assert await seat.ask({"a": 1}, task_id="ST-1") == {"a": 1}
        nursery.cancel_scope.cancel()


async def test_a_cut_is_survived(authority) -> None:
    """A question that waits at the time is delivered again, and answered once."""
    async with together(authority) as (server, seat, client), trio.open_nursery() as nursery:
        result = Result()
        nursery.start_soon(result.run, partial(seat.ask, "before", task_id="ST-1"))
        request = await client.receive()
        await server.disconnect("main")
        assert request.answer("after")
        await result.done.wait()
        assert result.value == "after"
        assert client.connections == 2

        nursery.start_soon(answer_all, client)
        assert await seat.ask("again", task_id="ST-1") == "again"
        nursery.cancel_scope.cancel()


async def test_frames_larger_than_a_record_and_many_at_once(authority) -> None:
    """A record holds 16 KiB; both directions are full at the same time."""
    questions = [str(number) * 2**18 for number in range(10)] + ["small"] * 300
    async with together(authority) as (_, seat, client), trio.open_nursery() as nursery:
        results = [Result() for _ in questions]
        nursery.start_soon(answer_all, client)
        for question, result in zip(questions, results, strict=True):
            nursery.start_soon(result.run, partial(seat.ask, question, task_id="ST-1"))
        for result in results:
            await result.done.wait()
        assert [result.value for result in results] == questions
        assert client.connections == 1
        nursery.cancel_scope.cancel()


async def connect(server: OperatorServer, context: ssl.SSLContext | None) -> None:
    async with connect_operator(server.url, ssl_context=context):
        pytest.fail("connected")


async def test_a_certificate_of_somebody_else_is_refused(authority) -> None:
    """Of another authority, and of none that the system knows."""
    async with serving_tls(authority) as server:
        for context in (trusting(trustme.CA()), None):
            with pytest.raises(
                HandshakeError, match=r"no TLS with 127\.0\.0\.1: .*certificate verify failed"
            ):
                await connect(server, context)
        assert server.statistics().sessions == 0


async def test_a_certificate_for_another_name_is_refused(authority) -> None:
    """Whoever signed it."""
    async with serving_tls(authority, name="other.example") as server:
        with pytest.raises(HandshakeError, match="mismatch"):
            await connect(server, trusting(authority))


async def test_a_websocket_alone_refuses_it_too(authority) -> None:
    """Not only the login before it."""
    async with serving_tls(authority) as server:
        with pytest.raises(HandshakeError, match="certificate verify failed"):
            async with open_ws_client(
                server.url.replace("https", "wss") + "/v1/operators/x/ws", ssl_context=trusting(trustme.CA())
            ):
                pytest.fail("connected")


async def test_a_server_that_never_answers_the_handshake_is_given_up(authority) -> None:
    """Within the deadline of the whole opening."""
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        port = listener.socket.getsockname()[1]
        with pytest.raises(HandshakeError, match="within"):
            async with open_ws_client(
                f"wss://127.0.0.1:{port}/", ssl_context=trusting(authority), handshake_deadline=0.1
            ):
                pytest.fail("connected")


async def test_a_refused_client_can_read_why(authority) -> None:
    """Also when it still sends: a reset would throw the answer away, and TLS has no half-close."""
    async with serving_tls(authority) as server:
        host, _, port = server.url.removeprefix("https://").rpartition(":")
        stream = await trio.open_ssl_over_tcp_stream(
            host, int(port), ssl_context=trusting(authority), https_compatible=True
        )
        async with stream:
            await stream.send_all(
                f"POST /v1/operators HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Length: 3000000\r\n"
                "Content-Type: application/json\r\n\r\n".encode()
            )
            for _ in range(30):
                await stream.send_all(bytes(100_000))
            answer = await stream.receive_some()
    assert answer.startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize("said", [b"", b"\x16\x03\x01", b"GET / HTTP/1.1\r\nHost: h\r\n\r\n", bytes(1000)])
async def test_a_client_without_tls_ends_its_own_connection_at_most(authority, said) -> None:
    """In time, whatever it says or does not say; a good one is served meanwhile and after it."""
    limits = FrontLimits(head_deadline=0.2, send_deadline=0.2)
    async with serving_tls(authority, limits=limits) as server:
        host, _, port = server.url.removeprefix("https://").rpartition(":")
        async with await trio.open_tcp_stream(host, int(port)) as stream:
            await stream.send_all(said)
            with trio.fail_after(5):
                async with connect_operator(server.url, ssl_context=trusting(authority)) as client:
                    assert client.connected or await server.wait_seat()
            await drain(stream)
