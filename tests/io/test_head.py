"""The head of a request: read with a deadline and a size, ASCII only, whole."""

import h11
import pytest
import trio
from trio.testing import memory_stream_pair

from trio_swarm._io.head import HeadError, parse_head, read_head

GET = b"GET /v1/data/a%2Fb?token=t%20t&x=1&x=2 HTTP/1.1\r\nHost: h:7777\r\nX-Two: 1\r\nx-two: 2\r\n\r\n"


async def head_of(data, *, eof=True, **options):
    near, far = memory_stream_pair()
    await near.send_all(data)
    if eof:
        await near.send_eof()
    return await read_head(far, **options)


async def test_a_head_is_taken_apart():
    head, connection = await head_of(GET)

    assert (head.method, head.path, head.http_version) == ("GET", "/v1/data/a%2Fb", "1.1")
    assert head.segments == ("v1", "data", "a/b")
    assert head.query == {"token": "t t", "x": "2"}
    assert head.get("HOST") == "h:7777"
    assert head.get("x-two") is None
    assert head.all("X-Two") == ("1", "2")
    assert head.get("absent") is None
    assert head.raw == GET
    assert "token" not in repr(head)
    assert isinstance(connection.next_event(), h11.EndOfMessage)


async def test_a_body_that_came_along_is_in_the_connection_already():
    _, connection = await head_of(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\n{}")

    assert bytes(connection.next_event().data) == b"{}"


async def test_the_same_head_however_its_bytes_are_cut():
    for cut in range(1, len(GET)):
        near, far = memory_stream_pair()
        async with trio.open_nursery() as nursery:

            async def feed(near=near, cut=cut):
                await near.send_all(GET[:cut])
                await trio.testing.wait_all_tasks_blocked()
                await near.send_all(GET[cut:])

            nursery.start_soon(feed)
            head, _ = await read_head(far)
        assert head.raw == GET
        assert head.method == "GET"


async def test_a_peer_that_leaves_without_a_byte_is_no_error():
    assert await head_of(b"") is None


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"\x16", "TLS"),
        (b"\x16\x03\x01\x02\x00\x01", "TLS"),
        *((bytes([byte]), "method") for byte in b'\0\r\n\x1f {\x7f\x80\xff(/:;<=>?@[]"'),
    ],
)
async def test_what_does_not_begin_with_a_method_is_refused_at_once(data, text, autojump_clock):
    started = trio.current_time()
    with pytest.raises(HeadError, match=text) as caught:
        await head_of(data, eof=False, deadline=10)
    assert caught.value.status == 400
    assert trio.current_time() == started


@pytest.mark.parametrize("byte", b"GX!#$%&'*+-.^_`|~09az")
async def test_what_may_begin_a_method_is_waited_for(byte, autojump_clock):
    with pytest.raises(HeadError) as caught:
        await head_of(bytes([byte]), eof=False, deadline=10)
    assert caught.value.status == 408


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET / HTTP/1.1\r\nHo", 400),
        (b"GARBAGE\r\n\r\n", 400),
        (b"\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: hést\r\n\r\n".encode(), 400),
        (b"GET / HTTP/1.1\r\nHost: h\r\nUpgrade: \xff\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: h\r\nX: a\nY: b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: h\r\nX: " + b"a" * 20_000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nX: " + b"a" * 70_000, 431),
    ],
)
async def test_what_is_no_head_is_refused_with_a_status(data, status):
    with pytest.raises(HeadError) as caught:
        await head_of(data)

    assert caught.value.status == status


async def test_the_limit_is_on_the_raw_head_even_when_its_last_chunk_completes_it():
    def sized(size):
        fixed = b"GET / HTTP/1.1\r\nHost: h\r\nX: \r\n\r\n"
        return fixed.replace(b"X: ", b"X: " + b"a" * (size - len(fixed)))

    head, _ = await head_of(sized(300), max_head=300)
    assert len(head.raw) == 300
    with pytest.raises(HeadError) as caught:
        await head_of(sized(301), max_head=300)
    assert caught.value.status == 431


async def test_a_head_that_does_not_come_in_time_is_a_timeout(autojump_clock):
    for data in (b"", b"GET / HTTP/1.1\r\n"):
        started = trio.current_time()
        with pytest.raises(HeadError) as caught:
            await head_of(data, eof=False, deadline=5)
        assert caught.value.status == 408
        assert trio.current_time() - started == 5


async def test_a_trickle_does_not_move_the_deadline(autojump_clock):
    near, far = memory_stream_pair()
    async with trio.open_nursery() as nursery:

        async def trickle():
            while True:
                await near.send_all(b"G")
                await trio.sleep(1)

        nursery.start_soon(trickle)
        with pytest.raises(HeadError) as caught:
            await read_head(far, deadline=5)
        nursery.cancel_scope.cancel()
    assert caught.value.status == 408


def test_a_head_that_is_not_complete_cannot_be_parsed():
    with pytest.raises(HeadError):
        parse_head(b"GET / HTTP/1.1\r\n")
