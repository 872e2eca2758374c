"""Replies that had arrived when their socket ended, in whatever way it did."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio
import trio.testing

from tests.io.hostile import CLOSE, TEXT, drain, frame, read_answer, read_until
from tests.operators.support import Events, Result, log_in, serving, socket_of
from trio_swarm._io.memory import memory_transport_pair
from trio_swarm._io.transport import Transport
from trio_swarm.operators import Seat

HEAD = (
    "GET /v1/operators/{sid}/ws HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    "Authorization: Bearer {token}\r\n\r\n"
)


class RawPeer:
    """An operator with the bytes in its hand."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream

    def now(self, data: bytes) -> None:
        """Give it to the system in this very moment: nobody else runs in between."""
        assert os.write(self.stream.socket.fileno(), data) == len(data)


@asynccontextmanager
async def raw_peer(server, login=None):
    """One operator that is logged in and connected, its seat, and its raw socket."""
    login = login or await log_in(server, roles=["main"])
    host = server.url.removeprefix("http://")
    name, _, port = host.rpartition(":")
    async with await trio.open_tcp_stream(name, int(port)) as stream:
        await stream.send_all(HEAD.format(sid=login.sid, token=login.token, host=host).encode())
        answer, _ = await read_answer(stream)
        assert b" 101 " in answer
        yield RawPeer(stream), await server.wait_seat("main")


def answers(req_ids: Sequence[str]) -> bytes:
    """A reply to each, with its own id as the value."""
    replies = ({"type": "answer", "req_id": req_id, "value": req_id} for req_id in req_ids)
    return b"".join(frame(TEXT, json.dumps(reply).encode()) for reply in replies)


@asynccontextmanager
async def asked(seat, count: int):
    """So many questions that wait; each is answered with its id in time, or the test fails."""
    results = [Result() for _ in range(count)]
    async with trio.open_nursery() as nursery:
        for result in results:
            nursery.start_soon(result.run, partial(seat.ask, "?", task_id="ST-1"))
        while len(seat.pending()) < count:
            await trio.lowlevel.checkpoint()
        req_ids = seat.pending()
        yield req_ids
        with trio.move_on_after(5):
            for result in results:
                await result.done.wait()
        nursery.cancel_scope.cancel()
    assert sorted(result.value or "" for result in results) == sorted(req_ids)


@pytest.mark.parametrize("steps", range(12))
@pytest.mark.parametrize("count", [1, 200])
async def test_replies_that_had_arrived_when_a_newer_socket_came_count(count, steps) -> None:
    """3.3: from either socket. ``steps`` puts them into each place on the way that there is:
    the system, the WebSocket, the link's queue. One more comes before the peer could know.
    """
    ours, _theirs = memory_transport_pair()
    async with serving() as server, raw_peer(server) as (peer, seat), trio.open_nursery() as nursery:
        async with asked(seat, count + 1) as req_ids:
            peer.now(answers(req_ids[1:]))
            for _ in range(steps):
                await trio.lowlevel.checkpoint()
            nursery.start_soon(seat.serve, ours)
            if not steps:
                with trio.fail_after(5):
                    while seat.statistics().delivery.sockets < 2:
                        await trio.lowlevel.checkpoint()
            peer.now(answers(req_ids[:1]))

        with trio.fail_after(1):
            goodbye = await closed_with(peer)
        assert goodbye == 4001
        assert seat.connected
        nursery.cancel_scope.cancel()


async def closed_with(peer: RawPeer) -> int:
    """Answer the server's close frame; its code."""
    got = await read_until(peer.stream, b"replaced by a newer connection")
    code = got[:-30][-2:]
    await peer.stream.send_all(frame(CLOSE, code))
    await drain(peer.stream)
    return int.from_bytes(code, "big")


@pytest.mark.parametrize("steps", range(6))
async def test_replies_that_had_arrived_when_the_server_cut_the_socket_count(steps) -> None:
    """As far as this end had read them."""
    async with serving() as server, raw_peer(server) as (peer, seat), asked(seat, 20) as req_ids:
        peer.now(answers(req_ids))
        # The last step of the way there, and the ones before: where nothing waits, nothing is lost.
        while not seat._open[1]._link.statistics().reads:
            await trio.lowlevel.checkpoint()
        for _ in range(steps):
            await trio.lowlevel.checkpoint()
        await server.disconnect("main")


@pytest.mark.parametrize("last", [b"", frame(CLOSE, b"\x03\xe8"), frame(CLOSE, b"\x03\xe8") + answers(["x"])])
async def test_replies_of_a_peer_that_closes_right_behind_them_count(last) -> None:
    """With a close frame, or without a word."""
    async with serving() as server, raw_peer(server) as (peer, seat), asked(seat, 200) as req_ids:
        peer.now(answers(req_ids) + last)
        await peer.stream.aclose()


async def test_what_was_queued_behind_a_write_that_never_ended_is_delivered_on_the_next_socket() -> None:
    """3.3, the original's gap: a frame that its operator never saw, because the socket died before it."""
    large = "x" * (15 * 2**20)
    async with serving() as server, trio.open_nursery() as nursery:
        login = await log_in(server, roles=["main"])
        results = [Result(), Result()]
        async with raw_peer(server, login) as (deaf, seat):
            for result, question in zip(results, (large, "behind it"), strict=True):
                nursery.start_soon(result.run, partial(seat.ask, question, task_id="ST-1"))
                await trio.testing.wait_all_tasks_blocked(0.01)
            waiting = seat.pending()
            assert seat.statistics().delivery.outstanding == 2
            await trio.aclose_forcefully(deaf.stream)
        while seat.connected:
            await trio.lowlevel.checkpoint()
        async with socket_of(server, login, max_size=None) as peer:
            frames = [await peer.next() for _ in results]
            for frame in frames:
                await peer.send(type="answer", req_id=frame["req_id"], value=len(frame["question"]))
            for result in results:
                await result.done.wait()

    assert tuple(frame["req_id"] for frame in frames) == waiting
    assert [result.value for result in results] == [len(large), len("behind it")]


class HalfBroken(Transport):
    """Nothing can be sent any more; what the peer said before it went is still to be read."""

    def __init__(self, seat: Seat) -> None:
        self.seat = seat
        self.broken = trio.Event()
        self.said = False
        self.closed = trio.Event()

    async def send_batch(self, messages: Sequence[str]) -> None:
        self.broken.set()
        raise trio.BrokenResourceError

    async def receive_batch(self) -> Sequence[str | bytes]:
        await self.broken.wait()
        await trio.testing.wait_all_tasks_blocked()
        if self.closed.is_set():
            raise trio.ClosedResourceError
        if self.said:
            return ()
        self.said = True
        return [
            json.dumps({"type": "answer", "req_id": req_id, "value": req_id})
            for req_id in self.seat.pending()
        ]

    async def aclose(self, code: int = 1000, reason: str = "", *, listening: bool = False) -> None:
        self.closed.set()
        await trio.lowlevel.checkpoint()


async def test_replies_are_read_after_writing_failed() -> None:
    """The reader has the last word."""
    seat = Seat("S-1", emit=Events())
    async with asked(seat, 3):
        await seat.serve(HalfBroken(seat))
    assert not seat.connected


class Mute(HalfBroken):
    """Nothing can be sent, and reading never ends by itself."""

    async def receive_batch(self) -> Sequence[str | bytes]:
        await self.closed.wait()
        raise trio.ClosedResourceError


async def test_a_socket_that_only_cannot_write_ends_soon(autojump_clock) -> None:
    """The reader's last word is waited for within the closing deadline."""
    seat = Seat("S-1", emit=Events())
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(seat.ask, "?", task_id="ST-1"))
            await trio.testing.wait_all_tasks_blocked()
            with trio.fail_after(5):
                await seat.serve(Mute(seat))
            scope.cancel()
    assert not seat.connected


class Hesitant(Mute):
    """Its peer's last word is there when this end has just given up waiting for it."""

    def __init__(self, seat: Seat) -> None:
        super().__init__(seat)
        self.asked = 0

    def take_arrived(self) -> Sequence[str | bytes]:
        self.asked += 1
        if self.asked != 2:
            return ()
        replies = ({"type": "answer", "req_id": req_id, "value": req_id} for req_id in self.seat.pending())
        return [json.dumps(reply) for reply in replies]


async def test_replies_that_came_while_the_socket_was_given_up_count(autojump_clock) -> None:
    """The link reads no more, and nobody says farewell to a socket that cannot write."""
    seat = Seat("S-1", emit=Events())
    transport = Hesitant(seat)
    async with asked(seat, 3):
        await seat.serve(transport)
    assert transport.asked == 2
