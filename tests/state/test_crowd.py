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
    for each in (first, second):
        crowd.know(each)
    assert crowd.enter("c") is None
    crowd.leave(first)
    crowd.leave(first)
    assert crowd.inside == 1
    assert entered(crowd, "a").standing == "at ease"


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


def test_who_is_at_ease_and_silent_goes_when_nobody_is_hurried() -> None:
    """Sixteen addresses with sixteen connections each hold nobody out."""
    crowd = Crowd(most=4, share=2)
    first, second, third, _ = (entered(crowd, place) for place in "aabb")
    assert crowd.ask(first)
    for expected in (third, second):
        entry = crowd.enter("c")
        assert entry is not None
        assert entry.ousted is expected
        crowd.know(entry.guest)
    assert first.standing == "at ease"


def test_nobody_goes_who_is_known_or_seated_or_asks() -> None:
    crowd = Crowd(most=4, share=1)
    known, seated, at_ease, hurried = (entered(crowd, place) for place in "abcc")
    crowd.know(known)
    assert crowd.ask(seated)
    assert crowd.sit(seated)
    assert crowd.ask(at_ease)
    assert crowd.ask(hurried)
    assert crowd.enter("d") is None
    crowd.answered(at_ease)
    assert crowd.enter("d") is None, "within its share it may keep its connection"
    crowd.answered(hurried)
    entry = crowd.enter("d")
    assert entry is not None
    assert entry.ousted is hurried


def test_half_of_all_may_be_in_requests_of_one_place_that_prove_nothing() -> None:
    crowd = Crowd(most=8, share=8)
    guests = [entered(crowd, "a") for _ in range(6)]
    assert [crowd.ask(guest) for guest in guests] == [True] * 4 + [False] * 2
    crowd.know(guests[4])
    assert crowd.ask(guests[4]), "who is known is heard"
    crowd.answered(guests[0])
    assert crowd.ask(guests[5])
    assert crowd.ask(entered(crowd, "b")), "each place has a half of its own"


def test_three_quarters_of_all_may_be_seats() -> None:
    """Whoever logs in can have one; so the last quarter is for those who show a credential."""
    crowd = Crowd(most=8, share=1)
    guests = [entered(crowd, str(number)) for number in range(8)]
    assert [crowd.sit(guest) for guest in guests] == [True] * 6 + [False] * 2
    crowd.leave(guests[0])
    assert crowd.sit(guests[7])
    crowd.leave(guests[7])
    assert not crowd.sit(guests[7]), "it has gone"
    assert not crowd.ask(guests[7])


@pytest.mark.parametrize("seed", range(20))
def test_the_rules_hold_whatever_happens(seed) -> None:
    """Random steps against a plain list; and nothing is left of those who went."""
    rng = random.Random(seed)
    crowd, inside = Crowd(most=rng.randrange(1, 12), share=rng.randrange(0, 4)), []
    for _ in range(2000):
        what = rng.randrange(6)
        if what == 0:
            hurried = [each for each in inside if each.hurried and not each.asking]
            silent = hurried + [each for each in inside if each.standing == "at ease" and not each.heard]
            entry = crowd.enter(rng.choice("abc"))
            if entry is None:
                assert len(inside) == crowd.most
                assert not silent
                continue
            if entry.ousted is not None:
                assert entry.ousted in (hurried or silent)
                assert len(inside) == crowd.most
                inside.remove(entry.ousted)
            inside.append(entry.guest)
        elif inside:
            guest = rng.choice(inside)
            if what == 5:
                crowd.leave(guest)
                inside.remove(guest)
            else:
                (crowd.know, crowd.ask, crowd.answered, crowd.sit)[what - 1](guest)
        assert crowd.inside == len(inside) <= crowd.most
        for place in "abc":
            here = [each for each in inside if each.place == place]
            assert sum(each.standing == "at ease" for each in here) <= crowd.share
            assert sum(each.asking for each in here) <= max(1, crowd.most // 2)
        assert sum(each.standing == "seated" for each in inside) <= max(1, crowd.most - crowd.most // 4)
        assert not any(guest.standing == "gone" for guest in inside)
    for guest in inside:
        crowd.leave(guest)
    assert (crowd.inside, crowd._seated, len(crowd._at_ease), len(crowd._asking)) == (0, 0, 0, 0)
    assert crowd._silent == {"hurried": {}, "at ease": {}}
