"""Who connects and shows nothing holds its share of the places, and no more."""

from __future__ import annotations

import logging
import resource
import ssl
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio
import trio.testing
import trustme
from trio.testing import wait_all_tasks_blocked

from trio_swarm._io.http import FrontLimits, _Front, serve_http
from trio_swarm._io.http_answers import Answers
from trio_swarm._io.http_messages import HttpError, Request, Response
from trio_swarm._io.http_places import Places, within_descriptors
from trio_swarm._io.http_routes import Route, RouteTable, UpgradeRoute
from trio_swarm._io.unix import connect_unix, open_unix_listener
from trio_swarm._state.crowd import Crowd
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


async def streamed(request: Request) -> Response:
    assert request.stream is not None
    return Response(200, await request.stream.read_all())


async def websocket(request) -> None:
    async with request.accept(replacing=request.params.get("how") == "instead") as transport:
        while await transport.receive_batch():
            pass


async def large(request: Request) -> Response:
    return Response(200, b"x" * 2**24)  # More than a socket takes in that nobody reads.


ROUTES = [
    Route("GET", "/open", anybody),
    Route("GET", "/large", large),
    Route("GET", "/mine", mine),
    Route("GET", "/stuck", stuck),
    Route("POST", "/body", body, body="bytes"),
    Route("POST", "/stream", streamed, body="stream"),
    UpgradeRoute("/ws", websocket),
    UpgradeRoute("/ws/{how}", websocket),
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
async def front(given=None, connect=None, limits=QUICK, routes=ROUTES, **options):
    """Yields what connects to it: a `Connect`."""
    async with trio.open_nursery() as nursery:
        if given is None:
            given = await trio.open_tcp_listeners(0, host="127.0.0.1")
            connect = partial(trio.open_tcp_stream, *given[0].socket.getsockname())
        policy = EdgePolicy(loopback_hosts(None))
        options.setdefault("knows", lambda bearer: bearer == "known")
        serve = partial(serve_http, given, RouteTable(routes), policy=policy, limits=limits, **options)
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


async def test_nobody_is_cut_off_whose_whole_request_is_there() -> None:
    """In a head or a body that comes in drops, yes; not at an endpoint that takes its time."""
    limits = FrontLimits(hurried_deadline=30)
    async with front(limits=limits, max_connections=8, max_unproven=1) as connect:
        _, head, post, expecting, at_work, *_ = await accepted(connect, 8)
        await head.send_all(OPEN[:-2])
        await post.send_all(POST + b"\r\nabc")
        assert b" 100 " in await ask(expecting, POST + b"Expect: 100-continue\r\n\r\n")
        await at_work.send_all(OPEN.replace(b"/open", b"/stuck"))
        await wait_all_tasks_blocked(0.05)
        for slow in (head, post, expecting):
            [comes] = await accepted(connect, 1)
            said = await rest(slow)
            assert (status_of(said), b"\r\nretry-after: 1\r\n" in said) == (429, True)
            assert status_of(await ask(comes, PROVEN)) == 200
        assert not await is_over(at_work)


POST = b"POST /body HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n"
STUCK = OPEN.replace(b"/open", b"/stuck")


async def is_over(stream) -> bool:
    """Something came, or it was hung up."""
    with trio.move_on_after(0.1):
        await stream.receive_some()
        return True
    return False


async def test_slow_bodies_of_one_place_shut_out_nobody() -> None:
    """Also streamed ones, of which an endpoint has begun to read: the oldest goes for whoever comes."""
    streamed = POST.replace(b"/body", b"/stream")
    for begun in (POST, streamed):
        async with front(limits=FrontLimits(hurried_deadline=30), max_connections=8) as connect:
            held = await accepted(connect, 8)
            for stream in held:
                await stream.send_all(begun + b"\r\nabc")
            await wait_all_tasks_blocked(0.05)
            for expected in held[:3]:
                [comes] = await accepted(connect, 1)
                assert status_of(await ask(comes, OPEN)) == 200
                assert status_of(await rest(expected)) == 429
                await comes.aclose()
                await wait_all_tasks_blocked(0.01)
                await accepted(connect, 1)
            await held[-1].send_all(b"defghi")
            assert (await answer(held[-1])).endswith(b"abcdefghi")


async def test_who_must_hurry_hurries_with_its_body_too() -> None:
    """Unless it shows a good token before it."""
    async with front(max_unproven=1) as connect:
        at_ease, *slow, known = await accepted(connect, 4)
        for stream, begun in zip(slow, (POST, POST.replace(b"/body", b"/stream")), strict=True):
            await stream.send_all(begun + b"\r\nabc")
        await at_ease.send_all(POST + b"\r\nabc")
        await known.send_all(POST + b"Authorization: Bearer known\r\n\r\nabc")
        for stream in slow:
            said = await rest(stream)
            assert (status_of(said), b"\r\nretry-after: 1\r\n" in said) == (429, True)
        for stream in (at_ease, known):
            assert status_of(await ask(stream, b"defghi")) == 200


async def test_requests_that_prove_nothing_take_turns() -> None:
    """A quarter of all at a time: those beyond wait in line, and are told when that takes too long."""
    gate = trio.Event()

    async def waits(request: Request) -> Response:
        await gate.wait()
        return Response.text(200, "done")

    routes = [*ROUTES, Route("GET", "/gate", waits)]
    limits = FrontLimits(hurried_deadline=1)
    async with front(limits=limits, routes=routes, max_connections=8, max_unproven=8) as connect:
        busy = await accepted(connect, 2)
        for stream in busy:
            await stream.send_all(OPEN.replace(b"/open", b"/gate"))
        await wait_all_tasks_blocked(0.05)
        over, later, good = await accepted(connect, 3)
        await over.send_all(OPEN)
        assert not await is_over(over)
        assert status_of(await ask(good, POST + b"Authorization: Bearer known\r\n\r\nabcdefghi")) == 200
        said = await answer(over)
        assert (status_of(said), b"\r\nretry-after: 1\r\n" in said) == (429, True)
        await later.send_all(POST + b"\r\nabcdefghi")
        assert not await is_over(later)
        gate.set()
        for stream in (later, *busy):
            assert status_of(await answer(stream)) == 200


async def test_who_does_not_read_its_answer_keeps_no_turn() -> None:
    """Two that read nothing would be a quarter of eight; and when all is full, they can go."""
    async with front(max_connections=8, max_unproven=8) as connect:
        slow = await accepted(connect, 8)
        for stream in slow[:4]:
            await stream.send_all(OPEN.replace(b"open", b"large"))
            assert await stream.receive_some(1) == b"H"
        assert status_of(await ask(slow[4], OPEN)) == 200
        for _ in range(8):
            (one,) = await accepted(connect, 1)
            assert status_of(await ask(one, OPEN)) == 200


async def test_who_waits_for_its_turn_may_have_to_go() -> None:
    """It is told so, and never has a turn."""
    async with front(limits=FrontLimits(hurried_deadline=30), max_connections=4, max_unproven=4) as connect:
        busy, waits = await accepted(connect, 2)
        for stream in (busy, waits):
            await stream.send_all(STUCK)
            await wait_all_tasks_blocked(0.05)
        await accepted(connect, 3)
        assert b"that have shown no credential" in await rest(waits)
        assert not await is_over(busy)


async def test_idle_ones_that_were_answered_make_room_at_last() -> None:
    """Without a word: they have asked for nothing. The one goes that is idle for longest."""
    async with front(max_connections=4, max_unproven=4) as connect:
        held = await accepted(connect, 4)
        for stream in (held[1], held[0], held[2], held[3]):
            assert status_of(await ask(stream, OPEN)) == 200
        [comes] = await accepted(connect, 1)
        assert status_of(await ask(comes, PROVEN)) == 200
        assert await rest(held[1]) == b""
        await held[0].send_all(OPEN[:9])  # Its next request has begun.
        await wait_all_tasks_blocked(0.01)
        [comes] = await accepted(connect, 1)
        assert status_of(await ask(comes, PROVEN)) == 200
        assert status_of(await rest(held[0])) == 429


@pytest.mark.parametrize("path", [b"/mine", b"/ws"])
async def test_a_head_that_comes_when_it_must_go_is_told_so(path) -> None:
    """In the same step: it was read, and is not answered any more; nor refused for what it is."""
    places = Places("http", Crowd(1, 1), 1)

    def another_comes(bearer: str) -> bool:
        assert places.enter("elsewhere") is not None
        return False

    policy, limits = EdgePolicy(loopback_hosts(None)), FrontLimits()
    server = _Front(RouteTable(ROUTES), policy, limits, places, another_comes, Answers())
    ours, theirs = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.serve, theirs)
        await ours.send_all(PROVEN.replace(b"/mine", path))
        assert status_of(await rest(ours)) == 429


async def test_no_more_connections_than_descriptors(caplog, monkeypatch) -> None:
    """64 less, and 16 in any case: told once, and the oldest goes for the next."""
    for may_open, given, most in ((90, 256, 26), (70, 256, 16), (70, 8, 8), (4096, 256, 256), (-1, 999, 999)):
        monkeypatch.setattr(resource, "getrlimit", lambda which, may_open=may_open: (may_open, may_open))
        caplog.clear()
        assert within_descriptors(given, "x") == most
        assert len(caplog.records) == (most < given)
    monkeypatch.setattr(resource, "getrlimit", lambda which: (80, 80))
    async with front(max_unproven=1, limits=FrontLimits(hurried_deadline=30)) as connect:
        assert "at most 16 connections instead of 256" in caplog.text
        _, second, *_ = await accepted(connect, 17)
        assert status_of(await rest(second)) == 429


async def test_seats_are_half_of_the_places() -> None:
    """A login asks for no credential: a seat proves nothing. Of one place, three quarters of them."""
    async with front(max_connections=8, max_unproven=8) as connect:
        *seats, over = await accepted(connect, 4)
        for stream in seats:
            assert status_of(await ask(stream, UPGRADE)) == 101
        said = await ask(over, UPGRADE)
        assert (status_of(said), b"\r\nretry-after: 1\r\n" in said) == (503, True)
        assert status_of(await ask(over, PROVEN)) == 200


async def test_one_that_takes_over_may_be_beyond_the_seats() -> None:
    """An eighth of the places, until the one that it took over from is gone; then that is the next one's."""
    instead = UPGRADE.replace(b"/ws", b"/ws/instead")
    async with front(max_connections=8, max_unproven=8) as connect:
        seats = await accepted(connect, 3)
        for stream in seats:
            assert status_of(await ask(stream, UPGRADE)) == 101
        for old in seats:
            [new, late] = await accepted(connect, 2)
            assert status_of(await ask(new, instead)) == 101
            assert status_of(await ask(late, instead)) == 503
            await trio.aclose_forcefully(old)
            await trio.aclose_forcefully(late)
            await wait_all_tasks_blocked(0.01)
        [ordinary] = await accepted(connect, 1)
        assert status_of(await ask(ordinary, UPGRADE)) == 503


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
