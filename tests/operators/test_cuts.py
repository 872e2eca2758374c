"""With an operator that is not of this library: a thousand at once, and a socket that is cut all the time."""

from __future__ import annotations

import random
from collections import Counter

import pytest
import trio
from websockets.exceptions import ConnectionClosed

from tests.operators.support import log_in, seated, serving, socket_of


async def test_a_thousand_spawns_on_one_socket_are_answered_in_shuffled_order() -> None:
    """8.7: each asker gets its own reply, and nobody two."""
    rng = random.Random(3)
    results: dict[int, object] = {}
    async with seated() as (_, seat, peer, _login), trio.open_nursery() as nursery:

        async def one(number: int) -> None:
            result = await seat.spawn(task_id=f"ST-{number}", agent="a", attempt=1, directive="d")
            assert number not in results
            results[number] = result.value

        for number in range(1000):
            nursery.start_soon(one, number)
        frames = [await peer.next() for _ in range(1000)]
        assert len({frame["req_id"] for frame in frames}) == 1000
        assert len(seat.pending()) == 1000
        rng.shuffle(frames)
        for frame in frames:
            await peer.send(type="spawn_ack", req_id=frame["req_id"], value=frame["task_id"])

    assert results == {number: f"ST-{number}" for number in range(1000)}
    assert seat.statistics().replies.accepted == 1000
    assert seat.pending() == ()


class Scripted:
    """An operator that decides once on each request and remembers it; its sockets come and go."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.decided: dict[str, object] = {}
        self.delivered: Counter[str] = Counter()
        self.held: dict[str, object] = {}
        self.total = 2000

    async def sit(self, server, login) -> None:
        """Take the seat again and again."""
        while True:
            try:
                async with socket_of(server, login) as peer:
                    await self.work(peer)
            except (ConnectionClosed, trio.BrokenResourceError):
                continue

    async def work(self, peer) -> None:
        self.held.clear()
        while True:
            frame = await peer.next()
            req_id = frame["req_id"]
            self.delivered[req_id] += 1
            # A number of its own tells a second decision from the first.
            self.decided.setdefault(req_id, [frame["question"], len(self.decided)])
            self.held[req_id] = self.decided[req_id]
            if len(self.held) > self.rng.randrange(8) or len(self.decided) > self.total - 40:
                for each in self.rng.sample(sorted(self.held), len(self.held)):
                    await peer.send(type="answer", req_id=each, value=self.held.pop(each))
                    if self.rng.random() < 0.02:
                        await peer.ws.stream.aclose()  # Cut from this end, in the middle of it.


@pytest.mark.parametrize("seed", [1, 2])
async def test_two_hundred_cuts_during_two_thousand_requests(seed) -> None:
    """From both ends, at any moment: nothing lost, nothing answered twice."""
    rng = random.Random(seed)
    operator = Scripted(rng)
    results: dict[int, object] = {}
    cuts = 0
    async with serving() as server:
        login = await log_in(server)
        seat = server.seat(login.sid)

        async def asker(number: int, slots: trio.Semaphore) -> None:
            async with slots:
                answer = await seat.ask(number, task_id=f"ST-{number}")
                assert number not in results
                results[number] = answer

        async def cutter() -> None:
            nonlocal cuts
            for cut in range(200):
                while len(results) < cut * 9:
                    await trio.sleep(0.001)
                await seat.wait_connected()
                for _ in range(rng.randrange(30)):
                    await trio.lowlevel.checkpoint()
                await server.disconnect(login.sid)
                cuts += 1

        async with trio.open_nursery() as background:
            background.start_soon(operator.sit, server, login)
            slots = trio.Semaphore(32)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(cutter)
                for number in range(2000):
                    nursery.start_soon(asker, number, slots)
            background.cancel_scope.cancel()
        counts = seat.statistics()

    assert cuts == 200
    assert {number: answer[0] for number, answer in results.items()} == {n: n for n in range(2000)}
    # The one decision on each request is the one that its asker got.
    assert len(operator.decided) == 2000
    assert sorted(answer[1] for answer in results.values()) == list(range(2000))
    assert counts.replies.accepted == 2000
    assert counts.delivery.outstanding == 0
    assert counts.delivery.sockets >= 200
    assert counts.redelivered > 0
    assert sum(operator.delivered.values()) <= 2000 + counts.redelivered
