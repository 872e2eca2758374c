"""How often one may guess."""

from __future__ import annotations

import pytest

from trio_swarm._state.guesses import GuessLimit


def test_a_peer_may_miss_so_often_within_a_minute() -> None:
    limit = GuessLimit(per_peer=3, per_server=100)
    for at in (0, 10, 20):
        assert limit.wait("1.2.3.4", at) == 0
        limit.missed("1.2.3.4", at)
    assert limit.wait("1.2.3.4", 20) == 40
    assert limit.wait("1.2.3.4", 59.5) == 1
    assert limit.wait("1.2.3.4", 60) == 0
    assert limit.wait("1.2.3.5", 20) == 0


def test_all_peers_together_may_miss_so_often() -> None:
    limit = GuessLimit(per_peer=3, per_server=5)
    for number in range(5):
        limit.missed(f"10.0.0.{number}", 0)
    assert limit.wait("10.9.9.9", 1) == 59
    assert limit.wait("10.9.9.9", 60) == 0


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("2001:db8::1", "2001:db8::2", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("::ffff:1.2.3.4", "1.2.3.4", True),
        ("fe80::1%eth0", "fe80::2%eth0", True),
        ("1.2.3.4", "1.2.3.5", False),
        ("", "", True),
    ],
)
def test_what_counts_as_one_peer(one, other, same) -> None:
    limit = GuessLimit(per_peer=1, per_server=100)
    limit.missed(one, 0)
    assert (limit.wait(other, 0) > 0) is same


def test_a_clock_set_back_locks_nobody_out() -> None:
    limit = GuessLimit(per_peer=1, per_server=1)
    limit.missed("1.2.3.4", 1000)
    assert limit.wait("1.2.3.4", 1000) == 60
    assert limit.wait("1.2.3.4", 10) == 0


def test_peers_are_forgotten() -> None:
    """A guesser with many addresses does not fill the memory."""
    limit = GuessLimit(per_peer=2, per_server=2)
    for number in range(5000):
        limit.missed(f"10.{number >> 16}.{(number >> 8) & 255}.{number & 255}", 0)
    assert len(limit._by_peer) <= 1024
    limit.missed("9.9.9.9", 100)
    assert len(limit._by_peer) == 1
