"""The pod's state machine: the contract's table, and its promises for every sequence of methods."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from trio_swarm._state.pod_controller import (
    Broadcast,
    CancelTurn,
    Commit,
    End,
    Failed,
    Finished,
    Notifier,
    PodController,
    SaveStatus,
    StartTurn,
    notification_text,
)
from trio_swarm.frames import pod as frames

RUN, RESUME, CANCEL = frames.Run("hi"), frames.Resume(), frames.Cancel()
NOTIFY, SHUTDOWN = frames.Notify("b", "done"), frames.Shutdown()


def in_state(state):
    """A controller brought there by the shortest way."""
    controller = PodController()
    if state != "idle":
        controller.receive(RUN)
    if state == "paused":
        controller.finish(Finished("paused"))
    assert controller.state == state
    return controller


def events(effects):
    return [effect.event for effect in effects if isinstance(effect, Broadcast)]


def starts(effects):
    return [effect for effect in effects if isinstance(effect, StartTurn)]


REFUSALS = {
    "already_running": "Pod is already executing a turn",
    "not_running": "Pod is not running",
    "not_paused": "Pod is not paused",
}


@pytest.mark.parametrize(
    ("state", "method", "code"),
    [
        ("running", RUN, "already_running"),
        ("paused", RUN, "already_running"),
        ("idle", RESUME, "not_paused"),
        ("running", RESUME, "already_running"),
        ("idle", CANCEL, "not_running"),
        ("paused", CANCEL, "not_running"),
    ],
)
def test_refusals(state, method, code):
    """What a state does not take is an error with the contract's text, and nothing changes."""
    controller = in_state(state)

    assert controller.receive(method) == [Broadcast(frames.Error(code, REFUSALS[code]))]
    assert controller.state == state


@pytest.mark.parametrize(("state", "method"), [("idle", RUN), ("paused", RESUME), ("idle", NOTIFY)])
def test_starts(state, method):
    """A start is acknowledged by ``turn_start`` at once, and by nothing else."""
    effects = in_state(state).receive(method)

    (start,) = starts(effects)
    assert start.input == (method.input if method is RUN else None)
    assert start.resumed is (method is RESUME)
    assert start.notifications == ((NOTIFY,) if method is NOTIFY else ())
    assert [type(event) for event in events(effects)] == [frames.TurnStart]
    assert effects[-1] == SaveStatus("running")


@pytest.mark.parametrize("state", ["running", "paused"])
def test_notify_only_queues_outside_of_idle(state):
    """No error, no turn; the next run gets it."""
    controller = in_state(state)

    assert controller.receive(NOTIFY) == []
    assert controller.take_notifications() == (NOTIFY,)
    assert controller.take_notifications() == ()


def test_deadline_travels():
    """``deadline_ms`` of each method that starts a run reaches the engine's scope."""
    assert starts(PodController().receive(frames.Run("x", deadline_ms=7)))[0].deadline_ms == 7
    assert starts(PodController().receive(frames.Notify("a", "b", deadline_ms=8)))[0].deadline_ms == 8
    assert starts(in_state("paused").receive(frames.Resume(deadline_ms=9)))[0].deadline_ms == 9


def test_history_is_committed_before_the_end_is_told():
    """Our repair of B2.5: whoever sees ``run_end`` sees the items, and may run again."""
    controller = in_state("running")

    effects = controller.finish(Finished())

    assert effects == [
        Broadcast(frames.TurnEnd(0, "finished")),
        Commit(),
        Broadcast(frames.RunEnd("finished")),
        SaveStatus("idle"),
    ]
    assert starts(controller.receive(RUN))


def test_a_failed_run_ends_with_error_alone():
    """No ``turn_end`` for a request that broke, no ``run_end``."""
    effects = in_state("running").finish(Failed("tool_error", "no"))

    assert events(effects) == [frames.Error("tool_error", "no")]


@pytest.mark.parametrize("state", ["idle", "paused"])
def test_shutdown_at_rest(state):
    """Told, then over; and only once."""
    controller = in_state(state)

    assert controller.receive(SHUTDOWN) == [Broadcast(frames.ShutdownEvent()), End()]
    assert controller.receive(SHUTDOWN) == controller.receive(RUN) == controller.shutdown() == []


def test_shutdown_while_running_cancels_finishes_and_ends():
    """B2.5's longest row."""
    controller = in_state("running")

    assert controller.receive(SHUTDOWN) == [CancelTurn()]
    assert controller.shutdown() == []
    effects = controller.finish(Failed("internal", "cancelled"))

    assert effects[-2:] == [Broadcast(frames.ShutdownEvent()), End()]
    assert frames.Error("internal", "cancelled") in events(effects)


def test_turns_are_numbered_over_the_pods_life():
    """From 0, one for each request to the model."""
    controller = PodController()
    seen = events(controller.receive(RUN))
    seen += events(controller.end_request()) + events(controller.begin_request())
    seen += events(controller.finish(Finished()))
    seen += events(controller.receive(RUN))

    numbers = [event.turn for event in seen if isinstance(event, frames.TurnStart | frames.TurnEnd)]
    assert numbers == [0, 0, 1, 1, 2]


def test_the_models_queue_drops_the_oldest():
    """128 by contract."""
    controller = in_state("running")
    for n in range(200):
        controller.receive(frames.Notify("a", str(n)))

    taken = controller.take_notifications()
    assert [each.message for each in taken] == [str(n) for n in range(72, 200)]


def test_notification_text_names_its_source():
    """The form of B2.5."""
    assert notification_text(NOTIFY).startswith("[Notification from b]\ndone\n")


def test_buffer_discards_oldest_past_cap():
    """The notifier keeps 512."""
    notifier = Notifier()
    for n in range(600):
        notifier.add(frames.Notification("warn", "pod", str(n), n))

    kept = notifier.snapshot()
    assert len(kept) == 512
    assert (kept[0].message, kept[-1].message) == ("88", "599")


def test_a_run_cannot_end_twice():
    """A mistake of ours is loud."""
    with pytest.raises(RuntimeError, match="idle"):
        PodController().finish(Finished())


class ControllerWalk(RuleBasedStateMachine):
    """Any methods, in any order, with the engine ending whenever it likes."""

    def __init__(self):
        super().__init__()
        self.controller = PodController(model_queue=3)
        self.trace = []
        self.engines = 0
        self.saved = "idle"
        self.expected_notes = []

    def apply(self, effects):
        for effect in effects:
            match effect:
                case Broadcast(event=event):
                    self.trace.append(event)
                case StartTurn(notifications=notes):
                    assert self.engines == 0
                    self.engines += 1
                    assert list(notes) == self.expected_notes
                    self.expected_notes = []
                case CancelTurn():
                    assert self.engines == 1
                case Commit():
                    self.trace.append(Commit())
                case SaveStatus(state=state):
                    self.saved = state
                case End():
                    assert self.engines == 0
                    self.trace.append(End())

    @rule(method=st.sampled_from([RUN, RESUME, CANCEL, SHUTDOWN]))
    def method(self, method):
        self.apply(self.controller.receive(method))

    @rule(n=st.integers(0, 99))
    def notify(self, n):
        if not self.controller.ended:
            self.expected_notes = [*self.expected_notes, frames.Notify("s", str(n))][-3:]
        self.apply(self.controller.receive(frames.Notify("s", str(n))))

    @precondition(lambda self: self.engines)
    @rule(
        outcome=st.sampled_from(
            [Finished(), Finished("paused"), Finished("limit_reached"), Failed("internal", "x")]
        )
    )
    def engine_ends(self, outcome):
        self.engines -= 1
        self.apply(self.controller.finish(outcome))

    @rule()
    def engine_asks_model(self):
        self.apply(self.controller.begin_request())

    @rule()
    def model_answers(self):
        self.apply(self.controller.end_request())

    @rule()
    def sigterm(self):
        self.apply(self.controller.shutdown())

    @invariant()
    def an_engine_runs_exactly_while_running(self):
        assert (self.controller.state == "running") == (self.engines == 1)

    @invariant()
    def what_is_saved_is_the_state(self):
        assert self.controller.ended or self.saved == self.controller.state

    @invariant()
    def shutdown_is_last_and_once(self):
        kinds = [type(event) for event in self.trace]
        if frames.ShutdownEvent in kinds:
            assert kinds[-2:] == [frames.ShutdownEvent, End]
            assert kinds.count(frames.ShutdownEvent) == 1

    @invariant()
    def each_run_ends_once_and_after_its_commit(self):
        refusals = ("already_running", "not_running", "not_paused")
        ends = [
            index
            for index, event in enumerate(self.trace)
            if isinstance(event, frames.RunEnd)
            or (isinstance(event, frames.Error) and event.code not in refusals)
        ]
        assert all(isinstance(self.trace[index - 1], Commit) for index in ends)
        assert len(ends) == sum(isinstance(event, Commit) for event in self.trace)

    @invariant()
    def turn_numbers_count_up(self):
        numbers = [event.turn for event in self.trace if isinstance(event, frames.TurnStart)]
        assert numbers == list(range(len(numbers)))


TestControllerWalk = ControllerWalk.TestCase
TestControllerWalk.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
