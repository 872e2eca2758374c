"""Many requests at once, replies in any order, sockets cut at random: nothing lost or doubled."""

from __future__ import annotations

import random
from collections import Counter
from contextlib import suppress
from functools import partial

import pytest
import trio
from websockets.exceptions import ConnectionClosed

from tests.operators.support import Events, log_in, seated, serving, socket_of
from trio_swarm.errors import PeerGoneError
from trio_swarm.operators import Reconnect, connect_operator

QUICK = Reconnect(first=0.001, longest=0.01, give_up_after=20.0)


async def test_two_hundred_spawns_on_one_socket_are_answered_in_shuffled_order() -> None:
    """8.7: each asker gets its own reply."""
    rng = random.Random(3)
    results: dict[int, object] = {}
    async with seated() as (_, seat, peer, _login), trio.open_nursery() as nursery:

        async def one(number: int) -> None:
            result = await seat.spawn(task_id=f"ST-{number}", agent="a", attempt=1, directive="d")
            results[number] = result.value

        for number in range(200):
            nursery.start_soon(one, number)
        frames = [await peer.next() for _ in range(200)]
        rng.shuffle(frames)
        for frame in frames:
            await peer.send(type="spawn_ack", req_id=frame["req_id"], value=frame["task_id"])

    assert results == {number: f"ST-{number}" for number in range(200)}


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_forty_cuts_during_four_hundred_requests_lose_nothing_and_double_nothing(seed) -> None:
    """Sockets are cut from the server's side at random moments; the client comes back each time."""
    rng = random.Random(seed)
    shown: Counter[str] = Counter()
    results: dict[int, object] = {}
    done = trio.Event()
    async with (
        serving() as server,
        connect_operator(server.url, roles=["main"], reconnect=QUICK, rng=rng) as client,
    ):
        seat = await server.wait_seat("main")

        async def operator() -> None:
            held = []
            async for request in client:
                shown[request.req_id] += 1
                held.append(request)
                if len(held) > rng.randrange(6) or len(shown) >= 390:
                    rng.shuffle(held)
                    for each in held:
                        each.answer(each.question)
                    held.clear()

        async def asker(number: int, slots: trio.Semaphore) -> None:
            async with slots:
                results[number] = await seat.ask(number, task_id=f"ST-{number}")

        async def cutter() -> None:
            for cut in range(40):
                while len(results) < cut * 9:
                    await trio.sleep(0.001)
                await seat.wait_connected()
                await trio.sleep(rng.uniform(0, 0.005))
                await server.disconnect("main")
            done.set()

        async with trio.open_nursery() as background:
            background.start_soon(operator)
            slots = trio.Semaphore(32)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(cutter)
                for number in range(400):
                    nursery.start_soon(asker, number, slots)
            background.cancel_scope.cancel()
        counts = seat.statistics()

    assert done.is_set()
    assert results == {number: number for number in range(400)}
    assert set(shown.values()) == {1}
    assert len(shown) == 400
    assert counts.replies.accepted == 400
    assert counts.delivery.outstanding == 0
    assert counts.delivery.sockets >= 40


async def test_requests_given_up_at_random_leave_nothing_behind() -> None:
    """Cancelled before, while and after they are delivered, across cuts."""
    rng = random.Random(11)
    ended: Counter[str] = Counter()
    async with (
        serving() as server,
        connect_operator(server.url, roles=["main"], reconnect=QUICK, rng=rng) as client,
    ):
        seat = await server.wait_seat("main")

        async def operator() -> None:
            async for item in client:
                if hasattr(item, "answer") and rng.random() < 0.7:
                    item.answer(1)

        async def asker(patience: float) -> None:
            with trio.move_on_after(patience) as scope:
                await seat.ask(1, task_id="t")
            ended["gave up" if scope.cancelled_caught else "answered"] += 1

        async def cutter() -> None:
            while True:
                await trio.sleep(0.01)
                await server.disconnect("main")

        async with trio.open_nursery() as background:
            background.start_soon(operator)
            background.start_soon(cutter)
            async with trio.open_nursery() as nursery:
                for _ in range(200):
                    nursery.start_soon(asker, rng.uniform(0, 0.2))
            background.cancel_scope.cancel()
        counts = seat.statistics()
        assert seat.pending() == ()

    assert sum(ended.values()) == 200
    assert counts.delivery.outstanding == 0
    assert counts.replies.accepted >= ended["answered"]


async def test_one_hostile_operator_changes_nothing_for_another() -> None:
    """It floods, sends garbage, does not read and comes again; the other is served all the while."""
    events = Events()
    async with serving(events) as server, trio.open_nursery() as nursery:
        hostile = await log_in(server, roles=["hostile"])

        async def misbehave() -> None:
            while True:
                with suppress(ConnectionClosed):  # Too many of these close the socket.
                    async with socket_of(server, hostile) as peer:
                        for number in range(200):
                            await peer.raw(f'{{"type":"answer","req_id":"{number}","value":[[[')
                            await peer.send(type="answer", req_id="x" * 1000, value=number)

        nursery.start_soon(misbehave)
        async with connect_operator(server.url, roles=["good"], reconnect=QUICK) as client:
            seat = await server.wait_seat("good")

            async def operator() -> None:
                async for request in client:
                    request.answer(request.question)

            nursery.start_soon(operator)
            for number in range(100):
                with trio.fail_after(5):
                    assert await seat.ask(number, task_id="t") == number
            assert client.connections == 1
            nursery.cancel_scope.cancel()
    assert all(len(str(event["req_id"])) <= 200 for event in events.of("reply_stray"))


async def test_a_server_that_leaves_in_the_middle_of_everything() -> None:
    """Every asker is told, the operator's iteration ends, nothing hangs."""
    gone = Counter()

    async def asker(seat) -> None:
        try:
            await seat.ask(1, task_id="t")
        except PeerGoneError:
            gone["asker"] += 1

    hurry = Reconnect(first=0.01, longest=0.02, give_up_after=0.2)
    async with trio.open_nursery() as nursery:
        started = await nursery.start(partial(_short_lived, asker, nursery))
        async with connect_operator(started, roles=["main"], reconnect=hurry) as client:
            with pytest.raises(PeerGoneError):
                await to_the_end(client)
    assert gone["asker"] == 50


async def to_the_end(client) -> None:
    async for _ in client:
        continue


async def _short_lived(asker, nursery, *, task_status) -> None:
    async with serving() as server:
        task_status.started(server.url)
        seat = await server.wait_seat("main")
        for _ in range(50):
            nursery.start_soon(asker, seat)
        await trio.testing.wait_all_tasks_blocked(0.02)
