"""The pure lease: when a record is alive, and when its owner writes it again."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from trio_swarm._state.lease import Lease, is_live

NOON = datetime(2026, 6, 22, 12, tzinfo=UTC)


def test_a_lease_is_over_at_its_very_end():
    """Equal is stale (A3)."""
    assert is_live(NOON, NOON - timedelta(microseconds=1))
    assert not is_live(NOON, NOON)
    assert not is_live(NOON, NOON + timedelta(seconds=1))


def test_instants_are_compared_not_their_spelling():
    """A lease in another offset is the same lease."""
    other = datetime.fromisoformat("2026-06-22T14:00:00.000001+02:00")

    assert is_live(other, NOON)


def test_nothing_is_due_before_the_first_write():
    """A record that was never written is not renewed."""
    lease = Lease()

    assert lease.deadline() is None
    assert not lease.due(1e9)


def test_it_is_renewed_each_period():
    """First renewal at +20 s (A4.2)."""
    lease = Lease()
    lease.renewed(100.0)

    assert lease.deadline() == 120.0
    assert not lease.due(119.9)
    assert lease.due(120.0)
    assert lease.expiry(NOON) == NOON + timedelta(seconds=60)


def test_a_failed_renewal_is_tried_again_ever_later_but_within_a_period():
    """The original stops for good after one failure; here 1, 2, 4 ... seconds."""
    lease = Lease()
    lease.renewed(0.0)
    delays = []
    for _ in range(7):
        lease.failed(0.0)
        delays.append(lease.deadline())

    assert delays == [1, 2, 4, 8, 16, 20, 20]
    lease.renewed(0.0)
    assert (lease.failures, lease.deadline()) == (0, 20.0)


def test_after_release_nothing_is_due():
    """A withdrawn record is not put back."""
    lease = Lease()
    lease.renewed(0.0)
    lease.released()

    assert not lease.due(1e9)


@pytest.mark.parametrize(("duration", "period"), [(10, 10), (10, 11), (0, 1), (10, 0), (-1, -2)])
def test_a_lease_that_cannot_last_is_refused(duration, period):
    """It would be over before its renewal."""
    with pytest.raises(ValueError, match=r"lease|must be"):
        Lease(duration=duration, period=period)


@given(st.lists(st.booleans(), max_size=40), st.floats(0, 1e6))
def test_one_lost_write_in_a_row_of_two_never_lets_the_lease_end(oks, start):
    """With the contract's figures a record survives any single failure, and most runs of them."""
    lease, now, written = Lease(), start, start
    lease.renewed(now)
    for ok in oks:
        now = lease.deadline()
        if ok or lease.failures:
            lease.renewed(now)
            assert now - written < lease.duration
            written = now
        else:
            lease.failed(now)


async def test_renewals_keep_their_period_under_a_mock_clock(autojump_clock):
    """A driver that sleeps until the deadline writes at 20 and at 40 seconds."""
    lease, written = Lease(), []
    begun = trio.current_time()
    lease.renewed(begun)
    with trio.move_on_after(45):
        while True:
            await trio.sleep_until(lease.deadline())
            lease.renewed(trio.current_time())
            written.append(round(trio.current_time() - begun))

    assert written == [20, 40]
