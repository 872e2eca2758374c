"""A pair of ends of each transport, for the tests that all of them must pass."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import attrs
import trio

from trio_swarm._io.groups import collapse
from trio_swarm._io.head import read_head
from trio_swarm._io.lines import LineTransport
from trio_swarm._io.memory import memory_transport_pair
from trio_swarm._io.transport import Transport
from trio_swarm._io.ws import accept_ws, open_ws_client

TRANSPORTS = ("memory", "unix lines", "tcp lines", "websocket")
SOCKETS = TRANSPORTS[1:]


@attrs.define(eq=False)
class Pair:
    """Two ends, and a way to cut the right one as a killed process would."""

    left: Transport
    right: Transport
    cut_right: Callable[[], Awaitable[None]]


async def tcp_pair() -> tuple[trio.SocketStream, trio.SocketStream]:
    """Two ends of a real TCP connection with small kernel buffers."""
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        near = await trio.open_tcp_stream(*listener.socket.getsockname())
        far = await listener.accept()
    for stream in (near, far):
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
    return near, far


def unix_pair() -> tuple[trio.SocketStream, trio.SocketStream]:
    near, far = trio.socket.socketpair()
    for sock in (near, far):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
    return trio.SocketStream(near), trio.SocketStream(far)


@asynccontextmanager
async def open_pair(kind: str, *, max_message: int = 2**20, **options) -> AsyncIterator[Pair]:
    """A connected pair of ``kind``; everything is closed on leaving."""
    if kind == "memory":
        left, right = memory_transport_pair()
        left.max_message = right.max_message = max_message
        async with left, right:
            yield Pair(left, right, right.aclose_forcefully)
    elif kind == "websocket":
        async with _open_websocket(max_message, options) as pair:
            yield pair
    else:
        near, far = unix_pair() if kind == "unix lines" else await tcp_pair()

        async def cut() -> None:
            reset(far)
            await far.aclose()

        async with near, far:
            yield Pair(
                LineTransport(near, max_line=max_message), LineTransport(far, max_line=max_message), cut
            )


def reset(stream: trio.SocketStream) -> None:
    """Closing it from here on resets the connection instead of ending it."""
    if stream.socket.family == socket.AF_UNIX:
        return
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")


@asynccontextmanager
async def _open_websocket(max_message: int, options: dict) -> AsyncIterator[Pair]:
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]
    ready, finished, served = trio.Event(), trio.Event(), []

    async def serve() -> None:
        async with listener:
            stream = await listener.accept()
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        opened = await read_head(stream)
        assert opened is not None
        async with accept_ws(stream, opened[0].raw, max_message=max_message, **options) as right:
            served.extend((stream, right))
            ready.set()
            await finished.wait()

    with collapse():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            async with open_ws_client(f"ws://127.0.0.1:{port}/", max_message=max_message) as left:
                await ready.wait()
                stream, right = served

                async def cut() -> None:
                    reset(stream)
                    await trio.aclose_forcefully(stream)

                yield Pair(left, right, cut)
            finished.set()
