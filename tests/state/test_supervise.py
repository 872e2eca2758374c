"""Restart intensity and backoff."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_swarm._state.supervise import Backoff, RestartIntensity


def test_one_more_than_allowed_is_refused():
    """Three in the window are granted, the fourth is not."""
    counter = RestartIntensity(max_restarts=3, within=60)
    assert [counter.allow(now) for now in (0, 1, 2, 3)] == [True, True, True, False]


def test_old_restarts_are_forgotten():
    """A restart exactly as old as the window no longer counts."""
    counter = RestartIntensity(max_restarts=1, within=10)
    assert counter.allow(0)
    assert not counter.allow(9.99)
    assert counter.allow(10)
    assert counter.recent(19) == 1
    assert counter.recent(20) == 0


def test_none_is_allowed_at_zero():
    """0 restarts: the first death is the end."""
    assert not RestartIntensity(max_restarts=0, within=1).allow(0)


@pytest.mark.parametrize("bad", [{"max_restarts": -1}, {"within": 0}])
def test_bad_limits_are_refused(bad):
    """They would mean nothing."""
    with pytest.raises(ValueError, match="must be"):
        RestartIntensity(**bad)


@given(st.lists(st.floats(0, 50), max_size=60), st.integers(0, 5), st.floats(0.1, 20))
def test_never_more_than_the_intensity_in_any_window(gaps, most, within):
    """Whatever the times: each window holds at most max_restarts grants."""
    counter, now, granted = RestartIntensity(max_restarts=most, within=within), 0.0, []
    for gap in gaps:
        now += gap
        before = [t for t in granted if now - t < within]
        allowed = counter.allow(now)
        assert allowed == (len(before) < most)
        if allowed:
            granted.append(now)


def test_backoff_doubles_up_to_its_ceiling():
    """Half a step at least, a whole one at most; nothing for no failure."""
    backoff = Backoff(first=0.1, ceiling=5)
    assert backoff.delay(0, 0.5) == 0
    assert backoff.delay(1, 0.0) == 0.05
    assert backoff.delay(3, 0.0) == 0.2
    assert backoff.delay(99999, 0.0) == 2.5


def test_the_first_restart_is_immediate_and_later_ones_wait():
    """Twice as long each time, up to the ceiling; anew after a quiet window; None when it is refused."""
    counter = RestartIntensity(max_restarts=9, within=60)
    waits = [counter.restart(0) for _ in range(10)]
    assert waits == [0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5, 5, None]
    assert counter.restart(60) == 0


@given(st.integers(0, 10**6), st.floats(0, 1, exclude_max=True))
def test_backoff_stays_in_bounds(failures, random):
    """For any count."""
    assert 0 <= Backoff().delay(failures, random) <= 5
