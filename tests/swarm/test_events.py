"""Events: numbered, bounded per subscriber, and never felt by the swarm."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from trio_swarm.swarm.events import EventHub


async def test_events_arrive_in_order_and_numbered() -> None:
    """A subscriber sees every event from its subscription on, numbered without a gap."""
    hub = EventHub()
    hub.emit("before", {})
    with hub.subscribe() as events:
        hub.emit("a", {"n": 1})
        hub.emit("b", {"n": 2})
        hub.close()
        seen = [(event.seq, event.kind, event.data) async for event in events]

    assert seen == [(2, "a", {"n": 1}), (3, "b", {"n": 2})]


async def test_a_slow_subscriber_loses_the_oldest_and_sees_the_gap() -> None:
    """drop_oldest keeps the newest events; the gap shows in seq and in lost."""
    hub = EventHub()
    with hub.subscribe(capacity=2) as slow, hub.subscribe() as quick:
        for n in range(5):
            hub.emit("tick", {"n": n})
        hub.close()

        assert [event.seq async for event in slow] == [4, 5]
        assert slow.lost == 3
        assert [event.seq async for event in quick] == [1, 2, 3, 4, 5]


async def test_close_ends_the_overflowing_subscription_only() -> None:
    """overflow="close": what was buffered is still readable, then the iteration ends."""
    hub = EventHub()
    with hub.subscribe(capacity=1, overflow="close") as events:
        for _ in range(3):
            hub.emit("tick", {})

        assert [event.seq async for event in events] == [1]


async def test_a_waiting_reader_wakes_and_a_cancelled_one_loses_nothing() -> None:
    """Cancelling a waiting reader leaves the next event for the next read."""
    hub = EventHub()
    with hub.subscribe() as events:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(events.__anext__)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        hub.emit("later", {})

        assert (await events.__anext__()).kind == "later"


async def test_reading_is_a_checkpoint() -> None:
    """Reading a buffered event yields to the scheduler and honours cancellation."""
    hub = EventHub()
    with hub.subscribe() as events:
        hub.emit("x", {})
        with trio.testing.assert_checkpoints():
            await events.__anext__()
        hub.emit("y", {})
        with trio.CancelScope() as scope:
            scope.cancel()
            await events.__anext__()

        assert scope.cancelled_caught
        assert (await events.__anext__()).kind == "y"


@pytest.mark.parametrize(
    ("kwargs", "word"), [({"capacity": 0}, "capacity"), ({"overflow": "spill"}, "spill")]
)
def test_wrong_arguments_are_named(kwargs, word) -> None:
    """A wrong capacity or policy is a ValueError that names it."""
    with pytest.raises(ValueError, match=word), EventHub().subscribe(**kwargs):
        raise AssertionError("not reached")


async def test_two_readers_share_the_events(autojump_clock):
    """Neither waits for ever because of the other."""
    hub, read = EventHub(), []

    async def reads(events):
        async for event in events:
            read.append(event.seq)

    with hub.subscribe() as events, trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(reads, events)
            nursery.start_soon(reads, events)
            await trio.testing.wait_all_tasks_blocked()
            hub.emit("a", {})
            hub.emit("b", {})
            await trio.testing.wait_all_tasks_blocked()
            hub.close()
    assert sorted(read) == [1, 2]
