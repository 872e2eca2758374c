"""Replies find their requests, once, and a request leaves the table in every way out."""

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from trio_swarm._io.calls import ReplyTable, Stray
from trio_swarm.errors import BusyError, PeerGoneError


async def test_a_reply_reaches_its_waiter_and_the_request_is_gone():
    table = ReplyTable[str]()
    with table.expect("a") as waiter:
        assert table.pending() == ("a",)
        assert table.resolve("a", "reply") == "accepted"
        assert await waiter.wait() == "reply"
        assert table.pending() == ()

    assert table.statistics().accepted == 1
    assert table.statistics().pending == 0


async def test_replies_out_of_order_reach_the_right_waiters():
    table = ReplyTable[int]()
    got = {}

    async def ask(name):
        with table.expect(name) as waiter:
            got[name] = await waiter.wait()

    async with trio.open_nursery() as nursery:
        for name in "abc":
            nursery.start_soon(ask, name)
        await trio.testing.wait_all_tasks_blocked()
        for number, name in enumerate("cab"):
            table.resolve(name, number)

    assert got == {"c": 0, "a": 1, "b": 2}


async def test_late_duplicate_unknown_and_wrong_kind_are_told_apart_and_reported():
    strays = []
    table = ReplyTable[object](on_stray=strays.append)
    with table.expect("late"):
        pass
    with table.expect("once", (str,)) as waiter:
        assert table.resolve("once", 5) == "wrong_kind"
        assert table.resolve("once", "right") == "accepted"
        assert table.resolve("once", "again") == "duplicate"
        assert await waiter.wait() == "right"

    assert table.resolve("once", "again") == "duplicate"
    assert table.resolve("late", "x") == "late"
    assert table.resolve("never", "x") == "unknown"
    assert strays == [
        Stray("once", "wrong_kind", "int"),
        Stray("once", "duplicate", "str"),
        Stray("once", "duplicate", "str"),
        Stray("late", "late", "str"),
        Stray("never", "unknown", "str"),
    ]
    counts = table.statistics()
    assert (counts.late, counts.duplicate, counts.unknown, counts.wrong_kind) == (1, 2, 1, 1)


async def test_a_cancelled_waiter_leaves_the_table_and_its_reply_is_late():
    table = ReplyTable[str]()
    with trio.CancelScope() as scope, table.expect("a") as waiter:
        scope.cancel()
        await waiter.wait()

    assert scope.cancelled_caught
    assert table.pending() == ()
    assert table.resolve("a", "x") == "late"


async def test_a_reply_that_came_while_the_waiter_was_cancelled_is_not_lost():
    table = ReplyTable[str]()
    with table.expect("a") as waiter:
        with trio.CancelScope() as scope:
            scope.cancel()
            await waiter.wait()
        table.resolve("a", "kept")
        assert await waiter.wait() == "kept"


async def test_an_error_in_the_block_removes_the_request():
    table = ReplyTable[str]()
    with pytest.raises(ValueError, match="x"), table.expect("a"):
        raise ValueError("x")

    assert table.pending() == ()


async def test_a_full_table_refuses_and_an_id_waits_once():
    table = ReplyTable[str](max_pending=2)
    with table.expect("a"), table.expect("b"), pytest.raises(BusyError), table.expect("c"):
        pass
    with table.expect("a"), pytest.raises(ValueError, match="waits already"), table.expect("a"):
        pass
    with table.expect("c"):
        assert table.pending() == ("c",)


async def test_fail_all_raises_in_every_waiter_that_has_no_reply_yet():
    table = ReplyTable[str]()
    failed = []

    async def ask(name):
        with table.expect(name) as waiter:
            try:
                await waiter.wait()
            except PeerGoneError as error:
                failed.append((name, str(error)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask, "a")
        nursery.start_soon(ask, "b")
        with table.expect("c") as waiter:
            await trio.testing.wait_all_tasks_blocked()
            table.resolve("c", "in time")
            assert table.fail_all(PeerGoneError("gone")) == 2
            assert await waiter.wait() == "in time"

    assert table.resolve("a", "x") == "late"
    assert table.resolve("c", "x") == "duplicate"
    assert sorted(failed) == [("a", "gone"), ("b", "gone")]
    assert table.fail_all(PeerGoneError("gone")) == 0


async def test_a_second_wait_after_the_reply_ends():
    table = ReplyTable[str]()
    with table.expect("a") as waiter:
        table.resolve("a", "x")
        await waiter.wait()
        with pytest.raises(trio.EndOfChannel):
            await waiter.wait()


async def test_only_so_many_settled_ids_are_remembered():
    table = ReplyTable[str](remembered=2)
    for name in "abc":
        with table.expect(name):
            pass

    assert [table.resolve(name, "x") for name in "abc"] == ["unknown", "late", "late"]


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from(["reply", "cancel", "wait"]))))
async def test_re_used_channels_never_carry_a_reply_to_a_stranger(steps):
    table = ReplyTable[int]()
    for number, (name, what) in enumerate(steps):
        with table.expect(name) as waiter:
            if what != "cancel":
                assert table.resolve(name, number) == "accepted"
            if what == "wait":
                assert await waiter.wait() == number
            if what == "cancel":
                with trio.move_on_after(0) as scope:
                    await waiter.wait()
                assert scope.cancelled_caught
    assert table.pending() == ()
