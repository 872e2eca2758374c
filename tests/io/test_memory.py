"""A pair of transports in memory keeps the promises of one over a socket."""

import pytest
import trio
import trio.testing

from trio_swarm._io.memory import memory_transport_pair


async def test_batches_arrive_in_order_both_ways():
    left, right = memory_transport_pair()
    await left.send_batch(["a", "b"])
    await left.send_batch(["c"])
    await right.send_batch(["d"])

    assert await right.receive_batch() == ("a", "b")
    assert await right.receive_batch() == ("c",)
    assert await left.receive_batch() == ("d",)
    assert (left.writes, left.reads) == (2, 1)


async def test_what_was_sent_before_a_clean_close_still_arrives():
    left, right = memory_transport_pair()
    await left.send_batch(["last"])
    await left.aclose()

    assert await right.receive_batch() == ("last",)
    assert await right.receive_batch() == ()
    with pytest.raises(trio.BrokenResourceError):
        await right.send_batch(["x"])


async def test_a_cut_is_told_from_a_clean_end():
    left, right = memory_transport_pair()
    await left.aclose_forcefully()

    with pytest.raises(trio.BrokenResourceError):
        await right.receive_batch()


async def test_sending_waits_for_a_peer_that_does_not_receive(autojump_clock):
    left, _ = memory_transport_pair(batches=1)
    await left.send_batch(["a"])
    with trio.move_on_after(1) as scope:
        await left.send_batch(["b"])

    assert scope.cancelled_caught


async def test_a_cancelled_send_poisons_it(autojump_clock):
    left, right = memory_transport_pair(batches=1)
    await left.send_batch(["a"])
    with trio.move_on_after(1):
        await left.send_batch(["b"])

    with pytest.raises(trio.BrokenResourceError):
        await left.send_batch(["c"])
    with pytest.raises(trio.ClosedResourceError):
        await left.receive_batch()
    assert await right.receive_batch() == ("a",)
    with pytest.raises(trio.BrokenResourceError):
        await right.receive_batch()


async def test_a_closed_one_says_so():
    left, _ = memory_transport_pair()
    await left.aclose()
    await left.aclose()

    with pytest.raises(trio.ClosedResourceError):
        await left.send_batch(["a"])
    with pytest.raises(trio.ClosedResourceError):
        await left.receive_batch()
