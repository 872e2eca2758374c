"""Pool.map: every item settled once, bounded both ways."""

import os
import signal

import pytest
import trio
import trio.testing

from trio_swarm.errors import ChildCrashed
from trio_swarm.pools import open_pool

JOBS = "tests.pools.jobs:"


async def test_five_hundred_jobs_on_two_workers(host):
    """Each settled exactly once."""
    async with open_pool(host, JOBS + "echo") as pool:
        async with pool.map(range(500)) as results:
            settled = [
                (item, outcome.value, outcome.kind, outcome.attempts) async for item, outcome in results
            ]
        assert sorted(settled) == [(i, i, "ok", 1) for i in range(500)]
        stats = pool.statistics()
        assert (stats.completed, stats.idle, stats.busy, stats.waiting) == (500, 2, 0, 0)


async def test_in_order(host):
    """The first item's job is the last to end, and the first to be told."""
    last = trio.Event()

    async def on_query(query):
        if query.prompt == "0":
            await last.wait()
        if query.prompt == "2":
            last.set()
        return query.prompt

    async with (
        open_pool(host, JOBS + "ask", on_query=on_query) as pool,
        pool.map(map(str, range(20)), ordered=True) as results,
    ):
        assert [outcome.value async for _, outcome in results] == [str(i) for i in range(20)]


@pytest.mark.parametrize("ordered", [False, True])
async def test_a_slow_consumer_stops_the_taking(host, ordered):
    """No more than `ahead` items are taken and not received."""
    taken = received = most = 0

    def items():
        nonlocal taken
        for i in range(40):
            taken += 1
            yield i

    async with (
        open_pool(host, JOBS + "echo") as pool,
        pool.map(items(), ordered=ordered, ahead=3) as results,
    ):
        while taken < 3:
            await trio.sleep(0.005)
        async for _ in results:
            received += 1
            # Everything that can go on without us does.
            await trio.testing.wait_all_tasks_blocked(0.003)
            most = max(most, taken - received)
    assert (taken, received) == (40, 40)
    assert most <= 3


async def test_outcomes_of_every_kind(host):
    """A poison item is an outcome; the others finish."""
    items = ["poison", 1, 2, None, 3, "poison", 4]
    async with open_pool(host, JOBS + "poison", max_attempts=2) as pool:
        async with pool.map(items, ordered=True) as results:
            outcomes = [outcome async for _, outcome in results]
        assert [one.kind for one in outcomes] == ["crashed", "ok", "ok", "error", "ok", "crashed", "ok"]
        assert [one.value for one in outcomes if one.kind == "ok"] == [2, 4, 6, 8]
        assert isinstance(outcomes[0].error, ChildCrashed)
        assert outcomes[0].attempts == 2
        assert isinstance(outcomes[3].error, TypeError)
        assert pool.statistics().crashed == 2


async def test_killing_workers_all_the_time_loses_nothing(host):
    """kill -9 of a busy worker at every tenth item: all the results are there."""
    async with open_pool(host, JOBS + "echo", max_attempts=50) as pool:
        settled = []
        async with pool.map(range(60)) as results:
            async for item, outcome in results:
                settled.append((item, outcome.value))
                if len(settled) % 10 == 0:
                    busy = [info.pid for info in pool.workers() if info.state == "busy"]
                    if busy:
                        os.kill(busy[0], signal.SIGKILL)
        assert sorted(settled) == [(i, i) for i in range(60)]


async def test_async_items_and_their_errors(host):
    """An async iterable is taken from as there is room; what it raises leaves the block."""

    async def items():
        yield 1
        await trio.sleep(0)
        yield 2
        raise LookupError("no more")

    async with open_pool(host, JOBS + "echo") as pool:

        async def take_all():
            async with pool.map(items()) as results:
                async for _ in results:
                    pass

        with pytest.raises(LookupError, match="no more"):
            await take_all()
        assert await pool.run(1) == 1


async def test_leaving_early(host):
    """What is under way is cancelled; the pool can be used on."""
    async with open_pool(host, JOBS + "echo") as pool:
        async with pool.map(iter(int, 1)) as results:
            async for _ in results:
                break
        assert await pool.run(5) == 5


async def test_no_items(host):
    """Nothing to do is done at once."""
    async with open_pool(host, JOBS + "echo") as pool, pool.map([]) as results:
        assert [one async for one in results] == []


async def test_something_closed_in_on_query_is_an_outcome(host):
    """It is not the pool that was left."""

    async def closed(query):
        raise trio.ClosedResourceError("a seat of its own")

    async with open_pool(host, JOBS + "ask", size=1, on_query=closed) as pool:
        async with pool.map(["x"]) as results:
            [(_, outcome)] = [each async for each in results]
        assert outcome.kind == "error"
        assert isinstance(outcome.error, trio.ClosedResourceError)
