"""What an operator is told before its socket is closed from this end."""

from __future__ import annotations

import pytest
import trio
from websockets.exceptions import ConnectionClosed

from tests.operators.support import Peer, log_in, seated, serving, socket_of

NOTICE = {"task_id": "ST-1", "agent": "coder", "attempt": 1}


async def to_the_end(peer: Peer) -> tuple[list[dict], int, str]:
    frames = []
    try:
        while True:
            frames.append(await peer.next())
    except ConnectionClosed as closed:
        assert closed.rcvd is not None
        return frames, closed.rcvd.code, closed.rcvd.reason


async def test_a_withdrawal_in_the_last_moment_comes_before_the_close() -> None:
    """The asker is cancelled and the session ends in one step: no writer ran in between."""
    async with seated() as (_, seat, peer, _login), trio.open_nursery() as nursery:

        async def asker(scope: trio.CancelScope) -> None:
            with scope:
                try:
                    await seat.ask("?", task_id="ST-1")
                finally:
                    seat.hook_after(**NOTICE, result="last")
                    seat._close("the server is going away", code=1001)

        scope = trio.CancelScope()
        nursery.start_soon(asker, scope)
        asked = await peer.next()
        scope.cancel()
        frames, code, reason = await to_the_end(peer)

    assert [(frame["type"], frame.get("reason")) for frame in frames] == [
        ("withdraw", "cancelled"),
        ("hook_after", None),
    ]
    assert frames[0]["req_id"] == asked["req_id"]
    assert (code, reason) == (1001, "the server is going away")


async def test_an_operator_sees_the_withdrawal_and_then_that_the_server_goes() -> None:
    """The same at the end of the server's own block."""
    told = []
    async with trio.open_nursery() as outer:
        async with serving() as server:
            login = await log_in(server)
            listening = trio.Event()

            async def operator() -> None:
                async with socket_of(server, login) as peer:
                    told.append(await peer.next())
                    listening.set()
                    told.append(await to_the_end(peer))

            outer.start_soon(operator)
            seat = await server.wait_seat(login.sid)
            async with trio.open_nursery() as nursery:

                async def asker() -> None:
                    await seat.ask("?", task_id="ST-1")

                nursery.start_soon(asker)
                await listening.wait()
                nursery.cancel_scope.cancel()
    asked, (frames, code, reason) = told

    assert [(frame["type"], frame["req_id"]) for frame in frames] == [("withdraw", asked["req_id"])]
    assert (code, reason) == (1001, "the server is going away")


@pytest.mark.parametrize("written", [False, True])
async def test_a_notice_is_not_told_twice_by_a_close(written) -> None:
    """Whether the writer has had it or not."""
    async with seated() as (_, seat, peer, _login):
        seat.hook_after(**NOTICE, result=1)
        for _ in range(3 if written else 0):
            await trio.lowlevel.checkpoint()
        seat._close("over")
        frames, code, _ = await to_the_end(peer)

    assert [frame["result"] for frame in frames] == [1]
    assert code == 1000


async def test_a_notice_is_not_told_twice_when_it_is_written_as_the_seat_closes(monkeypatch) -> None:
    """The end comes between the write and the writer's word that it was done."""
    async with seated() as (_, seat, peer, _login):
        (socket,) = seat._open.values()
        flush = socket._link.flush

        async def flush_and_close() -> None:
            await flush()
            seat._close("over")

        monkeypatch.setattr(socket._link, "flush", flush_and_close)
        seat.hook_after(**NOTICE, result=1)
        frames, code, _ = await to_the_end(peer)

    assert [frame["result"] for frame in frames] == [1]
    assert code == 1000
