"""The machine of a child's connection (children contract, A5)."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from trio_swarm._state.child_conn import (
    CONTROL_QUEUE,
    DRAIN,
    EVENT_QUEUE,
    MAX_STEERING,
    MAX_SUPERSEDED,
    Abandon,
    ChildConnection,
    Decide,
    Hangup,
    Start,
    Steer,
    Trip,
)
from trio_swarm.frames.child import ApprovalReply, Cancel, Message, Run, SubagentReply, Terminal

CANCELLED = Terminal(status="cancelled")
FIRST, SECOND, THIRD = Run("one"), Run("two"), Run("three")


def started() -> ChildConnection:
    conn = ChildConnection()
    assert conn.receive(FIRST, 0) == [Start(1, FIRST)]
    return conn


def test_a_run_starts_at_once_when_none_is_active():
    """And it is the active one until it ends."""
    conn = started()

    assert conn.active == 1
    assert conn.finish(1, "done", 1) == []
    assert conn.active is None
    assert conn.take(9) == ["done"]


def test_events_leave_before_the_terminal_in_emit_order():
    """All events of a run precede its terminal (A5)."""
    conn = started()
    for n in range(5):
        assert conn.event(1, n)
    conn.finish(1, "done", 0)

    assert conn.take(99) == [0, 1, 2, 3, 4, "done"]


def test_a_second_run_cancels_the_first_and_starts_at_its_end():
    """No error, no answer "already running"; the first answers cancelled (A5)."""
    conn = started()

    assert conn.receive(SECOND, 1) == [Trip(1)]
    assert conn.event(1, "last words")
    assert conn.finish(1, None, 2) == [Start(2, SECOND)]
    assert conn.take(9) == ["last words", CANCELLED]


def test_runs_superseded_before_they_began_are_answered_in_order():
    """Exactly one terminal per run, in the order of the runs."""
    conn = started()
    conn.receive(SECOND, 1)

    assert conn.receive(THIRD, 1) == []
    assert conn.take(9) == []
    assert conn.finish(1, "finished all the same", 2) == [Start(2, THIRD)]
    assert conn.take(9) == ["finished all the same", CANCELLED]


def test_a_flood_of_runs_is_hung_up_on():
    """What is owed is bounded."""
    conn = started()
    for _ in range(MAX_SUPERSEDED + 1):
        assert not any(isinstance(e, Hangup) for e in conn.receive(SECOND, 1))

    assert isinstance(conn.receive(SECOND, 1)[0], Hangup)


def test_cancel_trips_the_run_once():
    """Ignored if there is none; no acknowledgement."""
    conn = ChildConnection()
    assert conn.receive(Cancel(), 0) == []
    assert conn.ignored == 1
    conn.receive(FIRST, 0)

    assert conn.receive(Cancel(), 1) == [Trip(1)]
    assert conn.receive(Cancel(), 2) == []
    assert conn.deadline() == 1 + DRAIN


def test_cancel_with_a_run_waiting_cancels_that_one_too():
    """The newest run is the active one for a parent that superseded."""
    conn = started()
    conn.receive(SECOND, 1)
    conn.receive(Cancel(), 1)

    assert conn.finish(1, None, 2) == []
    assert conn.take(9) == [CANCELLED, CANCELLED]


def test_a_run_that_does_not_end_is_abandoned_and_answered_for():
    """After 3 s its terminal is sent for it, what it says is refused, then the connection is hung up."""
    conn = started()
    conn.receive(Cancel(), 10)
    assert conn.tick(10 + DRAIN - 0.001) == []

    assert conn.tick(10 + DRAIN) == [Abandon(1), Hangup("a cancelled run did not end")]
    assert conn.take(9) == [CANCELLED]
    assert not conn.event(1, "too late")
    assert not conn.ask(1, "id", "too late")
    assert conn.finish(1, "too late", 20) == []
    assert conn.take(9) == []
    assert conn.tainted


def test_a_run_behind_an_abandoned_one_still_runs():
    """It was accepted; the connection is hung up after it."""
    conn = started()
    conn.receive(SECOND, 0)

    assert conn.tick(DRAIN) == [Abandon(1), Start(2, SECOND)]
    assert conn.finish(2, "done", 9) == [Hangup("a cancelled run did not end")]
    assert conn.take(9) == [CANCELLED, "done"]


def test_steering_goes_to_the_active_run():
    """Dropped silently without one."""
    conn = ChildConnection()
    assert conn.receive(Message(text="nobody"), 0) == []
    conn.receive(FIRST, 0)

    assert conn.receive(Message(text="left"), 0) == [Steer(1, "left")]
    assert conn.ignored == 1


def test_steering_for_a_run_that_waits_comes_with_its_start():
    """It is meant for the newest run, and there is a bound."""
    conn = started()
    conn.receive(SECOND, 0)
    for n in range(MAX_STEERING + 5):
        assert conn.receive(Message(text=str(n)), 0) == []

    (start,) = conn.finish(1, None, 1)
    assert start == Start(2, SECOND, tuple(str(n) for n in range(MAX_STEERING)))
    assert conn.ignored == 5


def test_an_approval_overtakes_events_and_is_answered_once():
    """Unknown and repeated ids are ignored (A5)."""
    conn = started()
    conn.event(1, "event")
    assert conn.ask(1, "a", "question")

    assert conn.take(9) == ["question", "event"]
    assert conn.receive(ApprovalReply(id="b", approved=True), 0) == []
    assert conn.receive(ApprovalReply(id="a", approved=True), 0) == [Decide("a", True)]
    assert conn.receive(ApprovalReply(id="a", approved=False), 0) == []
    assert conn.ignored == 2


def test_an_approval_never_overtakes_the_terminal_of_an_earlier_run():
    """A client that counts terminals must not take it for the old run's."""
    conn = started()
    conn.event(1, "old")
    conn.receive(SECOND, 0)
    conn.finish(1, None, 0)
    conn.event(2, "new")
    conn.ask(2, "a", "question")

    assert conn.take(9) == ["old", CANCELLED, "question", "new"]


def test_a_cancelled_run_is_denied_its_approvals():
    """It fails closed."""
    conn = started()
    conn.receive(Cancel(), 0)

    assert not conn.ask(1, "a", "question")


def test_the_end_of_a_run_forgets_its_approvals():
    """A late answer means nothing, a request that was never sent stays unsent."""
    conn = started()
    conn.ask(1, "a", "question")
    conn.finish(1, "done", 0)

    assert conn.take(9) == ["done"]
    assert conn.receive(ApprovalReply(id="a", approved=True), 0) == []


def test_a_withdrawn_approval_is_not_answered():
    """Nobody waits for it any more."""
    conn = started()
    conn.ask(1, "a", "question")
    conn.withdraw("a")

    assert conn.receive(ApprovalReply(id="a", approved=True), 0) == []


def test_disconnect_cancels_the_run_and_denies_what_waits():
    """Each waiting tool call fails closed (A5)."""
    conn = started()
    conn.ask(1, "a", "question")
    conn.event(1, "event")

    assert conn.disconnect(0) == [Decide("a", False), Trip(1)]
    assert conn.take(9) == []
    assert not conn.event(1, "nobody hears it")
    assert conn.receive(SECOND, 0) == []
    assert conn.finish(1, None, 0) == []
    assert conn.take(9) == []


def test_a_runs_own_deadline_is_an_error_not_a_cancellation():
    """deadline_ms is enforced here, too."""
    conn = ChildConnection()
    conn.receive(Run("x", deadline_ms=1500), 10)
    assert conn.deadline() == 11.5
    assert conn.tick(11.4) == []

    assert conn.tick(11.5) == [Trip(1)]
    conn.finish(1, None, 12)
    assert conn.take(9) == [Terminal(status="error", error="deadline exceeded")]


def test_an_engine_whose_scope_ended_before_the_tick_is_past_its_deadline():
    """Cancelled by nobody means that its time was up."""
    conn = ChildConnection()
    conn.receive(Run("x", deadline_ms=1500), 10)
    conn.finish(1, None, 11.4999)

    assert conn.take(9) == [Terminal(status="error", error="deadline exceeded")]


def test_frames_of_other_kinds_mean_nothing():
    """Unknown kinds are ignored (A5); a reply to a request that was never made, too."""
    conn = started()

    assert conn.receive(SubagentReply(id="x", body=None), 0) == []
    assert conn.ignored == 1


def test_the_queues_have_their_bounds():
    """64 events, 32 requests (A5, later hardening)."""
    conn = started()
    for n in range(EVENT_QUEUE):
        assert conn.event_room()
        conn.event(1, n)
    for n in range(CONTROL_QUEUE):
        assert conn.control_room()
        conn.ask(1, str(n), n)

    assert not conn.event_room()
    assert not conn.control_room()
    conn.take(CONTROL_QUEUE)
    assert not conn.control_room()  # sent, not answered
    conn.receive(ApprovalReply(id="3", approved=True), 0)
    assert conn.control_room()


class Walk(RuleBasedStateMachine):
    """Any order of frames, engine steps and time: the promises hold."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.conn = ChildConnection()
        self.asked_for = 0
        """Runs that the parent sent."""
        self.running: dict[int, int] = {}
        """Engine run -> which of the parent's runs it is."""
        self.terminals = 0
        self.said: dict[int, int] = {}
        self.heard: dict[int, int] = {}
        self.hung_up = False
        self.gone = False

    def feed(self, effects) -> None:
        for effect in effects:
            if isinstance(effect, Start):
                assert not self.gone
                self.running[effect.run] = int(effect.frame.assignment)
            elif isinstance(effect, Trip | Steer | Abandon):
                assert effect.run in self.running
            elif isinstance(effect, Hangup):
                self.hung_up = True

    @precondition(lambda self: not self.hung_up)
    @rule(limit=st.none() | st.integers(0, 5000))
    def run(self, limit):
        if not self.gone:
            self.asked_for += 1
        self.feed(self.conn.receive(Run(str(self.asked_for), deadline_ms=limit), self.now))

    @rule()
    def cancel(self):
        self.feed(self.conn.receive(Cancel(), self.now))

    @rule()
    def steer(self):
        self.feed(self.conn.receive(Message(text="x"), self.now))

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def speak(self, data):
        run = data.draw(st.sampled_from(sorted(self.running)))
        number = self.said.get(run, 0)
        if self.conn.event_room() and self.conn.event(run, (run, number)):
            self.said[run] = number + 1

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def ask(self, data):
        run = data.draw(st.sampled_from(sorted(self.running)))
        if self.conn.control_room():
            self.conn.ask(run, f"{run}", ("ask", run))

    @precondition(lambda self: self.running)
    @rule(data=st.data(), completed=st.booleans())
    def end(self, data, completed):
        run = data.draw(st.sampled_from(sorted(self.running)))
        del self.running[run]
        self.feed(self.conn.finish(run, "done" if completed else None, self.now))

    @rule(seconds=st.floats(0, 4))
    def wait(self, seconds):
        self.now += seconds
        self.feed(self.conn.tick(self.now))

    @rule(limit=st.integers(1, 70))
    def write(self, limit):
        for item in self.conn.take(limit):
            if isinstance(item, tuple) and item[0] == "ask":
                continue
            if isinstance(item, tuple):
                run, number = item
                assert number == self.heard.get(run, 0), "events come in order"
                self.heard[run] = number + 1
                assert self.terminals < self.asked_for, "no event behind the last terminal"
                self.ran = run
            else:
                self.terminals += 1

    @precondition(lambda self: not self.gone)
    @rule()
    def disconnect(self):
        self.gone = True
        self.feed(self.conn.disconnect(self.now))

    @invariant()
    def at_most_one_terminal_per_run(self):
        assert self.terminals <= self.asked_for

    @invariant()
    def nothing_is_queued_for_a_peer_that_is_gone(self):
        assert not self.gone or self.conn.waiting() == 0

    @invariant()
    def the_queue_is_bounded(self):
        assert self.conn.waiting() <= EVENT_QUEUE + CONTROL_QUEUE + self.asked_for

    def teardown(self) -> None:
        if self.gone or self.hung_up:
            return
        while self.running:
            run = min(self.running)
            del self.running[run]
            self.feed(self.conn.finish(run, None, self.now))
        self.write(10**6)
        assert self.terminals == self.asked_for, "exactly one terminal per run"
        assert self.heard == {run: count for run, count in self.said.items() if count}


Walk.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestWalk = Walk.TestCase
