"""The HTTP front over raw sockets: what it answers, and what it survives."""

from __future__ import annotations

import socket
import struct
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from trio_swarm._io.http import FrontLimits, serve_http
from trio_swarm._io.http_messages import HttpError, Request, Response
from trio_swarm._io.http_routes import Route, RouteTable, UpgradeRoute
from trio_swarm._state.policy import EdgePolicy, loopback_hosts
from trio_swarm.errors import PeerGoneError


async def hello(request: Request) -> Response:
    return Response.text(200, f"hello {request.params.get('name', '')}")


async def echo(request: Request) -> Response:
    return Response(200, request.body)


async def value(request: Request) -> Response:
    return Response.json(200, request.json)


async def crash(request: Request) -> Response:
    raise RuntimeError("a bug")


async def refuse(request: Request) -> Response:
    raise HttpError(409, "no")


async def large(request: Request) -> Response:
    return Response(200, b"x" * 50_000_000)


async def websocket(request) -> Response | None:
    if request.query.get("refuse"):
        return Response.text(401, "not you")
    async with request.accept() as transport:
        await transport.send_batch(list(await transport.receive_batch()))
    return None


async def lost(request) -> Response | None:
    async with request.accept():
        raise PeerGoneError("silent")


async def lost_elsewhere(request: Request) -> Response:
    raise PeerGoneError("another peer than the client")


ROUTES = [
    Route("GET", "/hello/{name}", hello),
    Route("GET", "/hello/emit", refuse),
    Route("POST", "/echo", echo, body="bytes"),
    Route("POST", "/json", value, body="json"),
    Route("GET", "/crash", crash),
    Route("GET", "/large", large),
    UpgradeRoute("/ws", websocket),
    UpgradeRoute("/ws/lost", lost),
    Route("GET", "/lost", lost_elsewhere),
]


@asynccontextmanager
async def front(limits: FrontLimits | None = None, origins=(), errors=None, **options):
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listeners[0].socket.getsockname()[1]
        policy = EdgePolicy(loopback_hosts(port), frozenset(origins))
        on_error = (lambda name, error: errors.append(error)) if errors is not None else None
        await nursery.start(
            partial(
                serve_http,
                listeners,
                RouteTable(ROUTES),
                policy=policy,
                limits=limits,
                on_error=on_error,
                **options,
            )
        )
        yield port
        nursery.cancel_scope.cancel()


async def talk(port: int, data: bytes, *, eof: bool = False) -> bytes:
    """Send bytes, and read until the server hangs up."""
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(data.replace(b"HOST", f"127.0.0.1:{port}".encode()))
        if eof:
            await stream.send_eof()
        received = b""
        async for chunk in stream:
            received += chunk
        return received


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


GET = b"GET /hello/you HTTP/1.1\r\nHost: HOST\r\nConnection: close\r\n\r\n"

EDGES = {
    "get": (GET, 200),
    "head": (b"HEAD /hello/you HTTP/1.1\r\nHost: HOST\r\nConnection: close\r\n\r\n", 200),
    "http10": (b"GET /hello/you HTTP/1.0\r\nHost: HOST\r\n\r\n", 200),
    "encoded segment": (b"GET /hello/a%2Fb HTTP/1.1\r\nHost: HOST\r\nConnection: close\r\n\r\n", 200),
    "no host": (b"GET /hello/you HTTP/1.1\r\n\r\n", 400),
    "no host, 1.0": (b"GET /hello/you HTTP/1.0\r\n\r\n", 400),
    "two hosts": (b"GET /hello/you HTTP/1.1\r\nHost: HOST\r\nHost: HOST\r\n\r\n", 400),
    "other host": (b"GET /hello/you HTTP/1.1\r\nHost: evil.example\r\n\r\n", 421),
    "other origin": (b"GET /hello/you HTTP/1.1\r\nHost: HOST\r\nOrigin: https://evil.example\r\n\r\n", 403),
    "absolute form": (b"GET http://evil.example/hello/you HTTP/1.1\r\nHost: HOST\r\n\r\n", 400),
    "asterisk": (b"OPTIONS * HTTP/1.1\r\nHost: HOST\r\n\r\n", 400),
    "connect": (b"CONNECT evil.example:443 HTTP/1.1\r\nHost: HOST\r\n\r\n", 400),
    "non-ASCII head": (b"GET /hello/you HTTP/1.1\r\nHost: HOST\r\nX: \xe9\r\n\r\n", 400),
    "not http": (b"EHLO there\r\n\r\n", 400),
    "tls": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
    "lf only": (b"GET /hello/you HTTP/1.1\nHost: HOST\n\n\r\n\r\n", 400),
    "large head": (b"GET /hello/you HTTP/1.1\r\nHost: HOST\r\nX: " + b"a" * 20_000 + b"\r\n\r\n", 431),
    "h2c": (
        b"GET /hello/you HTTP/1.1\r\nHost: HOST\r\nConnection: Upgrade, close\r\nUpgrade: h2c\r\n\r\n",
        200,
    ),
    "length": (
        b"POST /echo HTTP/1.1\r\nHost: HOST\r\nContent-Length: 3\r\nConnection: close\r\n\r\nabc",
        200,
    ),
    "chunked": (
        b"POST /echo HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
        b"2\r\nab\r\n1\r\nc\r\n0\r\n\r\n",
        200,
    ),
    "smuggling": (
        b"POST /echo HTTP/1.1\r\nHost: HOST\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"0\r\n\r\n",
        400,
    ),
    "two lengths": (
        b"POST /echo HTTP/1.1\r\nHost: HOST\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabc",
        400,
    ),
    "negative length": (b"POST /echo HTTP/1.1\r\nHost: HOST\r\nContent-Length: -1\r\n\r\n", 400),
    "bad chunk": (b"POST /echo HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
    "declared too large": (b"POST /echo HTTP/1.1\r\nHost: HOST\r\nContent-Length: 99999999\r\n\r\n", 413),
    "sent too large": (
        b"POST /echo HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\n\r\n400000\r\n"
        + b"x" * 0x400000,
        413,
    ),
    "no content type": (
        b"POST /json HTTP/1.1\r\nHost: HOST\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}",
        415,
    ),
    "unknown path": (b"GET /nowhere HTTP/1.1\r\nHost: HOST\r\nConnection: close\r\n\r\n", 404),
    "empty segment": (b"GET /hello/ HTTP/1.1\r\nHost: HOST\r\nConnection: close\r\n\r\n", 404),
    "wrong method": (b"PUT /echo HTTP/1.1\r\nHost: HOST\r\nConnection: close\r\n\r\n", 405),
    "literal wins": (b"GET /hello/emit HTTP/1.1\r\nHost: HOST\r\nConnection: close\r\n\r\n", 409),
    "crash": (b"GET /crash HTTP/1.1\r\nHost: HOST\r\n\r\n", 500),
    "websocket 8": (
        b"GET /ws HTTP/1.1\r\nHost: HOST\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 8\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        400,
    ),
    "websocket over 1.0": (
        b"GET /ws HTTP/1.0\r\nHost: HOST\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        426,
    ),
    "two upgrades": (
        b"GET /ws HTTP/1.1\r\nHost: HOST\r\nConnection: Upgrade\r\nUpgrade: websocket, h2c\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        400,
    ),
    "non-ASCII authorization": (
        b"GET /hello/you HTTP/1.1\r\nHost: HOST\r\nAuthorization: Bearer \xe9\r\nConnection: close\r\n\r\n",
        200,
    ),
    "non-ASCII authorization, folded": (
        b"GET /hello/you HTTP/1.1\r\nHost: HOST\r\nAuthorization: Bearer\r\n \xe9\r\n\r\n",
        400,
    ),
    "no upgrade": (b"GET /ws HTTP/1.1\r\nHost: HOST\r\n\r\n", 400),
}


@pytest.mark.parametrize("edge", EDGES)
async def test_the_edge_table(edge) -> None:
    """Each request alone is answered as said, whole and in pieces, and the next client is served."""
    data, status = EDGES[edge]
    async with front() as port:
        answer = await talk(port, data, eof=True)
        assert status_of(answer) == status, answer
        if len(data) < 5_000:
            assert status_of(await bytewise(port, data)) == status
        assert status_of(await talk(port, GET)) == 200


async def bytewise(port: int, data: bytes) -> bytes:
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        received = b""
        try:
            for byte in data.replace(b"HOST", f"127.0.0.1:{port}".encode()):
                await stream.send_all(bytes([byte]))
            await stream.send_eof()
        except trio.BrokenResourceError:
            pass  # It was answered before all of it was sent.
        async for chunk in stream:
            received += chunk
        return received


async def test_requests_are_pipelined_on_one_connection() -> None:
    """Answered in order; the connection is kept alive until it says close."""
    keep = GET.replace(b"Connection: close\r\n", b"")
    post = b"POST /echo HTTP/1.1\r\nHost: HOST\r\nContent-Length: 4\r\n\r\nbody"
    async with front() as port:
        answer = await talk(port, keep + post + keep + GET)
        assert answer.count(b"HTTP/1.1 200") == 4
        assert answer.index(b"hello you") < answer.index(b"body")


async def test_a_connection_is_kept_alive_between_requests() -> None:
    """And is closed when it idles too long."""
    async with (
        front(FrontLimits(idle_deadline=0.2)) as port,
        await trio.open_tcp_stream("127.0.0.1", port) as stream,
    ):
        keep = GET.replace(b"Connection: close\r\n", b"").replace(b"HOST", b"127.0.0.1:%d" % port)
        for _ in range(3):
            await stream.send_all(keep)
            assert status_of(bytes(await stream.receive_some())) == 200
        assert await stream.receive_some() == b""


async def test_a_client_may_expect_100_continue() -> None:
    """RFC 9110, 10.1.1: told to go on, or answered at once if the body is not wanted."""
    head = b"POST /echo HTTP/1.1\r\nHost: HOST\r\nExpect: 100-continue\r\nConnection: close\r\n"
    async with front() as port:
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            await stream.send_all(
                (head + b"Content-Length: 3\r\n\r\n").replace(b"HOST", b"127.0.0.1:%d" % port)
            )
            assert status_of(bytes(await stream.receive_some())) == 100
            await stream.send_all(b"abc")
            assert status_of(bytes(await stream.receive_some())) == 200
        assert status_of(await talk(port, head + b"Content-Length: 99999999\r\n\r\n")) == 413


@pytest.mark.parametrize(
    "start",
    [b"", b"GET /hello/you HT", b"POST /echo HTTP/1.1\r\nHost: HOST\r\nContent-Length: 10\r\n\r\nabc"],
)
async def test_slow_senders_are_cut_off(start) -> None:
    """408, whether the head or the body does not come."""
    async with front(FrontLimits(head_deadline=0.2, body_deadline=0.2)) as port:
        with trio.fail_after(5):
            assert status_of(await talk(port, start)) == 408


async def test_a_client_that_stopped_reading_does_not_hold_the_server() -> None:
    """Cancelling is immediate: nothing is shielded."""
    with trio.fail_after(5):
        async with front() as port:
            stream = await trio.open_tcp_stream("127.0.0.1", port)
            await stream.send_all(b"GET /large HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n\r\n" % port)
            await trio.testing.wait_all_tasks_blocked(0.1)
            began = trio.current_time()
        assert trio.current_time() - began < 0.5
        await stream.aclose()


async def test_a_client_that_stopped_reading_is_dropped() -> None:
    """After the send deadline, with nobody else disturbed."""
    async with front(FrontLimits(send_deadline=0.2)) as port:
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            await stream.send_all(b"GET /large HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n\r\n" % port)
            await trio.testing.wait_all_tasks_blocked(0.4)
            assert await drained(stream) < 50_000_000
        assert status_of(await talk(port, GET)) == 200


async def drained(stream) -> int:
    """How many bytes still came before the connection was over."""
    received = 0
    try:
        while data := await stream.receive_some():
            received += len(data)
    except trio.BrokenResourceError:
        return received
    return received


async def test_an_endpoint_that_raises_ends_its_connection_alone() -> None:
    """500 with nothing of the error in it; the error goes to the owner."""
    errors: list[Exception] = []
    async with front(errors=errors) as port, await trio.open_tcp_stream("127.0.0.1", port) as other:
        answer = await talk(port, b"GET /crash HTTP/1.1\r\nHost: HOST\r\n\r\n")
        assert status_of(answer) == 500
        assert b"a bug" not in answer
        await other.send_all(GET.replace(b"HOST", b"127.0.0.1:%d" % port))
        assert status_of(bytes(await other.receive_some())) == 200
    assert [type(error) for error in errors] == [RuntimeError]


async def test_resets_at_any_point_are_survived() -> None:
    """A hundred clients that reset, each a byte later; then one that is served."""
    data = GET + b"POST /echo HTTP/1.1\r\nHost: HOST\r\nContent-Length: 30\r\n\r\nabc"
    async with front() as port:
        whole = data.replace(b"HOST", b"127.0.0.1:%d" % port)
        for size in range(0, len(whole), 2):
            stream = await trio.open_tcp_stream("127.0.0.1", port)
            if size:
                await stream.send_all(whole[:size])
            stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            await stream.aclose()
        assert status_of(await talk(port, GET)) == 200


async def test_connections_are_bounded() -> None:
    """More than the limit are hung up on at once, and there is room again afterwards."""
    async with front(max_connections=2) as port:
        held = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(2)]
        await trio.testing.wait_all_tasks_blocked(0.05)
        async with await trio.open_tcp_stream("127.0.0.1", port) as third:
            # Whoever has connected first and said nothing makes room.
            assert status_of(bytes(await held[0].receive_some())) == 429
            await third.send_all(GET.replace(b"HOST", b"127.0.0.1:%d" % port))
            assert status_of(bytes(await third.receive_some())) == 200
        for stream in held:
            await stream.aclose()
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert status_of(await talk(port, GET)) == 200


async def test_a_websocket_shares_the_port_and_the_connection() -> None:
    """After a plain request on the same connection, with its first frame in the same packet."""
    upgrade = (
        b"GET /ws HTTP/1.1\r\nHost: HOST\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    frame = b"\x81\x82\x00\x00\x00\x00hi"
    async with front() as port:
        answer = await talk(port, GET.replace(b"Connection: close\r\n", b"") + upgrade + frame)
        assert answer.startswith(b"HTTP/1.1 200")
        assert b"HTTP/1.1 101" in answer
        assert b"\x81\x02hi" in answer


async def test_an_endpoint_may_refuse_the_upgrade() -> None:
    """As an ordinary answer, after which the connection goes on."""
    upgrade = (
        b"GET /ws?refuse=1 HTTP/1.1\r\nHost: HOST\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    async with front() as port:
        answer = await talk(port, upgrade + GET)
        assert status_of(answer) == 401
        assert b"HTTP/1.1 200" in answer


UPGRADE = (
    b"GET /ws%b HTTP/1.1\r\nHost: HOST\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n%b\r\n"
)


async def test_a_websocket_whose_client_fails_is_no_bug() -> None:
    """Nothing of HTTP follows its 101, or the refusal of its handshake; nothing is reported."""
    errors: list[Exception] = []
    async with front(errors=errors) as port:
        answer = await talk(port, UPGRADE % (b"/lost", b""), eof=True)
        assert answer.count(b"HTTP/1.1") == 1
        assert status_of(answer) == 101
        # The front lets this one header pass; the WebSocket library must not see it.
        answer = await talk(port, UPGRADE % (b"", b"Authorization: Bearer \xe9\r\n"), eof=True)
        assert answer.count(b"HTTP/1.1") == 1
        assert status_of(answer) == 400
        await wait_all_tasks_blocked()
    assert errors == []


async def test_another_peers_failure_is_the_endpoints() -> None:
    """Only that of the WebSocket itself is not."""
    errors: list[Exception] = []
    async with front(errors=errors) as port:
        assert status_of(await talk(port, GET.replace(b"/hello/you", b"/lost"))) == 500
        await wait_all_tasks_blocked()
    assert [type(error) for error in errors] == [PeerGoneError]


def test_a_route_cannot_be_given_twice() -> None:
    """It would be luck which one answers."""
    with pytest.raises(ValueError, match="twice"):
        RouteTable([*ROUTES, Route("GET", "/crash", hello)])


@pytest.mark.parametrize(
    "said",
    [
        b"Host: HOST\r\nContent-Length: %d\r\nTransfer-Encoding: chunked\r\n",
        b"Host: evil.example\r\nContent-Length: %d\r\n",
        b"Host: HOST\r\nOrigin: https://evil.example\r\nContent-Length: %d\r\n",
    ],
)
async def test_nothing_follows_a_request_that_was_not_let_in(said) -> None:
    """RFC 9112, 6.3: to a proxy before us what follows may be a body, and to us it would be a request."""
    body = b"0\r\n\r\n" + GET
    async with front() as port:
        sent = len(body.replace(b"HOST", b"127.0.0.1:%d" % port))
        answer = await talk(port, b"POST /echo HTTP/1.1\r\n" + said % sent + b"\r\n" + body)
    assert answer.count(b"HTTP/1.1") == 1
    assert status_of(answer) in (400, 403, 421)
    assert b"connection: close" in answer.lower()


MALFORMED = b"POST /echo HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"


async def test_after_a_malformed_chunk_the_connection_is_said_to_end() -> None:
    """RFC 9112, 9.6: the client is told that nothing it sends after it is read."""
    async with front() as port:
        answer = await talk(port, MALFORMED + GET)
    assert (status_of(answer), answer.count(b"HTTP/1.1")) == (400, 1)
    assert b"\r\nconnection: close\r\n" in answer


@pytest.mark.parametrize("first", [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"\0", b"\r\n", b" GET"])
async def test_what_is_no_request_is_answered_at_once(first) -> None:
    """Also behind one that was: a deadline is for those who may still send one."""
    async with front(FrontLimits(head_deadline=30)) as port:
        keep = GET.replace(b"Connection: close\r\n", b"")
        for before in (b"", keep):
            began = trio.current_time()
            answer = await talk(port, before + first)
            assert answer.rpartition(b"HTTP/1.1 ")[2].startswith(b"400 ")
            assert b"\r\nconnection: close\r\n" in answer
            assert trio.current_time() - began < 5


async def test_a_tls_client_learns_at_once_that_there_is_no_tls() -> None:
    async with front(FrontLimits(head_deadline=30)) as port:
        stream = await trio.open_ssl_over_tcp_stream("127.0.0.1", port)
        with trio.fail_after(5), pytest.raises(trio.BrokenResourceError) as caught:
            await stream.do_handshake()
        assert "WRONG_VERSION_NUMBER" in str(caught.value.__cause__).upper().replace(" ", "_")
        await trio.aclose_forcefully(stream)
        assert status_of(await talk(port, GET)) == 200
