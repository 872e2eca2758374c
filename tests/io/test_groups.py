"""What leaves a context manager that has a nursery of its own."""

import pytest
import trio
import trio.testing

from trio_swarm._io.groups import collapse, leaves


def test_leaves_are_listed_in_order_through_nested_groups():
    one, two, three = ValueError(1), KeyError(2), OSError(3)
    group = BaseExceptionGroup("", [one, ExceptionGroup("", [two, three])])

    assert leaves(group) == [one, two, three]
    assert leaves(one) == [one]


def test_a_single_leaf_leaves_as_itself_with_its_own_cause_and_context():
    cause = OSError("why")

    inner = ValueError("inner")
    inner.__cause__ = cause

    with pytest.raises(ValueError, match="inner") as caught, collapse():
        raise ExceptionGroup("", [ExceptionGroup("", [inner])])

    assert caught.value.__cause__ is cause


def test_two_errors_leave_as_the_group_that_they_are():
    group = ExceptionGroup("", [ValueError(), KeyError()])

    with pytest.raises(ExceptionGroup) as caught, collapse():
        raise group

    assert caught.value is group


def test_a_plain_exception_and_no_exception_pass():
    with collapse():
        pass
    with pytest.raises(ValueError, match="plain"), collapse():
        raise ValueError("plain")


async def test_an_error_beside_a_cancellation_leaves_alone():
    async def meet(scope):
        with collapse():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.sleep_forever)
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel()
                raise ValueError("mine")

    with trio.CancelScope() as scope, pytest.raises(ValueError, match="mine"):
        await meet(scope)


async def test_cancellation_alone_is_caught_by_its_scope():
    with trio.CancelScope() as scope, collapse():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            nursery.start_soon(trio.sleep_forever)
            scope.cancel()

    assert scope.cancelled_caught
