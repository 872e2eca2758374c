"""One place holds no more than its share without a credential, whatever comes and goes."""

from __future__ import annotations

from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

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
    known, again, seated, asking = (entered(crowd, place) for place in "aabc")
    crowd.know(known)
    crowd.know(again)
    assert crowd.sit(seated)
    assert crowd.ask(asking)
    assert crowd.enter("d") is None
    crowd.answered(asking)
    entry = crowd.enter("d")
    assert entry is not None
    assert entry.ousted is asking, "idle, and nobody else can go"


def test_who_was_answered_goes_last_and_the_longest_idle_first() -> None:
    crowd = Crowd(most=6, share=3)
    first, second, silent, other = (entered(crowd, place) for place in "aaab")
    for guest in (second, first, other):
        assert crowd.ask(guest)
        crowd.answered(guest)
    hurried, _ = entered(crowd, "a"), crowd.know(entered(crowd, "a"))
    for expected in (hurried, silent, second):
        entry = crowd.enter("c")
        assert entry is not None
        assert entry.ousted is expected
        crowd.know(entry.guest)


def test_a_quarter_may_ask_and_the_others_wait_in_line() -> None:
    """Of one place three quarters of it: the next is another's, though it came later."""
    crowd = Crowd(most=16, share=16)
    guests = [entered(crowd, "a") for _ in range(6)]
    assert [crowd.ask(guest) for guest in guests] == [True] * 3 + [False] * 3
    other, last = entered(crowd, "b"), entered(crowd, "b")
    assert crowd.ask(other)
    assert not crowd.ask(last)
    assert crowd.call() == []
    crowd.answered(other)
    assert crowd.call() == [last]
    crowd.know(guests[3])
    crowd.give_up(guests[4])
    crowd.leave(guests[0])
    assert crowd.call() == [guests[5]]
    assert crowd.call() == []
    assert crowd.ask(guests[3]), "who is known is heard"


def test_half_of_all_may_be_seats() -> None:
    """Whoever logs in can have one: of one place, three quarters of them."""
    crowd = Crowd(most=16, share=1)
    guests = [entered(crowd, "a") for _ in range(7)]
    assert [crowd.sit(guest) for guest in guests] == [True] * 6 + [False]
    others = [entered(crowd, str(number)) for number in range(3)]
    assert [crowd.sit(guest) for guest in others] == [True] * 2 + [False]
    crowd.leave(guests[0])
    assert crowd.sit(guests[6])
    crowd.leave(guests[6])
    assert not crowd.sit(guests[6]), "it has gone"
    assert not crowd.ask(guests[6])


def test_who_takes_over_may_be_beyond_the_half() -> None:
    """An eighth more, of one place three quarters of that; whose old one leaves is beyond no more."""
    crowd = Crowd(most=32, share=32)
    guests = [entered(crowd, "a") for _ in range(12)]
    assert all(crowd.sit(guest) for guest in guests)
    late = [entered(crowd, "a") for _ in range(4)]
    assert not crowd.sit(late[0])
    assert [crowd.sit(guest, replacing=True) for guest in late] == [True] * 3 + [False]
    others = [entered(crowd, "b") for _ in range(6)]
    assert [crowd.sit(guest) for guest in others[:5]] == [True] * 4 + [False], "the half is theirs still"
    assert [crowd.sit(guest, replacing=True) for guest in others[4:]] == [True, False]
    crowd.leave(guests[0])
    assert not crowd.sit(late[3]), "one that took over has that now"
    assert crowd.sit(late[3], replacing=True)


def test_one_that_came_from_elsewhere_is_beyond_no_more_when_the_old_one_leaves() -> None:
    crowd = Crowd(most=8, share=8)
    guests = [entered(crowd, place) for place in "aaab"]
    assert all(crowd.sit(guest) for guest in guests)
    for old in guests[:3]:
        assert crowd.sit(entered(crowd, "c"), replacing=True)
        late = entered(crowd, "d")
        assert not crowd.sit(late, replacing=True), "the eighth is taken"
        crowd.leave(old)
        assert not crowd.sit(late), "the half is full again"
        crowd.leave(late)


class Crowds(RuleBasedStateMachine):
    """Whatever comes and goes, against a plain list: with what is called as whoever serves calls it."""

    def __init__(self) -> None:
        super().__init__()
        self.inside: list[Guest] = []
        self.line: list[Guest] = []

    @initialize(most=st.integers(1, 24), share=st.integers(0, 4))
    def begin(self, most, share) -> None:
        self.crowd = Crowd(most, share)
        half, quarter = max(1, most // 2), max(1, most // 4)
        self.seats, self.seats_of_one = half, half - half // 4
        self.over, self.over_of_one = most // 8, most // 8 - most // 8 // 4
        self.asks, self.asks_of_one = quarter, quarter - quarter // 4

    def stands(self, *standings: str) -> list[Guest]:
        return [each for each in self.inside if each.standing in standings]

    def asking(self, place: str | None = None) -> list[Guest]:
        return [each for each in self.inside if each.asking and place in (None, each.place)]

    def may_ask(self, guest: Guest) -> bool:
        return len(self.asking()) < self.asks and len(self.asking(guest.place)) < self.asks_of_one

    def gave_up(self) -> None:
        """The first in line that may goes on, and so forth."""
        expected, called = list(self.line), self.crowd.call()
        assert [each for each in expected if each in called] == called
        self.line = [each for each in expected if each not in called]
        assert all(each.asking and each.heard for each in called)
        assert not any(self.may_ask(each) for each in self.line)

    @rule(place=st.sampled_from("abcd"))
    def enter(self, place) -> None:
        idle = [each for each in self.stands("at ease", "hurried") if not each.asking]
        ranks = [
            [each for each in idle if each.hurried],
            [each for each in idle if not each.hurried and not each.heard],
            [each for each in idle if not each.hurried and each.heard],
        ]
        first = next((rank for rank in ranks if rank), [])
        at_ease = sum(each.place == place for each in self.stands("at ease"))
        entry = self.crowd.enter(place)
        if entry is None:
            assert len(self.inside) == self.crowd.most
            assert not idle, "only where all are known, seated or asking"
            unknown = len(self.asking()) + len(self.stands("seated"))
            assert unknown <= max(2, self.crowd.most * 7 // 8)
            return
        if (ousted := entry.ousted) is not None:
            assert len(self.inside) == self.crowd.most
            assert ousted in first
            sizes = Counter(each.place for each in first)
            assert sizes[ousted.place] == max(sizes.values())
            assert ousted.gone
            at_ease -= ousted.place == place and ousted in (ranks[1] + ranks[2])
            self.inside.remove(ousted)
            self.line = [each for each in self.line if each is not ousted]
        assert entry.guest.hurried is (at_ease >= self.crowd.share)
        self.inside.append(entry.guest)
        self.gave_up()

    @precondition(lambda self: self.inside)
    @rule(
        data=st.data(),
        what=st.sampled_from(["know", "ask", "ask", "answered", "sit", "replace", "leave", "give_up"]),
    )
    def act(self, data, what) -> None:
        guest = data.draw(st.sampled_from(self.inside))
        before, may_ask = guest.standing, self.may_ask(guest)
        seats, over = self.crowd._seated.own._taken, self.crowd._seated.beyond._taken
        room = seats.total() < self.seats and seats[guest.place] < self.seats_of_one
        if what == "replace":
            room = room or (over.total() < self.over and over[guest.place] < self.over_of_one)
        asked = guest.asking
        if what == "replace":
            done = self.crowd.sit(guest, replacing=True)
        else:
            done = getattr(self.crowd, what)(guest)
        if what == "ask":
            assert done is (before in ("known", "seated") or asked or may_ask)
            if not done and guest not in self.line:
                self.line.append(guest)
        elif what in ("sit", "replace"):
            assert done is room
            assert (guest.standing == "seated") is (done or before == "seated")
        elif what == "leave":
            self.inside.remove(guest)
        if what in ("know", "leave", "give_up") or guest.asking or guest.standing in ("known", "seated"):
            self.line = [each for each in self.line if each is not guest]
        self.gave_up()

    @invariant()
    def bounds_hold(self) -> None:
        if not hasattr(self, "crowd"):
            return
        crowd, seated = self.crowd, self.stands("seated")
        assert crowd.inside == len(self.inside) <= crowd.most
        assert list(crowd._waiting) == self.line
        assert not any(each.gone for each in self.inside)
        own, over = crowd._seated.own, crowd._seated.beyond
        assert (len(seated), len(self.asking())) == (own._all + over._all, crowd._asking._all)
        assert own._all <= self.seats
        assert over._all <= self.over
        assert len(self.asking()) <= self.asks
        assert len(seated) + len(self.asking()) <= max(2, crowd.most * 7 // 8)
        for place in "abcd":
            assert len(self.asking(place)) == crowd._asking._taken[place] <= self.asks_of_one
            assert own._taken[place] + over._taken[place] == sum(each.place == place for each in seated)
            assert own._taken[place] <= self.seats_of_one
            assert over._taken[place] <= self.over_of_one
            assert not over._taken[place] or not own.has_room(place), "who is beyond has no room in the half"
            assert sum(each.place == place for each in self.stands("at ease")) <= crowd.share

    def teardown(self) -> None:
        if not hasattr(self, "crowd"):
            return
        for guest in self.inside:
            self.crowd.leave(guest)
        assert (self.crowd.inside, len(self.crowd._waiting), len(self.crowd._at_ease)) == (0, 0, 0)
        for part in (self.crowd._asking, self.crowd._seated.own, self.crowd._seated.beyond):
            assert (part._all, len(part._taken)) == (0, 0)
        assert not any(self.crowd._idle.values())


Crowds.TestCase.settings = settings(max_examples=80, stateful_step_count=80, deadline=None)
TestCrowds = Crowds.TestCase
