"""What was received and not taken: order, room, wishes."""

from __future__ import annotations

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.operators.support import Result
from trio_swarm.operators.inbox import Inbox


def an_inbox(*items) -> Inbox:
    """Negative numbers are notices."""
    inbox = Inbox(2, lambda item: item < 0)
    for item in items:
        assert inbox.put_nowait(item)
    return inbox


def anything(notice) -> bool:
    return True


async def test_both_kinds_come_in_their_order() -> None:
    inbox = an_inbox(1, -2, 3, -4)
    assert [await inbox.take(anything) for _ in range(4)] == [1, -2, 3, -4]


async def test_what_is_not_wanted_stays_where_it_is() -> None:
    inbox = an_inbox(1, 2, -3)
    assert await inbox.take(lambda notice: notice) == -3
    assert await inbox.take(anything) == 1


async def test_each_kind_has_room_of_its_own() -> None:
    inbox = an_inbox(1, 2)
    assert not inbox.put_nowait(3)
    assert inbox.put_nowait(-1)
    assert await inbox.take(anything) == 1
    assert inbox.put_nowait(3)


async def test_who_may_wait_for_room_has_it_as_soon_as_something_is_taken() -> None:
    inbox, put = an_inbox(1, 2), Result()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(put.run, inbox.put, 3)
        await wait_all_tasks_blocked()
        assert not put.done.is_set()
        assert await inbox.take(anything) == 1
        await put.done.wait()
    assert [await inbox.take(anything) for _ in range(2)] == [2, 3]


async def test_a_cancelled_put_puts_nothing_and_a_cancelled_take_takes_nothing() -> None:
    inbox = an_inbox(1, 2)
    with trio.move_on_after(0):
        await inbox.put(3)
    with trio.move_on_after(0):
        await inbox.take(anything)
    inbox.close()
    assert [await inbox.take(anything) for _ in range(2)] == [1, 2]
    with pytest.raises(trio.EndOfChannel):
        await inbox.take(anything)


async def test_the_end_is_told_to_who_wants_nothing_of_what_is_there() -> None:
    inbox, taken = an_inbox(1), Result()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(taken.run, inbox.take, lambda notice: notice)
        await wait_all_tasks_blocked()
        inbox.close()
    assert isinstance(taken.error, trio.EndOfChannel)


async def test_a_wish_that_has_changed_is_heard() -> None:
    inbox, taken, wanted = an_inbox(1), Result(), False
    async with trio.open_nursery() as nursery:
        nursery.start_soon(taken.run, inbox.take, lambda notice: wanted)
        await wait_all_tasks_blocked()
        wanted = True
        inbox.look_again()
    assert taken.value == 1


async def test_what_is_dropped_is_not_taken_and_makes_room() -> None:
    """By identity, and only what is still there."""
    inbox, put = an_inbox(1, 2), Result()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(put.run, inbox.put, 3)
        await wait_all_tasks_blocked()
        inbox.drop(1)
        await put.done.wait()
    inbox.drop(1)
    assert [await inbox.take(anything) for _ in range(2)] == [2, 3]
