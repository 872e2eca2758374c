"""The login's HTTP client against a scripted server, and against our own front over TLS."""

from __future__ import annotations

from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio

from trio_swarm._io.http_client import Address, request
from trio_swarm.errors import HandshakeError, PeerGoneError, ProtocolError, SlowPeerError


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
