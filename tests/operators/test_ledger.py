"""Each request is shown once and replied to once, whatever comes again."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from trio_swarm.frames.operator import Answer
from trio_swarm.operators.ledger import Ledger, Orphans, Receipted


def reply(req_id: str) -> Answer:
    return Answer(req_id=req_id, value=req_id)


def a_ledger(**options) -> Ledger[str]:
    ledger = Ledger[str](**options)
    ledger.connected(redelivers=True)
    return ledger


def ask(ledger: Ledger[str], *req_ids: str) -> None:
    for req_id in req_ids:
        assert ledger.arrived(req_id) == "new"
        ledger.show(req_id, req_id)


def test_what_comes_again_while_it_is_open_is_not_shown_again() -> None:
    """And what the user was shown is still there."""
    ledger = a_ledger()
    ask(ledger, "a")
    assert ledger.arrived("a") == "open"
    assert ledger.shown("a") == "a"


def test_what_comes_again_after_its_reply_gets_the_same_reply_once_per_socket() -> None:
    """Not twice on one socket, not unasked on the next."""
    ledger = a_ledger()
    ask(ledger, "a")
    assert ledger.reply("a", reply("a"), 10)
    assert not ledger.reply("a", reply("a"), 10)
    assert ledger.take() == [reply("a")]
    ledger.written([reply("a")])
    assert ledger.arrived("a") == "answered"
    assert ledger.take() == []

    ledger.connected(redelivers=True)
    assert ledger.take() == []
    assert ledger.arrived("a") == "answered"
    assert ledger.arrived("a") == "answered"
    assert ledger.take() == [reply("a")]
    assert ledger.statistics().answered_again == 1


def test_replies_that_never_left_go_first_on_the_next_socket() -> None:
    """In the order in which they were given, also when the socket took none of them."""
    ledger = a_ledger()
    ask(ledger, "a", "b", "c")
    for req_id in "cab":
        ledger.reply(req_id, reply(req_id), 1)
    ledger.take()
    ledger.written([reply("c")])
    assert not ledger.settled
    ledger.connected(redelivers=True)
    assert ledger.take() == [reply("a"), reply("b")]
    ledger.written([reply("a"), reply("b")])
    assert ledger.settled


def test_an_original_gets_its_last_replies_again() -> None:
    """It would wait for ever for one that was lost; it ignores what it has."""
    ledger = a_ledger(sent_again=2)
    ask(ledger, "a", "b", "c")
    for req_id in "abc":
        ledger.reply(req_id, reply(req_id), 1)
    ledger.written(ledger.take())
    ledger.connected(redelivers=False)
    assert ledger.take() == [reply("b"), reply("c")]


def test_a_withdrawn_request_takes_no_reply() -> None:
    """It is new if it should ever come again."""
    ledger = a_ledger()
    ask(ledger, "a")
    assert ledger.withdraw("a") == "a"
    assert ledger.withdraw("a") is None
    assert not ledger.reply("a", reply("a"), 1)
    assert ledger.arrived("a") == "new"


def test_a_request_that_was_not_shown_after_all_is_new_again() -> None:
    """The inbox was full and the socket died meanwhile."""
    ledger = a_ledger()
    ask(ledger, "a")
    ledger.unshow("a")
    ledger.unshow("a")
    ask(ledger, "a")
    assert ledger.statistics().requests == 1


def test_notices_are_told_once() -> None:
    """Within what is remembered."""
    ledger = a_ledger(remembered=2)
    assert ledger.told("n1")
    assert not ledger.told("n1")
    assert ledger.told("n2")
    assert ledger.told("n3")
    assert ledger.told("n1")


def test_everything_is_bounded() -> None:
    """Open requests by number, replies by number and by size; what has not left is never dropped."""
    ledger = a_ledger(max_open=2, remembered=2, max_bytes=100)
    ask(ledger, "a", "b")
    assert ledger.arrived("c") == "refused"
    for req_id in "ab":
        ledger.reply(req_id, reply(req_id), 80)
    assert ledger.statistics().unsent == 2
    ledger.written(ledger.take())
    assert ledger.arrived("a") == "new"
    assert ledger.arrived("b") == "answered"
    assert ledger.statistics().refused == 1


class Walk(RuleBasedStateMachine):
    """A server that redelivers, sockets that die, a user that replies: against plain sets."""

    @initialize()
    def begin(self) -> None:
        self.ledger = a_ledger()
        self.made = 0
        self.open: set[str] = set()
        self.answered: list[str] = []
        self.settled: set[str] = set()
        self.on_socket: set[str] = set()

    @rule()
    def request(self) -> None:
        self.made += 1
        ask(self.ledger, str(self.made))
        self.open.add(str(self.made))

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def reply(self, data) -> None:
        req_id = data.draw(st.sampled_from(sorted(self.open)))
        assert self.ledger.reply(req_id, reply(req_id), 1)
        self.open.remove(req_id)
        self.answered.append(req_id)

    @rule(arrives=st.booleans())
    def write(self, arrives) -> None:
        taken = [frame.req_id for frame in self.ledger.take()]
        assert not self.on_socket & set(taken)
        self.on_socket |= set(taken)
        self.ledger.written([reply(req_id) for req_id in taken])
        if arrives:
            self.settled |= set(taken)

    @rule(data=st.data())
    def reconnect(self, data) -> None:
        self.ledger.connected(redelivers=True)
        self.on_socket = set()
        for req_id in sorted(self.open | (set(self.answered) - self.settled)):
            expected = "open" if req_id in self.open else "answered"
            assert self.ledger.arrived(req_id) == expected

    @rule()
    def in_the_end_every_reply_arrives(self) -> None:
        self.reconnect(None)
        self.write(True)
        assert set(self.answered) == self.settled
        assert self.ledger.settled

    @invariant()
    def counts_hold(self) -> None:
        if hasattr(self, "ledger"):
            assert self.ledger.statistics().open == len(self.open)
            assert self.ledger.statistics().answered == len(self.answered)


TestWalk = Walk.TestCase
TestWalk.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)


def with_receipts(**options) -> Ledger[str]:
    ledger = Ledger[str](**options)
    ledger.connected(redelivers=True, receipts=True)
    return ledger


def test_a_reply_that_was_let_go_is_settled_by_its_receipt_all_the_same() -> None:
    """Or by the end of the session: nobody waits for it for ever."""
    ledger = with_receipts(remembered=1)
    ask(ledger, "a", "b", "c", "d")
    for req_id in "abcd":
        ledger.reply(req_id, reply(req_id), 10)
    ledger.written(ledger.take())
    assert sorted(ledger.unreceipted()) == ["a", "b", "c", "d"]
    assert ledger.receipt("a", True, None) == Receipted("a", None)
    assert ledger.receipt("b", False, "late") == Receipted("b", "late")
    assert ledger.receipt("d", True, None) == Receipted("d", None)
    assert ledger.receipt("a", True, None) is None
    assert ledger.unreceipted() == ["c"]


def test_what_has_its_receipt_is_let_go_first() -> None:
    """The other may be asked for once more."""
    ledger = with_receipts(max_bytes=20)
    ask(ledger, "a", "b", "c")
    ledger.reply("a", reply("a"), 10)
    ledger.reply("b", reply("b"), 10)
    ledger.written(ledger.take())
    ledger.receipt("b", True, None)
    ledger.reply("c", reply("c"), 10)
    assert ledger.arrived("a") == "answered"
    assert ledger.arrived("b") == "new"


def test_a_server_that_gives_no_receipts_makes_nothing_grow() -> None:
    """What waits for a receipt counts as open: beyond the bound nothing is shown."""
    ledger = with_receipts(remembered=2, max_open=3)
    shown = 0
    for number in range(100):
        if ledger.arrived(str(number)) == "new":
            shown += 1
            ledger.show(str(number), str(number))
            ledger.reply(str(number), reply(str(number)), 10)
            ledger.written(ledger.take())
    assert shown == len(ledger.unreceipted()) == 5
    assert ledger.statistics().refused == 95


def test_what_another_server_had_asked_is_over() -> None:
    """Open, replied to and written or not, and let go before its receipt; all told once."""
    ledger = Ledger[str](remembered=3)
    assert ledger.connected(redelivers=True, receipts=True, instance="1") == Orphans()
    ask(ledger, "open", "forgotten", "written", "receipted", "unsent")
    for req_id in ("forgotten", "written", "receipted"):
        ledger.reply(req_id, reply(req_id), 10)
    ledger.written(ledger.take())
    ledger.receipt("receipted", True, None)
    ledger.reply("unsent", reply("unsent"), 10)
    assert ledger.told("notice")
    # So that one is let go without its receipt.
    ask(ledger, "last")
    ledger.reply("last", reply("last"), 10)
    assert ledger.arrived("forgotten") == ledger.arrived("receipted") == "new"

    assert ledger.connected(redelivers=True, receipts=True, instance="1") == Orphans()
    orphans = ledger.connected(redelivers=True, receipts=True, instance="2")
    assert orphans.open == ("open",)
    assert sorted(orphans.replied) == ["forgotten", "last", "unsent", "written"]
    assert ledger.connected(redelivers=True, receipts=True, instance="2") == Orphans()

    assert ledger.take() == []
    assert ledger.settled
    assert ledger.unreceipted() == []
    assert ledger.receipt("written", True, None) is None
    assert not ledger.reply("open", reply("open"), 10)
    known = ledger.statistics()
    assert (known.open, known.unsent, known.withdrawn) == (0, 0, 1)


def test_another_server_may_use_any_id() -> None:
    """A request and a notice of its own are new, whatever was there under their ids."""
    ledger = Ledger[str](max_bytes=15)
    ledger.connected(redelivers=True, receipts=True, instance="1")
    ask(ledger, "open", "answered")
    ledger.reply("answered", reply("answered"), 10)
    ledger.written(ledger.take())
    ledger.told("notice")
    ledger.connected(redelivers=True, receipts=True, instance="2")
    ask(ledger, "open", "answered")
    assert ledger.told("notice")
    ledger.reply("answered", reply("answered"), 10)
    assert [frame.req_id for frame in ledger.take()] == ["answered"]
    ledger.written([reply("answered")])
    assert ledger.arrived("answered") == "answered"  # What it weighed before is not counted.


def test_a_server_that_does_not_say_which_one_it_is_ends_nothing() -> None:
    """An original; and one that says it again after a socket on which it did not."""
    ledger = Ledger[str]()
    ledger.connected(redelivers=False, instance=None)
    ask(ledger, "a")
    assert ledger.connected(redelivers=False, instance=None) == Orphans()
    assert ledger.arrived("a") == "open"
    # It never said so: what does now is a later version in its place.
    assert ledger.connected(redelivers=True, instance="1") == Orphans(("a",), ())
    ask(ledger, "b")
    for instance in (None, "1"):
        assert ledger.connected(redelivers=True, instance=instance) == Orphans()
        assert ledger.arrived("b") == "open"
    assert ledger.connected(redelivers=True, instance="2") == Orphans(("b",), ())


class Restarts(RuleBasedStateMachine):
    """Servers that take each other's place, under a few ids; each request ends once, and in its own time."""

    @initialize()
    def begin(self) -> None:
        self.ledger = Ledger[object](remembered=4)
        self.instance = 0
        self.connect()
        self.open: dict[str, object] = {}
        self.replied: dict[str, object] = {}
        self.its_own: set[str] = set()
        self.over: list[object] = []

    def connect(self) -> Orphans[object]:
        return self.ledger.connected(redelivers=True, receipts=True, instance=str(self.instance))

    @rule(req_id=st.sampled_from("abcdefgh"))
    def request(self, req_id) -> None:
        if self.ledger.arrived(req_id) == "new" and req_id not in self.replied:
            self.open[req_id] = object()
            self.ledger.show(req_id, self.open[req_id])

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def reply(self, data) -> None:
        req_id = data.draw(st.sampled_from(sorted(self.open)))
        assert self.ledger.reply(req_id, reply(req_id), 1)
        self.replied[req_id] = self.open.pop(req_id)
        self.its_own.add(req_id)

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def withdraw(self, data) -> None:
        req_id = data.draw(st.sampled_from(sorted(self.open)))
        assert self.ledger.withdraw(req_id) is self.open[req_id]
        self.over.append(self.open.pop(req_id))

    @rule()
    def write(self) -> None:
        taken = self.ledger.take()
        assert {frame.req_id for frame in taken} <= self.its_own
        self.ledger.written(taken)

    @precondition(lambda self: self.replied)
    @rule(data=st.data(), accepted=st.booleans())
    def receipt(self, data, accepted) -> None:
        self.write()
        req_id = data.draw(st.sampled_from(sorted(self.replied)))
        told = self.ledger.receipt(req_id, accepted, None if accepted else "late")
        assert told is not None
        assert told.request is self.replied[req_id]
        self.over.append(self.replied.pop(req_id))

    @rule()
    def reconnect(self) -> None:
        assert self.connect() == Orphans()

    @rule()
    def restart(self) -> None:
        self.instance += 1
        orphans = self.connect()
        assert list(orphans.open) == list(self.open.values())
        assert set(orphans.replied) == set(self.replied.values())
        assert len(orphans.replied) == len(self.replied)
        self.over += [*orphans.open, *orphans.replied]
        self.open, self.replied, self.its_own = {}, {}, set()
        assert self.ledger.settled
        assert self.ledger.take() == []

    @invariant()
    def each_ends_once(self) -> None:
        if hasattr(self, "ledger"):
            assert len(set(self.over)) == len(self.over)
            assert self.ledger.statistics().open == len(self.open)
            assert set(self.ledger.unreceipted()) == set(self.replied.values())


TestRestarts = Restarts.TestCase
TestRestarts.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
