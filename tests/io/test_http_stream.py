"""What the HTTP front knows of a connection before its first byte."""

from __future__ import annotations

import os
import socket
import struct

import pytest
import trio
from trio.testing import check_two_way_stream, memory_stream_pair, wait_all_tasks_blocked

from trio_swarm._io.http_stream import MAX_AHEAD, PushBackStream, peer_of, place_of_peer
from trio_swarm._io.unix import connect_unix, open_unix_listener


async def test_the_push_back_stream_is_a_stream() -> None:
    """By Trio's own contract suite for streams."""

    async def make():
        left, right = memory_stream_pair()
        return PushBackStream(left), PushBackStream(right)

    await check_two_way_stream(make, None)


async def test_what_is_pushed_back_comes_first() -> None:
    """In order, in as many reads as the reader likes."""
    left, right = memory_stream_pair()
    stream = PushBackStream(left)
    await right.send_all(b"cd")
    stream.push_back(b"ab")
    assert await stream.receive_some(1) == b"a"
    assert await stream.receive_some() == b"b"
    assert await stream.receive_some() == b"cd"


@pytest.mark.parametrize("reset", [False, True])
async def test_who_hangs_up_is_gone(reset) -> None:
    """What came before is received next."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        client = await trio.open_tcp_stream(*listener.socket.getsockname())
        stream = PushBackStream(await listener.accept())
    async with stream:
        async with client, trio.open_nursery() as nursery:
            nursery.start_soon(stream.wait_gone)
            await client.send_all(b"ahead")
            while not stream._again:
                await trio.lowlevel.checkpoint()
            assert len(nursery.child_tasks) == 1
            if reset:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            await client.aclose()
        assert await stream.receive_some() == b"ahead"


async def test_what_comes_ahead_is_bounded() -> None:
    """Who waits then waits on, and nothing is lost."""
    left, right = memory_stream_pair()
    stream, sent = PushBackStream(left), bytes(range(256)) * (2 * MAX_AHEAD // 256)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.wait_gone)
        await wait_all_tasks_blocked()
        for start in range(0, len(sent), MAX_AHEAD // 2):
            await right.send_all(sent[start : start + MAX_AHEAD // 2])
            await wait_all_tasks_blocked()
        await right.send_eof()
        await wait_all_tasks_blocked()
        assert len(nursery.child_tasks) == 1
        assert len(stream._again) == MAX_AHEAD
        nursery.cancel_scope.cancel()
    received = b""
    while piece := await stream.receive_some():
        received += piece
    assert received == sent


@pytest.mark.parametrize(("host", "place"), [("127.0.0.1", "loopback"), ("::1", "loopback")])
async def test_the_place_of_an_address(host, place) -> None:
    try:
        [listener] = await trio.open_tcp_listeners(0, host=host)
    except OSError:
        pytest.skip(f"no {host} here")
    async with listener:
        port = listener.socket.getsockname()[1]
        async with await trio.open_tcp_stream(host, port), await listener.accept() as accepted:
            assert (peer_of(accepted), place_of_peer(accepted)) == (host, place)


async def test_the_place_at_a_unix_socket_is_the_user(tmp_path) -> None:
    async with open_unix_listener(tmp_path / "s") as listener:
        async with await connect_unix(tmp_path / "s"), await listener.accept() as accepted:
            assert (peer_of(accepted), place_of_peer(accepted)) == ("", f"uid {os.geteuid()}")


async def test_what_has_no_address_is_one_place() -> None:
    left, _ = memory_stream_pair()
    assert (peer_of(left), place_of_peer(left)) == ("", "")
