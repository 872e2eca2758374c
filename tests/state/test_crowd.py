"""One place holds no more than its share without a credential, whatever comes and goes."""

from __future__ import annotations

import random

import pytest

from trio_swarm._state.crowd import Crowd, Guest


def entered(crowd: Crowd, place: str) -> Guest:
    entry = crowd.enter(place)
    assert entry is not None
    assert entry.ousted is None
    return entry.guest


def test_at_the_share_and_one_over() -> None:
    crowd = Crowd(most=10, share=3)
    assert [entered(crowd, "a").standing for _ in range(4)] == ["at ease"] * 3 + ["hurried"]
    assert entered(crowd, "b").standing == "at ease"


def test_who_is_known_counts_no_more() -> None:
    crowd = Crowd(most=10, share=1)
    first, second = entered(crowd, "a"), entered(crowd, "a")
    crowd.know(second)
    assert (first.standing, second.standing) == ("at ease", "known")
    crowd.know(first)
    assert entered(crowd, "a").standing == "at ease"
    assert entered(crowd, "a").standing == "hurried"


def test_who_left_leaves_room() -> None:
    crowd = Crowd(most=2, share=1)
    first, second = entered(crowd, "a"), entered(crowd, "b")
    assert crowd.enter("c") is None
    crowd.leave(first)
    crowd.leave(first)
    assert crowd.inside == 1
    assert entered(crowd, "a").standing == "at ease"
    crowd.know(second)
    crowd.leave(second)
    assert entered(crowd, "c").standing == "at ease"


def test_the_oldest_that_is_hurried_goes_for_whoever_comes() -> None:
    crowd = Crowd(most=4, share=1)
    _, first, second, _ = (entered(crowd, "a") for _ in range(4))
    entry = crowd.enter("b")
    assert entry is not None
    assert entry.ousted is first
    assert (first.standing, crowd.inside) == ("gone", 4)
    crowd.know(first)
    crowd.leave(first)
    assert (first.standing, crowd.inside) == ("gone", 4)
    entry = crowd.enter("a")
    assert entry is not None
    assert (entry.ousted, entry.guest.standing) == (second, "hurried")


def test_it_goes_from_the_place_that_has_most_of_them() -> None:
    crowd = Crowd(most=7, share=1)
    few = [entered(crowd, "few") for _ in range(2)]
    many = [entered(crowd, "many") for _ in range(5)]
    for expected in many[1:4]:
        entry = crowd.enter("other")
        assert entry is not None
        assert entry.ousted is expected
        crowd.know(entry.guest)
    assert [guest.standing for guest in few] == ["at ease", "hurried"]


def test_nobody_goes_who_is_known_or_within_the_share() -> None:
    crowd = Crowd(most=2, share=1)
    _, second = entered(crowd, "a"), entered(crowd, "a")
    crowd.know(second)
    assert crowd.enter("b") is None


@pytest.mark.parametrize("seed", range(20))
def test_the_rules_hold_whatever_happens(seed) -> None:
    """Random steps against a plain list; and nothing is left of those who went."""
    rng = random.Random(seed)
    crowd, inside = Crowd(most=rng.randrange(1, 12), share=rng.randrange(0, 4)), []
    for _ in range(2000):
        what = rng.randrange(3)
        if what == 0:
            hurried = [guest for guest in inside if guest.hurried]
            entry = crowd.enter(rng.choice("abc"))
            if entry is None:
                assert len(inside) == crowd.most
                assert not hurried
                continue
            if entry.ousted is not None:
                assert entry.ousted in hurried
                assert len(inside) == crowd.most
                inside.remove(entry.ousted)
            inside.append(entry.guest)
        elif inside:
            guest = rng.choice(inside)
            if what == 1:
                crowd.know(guest)
            else:
                crowd.leave(guest)
                inside.remove(guest)
        assert crowd.inside == len(inside) <= crowd.most
        for place in "abc":
            assert sum(each.place == place and each.standing == "at ease" for each in inside) <= crowd.share
        assert not any(guest.standing == "gone" for guest in inside)
    for guest in inside:
        crowd.leave(guest)
    assert (crowd.inside, len(crowd._at_ease), len(crowd._hurried)) == (0, 0, 0)
