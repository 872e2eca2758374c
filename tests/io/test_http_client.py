"""The login's HTTP client against a scripted server, and against our own front over TLS."""

from __future__ import annotations

from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio

from trio_swarm._io.http_client import Address, Outgoing, exchange, request
from trio_swarm.errors import HandshakeError, PeerError, PeerGoneError, ProtocolError, SlowPeerError


@asynccontextmanager
async def answering(answer: bytes | None, received: list[bytes] | None = None):
    """A server that reads once, sends ``answer`` and hangs up; None: it never answers."""

    async def one(stream) -> None:
        data = bytes(await stream.receive_some())
        if received is not None:
            received.append(data)
        if answer is None:
            await trio.sleep_forever()
        await stream.send_all(answer)

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, one, 0, host="127.0.0.1"))
        yield Address.parse(f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}/prefix/")
        nursery.cancel_scope.cancel()


async def test_a_request_and_its_answer() -> None:
    """The path below the prefix, the body as JSON, chunks joined."""
    received: list[bytes] = []
    answer = (
        b"HTTP/1.1 201 Created\r\nX-A: b\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n[1\r\n1\r\n]\r\n0\r\n\r\n"
    )
    async with answering(answer, received) as address:
        reply = await request(
            address, "POST", "/x", headers=[("Authorization", "Bearer t")], json_body={"a": "é"}
        )
    assert (reply.status, reply.header("x-a"), reply.header("x-b"), reply.json()) == (201, "b", None, [1])
    head, _, body = received[0].partition(b"\r\n\r\n")
    assert head.startswith(b"POST /prefix/x HTTP/1.1\r\n")
    assert b"Authorization: Bearer t" in head
    assert body == b'{"a": "\\u00e9"}'


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"", PeerGoneError),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc", PeerGoneError),
        (b"hello\r\n\r\n", ProtocolError),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 5000\r\n\r\n" + b"x" * 5000, ProtocolError),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000, ProtocolError),
        (None, SlowPeerError),
    ],
)
async def test_whatever_the_server_does_is_a_peer_error(answer, error) -> None:
    """Nothing of h11 or of the socket comes out."""
    async with answering(answer) as address:
        with pytest.raises(error):
            await request(address, "GET", "/", deadline=0.3, max_body=1000)


async def test_an_answer_may_end_with_the_connection() -> None:
    """HTTP/1.0's way."""
    async with answering(b"HTTP/1.0 200 OK\r\n\r\nall of it") as address:
        assert (await request(address, "GET", "/")).body == b"all of it"


async def test_an_answer_that_is_no_json() -> None:
    """Only when somebody wants it as JSON."""
    async with answering(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n[[") as address:
        reply = await request(address, "GET", "/")
    with pytest.raises(ProtocolError):
        reply.json()


async def test_tls_to_a_server_without_it_is_a_handshake_error() -> None:
    """And not an error of the ssl module."""
    async with answering(b"HTTP/1.1 400 Bad Request\r\n\r\n") as plain:
        address = Address("https", "127.0.0.1", plain.port, "")
        with pytest.raises(HandshakeError, match="no TLS with 127"):
            await request(address, "GET", "/", deadline=3)


async def told(address: Address, **options) -> tuple[object, bool]:
    """The outcome of an exchange, and whether it had begun to send."""
    began = []
    outgoing = Outgoing("POST", "/x?y=1", [("Authorization", "Bearer t")], b"body")
    try:
        reply = await exchange(address, outgoing, on_sending=lambda: began.append(1), **options)
    except PeerError as error:
        return type(error), bool(began)
    return reply, bool(began)


async def test_an_exchange_sends_bytes() -> None:
    """Its target and body as they are, with a length; and on a connection of its own."""
    received: list[bytes] = []
    async with answering(b"HTTP/1.1 204 No Content\r\n\r\n", received) as address:
        reply, began = await told(address)
    assert (reply.status, reply.body, began) == (204, b"", True)
    head, _, body = received[0].partition(b"\r\n\r\n")
    assert head.startswith(b"POST /prefix/x?y=1 HTTP/1.1\r\n")
    assert b"\r\nConnection: close\r\nAuthorization: Bearer t\r\nContent-Length: 4" in head
    assert body == b"body"


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"", PeerGoneError),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc", PeerGoneError),
        (b"hello\r\n\r\n", ProtocolError),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 5000\r\n\r\n" + b"x" * 5000, ProtocolError),
        (b"HTTP/1.1 100 Continue\r\n\r\n" * 3, PeerGoneError),
        (None, SlowPeerError),
    ],
)
async def test_an_exchange_that_fails_may_have_arrived(answer, error) -> None:
    """Once it had begun to send; one exception, never a group."""
    async with answering(answer) as address:
        assert await told(address, silence=0.2, max_body=1000) == (error, True)


async def test_an_exchange_that_was_never_sent_says_so() -> None:
    """Nobody listens; or no TLS is spoken there, which is known before the request goes."""
    assert await told(Address("http", "127.0.0.1", 1, "")) == (HandshakeError, False)
    async with answering(b"HTTP/1.1 400 Bad Request\r\n\r\n") as plain:
        assert await told(Address("https", "127.0.0.1", plain.port, "")) == (HandshakeError, False)


async def test_who_does_not_complete_the_connection_is_not_waited_for(monkeypatch, autojump_clock) -> None:
    """Ten seconds; whatever the silence is."""
    monkeypatch.setattr(trio, "open_tcp_stream", lambda *_: trio.sleep_forever())
    start = trio.current_time()
    assert await told(Address("http", "127.0.0.1", 1, ""), silence=1000) == (HandshakeError, False)
    assert trio.current_time() - start == pytest.approx(10)


class Slow(trio.abc.Stream):
    """A peer, by its own clock: it takes, and gives, one piece a second."""

    def __init__(self, answer: bytes, taken: int) -> None:
        self.answer = [answer[at : at + 9] for at in range(0, len(answer), 9)]
        self.taken, self.all_taken = taken, trio.Event()

    async def send_all(self, data) -> None:
        await trio.sleep(1)
        self.taken -= len(data)
        if self.taken <= 0:
            self.all_taken.set()

    async def wait_send_all_might_not_block(self) -> None:
        raise AssertionError

    async def receive_some(self, max_bytes=None) -> bytes:
        await self.all_taken.wait()
        await trio.sleep(1)
        return self.answer.pop(0)

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


@pytest.mark.parametrize(("silence", "arrives"), [(1.25, True), (0.75, False)])
async def test_only_silence_ends_an_exchange(silence, arrives, monkeypatch, autojump_clock) -> None:
    """Slow is not silent: each piece sent, and each received, puts the end off."""
    body = b"x" * 1_000_000

    async def connect(*_):
        return Slow(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nyes", len(body))

    monkeypatch.setattr(trio, "open_tcp_stream", connect)
    outgoing = Outgoing("POST", "/", (), body)
    start = trio.current_time()
    if not arrives:
        with pytest.raises(SlowPeerError, match=r"silent for 0\.75 s"):
            await exchange(Address("http", "h", 80, ""), outgoing, silence=silence)
        assert trio.current_time() - start == pytest.approx(silence)
        return
    reply = await exchange(Address("http", "h", 80, ""), outgoing, silence=silence)
    assert reply.body == b"yes"
    assert trio.current_time() - start > 8


class Hasty(Slow):
    """A peer that answered and closed its end before it took anything."""

    async def send_all(self, data) -> None:
        self.all_taken.set()
        raise trio.BrokenResourceError


async def test_who_does_not_take_the_body_is_still_heard(monkeypatch, autojump_clock) -> None:
    """The write fails first, and the answer is there all the same."""

    async def connect(*_):
        return Hasty(b"HTTP/1.1 413 Too Large\r\ncontent-length: 0\r\n\r\n", 0)

    monkeypatch.setattr(trio, "open_tcp_stream", connect)
    reply = await exchange(Address("http", "h", 80, ""), Outgoing("POST", "/", (), b"x"))
    assert reply.status == 413


async def test_an_answer_that_comes_early_is_the_answer() -> None:
    """A refusal, while the body is still being sent to somebody who has stopped reading."""
    async with answering(b"HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\n\r\nno") as address:
        reply = await exchange(address, Outgoing("POST", "/", (), b"x" * 50_000_000))
    assert (reply.status, reply.body) == (413, b"no")


@pytest.mark.parametrize(
    ("url", "authority", "ws"),
    [
        ("http://h:1", "h:1", "ws://h:1/x"),
        ("http://h", "h", "ws://h/x"),
        ("https://h:443/p/", "h", "wss://h/p/x"),
        ("http://[::1]:7", "[::1]:7", "ws://[::1]:7/x"),
    ],
)
def test_addresses(url, authority, ws) -> None:
    """C21 and the Host header."""
    address = Address.parse(url)
    assert (address.authority, address.ws_url("/x")) == (authority, ws)


@pytest.mark.parametrize(
    "url",
    [
        *("", "h:1", "ftp://h", "ws://h", "http://", "http://u@h", "http://h?x", "http://h#x", "http://h:x"),
        *("http://h/a b", "http://h/\x7f", "http://h\n", "http://bücher.example", "http://h/ü"),
    ],
)
def test_what_is_no_address(url) -> None:
    """Also one that would carry a secret in a URL."""
    with pytest.raises(ValueError, match=r"URL|[Pp]ort"):
        Address.parse(url)
