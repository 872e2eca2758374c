"""Pongs beneath trio-websocket: reading never waits for them, and they are never many."""

from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import lockstep_stream_pair, wait_all_tasks_blocked

from tests.io.hostile import CLOSE, GOOD_HEAD, PING, PONG, TEXT, drain, frame, read_answer, read_until
from tests.io.links import unix_pair
from trio_swarm._io import ws
from trio_swarm._io.head import read_head
from trio_swarm._io.link import open_link
from trio_swarm._io.ws import accept_ws
from trio_swarm.errors import SlowPeerError
from trio_swarm.frames import ServerMsg
from trio_swarm.frames.operator import Ask
from trio_swarm.limits import SEND_DEADLINE


@asynccontextmanager
async def accepted(**options):
    """A transport, and its raw peer on a stream that holds nothing: a write waits for its read."""
    near, far = lockstep_stream_pair()
    async with trio.open_nursery() as nursery, far:
        heads = []

        async def answer():
            heads.append(await read_answer(far))

        nursery.start_soon(answer)
        async with accept_ws(near, GOOD_HEAD, **options) as transport:
            await wait_all_tasks_blocked()
            assert heads
            yield transport, far
            nursery.cancel_scope.cancel()


async def send_one(transport, text):
    await transport.send_batch([text])


async def test_a_ping_is_read_over_while_data_is_being_written():
    """The newest one is answered, when the data is out (RFC 6455, 5.5.3)."""
    async with accepted() as (transport, peer), trio.open_nursery() as nursery:
        nursery.start_soon(send_one, transport, "x" * 1000)
        await wait_all_tasks_blocked()
        for payload in (b"1", b"2", b"3"):
            await peer.send_all(frame(PING, payload))
            await wait_all_tasks_blocked()
        await peer.send_all(frame(TEXT, b"hello"))
        with trio.fail_after(1):
            assert await transport.receive_batch() == ["hello"]

        with trio.fail_after(1):
            got = await read_until(peer, frame(PONG, b"3", mask=None))
        assert got.startswith(frame(TEXT, b"x" * 1000, mask=None))
        assert got.endswith(b"x" + frame(PONG, b"3", mask=None))


async def test_a_ping_is_read_over_when_its_pong_cannot_leave():
    """Nothing else is written; the peer just does not read."""
    async with accepted() as (transport, peer):
        await peer.send_all(frame(PING, b"1"))
        await wait_all_tasks_blocked()
        await peer.send_all(frame(TEXT, b"hello"))
        with trio.fail_after(1):
            assert await transport.receive_batch() == ["hello"]
            await read_until(peer, frame(PONG, b"1", mask=None))


async def test_a_ping_is_read_over_while_our_own_waits_to_be_written(autojump_clock):
    """Behind data that the peer does not take: it is one more that wants to write."""
    async with accepted(ping_every=1) as (transport, peer), trio.open_nursery() as nursery:
        nursery.start_soon(send_one, transport, "x" * 1000)
        await trio.sleep(3.5)
        await peer.send_all(frame(PING, b"1"))
        await wait_all_tasks_blocked()
        await peer.send_all(frame(TEXT, b"hello"))
        with trio.fail_after(1):
            assert await transport.receive_batch() == ["hello"]
            got = await read_until(peer, frame(PING, b"trio-swarm", mask=None))
        assert frame(PONG, b"1", mask=None) in got
        assert got.count(b"trio-swarm") == 1


async def test_pings_of_a_peer_that_does_not_read_leave_one_pong_behind():
    """Beside the one that is being written: a flood is read over and not kept."""
    async with accepted() as (transport, peer):
        for number in range(500):
            await peer.send_all(b"".join(frame(PING, b"%d" % (10 * number + each)) for each in range(10)))
        await peer.send_all(frame(TEXT, b"the end"))
        with trio.fail_after(5):
            assert await transport.receive_batch() == ["the end"]

            got = await read_until(peer, frame(PONG, b"4999", mask=None))
        assert len(got) <= 2 * len(frame(PONG, b"4999", mask=None))


async def test_a_peer_that_never_takes_its_pong_is_dropped(autojump_clock):
    """After the send deadline, also when nobody sends anything else."""
    async with accepted() as (transport, peer):
        await peer.send_all(frame(PING, b"1"))
        began = trio.current_time()
        with pytest.raises(SlowPeerError):
            await transport.receive_batch()
        assert trio.current_time() - began == pytest.approx(SEND_DEADLINE)


async def test_no_pong_follows_a_close_frame():
    """Section 5.5.1; and pings behind it do not end the closing early."""
    async with accepted() as (transport, peer), trio.open_nursery() as nursery:
        nursery.start_soon(transport.aclose)
        await peer.send_all(frame(PING, b"1") * 100)
        with trio.fail_after(1):
            got = b""
            while data := await peer.receive_some():
                got += data
                if got.startswith(b"\x88"):
                    await peer.send_all(frame(8, b"\x03\xe8"))
        assert got == frame(8, b"\x03\xe8", mask=None)


@asynccontextmanager
async def both_ends(monkeypatch, **options):
    """A client's and a server's transport over a socket pair with small buffers."""
    near, far = unix_pair()

    async def connect(address, ssl_context):
        return near

    monkeypatch.setattr(ws, "connect", connect)
    finished = trio.Event()
    async with trio.open_nursery() as nursery:

        async def serve(task_status):
            opened = await read_head(far)
            assert opened is not None
            async with accept_ws(far, opened[0].raw, **options) as transport:
                task_status.started(transport)
                await finished.wait()

        async def open_server(servers):
            servers.append(await nursery.start(serve))

        servers = []
        nursery.start_soon(open_server, servers)
        async with ws.open_ws_client("ws://peer/", **options) as client:
            while not servers:
                await trio.lowlevel.checkpoint()
            yield client, servers[0]
        finished.set()


async def test_two_saturated_peers_that_ping_each_other_both_get_everything(monkeypatch):
    """Each one's buffers are full in both directions; neither is slow."""
    frames = [Ask(f"r{number}", "ST-1", "x" * 2**18) for number in range(40)]

    async def take(link, got):
        while len(got) < len(frames):
            got += [item.req_id for item in await link.receive_many()]

    async with (
        both_ends(monkeypatch, ping_every=0.001) as (client, server),
        open_link(client, ServerMsg, send_deadline=2) as left,
        open_link(server, ServerMsg, send_deadline=2) as right,
    ):
        at_left, at_right = [], []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(left.send_many, frames)
            nursery.start_soon(right.send_many, frames)
            nursery.start_soon(take, left, at_left)
            nursery.start_soon(take, right, at_right)
        assert at_left == at_right == [each.req_id for each in frames]


async def test_a_peer_that_says_goodbye_first_gets_its_answer():
    """However soon this end closes behind it: the connection is cut only when the answer is out."""
    async with accepted() as (transport, peer), trio.open_nursery() as nursery:
        nursery.start_soon(send_one, transport, "x")
        await wait_all_tasks_blocked()  # It is being written: this stream holds nothing.
        await peer.send_all(frame(CLOSE, b"\x03\xe8"))
        await wait_all_tasks_blocked()  # The answer waits for that.
        nursery.start_soon(transport.aclose)
        await wait_all_tasks_blocked()
        with trio.fail_after(2):
            got = await drain(peer)
        assert got == frame(TEXT, b"x", mask=None) + frame(CLOSE, b"\x03\xe8", mask=None)
