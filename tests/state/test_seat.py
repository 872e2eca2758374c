"""The seat's machine: nothing lost, nothing delivered after it was settled, order kept."""

from __future__ import annotations

import math

import attrs
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from trio_swarm._state.seat import Phase, SeatGone, SeatMachine


@attrs.frozen
class Frame:
    req_id: str
    deadline_ms: int | None = None


@attrs.frozen
class Spawning:
    req_id: str
    deadline_ms: int | None = None
    capability_token: str = "old"


def ids(dues) -> list[str]:
    return [due.frame.req_id for due in dues]


def test_what_is_asked_while_away_is_due_on_the_first_socket_once() -> None:
    """Parked, and not called a redelivery."""
    seat = SeatMachine()
    seat.request(Frame("a"))
    seat.request(Frame("b"))
    assert seat.phase is Phase.AWAY
    attached = seat.attach(1)

    assert (attached.replaced, attached.again) == (None, ())
    assert ids(seat.take(1, 0)) == ["a", "b"]
    assert seat.take(1, 0) == []
    assert seat.statistics().redelivered == 0


def test_unanswered_requests_are_due_again_on_each_new_socket() -> None:
    """In their order; the answered and the withdrawn are not."""
    seat = SeatMachine()
    seat.attach(1)
    for name in "abcd":
        seat.request(Frame(name))
    seat.take(1, 0)
    seat.request(Frame("e"))
    assert seat.settle("b")
    assert seat.detach(1)
    assert seat.withdraw("c")
    attached = seat.attach(2)

    assert attached.again == ("a", "d")
    dues = seat.take(2, 0)
    assert ids(dues) == ["a", "d", "e"]
    assert [due.again for due in dues] == [True, True, False]
    assert seat.statistics().redelivered == 2


def test_a_newer_socket_replaces_the_older_whose_end_then_changes_nothing() -> None:
    """S2."""
    seat = SeatMachine()
    seat.attach(1)
    seat.request(Frame("a"))
    assert seat.attach(2).replaced == 1
    assert seat.take(1, 0) == []
    assert not seat.detach(1)
    assert seat.socket == 2
    assert ids(seat.take(2, 0)) == ["a"]


def test_a_deadline_shrinks_with_each_delivery_and_is_not_told_when_it_has_passed() -> None:
    """Rounded up: time that is left is never told as none left. Who waits still has moved it."""
    seat = SeatMachine()
    seat.request(Frame("a"), until=10.0)
    seat.request(Frame("b"))
    seat.attach(1)
    assert [due.frame.deadline_ms for due in seat.take(1, 4.9995)] == [5001, None]
    seat.attach(2)
    assert [due.frame.deadline_ms for due in seat.take(2, 9.9999)] == [1, None]
    seat.attach(3)
    assert [due.frame.deadline_ms for due in seat.take(3, 10.0)] == [None, None]


def test_a_withdrawal_is_told_only_to_who_has_seen_the_request() -> None:
    """And also after a reconnect, if it came while the operator was away."""
    seat = SeatMachine()
    seat.request(Frame("unseen"))
    assert seat.withdraw("unseen", Frame("w1"))
    seat.attach(1)
    seat.request(Frame("seen"))
    seat.take(1, 0)
    seat.detach(1)
    assert seat.withdraw("seen", Frame("w2"))
    assert not seat.withdraw("seen", Frame("w3"))
    seat.attach(2)
    assert ids(seat.take(2, 0)) == ["w2"]


def test_notices_stay_until_they_are_written() -> None:
    """Taken and not written means: taken again on the next socket."""
    seat = SeatMachine()
    seat.attach(1)
    seat.notify(Frame("n1"))
    seat.notify(Frame("n2"))
    dues = seat.take(1, 0)
    assert seat.wanted(dues[0])
    seat.written(dues[:1])
    assert not seat.wanted(dues[0])
    seat.attach(2)
    assert ids(seat.take(2, 0)) == ["n2"]


def test_notices_are_bounded_and_the_oldest_goes() -> None:
    """The dropped one is told, and is not written either if it was due."""
    seat = SeatMachine(max_notices=2)
    seat.attach(1)
    assert [seat.notify(Frame(name)) for name in "abc"] == [[], [], [Frame("a")]]
    assert ids(seat.take(1, 0)) == ["b", "c"]
    assert seat.statistics().notices_dropped == 1


def test_notices_are_bounded_in_bytes_too() -> None:
    """As many of the oldest go as make room; one that is larger than all of it stands alone."""
    seat = SeatMachine(max_notice_bytes=100)
    assert [seat.notify(Frame(name), size=40) for name in "abc"] == [[], [], [Frame("a")]]
    assert seat.notify(Frame("d"), size=90) == [Frame("b"), Frame("c")]
    assert seat.notify(Frame("e"), size=500) == [Frame("d")]
    seat.attach(1)
    dues = seat.take(1, 0)
    assert ids(dues) == ["e"]
    seat.written(dues)
    assert [seat.notify(Frame(name), size=50) for name in "fgh"] == [[], [], [Frame("f")]]


def test_withdrawals_push_out_no_notice_and_no_other_withdrawal() -> None:
    """They have a queue of their own, whose overflow is told."""
    seat = SeatMachine(max_notices=2, max_withdrawals=3)
    seat.attach(1)
    for name in "abcd":
        seat.request(Frame(name))
    seat.take(1, 0)
    seat.detach(1)
    seat.notify(Frame("n1"))
    seat.notify(Frame("n2"))
    dropped = [seat.withdraw(name, Frame(f"w-{name}")) for name in "abcd"]

    assert [each.dropped for each in dropped if each is not None] == [None, None, None, Frame("w-a")]
    assert seat.statistics().notices == 5
    seat.attach(2)
    dues = seat.take(2, 0)
    assert ids(dues) == ["n1", "n2", "w-b", "w-c", "w-d"]
    seat.written(dues)
    assert seat.statistics().notices == 0


def test_requests_and_notices_keep_their_common_order() -> None:
    """Across a reconnect too."""
    seat = SeatMachine()
    seat.request(Frame("r1"))
    seat.notify(Frame("n1"))
    seat.request(Frame("r2"))
    for socket in (1, 2):
        seat.attach(socket)
        assert ids(seat.take(socket, 0)) == ["r1", "n1", "r2"]


def test_gone_is_terminal() -> None:
    """S8: later connects and requests are refused, a second close does nothing."""
    seat = SeatMachine()
    seat.attach(1)
    seat.request(Frame("a"))
    assert seat.close("deleted") == 1
    assert seat.close("again") is None
    with pytest.raises(SeatGone, match="deleted"):
        seat.attach(2)
    with pytest.raises(SeatGone):
        seat.request(Frame("b"))
    assert seat.notify(Frame("n")) == [Frame("n")]
    assert not seat.settle("a")
    assert not seat.detach(1)
    assert (seat.phase, seat.outstanding()) == (Phase.GONE, ())
    assert "gone" in repr(seat)


def test_one_id_is_outstanding_once() -> None:
    """And can be used again when it is settled: it is a new request then."""
    seat = SeatMachine()
    seat.request(Frame("a"))
    with pytest.raises(ValueError, match="outstanding already"):
        seat.request(Frame("a"))
    seat.attach(1)
    old = seat.take(1, 0)[0]
    seat.settle("a")
    seat.request(Frame("a"))
    assert not seat.wanted(old)
    assert seat.statistics().requests == 2


class Walk(RuleBasedStateMachine):
    """Any order of requests, answers, withdrawals, sockets; against a list."""

    @initialize()
    def begin(self) -> None:
        self.seat = SeatMachine(max_notices=3)
        self.made = 0
        self.sockets = 0
        self.current: int | None = None
        self.waiting: list[str] = []
        self.notices: list[str] = []
        self.words: list[str] = []
        self.offered: dict[str, set[int]] = {}
        self.on_socket: list[str] = []
        self.over: set[str] = set()
        self.redelivered = 0

    def fresh(self) -> str:
        self.made += 1
        return str(self.made)

    @rule(deadline=st.sampled_from([math.inf, 5.0]))
    def ask(self, deadline) -> None:
        name = self.fresh()
        self.seat.request(Frame(name), until=deadline)
        self.waiting.append(name)

    @rule()
    def tell(self) -> None:
        name = self.fresh()
        self._told(name, self.seat.notify(Frame(name)))

    def _told(self, name, dropped) -> None:
        gone = [self.notices.pop(0)] if len(self.notices) == 3 else []
        assert dropped == [Frame(each) for each in gone]
        self.notices.append(name)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def answer(self, data) -> None:
        name = data.draw(st.sampled_from(self.waiting))
        assert self.seat.settle(name)
        self.waiting.remove(name)
        self.over.add(name)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def give_up(self, data) -> None:
        name = data.draw(st.sampled_from(self.waiting))
        word = self.fresh()
        assert self.seat.withdraw(name, Frame(word))
        if self.offered.get(name):
            self.words.append(word)
        self.waiting.remove(name)
        self.over.add(name)

    @rule()
    def connect(self) -> None:
        self.sockets += 1
        attached = self.seat.attach(self.sockets)
        assert attached.replaced == self.current
        assert list(attached.again) == [name for name in self.waiting if self.offered.get(name)]
        self.redelivered += len(attached.again)
        self.current, self.on_socket = self.sockets, []

    @precondition(lambda self: self.sockets)
    @rule(data=st.data())
    def lose(self, data) -> None:
        socket = data.draw(st.integers(1, self.sockets))
        assert self.seat.detach(socket) == (socket == self.current)
        if socket == self.current:
            self.current = None

    @precondition(lambda self: self.sockets)
    @rule(data=st.data(), written=st.booleans())
    def deliver(self, data, written) -> None:
        socket = data.draw(st.integers(1, self.sockets))
        dues = self.seat.take(socket, 1.0)
        if socket != self.current:
            assert dues == []
            return
        taken = ids(dues)
        missing = [name for name in [*self.waiting, *self.notices, *self.words] if name not in self.on_socket]
        assert taken == sorted(missing, key=int)
        assert not self.over & set(taken)
        assert all(self.seat.wanted(due) for due in dues)
        self.on_socket += taken
        for name in taken:
            self.offered.setdefault(name, set()).add(socket)
        if written:
            self.seat.written(dues)
            self.notices = [name for name in self.notices if name not in taken]
            self.words = [name for name in self.words if name not in taken]

    @invariant()
    def nothing_is_lost(self) -> None:
        if not hasattr(self, "seat"):
            return
        assert list(self.seat.outstanding()) == self.waiting
        assert self.seat.socket == self.current
        counts = self.seat.statistics()
        assert counts.outstanding == len(self.waiting)
        assert counts.offered == sum(1 for name in self.waiting if self.offered.get(name))
        assert counts.requests == counts.settled + counts.withdrawn + counts.outstanding
        assert counts.notices == len(self.notices) + len(self.words)
        assert counts.redelivered == self.redelivered


TestWalk = Walk.TestCase
TestWalk.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def test_what_waited_and_is_about_to_expire_is_stale() -> None:
    """Only then: not what goes out at once, not what is fresh, not a notice, not what is settled."""
    seat = SeatMachine()
    seat.request(Spawning("parked"), good_for=30)
    seat.attach(1)
    seat.request(Spawning("at once"), good_for=30)
    seat.request(Spawning("behind others"), good_for=61)
    seat.request(Spawning("plain"))
    seat.notify(Frame("notice"))
    dues = seat.take(1, 0)

    stale = {left: [due.frame.req_id for due in dues if seat.is_stale(due, left)] for left in (0, 60, 60.5)}
    assert stale == {
        0: ["parked", "behind others", "plain"],
        60: ["parked", "behind others", "plain"],
        60.5: [],
    }
    assert not any(seat.is_stale(due, math.inf) for due in dues)
    seat.settle("parked")
    assert not seat.is_stale(dues[0], 0)

    seat.attach(2)
    (again,) = [due for due in seat.take(2, 0) if due.frame.req_id == "at once"]
    assert seat.is_stale(again, 30)


def test_a_renewed_token_stays_with_its_request() -> None:
    """On this socket and the next; the time that is left is told anew."""
    seat = SeatMachine()
    seat.request(Spawning("a"), until=10)
    seat.attach(1)
    (due,) = seat.take(1, 4)
    renewed = seat.renew(due, "new")
    assert (renewed.frame.capability_token, renewed.frame.deadline_ms) == ("new", 6000)
    assert seat.wanted(renewed)
    seat.attach(2)
    (again,) = seat.take(2, 9)
    assert (again.frame.capability_token, again.frame.deadline_ms, again.again) == ("new", 1000, True)


def test_what_no_socket_took_can_be_told_at_the_end() -> None:
    """Both kinds of notices, in their order; a look changes nothing."""
    seat = SeatMachine()
    seat.attach(1)
    seat.request(Frame("a"))
    seat.take(1, 0)
    seat.notify(Frame("n1"))
    seat.withdraw("a", Frame("w"))
    seat.notify(Frame("n2"))
    assert ids(seat.unwritten()) == ["n1", "w", "n2"]
    dues = seat.take(1, 0)
    assert ids(dues) == ["n1", "w", "n2"]
    seat.written(dues[:1])
    assert ids(seat.unwritten()) == ["w", "n2"]
    seat.close("over")
    assert seat.unwritten() == []
