"""What the HTTP front knows of a connection before its first byte."""

from __future__ import annotations

import os

import pytest
import trio
from trio.testing import check_two_way_stream, memory_stream_pair

from trio_swarm._io.http_stream import PushBackStream, peer_of, place_of_peer
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


@pytest.mark.parametrize(("host", "place"), [("127.0.0.1", "127.0.0.1"), ("::1", "::/64")])
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
