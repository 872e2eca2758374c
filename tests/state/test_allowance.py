"""So many at once, so many in the long run."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from trio_swarm._state.allowance import Allowance


def test_it_is_used_up_and_refills_steadily() -> None:
    """One too many is not counted: who waits a little has one more."""
    allowance = Allowance(3, per=60.0)
    assert [allowance.take(100.0) for _ in range(5)] == [True, True, True, False, False]
    assert not allowance.take(119.0)
    assert allowance.take(120.5)
    assert not allowance.take(120.5)
    assert [allowance.take(1000.0) for _ in range(4)] == [True, True, True, False]


@given(most=st.integers(1, 20), gaps=st.lists(st.floats(0, 50), max_size=80))
def test_no_window_has_more_than_twice_the_allowance(most, gaps) -> None:
    """A full bucket, and what refills while it is emptied."""
    allowance, now, taken = Allowance(most, per=60.0), 0.0, []
    for gap in gaps:
        now += gap
        if allowance.take(now):
            taken.append(now)
    for start in taken:
        assert sum(start <= at < start + 60.0 for at in taken) <= 2 * most
