"""One operator that misbehaves changes nothing for another, and little for itself."""

from __future__ import annotations

from functools import partial

import pytest
import trio
from websockets.exceptions import ConnectionClosed

from tests.operators.support import Events, Result, log_in, seated, serving, socket_of
from tests.operators.test_receipts import opened
from trio_swarm.operators import connect_operator

STEP = {"task_id": "ST-1", "agent": "coder", "attempt": 1}


async def until_closed(peer) -> tuple[int, str]:
    with pytest.raises(ConnectionClosed) as closed:
        while True:
            await peer.next()
    assert closed.value.rcvd is not None
    return closed.value.rcvd.code, closed.value.rcvd.reason


async def test_too_many_malformed_frames_close_the_socket_and_not_the_session() -> None:
    """1008 and a reason; what waits is delivered on the next socket."""
    events = Events()
    async with seated(events, max_malformed=5) as (server, seat, peer, login), trio.open_nursery() as nursery:
        result = Result()
        nursery.start_soon(result.run, partial(seat.ask, "?", task_id="t"))
        asked = await peer.next()
        for _ in range(5):
            await peer.raw("junk")
        assert await (await peer.ws.ping()).wait() is None
        assert seat.connected
        await peer.raw('{"type":"novelty"}')
        assert await until_closed(peer) == (1008, "too many messages that are no frames")
        assert events.of("operator_malformed") == [{"sid": login.sid, "name": "main"}]

        async with socket_of(server, login) as again:
            assert (await again.next())["req_id"] == asked["req_id"]
            await again.send(type="answer", req_id=asked["req_id"], value="fine")
            await result.done.wait()
        assert result.value == "fine"


async def test_a_new_socket_does_not_bring_a_new_allowance() -> None:
    """It is the session's; else a flood would only have to reconnect."""
    async with serving(max_malformed=3) as server:
        login = await log_in(server)
        async with socket_of(server, login) as peer:
            for _ in range(3):
                await peer.raw("junk")
            await (await peer.ws.ping()).wait()
        async with socket_of(server, login) as peer:
            await peer.raw("junk")
            assert (await until_closed(peer))[0] == 1008


async def test_three_hostile_operators_beside_a_good_one() -> None:
    """One never reads, one floods what is no frame, one floods replies to nothing with receipts
    asked for; the good one is served between any two steps of theirs."""
    events = Events()
    async with serving(events) as server, trio.open_nursery() as nursery:
        mute, junk, unknown = [await log_in(server, roles=[role]) for role in ("mute", "junk", "unknown")]
        async with connect_operator(server.url, roles=["good"]) as client:
            good = await server.wait_seat("good")

            async def operator() -> None:
                async for request in client:
                    request.answer(request.question)

            async def still_good(number) -> None:
                with trio.fail_after(10):
                    assert await good.ask(number, task_id="t") == number

            nursery.start_soon(operator)
            async with (
                await trio.open_tcp_stream(*_address(server)) as stream,
                socket_of(server, junk) as flood,
                opened(server, unknown, "header") as replies,
            ):
                await stream.send_all(_upgrade(server, mute))
                never_reads = await server.wait_seat("mute")
                for number in range(40):
                    # More than the buffers between us hold: its writer blocks.
                    nursery.start_soon(partial(never_reads.ask, "x" * 2**20, task_id="t"))
                    await still_good(number)
                for number in range(200):
                    try:
                        await flood.raw("[" * 1000)
                    except ConnectionClosed:
                        break
                    await still_good(number)
                else:
                    raise AssertionError("the flood was never stopped")
                for number in range(300):
                    await replies.send(type="answer", req_id=f"{number}", value=None)
                    if number % 10 == 0:
                        await still_good(number)
                said = [await replies.next() for _ in range(300)]
                assert {frame["reason"] for frame in said} == {"unknown"}
                assert server.seat("unknown").connected
            assert client.connections == 1
            nursery.cancel_scope.cancel()
    # Told up to a point, so that nobody's events are pushed out; counted all the same.
    assert 100 <= len(events.of("reply_stray")) <= 125


def _address(server) -> tuple[str, int]:
    host, port = server.url.removeprefix("http://").split(":")
    return host, int(port)


def _upgrade(server, login) -> bytes:
    return (
        f"GET /v1/operators/{login.sid}/ws HTTP/1.1\r\nHost: {server.url.removeprefix('http://')}\r\n"
        f"Connection: Upgrade\r\nUpgrade: websocket\r\nAuthorization: Bearer {login.token}\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    ).encode()


async def test_a_notice_that_no_socket_can_carry_is_told_of() -> None:
    """It was dropped without a word before; its seat goes on."""
    events = Events()
    async with seated(events, max_frame=64 * 1024) as (_, seat, peer, _login):
        seat.hook_after(**STEP, result="x" * 2**20)
        seat.hook_after(**STEP, result="small")
        assert (await peer.next())["result"] == "small"
        assert len(events.of("notice_dropped")) == 1


async def test_receipts_and_requests_share_a_busy_socket() -> None:
    """Neither waits until the other has nothing more to say."""
    async with serving() as server, trio.open_nursery() as nursery:
        login = await log_in(server)
        async with opened(server, login, "header") as peer:
            seat = await server.wait_seat()
            for number in range(50):
                nursery.start_soon(Result().run, partial(seat.ask, number, task_id="t"))
            settled = 0
            while settled < 50:
                frame = await peer.next()
                if frame["type"] == "ask":
                    await peer.send(type="answer", req_id=frame["req_id"], value=1)
                else:
                    assert (frame["type"], frame["accepted"]) == ("receipt", True)
                    settled += 1
