"""Who must go for another that comes is told so once, and is gone at once."""

from __future__ import annotations

import ssl
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio
import trustme
from trio.testing import lockstep_stream_pair, wait_all_tasks_blocked

from tests.io.test_http_crowd import OPEN, PROVEN, accepted, ask, front, rest, status_of
from trio_swarm._io.http import FrontLimits
from trio_swarm._io.unix import connect_unix, open_unix_listener
from trio_swarm.limits import MAX_BODY

PATIENT = FrontLimits(hurried_deadline=30, head_deadline=30, send_deadline=30)
NO_REQUEST = b"no request\r\n\r\n"
FLOOD = 4 * MAX_BODY
"""What is read of a client that was refused and goes on sending."""


@asynccontextmanager
async def unix_front(tmp_path, **options):
    """Where no byte is under way: who has closed is seen by the next write."""
    connecting = partial(connect_unix, tmp_path / "s")
    async with (
        open_unix_listener(tmp_path / "s") as listener,
        front([listener], connecting, limits=PATIENT, **options) as connect,
    ):
        yield connect


class Wired(trio.abc.Listener):
    """Connections whose one end waits until the other reads: a socket always has room for an answer."""

    def __init__(self) -> None:
        self.connected, self.accepted = trio.open_memory_channel(0)

    async def connect(self) -> trio.abc.Stream:
        ours, theirs = lockstep_stream_pair()
        await self.connected.send(theirs)
        return ours

    async def accept(self) -> trio.abc.Stream:
        return await self.accepted.receive()

    async def aclose(self) -> None:
        await self.accepted.aclose()


async def test_an_answered_request_is_over() -> None:
    """More of them than half of the places, one after the other, on connections that stay."""
    async with front(max_connections=8, max_unproven=8) as connect:
        for stream in await accepted(connect, 6):
            assert status_of(await ask(stream, OPEN)) == 200


async def test_over_tls_a_refused_client_that_must_go_has_one_answer() -> None:
    """Where nothing that was sent says that it was the last."""
    authority = trustme.CA()
    ours, theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.issue_cert("127.0.0.1").configure_cert(ours)
    authority.configure_trust(theirs)
    [plain] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    listener = trio.SSLListener(plain, ours, https_compatible=True)

    async def connecting() -> trio.SSLStream:
        stream = await trio.open_tcp_stream(*plain.socket.getsockname())
        secure = trio.SSLStream(stream, theirs, server_hostname="127.0.0.1", https_compatible=True)
        await secure.do_handshake()
        return secure

    async with front([listener], connecting, PATIENT, max_connections=2, max_unproven=1) as connect:
        known, over = await connect(), await connect()
        assert status_of(await ask(known, PROVEN)) == 200
        said = await ask(over, NO_REQUEST)
        await wait_all_tasks_blocked(0.05)  # It is being heard out.
        assert status_of(await ask(await connect(), OPEN)) == 200
        said += await rest(over)
        assert (status_of(said), said.count(b"HTTP/1.1 ")) == (400, 1)


async def test_one_that_must_go_and_does_not_read_is_gone_soon(autojump_clock) -> None:
    """However long an answer may take where nobody needs the room."""
    listener = Wired()
    async with front([listener], listener.connect, PATIENT, max_connections=1) as connect:
        [over] = await accepted(connect, 1)
        began = trio.current_time()
        comes = await connect()
        with pytest.raises(trio.BrokenResourceError):
            await over.send_all(b"x")
        assert trio.current_time() - began < 0.25
        assert status_of(await ask(comes, OPEN)) == 200


async def test_one_that_is_being_heard_out_and_must_go_is_gone_at_once(tmp_path) -> None:
    """It was answered: that it may send on until it has read that is a courtesy."""
    async with unix_front(tmp_path, max_connections=2, max_unproven=1) as connect:
        known, over = await accepted(connect, 2)
        assert status_of(await ask(known, PROVEN)) == 200
        assert status_of(await ask(over, NO_REQUEST)) == 400
        await over.send_all(b"more of it")
        await wait_all_tasks_blocked(0.05)
        comes = await connect()
        assert status_of(await ask(comes, PROVEN)) == 200
        with pytest.raises(trio.BrokenResourceError):
            await over.send_all(b"more of it")


async def test_of_a_refused_flood_so_much_is_read_and_no_more(tmp_path) -> None:
    """Also of one that comes faster than the time for it passes."""
    sent, piece = 0, bytes(64 * 2**10)
    async with unix_front(tmp_path) as connect:
        [stream] = await accepted(connect, 1)
        await stream.send_all(NO_REQUEST)
        with pytest.raises(trio.BrokenResourceError):
            while sent < 2 * FLOOD:
                await stream.send_all(piece)
                sent += len(piece)
    # What its system took and nobody read is not much more than what a buffer holds.
    assert sent < FLOOD + 2**20
