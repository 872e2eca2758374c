"""Nothing that a server sends comes out of a client as anything but a PeerError."""

import base64
import contextlib
import hashlib

import pytest
import trio
import trio.testing

from tests.io.hostile import ANSWER_HEAD, CLOSE, PING, TEXT, drain, frame, header
from tests.io.links import reset
from trio_swarm._io.ws import open_ws_client
from trio_swarm.errors import HandshakeError, PeerGoneError, ProtocolError

ACCEPT = b"{accept}"
ANSWER = ANSWER_HEAD % ACCEPT


def server_frame(opcode, payload=b"", **options):
    return frame(opcode, payload, mask=None, **options)


async def open_server(nursery, answer, *, then="close", seen=None):
    """A server of one connection that says ``answer`` to the handshake, whatever that was."""
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")

    async def serve():
        async with listener:
            stream = await listener.accept()
        async with stream:
            request = b""
            while b"\r\n\r\n" not in request:
                request += await stream.receive_some()
            if seen is not None:
                seen.append(request)
            try:
                await stream.send_all(answer.replace(ACCEPT, accept_of(request)))
            except trio.BrokenResourceError:
                return
            if then == "reset":
                reset(stream)
            elif then == "stay":
                await drain(stream, 30)

    nursery.start_soon(serve)
    return f"ws://127.0.0.1:{listener.socket.getsockname()[1]}/path?query=1"


def accept_of(request):
    [key] = [line[19:] for line in request.split(b"\r\n") if line.lower().startswith(b"sec-websocket-key: ")]
    digest = hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
    return base64.b64encode(digest)


REFUSALS = {
    "200": (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", 200),
    "301": (b"HTTP/1.1 301 Moved\r\nLocation: /\r\nContent-Length: 0\r\n\r\n", 301),
    "403": (b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n", 403),
    "500 without an end": (b"HTTP/1.1 500 Oops\r\nContent-Length: 1000\r\n\r\nx", 500),
    "100": (b"HTTP/1.1 100 Continue\r\n\r\n", 100),
    "no reason": (b"HTTP/1.1 503\r\n\r\n", 503),
    "status 1000": (b"HTTP/1.1 1000 What\r\n\r\n", None),
    "no status": (b"HTTP/1.1\r\n\r\n", None),
    "garbage": (bytes(range(256)), None),
    "an endless head": (b"HTTP/1.1 101 X\r\nX: " + b"a" * 100_000, None),
    "a large head": (b"HTTP/1.1 101 X\r\nX: " + b"a" * 20_000 + b"\r\n\r\n", None),
    "nothing": (b"", None),
    "half a head": (b"HTTP/1.1 101 Switching\r\nUpgr", None),
    "non-ASCII upgrade": (ANSWER.replace(b": websocket", b": webs\xf6cket"), None),
    "non-ASCII protocol": (ANSWER.replace(b"\r\n\r\n", b"\r\nSec-WebSocket-Protocol: \xff\r\n\r\n"), None),
    "non-ASCII status": ("HTTP/1.1 403 Verböten\r\n\r\n".encode(), None),
    "a protocol nobody asked for": (
        ANSWER.replace(b"\r\n\r\n", b"\r\nSec-WebSocket-Protocol: x\r\n\r\n"),
        None,
    ),
    "an extension nobody asked for": (
        ANSWER.replace(b"\r\n\r\n", b"\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n"),
        None,
    ),
    "the accept of another": (ANSWER.replace(ACCEPT, b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), None),
    "no accept": (ANSWER.replace(b"Sec-WebSocket-Accept: ", b"X: "), None),
    "no upgrade": (ANSWER.replace(b"Upgrade: ", b"X: "), None),
    "no connection": (ANSWER.replace(b"Connection: ", b"X: "), None),
    "an HTTP/2 preface": (b"HTTP/2 101 \r\n\r\n", None),
    "bare line feeds": (ANSWER.replace(b"\r\n", b"\n"), None),
}


@pytest.mark.parametrize("then", ["close", "reset", "stay"])
@pytest.mark.parametrize("name", REFUSALS)
async def test_a_handshake_that_fails_is_a_handshake_error_with_the_status(name, then):
    answer, status = REFUSALS[name]
    async with trio.open_nursery() as nursery:
        url = await open_server(nursery, answer, then=then)
        with pytest.raises(HandshakeError) as caught:
            async with open_ws_client(url, handshake_deadline=0.5):
                pytest.fail("it opened")
        if then != "reset":
            assert caught.value.status == status
        nursery.cancel_scope.cancel()


async def test_nobody_there_is_a_handshake_error():
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]
    await listener.aclose()
    with pytest.raises(HandshakeError, match="cannot connect"):
        async with open_ws_client(f"ws://127.0.0.1:{port}/"):
            pass


@pytest.mark.parametrize(
    "url",
    ["http://h/", "ws://", "h:1", "ws://user:pw@h/", "ws://h/#f", "ws://h/ x", "ws://h/\r\nX: 1", "ws://hé/"],
)
async def test_what_is_no_websocket_url_is_a_value_error(url):
    with pytest.raises(ValueError, match="URL"):
        async with open_ws_client(url):
            pass


async def test_the_request_says_what_was_asked_for():
    seen = []
    async with trio.open_nursery() as nursery:
        url = await open_server(nursery, b"", seen=seen)
        with pytest.raises(HandshakeError):
            async with open_ws_client(url, headers=[("Authorization", "Bearer x")]):
                pass
    assert seen[0].startswith(b"GET /path?query=1 HTTP/1.1\r\n")
    assert b"authorization: bearer x" in seen[0].lower()
    assert b"host: 127.0.0.1:" in seen[0].lower()
    assert b"origin" not in seen[0].lower()


FRAMES = {
    "masked": frame(TEXT, b"x"),
    "a bad opcode": server_frame(5, b"x"),
    "RSV": server_frame(TEXT, b"x", bits=0x40),
    "bad UTF-8": server_frame(TEXT, b"\xff"),
    "too large": server_frame(TEXT, b"x" * 1001),
    "2^62": header(TEXT, 2**62, mask=None),
    "fragments without end": server_frame(TEXT, b"", fin=False) + server_frame(0, b"", fin=False) * 5000,
    "garbage": bytes(range(256)) * 3,
    "a long ping": server_frame(PING, b"x" * 126),
    "HTTP again": ANSWER,
}


async def receive_to_the_end(url):
    async with open_ws_client(url, max_message=1000) as transport:
        while await transport.receive_batch():
            pass
        pytest.fail("it said that all was well")


@pytest.mark.parametrize("then", ["close", "reset", "stay"])
@pytest.mark.parametrize("name", FRAMES)
async def test_what_breaks_the_protocol_is_a_protocol_error_or_a_cut(name, then):
    async with trio.open_nursery() as nursery:
        url = await open_server(nursery, ANSWER + FRAMES[name], then=then)
        expected = (ProtocolError, trio.BrokenResourceError, HandshakeError)
        with pytest.raises(ProtocolError if then == "stay" else expected), trio.fail_after(5):
            await receive_to_the_end(url)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "data",
    [
        server_frame(CLOSE, b"\x03\xe8bye"),
        server_frame(CLOSE),
        server_frame(CLOSE, b"\x03\xe8") + server_frame(PING, b"x") * 5,
        server_frame(CLOSE, b"\x03\xe8") * 2,
    ],
)
@pytest.mark.parametrize("then", ["close", "stay"])
async def test_a_close_frame_is_a_clean_end(data, then):
    async with trio.open_nursery() as nursery:
        url = await open_server(nursery, ANSWER + server_frame(TEXT, b"last") + data, then=then)
        with trio.fail_after(5):
            async with open_ws_client(url) as transport:
                assert await transport.receive_batch() == ["last"]
                assert await transport.receive_batch() == ()
                assert transport.close_reason is not None
                with pytest.raises(trio.BrokenResourceError):
                    await transport.send_batch(["too late"])
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("then", ["close", "reset"])
async def test_an_end_without_a_close_frame_is_a_cut(then):
    async with trio.open_nursery() as nursery:
        url = await open_server(nursery, ANSWER + server_frame(TEXT, b"half", fin=False), then=then)
        with pytest.raises((trio.BrokenResourceError, HandshakeError)):
            async with open_ws_client(url) as transport:
                await transport.receive_batch()


async def test_a_server_that_pings_while_the_client_closes_does_not_hold_it_up():
    async with trio.open_nursery() as nursery:
        url = await open_server(nursery, ANSWER + server_frame(PING, b"x") * 50, then="stay")
        with trio.fail_after(4):
            async with open_ws_client(url) as transport:
                await transport.aclose(1001, "done")
        nursery.cancel_scope.cancel()


async def test_closing_is_cut_short_when_the_server_does_not_answer():
    async with trio.open_nursery() as nursery:
        url = await open_server(nursery, ANSWER, then="stay")
        async with open_ws_client(url):
            started = trio.current_time()
        assert 1.5 < trio.current_time() - started < 3
        nursery.cancel_scope.cancel()


async def test_a_silent_server_is_gone():
    async with trio.open_nursery() as nursery:
        url = await open_server(nursery, ANSWER, then="stay")
        with pytest.raises(PeerGoneError), trio.fail_after(5):
            async with open_ws_client(url, ping_every=0.1, silence=0.3) as transport:
                await transport.receive_batch()
        nursery.cancel_scope.cancel()


async def test_an_own_slow_owner_is_not_taken_for_a_silent_server():
    async with trio.open_nursery() as nursery:
        url = await open_server(nursery, ANSWER + server_frame(TEXT, b"x" * 100) * 200, then="stay")
        async with open_ws_client(url, ping_every=0.1, silence=0.3) as transport:
            await trio.sleep(1)
            got = list(await transport.receive_batch())
            assert got[0] == "x" * 100
        nursery.cancel_scope.cancel()


async def test_an_exception_of_the_block_leaves_as_itself():
    async with trio.open_nursery() as nursery:
        url = await open_server(nursery, ANSWER, then="close")
        with pytest.raises(KeyError, match="mine"):
            async with open_ws_client(url):
                raise KeyError("mine")


async def test_what_happens_inside_never_cancels_the_block():
    async with trio.open_nursery() as nursery:
        url = await open_server(nursery, ANSWER + frame(TEXT, b"x") + bytes(range(256)), then="reset")
        with contextlib.suppress(HandshakeError):
            async with open_ws_client(url):
                await trio.sleep(0.2)


async def test_a_connection_that_comes_with_the_deadline_is_too_late(mock_clock, monkeypatch):
    """What is left for the handshake is nothing then; less than nothing said ``ValueError``."""

    async def connect_late(address, ssl_context):
        mock_clock.jump(1.5)
        return trio.testing.memory_stream_pair()[0]

    monkeypatch.setattr("trio_swarm._io.ws.connect", connect_late)
    with pytest.raises(HandshakeError, match=r"^no handshake within"):
        async with open_ws_client("ws://h/", handshake_deadline=1.0):
            pass
