"""Who connects and shows nothing holds its share of the places, and no more."""

from __future__ import annotations

import logging
import ssl
from contextlib import asynccontextmanager
from functools import partial

import trio
import trustme
from trio.testing import wait_all_tasks_blocked

from trio_swarm._io.http import FrontLimits, serve_http
from trio_swarm._io.http_messages import HttpError, Request, Response
from trio_swarm._io.http_routes import Route, RouteTable, UpgradeRoute
from trio_swarm._io.unix import connect_unix, open_unix_listener
from trio_swarm._state.policy import EdgePolicy, loopback_hosts
from trio_swarm.limits import MAX_UNPROVEN

QUICK = FrontLimits(hurried_deadline=0.2)
OPEN = b"GET /open HTTP/1.1\r\nHost: localhost\r\n\r\n"
PROVEN = b"GET /mine HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer good\r\n\r\n"
WRONG = PROVEN.replace(b"good", b"bad")
UPGRADE = (
    b"GET /ws HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


async def anybody(request: Request) -> Response:
    return Response.text(200, "open")


async def mine(request: Request) -> Response:
    if request.head.get("authorization") != "Bearer good":
        raise HttpError(401, "not you")
    request.proven()
    return Response.text(200, "mine")


async def body(request: Request) -> Response:
    return Response(200, request.body)


async def stuck(request: Request) -> Response:
    await trio.sleep_forever()
    raise AssertionError


async def websocket(request) -> None:
    async with request.accept() as transport:
        while await transport.receive_batch():
            pass


ROUTES = [
    Route("GET", "/open", anybody),
    Route("GET", "/mine", mine),
    Route("GET", "/stuck", stuck),
    Route("POST", "/body", body, body="bytes"),
    UpgradeRoute("/ws", websocket),
]


class Connect:
    """Connects, and closes everything at the end."""

    def __init__(self, connect) -> None:
        self.connect, self.streams = connect, []

    async def __call__(self) -> trio.SocketStream:
        self.streams.append(await self.connect())
        return self.streams[-1]

    async def close(self) -> None:
        for stream in self.streams:
            await trio.aclose_forcefully(stream)


@asynccontextmanager
async def front(given=None, connect=None, limits=QUICK, **options):
    """Yields what connects to it: a `Connect`."""
    async with trio.open_nursery() as nursery:
        if given is None:
            given = await trio.open_tcp_listeners(0, host="127.0.0.1")
            connect = partial(trio.open_tcp_stream, *given[0].socket.getsockname())
        policy = EdgePolicy(loopback_hosts(None))
        options.setdefault("knows", lambda bearer: bearer == "known")
        serve = partial(serve_http, given, RouteTable(ROUTES), policy=policy, limits=limits, **options)
        await nursery.start(serve)
        connecting = Connect(connect)
        yield connecting
        await connecting.close()
        nursery.cancel_scope.cancel()


async def accepted(connect, count: int) -> list[trio.SocketStream]:
    """So many idle connections, which the server has."""
    streams = []
    for _ in range(count):
        streams.append(await connect())
        await wait_all_tasks_blocked(0.005)
    return streams


async def ask(stream, data: bytes) -> bytes:
    """One answer."""
    await stream.send_all(data)
    return await answer(stream)


async def answer(stream) -> bytes:
    with trio.fail_after(5):
        return bytes(await stream.receive_some())


async def rest(stream) -> bytes:
    with trio.fail_after(5):
        try:
            return b"".join([bytes(data) async for data in stream])
        except trio.BrokenResourceError:
            return b"(reset)"


def status_of(said: bytes) -> int:
    return int(said.split(b" ", 2)[1])


async def test_idle_connections_at_the_limit_and_one_over() -> None:
    """The one beyond is told so within its short deadline, the others have theirs; then there is room."""
    async with front(limits=FrontLimits(hurried_deadline=0.2, head_deadline=30)) as connect:
        held = await accepted(connect, MAX_UNPROVEN)
        [over] = await accepted(connect, 1)
        began = trio.current_time()
        said = await rest(over)
        assert status_of(said) == 429
        assert b"\r\nretry-after: 1\r\n" in said
        assert b"\r\nconnection: close\r\n" in said
        assert trio.current_time() - began < 2
        for stream in held:
            assert status_of(await ask(stream, OPEN)) == 200
        await held.pop().aclose()
        [after] = await accepted(connect, 1)
        await trio.sleep(0.3)  # Longer than who must hurry has.
        assert status_of(await ask(after, OPEN)) == 200


async def test_beyond_the_limit_there_is_one_request() -> None:
    """Answered as any other, whatever it shows but for a good credential; then the connection ends."""
    async with front(max_unproven=2) as connect:
        held = await accepted(connect, 2)
        for data, status in ((OPEN, 200), (WRONG, 401), (OPEN + OPEN, 200)):
            [over] = await accepted(connect, 1)
            await over.send_all(data)
            said = await rest(over)
            assert (status_of(said), said.count(b"HTTP/1.1 ")) == (status, 1)
            assert b"\r\nconnection: close\r\n" in said
        assert b"connection: close" not in await ask(held[0], OPEN)


async def test_who_shows_a_good_credential_stays() -> None:
    """Beyond the limit; and whoever was within it gives its share to another."""
    async with front(max_unproven=1) as connect:
        [first, over] = await accepted(connect, 2)
        for _ in range(3):
            assert b"connection: close" not in await ask(over, PROVEN)
        assert status_of(await ask(over, OPEN)) == 200
        assert status_of(await ask(first, PROVEN)) == 200
        [second, third] = await accepted(connect, 2)
        assert status_of(await rest(third)) == 429
        assert b"connection: close" not in await ask(second, OPEN)


async def test_a_websocket_counts_no_more() -> None:
    """Its endpoint has judged the credential before it accepted."""
    async with front(max_unproven=1) as connect:
        [first, over] = await accepted(connect, 2)
        assert status_of(await ask(over, UPGRADE)) == 101
        assert status_of(await ask(first, UPGRADE)) == 101
        [second] = await accepted(connect, 1)
        assert b"connection: close" not in await ask(second, OPEN)
        await trio.sleep(0.3)
        for stream in (first, over):
            assert await ask(stream, b"\x89\x80\0\0\0\0") == b"\x8a\0"


async def test_two_hundred_workers_that_connect_before_any_of_them_speaks() -> None:
    """All are served, again and again on the same connection; with the limits as they are set."""
    async with front(limits=None) as connect:
        streams: list[trio.SocketStream] = []

        async def one() -> None:
            streams.append(await connect())

        async with trio.open_nursery() as nursery:
            for _ in range(200):
                nursery.start_soon(one)
        await wait_all_tasks_blocked(0.05)
        for _ in range(2):
            for stream in streams:
                await stream.send_all(PROVEN)
            for stream in streams:
                said = await answer(stream)
                assert (status_of(said), b"connection: close" in said) == (200, False)


async def test_when_all_is_full_the_oldest_of_the_idle_goes(caplog) -> None:
    """It is told why at once, and whoever comes is served: one peer keeps nobody out."""
    limits = FrontLimits(hurried_deadline=30, head_deadline=30)
    async with front(limits=limits, max_connections=6, max_unproven=2) as connect:
        held = await accepted(connect, 6)
        for expected in held[2:5]:
            [comes] = await accepted(connect, 1)
            began = trio.current_time()
            assert status_of(await rest(expected)) == 429
            assert trio.current_time() - began < 2
            assert status_of(await ask(comes, PROVEN)) == 200
        for stream in (*held[:2], held[5]):
            assert status_of(await ask(stream, OPEN)) == 200
        assert not [record for record in caplog.records if record.levelno > logging.INFO]


async def test_nobody_is_cut_off_in_a_request() -> None:
    """Of a head that comes in drops, yes; not in a body that does, nor at an endpoint that takes its time."""
    limits = FrontLimits(hurried_deadline=30)
    async with front(limits=limits, max_connections=4, max_unproven=1) as connect:
        _, head, post, at_work = await accepted(connect, 4)
        await head.send_all(OPEN[:-2])
        await post.send_all(b"POST /body HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nabc")
        await at_work.send_all(OPEN.replace(b"/open", b"/stuck"))
        await wait_all_tasks_blocked(0.05)
        await accepted(connect, 1)
        assert status_of(await rest(head)) == 429
        for _ in range(3):
            await accepted(connect, 1)
        await post.send_all(b"defghi")
        assert (await rest(post)).endswith(b"abcdefghi")
        with trio.move_on_after(0.1) as waiting:
            await at_work.receive_some()
        assert waiting.cancelled_caught


async def test_requests_that_prove_nothing_leave_half_of_the_places() -> None:
    """Those beyond are told to come again before their body is read; who shows a good token is heard."""
    async with front(max_connections=8, max_unproven=8) as connect:
        for stream in await accepted(connect, 4):
            await stream.send_all(OPEN.replace(b"/open", b"/stuck"))
        await wait_all_tasks_blocked(0.05)
        over, good = await accepted(connect, 2)
        head = b"POST /body HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n"
        await over.send_all(head + b"\r\n")
        said = await rest(over)
        assert (status_of(said), b"\r\nretry-after: 1\r\n" in said) == (429, True)
        await good.send_all(head + b"Authorization: Bearer known\r\n\r\nabcdefghi")
        assert status_of(await answer(good)) == 200


async def test_seats_leave_a_quarter_of_the_places() -> None:
    """A login asks for no credential: a seat proves nothing."""
    async with front(max_connections=4, max_unproven=4) as connect:
        *seats, over = await accepted(connect, 4)
        for stream in seats:
            assert status_of(await ask(stream, UPGRADE)) == 101
        said = await ask(over, UPGRADE)
        assert (status_of(said), b"\r\nretry-after: 1\r\n" in said) == (503, True)
        assert status_of(await ask(over, PROVEN)) == 200


async def test_a_refused_client_has_one_answer() -> None:
    """Also where it must go while that is on its way."""
    limits = FrontLimits(hurried_deadline=30)
    async with front(limits=limits, max_connections=2, max_unproven=1) as connect:
        first, over = await accepted(connect, 2)
        assert status_of(await ask(first, PROVEN)) == 200
        await over.send_all(b"no request\r\n\r\n")
        await wait_all_tasks_blocked(0.05)
        await accepted(connect, 1)
        said = await rest(over)
        assert (status_of(said), said.count(b"HTTP/1.1 ")) == (400, 1)


async def test_where_nobody_need_go_a_further_one_is_hung_up_on(caplog) -> None:
    """It is told in the log once a second, whoever connects however often."""
    async with front(max_connections=2, max_unproven=1) as connect:
        held = await accepted(connect, 2)
        for stream in held:
            assert status_of(await ask(stream, PROVEN)) == 200
        for _ in range(20):
            over = await connect()
            assert await rest(over) == b""
        lines = [record.getMessage() for record in caplog.records if "hanging up" in record.getMessage()]
        assert lines[0] == "http: 2 connections already, hanging up (1 since the last such line)"
        assert len(lines) <= 3
        for stream in held:
            assert status_of(await ask(stream, OPEN)) == 200


async def test_this_machine_is_one_place() -> None:
    """All of 127.0.0.0/8: whoever is on it can have each of those addresses."""
    async with front(max_unproven=1) as connect:
        await accepted(connect, 1)
        host, port = connect.connect.args
        with trio.socket.socket() as sock:
            await sock.bind(("127.0.0.2", 0))
            await sock.connect((host, port))
            other = trio.SocketStream(sock)
            await wait_all_tasks_blocked(0.01)
            assert b"connection: close" in await ask(other, OPEN)


async def test_users_of_a_unix_socket(tmp_path) -> None:
    connecting = partial(connect_unix, tmp_path / "s")
    async with (
        open_unix_listener(tmp_path / "s") as listener,
        front([listener], connecting, max_unproven=2) as connect,
    ):
        held = await accepted(connect, 2)
        [over, good] = await accepted(connect, 2)
        assert status_of(await ask(good, PROVEN)) == 200
        assert status_of(await rest(over)) == 429
        assert status_of(await ask(good, PROVEN)) == 200
        for stream in held:
            assert status_of(await ask(stream, OPEN)) == 200


async def test_over_tls_the_handshake_is_part_of_the_hurry(caplog) -> None:
    """Who does not make one is hung up on; who does, and shows who it is, is served."""
    authority = trustme.CA()
    ours, theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.issue_cert("127.0.0.1").configure_cert(ours)
    authority.configure_trust(theirs)
    [plain] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    connecting = partial(trio.open_tcp_stream, *plain.socket.getsockname())
    listener = trio.SSLListener(plain, ours, https_compatible=True)
    limits = FrontLimits(hurried_deadline=0.5)
    async with front([listener], connecting, limits, max_unproven=2, max_connections=4) as connect:
        await accepted(connect, 2)
        [silent] = await accepted(connect, 1)
        secure = trio.SSLStream(await connect(), theirs, server_hostname="127.0.0.1", https_compatible=True)
        assert status_of(await ask(secure, PROVEN)) == 200
        [comes] = await accepted(connect, 1)
        assert b"HTTP" not in await rest(silent)
        assert b"HTTP" not in await rest(comes)
        assert status_of(await ask(secure, PROVEN)) == 200
    assert not [record for record in caplog.records if record.levelno > logging.INFO]
