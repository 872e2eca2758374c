"""What is left of the caller's time, as it travels."""

import math

import pytest
import trio
import trio.testing

from trio_swarm._io.deadline import ended_by_deadline, remaining_ms, scope_for


def run_without_any_deadline(async_fn):
    """Outside of the limit that each async test here runs under."""
    return trio.run(async_fn, clock=trio.testing.MockClock(autojump_threshold=0))


def test_without_a_deadline_there_is_nothing_to_tell():
    async def ask():
        return remaining_ms()

    assert run_without_any_deadline(ask) is None


async def test_the_nearest_deadline_is_told_and_shrinks(autojump_clock):
    with trio.fail_after(60), trio.fail_after(2):
        assert remaining_ms() == 2000
        await trio.sleep(0.5)
        assert remaining_ms() == 1500


async def test_time_that_is_left_is_never_told_as_none_left(autojump_clock):
    with trio.fail_after(0.0001):
        assert remaining_ms() == 1


async def test_a_cancelled_task_has_nothing_left(autojump_clock):
    with trio.CancelScope() as scope:
        scope.cancel()
        assert remaining_ms() == 0


async def test_a_scope_ends_its_block_when_the_time_is_over(autojump_clock):
    started = trio.current_time()
    with scope_for(1500) as scope:
        await trio.sleep_forever()

    assert scope.cancelled_caught
    assert trio.current_time() - started == 1.5


def test_no_deadline_and_absurd_ones_never_end_a_block():
    async def wait_long():
        for none in (None, 2**64):
            with scope_for(none) as scope:
                await trio.sleep(10**6)
            assert not scope.cancelled_caught

    run_without_any_deadline(wait_long)


async def test_a_time_that_is_over_ends_the_block_at_once(autojump_clock):
    for over in (0, -5):
        with scope_for(over) as scope:
            await trio.sleep(1)
        assert scope.cancelled_caught


async def test_what_was_told_is_what_the_other_end_grants(autojump_clock):
    with trio.fail_after(3):
        told = remaining_ms()
    with scope_for(told):
        assert trio.current_effective_deadline() - trio.current_time() == 3


@pytest.mark.parametrize("source", ["deadline", "explicit"])
@pytest.mark.parametrize("grouped", [False, True])
async def test_what_ended_a_wait_is_told_by_trio(autojump_clock, source, grouped) -> None:
    """Whatever the deadline at the call was."""
    with trio.CancelScope() as scope:
        try:
            scope.deadline = trio.current_time() + 1
            if source == "explicit":
                scope.cancel()
            await trio.sleep_forever()
        except trio.Cancelled as cancelled:
            error = BaseExceptionGroup("", [ValueError(), cancelled]) if grouped else cancelled
            for until in (-math.inf, trio.current_time() - 1, math.inf):
                assert ended_by_deadline(error, until) is (source == "deadline")
            raise


@pytest.mark.parametrize(("until", "expected"), [(-math.inf, False), (0, True), (math.inf, False)])
async def test_an_older_trio_does_not_tell_and_the_deadline_at_the_call_does(until, expected) -> None:
    """``source`` is Trio's from 0.31 on; an unknown one says as little."""
    with trio.CancelScope() as scope:
        scope.cancel()
        try:
            await trio.sleep_forever()
        except trio.Cancelled as cancelled:
            cancelled.source = "unknown"
            assert ended_by_deadline(cancelled, until) is expected
            raise
