"""Nothing that a peer sends ends more than its own connection.

The probes of the survey that found five ways to end a stock trio-websocket server, two of
them before any authentication, and more; after each one the same server serves a good
client.
"""

from contextlib import asynccontextmanager, suppress
from functools import partial

import pytest
import trio

from tests.io.hostile import (
    BINARY,
    CLOSE,
    GOOD_HEAD,
    PING,
    PONG,
    TEXT,
    drain,
    frame,
    header,
    read_answer,
    read_until,
    with_header,
    without_header,
)
from tests.io.links import reset
from trio_swarm._io.guard import serve_guarded
from trio_swarm._io.head import HeadError, read_head
from trio_swarm._io.ws import accept_ws, open_ws_client
from trio_swarm.errors import PeerError

MAX_MESSAGE = 10_000


class Server:
    """Echoes text; ``crash`` makes its handler raise, ``close`` makes it close first."""

    def __init__(self, **options):
        self.errors = []
        self.received = []
        self.options = {"max_message": MAX_MESSAGE, "handshake_deadline": 2.0, **options}

    async def serve_one(self, stream):
        try:
            opened = await read_head(stream, deadline=2.0)
        except HeadError as error:
            await stream.send_all(f"HTTP/1.1 {error.status} Refused\r\n\r\n".encode())
            return
        if opened is None:
            return
        async with accept_ws(stream, opened[0].raw, **self.options) as transport:
            while batch := await transport.receive_batch():
                self.received += batch
                if "crash" in batch:
                    raise RuntimeError("the handler crashed")
                if "close" in batch:
                    await transport.aclose(1001, "going away")
                    return
                await transport.send_batch([str(message) for message in batch])

    @asynccontextmanager
    async def running(self):
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        address = listeners[0].socket.getsockname()
        async with trio.open_nursery() as nursery:
            serve = partial(
                serve_guarded, listeners, self.serve_one, on_error=lambda _, error: self.errors.append(error)
            )
            await nursery.start(serve)
            yield address
            await check_good_client(address)
            nursery.cancel_scope.cancel()
        assert all(is_expected(error) for error in self.errors), self.errors


def is_expected(error):
    if isinstance(error, ExceptionGroup):
        return all(is_expected(each) for each in error.exceptions)
    return isinstance(error, PeerError | trio.BrokenResourceError) or "crashed" in str(error)


async def check_good_client(address):
    with trio.fail_after(5):
        async with open_ws_client(f"ws://127.0.0.1:{address[1]}/") as good:
            await good.send_batch(["still there?"])
            assert await good.receive_batch() == ["still there?"]


HANDSHAKES = {
    "non-ASCII Host": with_header(b"Host", "hést".encode()),
    "non-ASCII Upgrade": with_header(b"Upgrade", b"websocket\xff"),
    "non-ASCII Connection": with_header(b"Connection", b"Upgr\xe4de"),
    "non-ASCII protocol": with_header(b"Sec-WebSocket-Protocol", b"\xff\xfe"),
    "non-ASCII extensions": with_header(b"Sec-WebSocket-Extensions", b"permessage-d\xe9flate"),
    "non-ASCII target": GOOD_HEAD.replace(b"GET /", "GET /é".encode()),
    "undecodable IDNA": with_header(b"Host", b"xn--\x7f\x7f"),
    "IDNA that means nothing": with_header(b"Host", b"xn--a-ecp.ru.xn--99999999999"),
    "no Host": without_header(b"Host"),
    "two Hosts": with_header(b"X", b"1\r\nHost: other"),
    "no key": without_header(b"Sec-WebSocket-Key"),
    "bad key": with_header(b"Sec-WebSocket-Key", b"!!!"),
    "short key": with_header(b"Sec-WebSocket-Key", b"c2hvcnQ="),
    "two keys": with_header(b"X", b"1\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="),
    "no version": without_header(b"Sec-WebSocket-Version"),
    "old version": with_header(b"Sec-WebSocket-Version", b"8"),
    "no upgrade": without_header(b"Upgrade"),
    "other upgrade": with_header(b"Upgrade", b"h2c"),
    "no connection": without_header(b"Connection"),
    "kept alive": with_header(b"Connection", b"keep-alive"),
    "POST": GOOD_HEAD.replace(b"GET", b"POST"),
    "HEAD": b"HEAD / HTTP/1.1\r\nHost: h\r\n\r\n",
    "plain GET": b"GET / HTTP/1.1\r\nHost: h\r\n\r\n",
    "plain POST": b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\n{}",
    "HTTP/1.0": GOOD_HEAD.replace(b"HTTP/1.1", b"HTTP/1.0"),
    "a body": with_header(b"Content-Length", b"5") + b"hello",
    "a chunked body": with_header(b"Transfer-Encoding", b"chunked") + b"5\r\nhello\r\n0\r\n\r\n",
    "garbage": bytes(range(256)) * 4,
    "a TLS hello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
    "100 KB header": with_header(b"X", b"a" * 100_000),
    "many headers": with_header(b"X", b"1" + b"\r\nY: 2" * 5000),
    "slow head": GOOD_HEAD[:40],
    "nothing": b"",
}


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("no upgrade", 400),
        ("other upgrade", 400),
        ("no connection", 400),
        ("kept alive", 400),
        ("no version", 400),
        ("old version", 400),
        ("no key", 400),
        ("HTTP/1.0", 426),
    ],
)
async def test_the_status_of_a_refusal_is_the_contracts(name, status):
    """Contract: operators 1.1; the version that would do is named in each (RFC 6455, 4.4)."""
    async with Server().running() as address, await trio.open_tcp_stream(*address) as stream:
        await stream.send_all(HANDSHAKES[name])
        answer = await drain(stream)
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert b"\r\nSec-WebSocket-Version: 13\r\n" in answer


@pytest.mark.parametrize("name", HANDSHAKES)
async def test_what_is_no_handshake_is_answered_or_hung_up_on_in_time(name):
    server = Server()
    async with server.running() as address:
        stream = await trio.open_tcp_stream(*address)
        async with stream:
            with suppress(trio.BrokenResourceError):
                await stream.send_all(HANDSHAKES[name])
            got = await drain(stream)
        assert b" 101 " not in got
        assert got.startswith((b"HTTP/1.1 4", b"")), got


def big(length):
    return frame(TEXT, b"x" * length)


FRAMES = {
    "too large in one frame": big(MAX_MESSAGE + 1),
    "too large in fragments": frame(TEXT, b"x" * 6000, fin=False) + frame(0, b"x" * 6000),
    "2^62 declared": header(TEXT, 2**62),
    "2^63 declared in a ping": header(PING, 2**63),
    "too many empty fragments": frame(TEXT, fin=False) + frame(0, fin=False) * 20_000,
    "a ping after too large": big(MAX_MESSAGE + 1) + frame(PING, b"x") * 10,
    "too large after too large": big(MAX_MESSAGE + 1) * 3,
    "a bad opcode": frame(3, b"x"),
    "a bad control opcode": frame(11, b"x"),
    "no mask": frame(TEXT, b"x", mask=None),
    "RSV1": frame(TEXT, b"x", bits=0x40),
    "RSV2 and 3": frame(TEXT, b"x", bits=0x30),
    "bad UTF-8": frame(TEXT, b"\xff\xfe"),
    "UTF-8 cut at the end": frame(TEXT, b"\xc3"),
    "a surrogate": frame(TEXT, b"\xed\xa0\x80"),
    "a continuation of nothing": frame(0, b"x"),
    "a start within a message": frame(TEXT, b"x", fin=False) + frame(TEXT, b"x"),
    "a ping in fragments": frame(PING, b"x", fin=False),
    "a long ping": frame(PING, b"x" * 126),
    "close code 999": frame(CLOSE, (999).to_bytes(2, "big")),
    "close code 1006": frame(CLOSE, (1006).to_bytes(2, "big")),
    "a close of one byte": frame(CLOSE, b"x"),
    "a close in bad UTF-8": frame(CLOSE, (1000).to_bytes(2, "big") + b"\xff"),
    "a long close": frame(CLOSE, (1000).to_bytes(2, "big") + b"x" * 124),
    "two closes": frame(CLOSE, (1000).to_bytes(2, "big")) * 2,
    "data after a close": frame(CLOSE, (1000).to_bytes(2, "big")) + frame(TEXT, b"x"),
    "pings after a close": frame(CLOSE) + frame(PING, b"x") * 5,
    "garbage": bytes(range(255, 0, -1)) * 20,
    "HTTP after the upgrade": b"GET / HTTP/1.1\r\nHost: h\r\n\r\n",
    "the handler crashes": frame(TEXT, b"crash"),
    "ping while the server closes": frame(TEXT, b"close") + frame(PING, b"x") * 20,
    "pong while the server closes": frame(TEXT, b"close") + frame(PONG, b"x") * 20,
    "too large while the server closes": frame(TEXT, b"close") + big(MAX_MESSAGE + 1),
    "too large as the server closes, without a violation": frame(TEXT, b"close") + big(MAX_MESSAGE) * 3,
    "crossing closes": frame(TEXT, b"close") + frame(CLOSE, (1000).to_bytes(2, "big")),
}


@pytest.mark.parametrize("together", [True, False], ids=["with the head", "after the answer"])
async def test_what_a_connected_peer_sends_ends_its_own_connection_at_most(together):
    """All at the same time, since some of them are waited for until they are cut."""
    ended = set()

    async def probe(address, name):
        stream = await trio.open_tcp_stream(*address)
        async with stream:
            if together:
                await stream.send_all(GOOD_HEAD + FRAMES[name])
                head, _ = await read_answer(stream)
            else:
                await stream.send_all(GOOD_HEAD)
                head, _ = await read_answer(stream)
                with suppress(trio.BrokenResourceError):
                    await stream.send_all(FRAMES[name])
            assert b" 101 " in head
            await drain(stream)
        ended.add(name)
        await check_good_client(address)

    with trio.move_on_after(15):
        async with Server().running() as address, trio.open_nursery() as nursery:
            for name in FRAMES:
                nursery.start_soon(probe, address, name)
    assert ended == set(FRAMES)


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("too large in one frame", 1009),
        ("2^62 declared", 1009),
        ("too many empty fragments", 1009),
        ("a bad opcode", 1002),
        ("no mask", 1002),
        ("RSV1", 1002),
        ("a continuation of nothing", 1002),
    ],
)
async def test_a_violation_is_answered_with_a_close_frame_that_says_why(name, code):
    async with Server().running() as address:
        stream = await trio.open_tcp_stream(*address)
        async with stream:
            await stream.send_all(GOOD_HEAD + FRAMES[name])
            _, rest = await read_answer(stream)
            while len(rest) < 4:
                rest += await stream.receive_some()
            assert rest[0] == 0x80 | CLOSE
            assert int.from_bytes(rest[2:4], "big") == code


async def test_what_came_before_a_violation_is_still_received():
    server = Server()
    async with server.running() as address:
        stream = await trio.open_tcp_stream(*address)
        async with stream:
            await stream.send_all(GOOD_HEAD + frame(TEXT, b"first") + frame(TEXT, b"second") + frame(3))
            await drain(stream)
        assert server.received == ["first", "second"]


async def test_frames_that_come_along_with_the_head_are_not_lost():
    async with Server().running() as address:
        stream = await trio.open_tcp_stream(*address)
        async with stream:
            await stream.send_all(GOOD_HEAD + frame(TEXT, b"early"))
            assert b"early" in await read_until(stream, b"early")


async def test_a_message_at_the_limit_passes_and_so_do_fragments_at_theirs():
    async with Server().running() as address:
        stream = await trio.open_tcp_stream(*address)
        async with stream:
            limit = frame(TEXT, b"a", fin=False) + frame(0, fin=False) * 1022 + frame(0, b"b")
            await stream.send_all(GOOD_HEAD + big(MAX_MESSAGE) + limit)
            assert b"x" * MAX_MESSAGE in await read_until(stream, b"\x81\x02ab")


async def test_binary_messages_are_ignored_and_counted():
    counts = []

    class Counting(Server):
        async def serve_one(self, stream):
            opened = await read_head(stream)
            async with accept_ws(stream, opened[0].raw) as transport:
                while batch := await transport.receive_batch():
                    counts.append(transport.ignored)
                    await transport.send_batch([str(message) for message in batch])

    async with Counting().running() as address:
        stream = await trio.open_tcp_stream(*address)
        async with stream:
            await stream.send_all(GOOD_HEAD + frame(BINARY, b"zzz") * 2 + frame(TEXT, b"text"))
            assert b"zzz" not in await read_until(stream, b"text")
        assert counts == [2]


async def test_resets_at_any_moment_do_not_end_the_server():
    server = Server()
    async with server.running() as address:
        for number in range(150):
            stream = await trio.open_tcp_stream(*address)
            data = GOOD_HEAD + frame(TEXT, b"x" * 100) * 3
            if number % 3:
                await stream.send_all(data[: number * 7 % len(data)] if number % 2 else data)
            if number % 5 == 0:
                await trio.lowlevel.checkpoint()
            reset(stream)
            await stream.aclose()


async def test_half_a_frame_then_silence_is_dropped_after_the_silence():
    async with Server(ping_every=0.1, silence=0.4).running() as address:
        for data in (b"", header(TEXT, 100) + b"x", frame(TEXT, b"x", fin=False)):
            stream = await trio.open_tcp_stream(*address)
            async with stream:
                await stream.send_all(GOOD_HEAD + data)
                started = trio.current_time()
                got = await drain(stream)
                assert 0.3 < trio.current_time() - started < 2
                assert b"trio-swarm" in got, "it was pinged"


async def test_a_peer_that_answers_pings_stays():
    async with (
        Server(ping_every=0.05, silence=0.3).running() as address,
        open_ws_client(f"ws://127.0.0.1:{address[1]}/") as good,
    ):
        with trio.move_on_after(0.9):
            await good.receive_batch()
            pytest.fail("it was dropped")
        await good.send_batch(["x"])
        assert await good.receive_batch() == ["x"]


async def test_a_flood_of_pings_is_answered_or_felt_and_ends_nothing():
    async with Server().running() as address:
        stream = await trio.open_tcp_stream(*address)
        async with stream:
            with trio.move_on_after(0.5):
                await stream.send_all(GOOD_HEAD)
                while True:
                    await stream.send_all(frame(PING, b"x" * 100) * 100)
            await check_good_client(address)
