"""The phases matrix of pools.md C3.3, and any order of requests."""

import itertools

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from trio_swarm._state.pool_worker import (
    Asked,
    Begin,
    Exit,
    Phase,
    PoolWorker,
    Reply,
    Resume,
    estimate_tokens,
)
from trio_swarm.frames import PoolResponse, decode, encode, pool

RUN = pool.Run(code="return 1", lib_paths=())
CONTINUE = pool.Continue(sid="", response="r")
STATUS = pool.Status()


def machine_in(phase, *, reusable=False):
    numbers = itertools.count(1)
    machine = PoolWorker("1.0", lambda: f"s-{next(numbers)}", reusable)
    if phase is not Phase.IDLE:
        machine.receive(RUN, 0)
    if phase is Phase.PAUSED:
        machine.pause([Asked("p")], 0)
    if phase is Phase.FINISHED:
        machine.finish({"Completed": {"result": 1}}, 5)
    assert machine.phase is phase
    return machine


BUSY = "worker already has an active session"
NOTHING = "no paused session to continue"


@pytest.mark.parametrize(
    ("phase", "request_", "expected"),
    [
        (Phase.IDLE, RUN, Begin(RUN)),
        (Phase.PAUSED, RUN, BUSY),
        (Phase.FINISHED, RUN, BUSY),
        (Phase.RUNNING, RUN, BUSY),
        (Phase.IDLE, CONTINUE, NOTHING),
        (Phase.PAUSED, CONTINUE, Resume(("r",), None)),
        (Phase.FINISHED, CONTINUE, NOTHING),
        (Phase.RUNNING, CONTINUE, NOTHING),
        (Phase.IDLE, STATUS, pool.StatusReport(has_session=False, session_id=None)),
        (Phase.PAUSED, STATUS, pool.StatusReport(has_session=True, session_id="s-1")),
        (Phase.FINISHED, STATUS, pool.StatusReport(has_session=False, session_id=None)),
        *((phase, pool.Handshake("1.0"), pool.HandshakeOk("1.0")) for phase in Phase),
        *((phase, pool.Handshake("2"), "version mismatch: client=2, server=1.0") for phase in Phase),
        *((phase, pool.Shutdown(), Exit(pool.ShutdownOk())) for phase in Phase),
    ],
)
def test_the_matrix(phase, request_, expected):
    """Every request in every phase; a refusal changes nothing."""
    machine = machine_in(phase)
    effect = machine.receive(request_, 1)
    if isinstance(expected, str):
        expected = Reply(pool.Failure(error=expected))
    elif not isinstance(expected, Begin | Resume | Exit):
        expected = Reply(expected)
    assert effect == expected
    if not isinstance(effect, Begin | Resume):
        assert machine.phase is phase


def test_a_reusable_worker_takes_another_job():
    """Our launch-time extension; with a session id of its own."""
    machine = machine_in(Phase.FINISHED, reusable=True)
    assert machine.receive(RUN, 9) == Begin(RUN)
    assert machine.pause([Asked("q")], 9).response.session_id == "s-2"


@pytest.mark.parametrize(
    ("phase", "stays"), [(Phase.IDLE, False), (Phase.PAUSED, True), (Phase.FINISHED, False)]
)
def test_who_waits_for_another_client(phase, stays):
    """C3.2: only a paused worker."""
    assert machine_in(phase).disconnected() is stays


def test_a_foreign_sid_is_counted_and_served():
    """C3.3: the request's sid is ignored."""
    machine = machine_in(Phase.PAUSED)
    assert isinstance(machine.receive(pool.Continue(sid="s-other", response="x"), 1), Resume)
    assert machine.foreign_sids == 1


def test_the_deadline_of_the_last_answer_goes_on():
    """It is fresh; an earlier answer's is old."""
    machine = machine_in(Phase.IDLE)
    machine.receive(RUN, 0)
    machine.pause([Asked("a"), Asked("b")], 0)
    machine.receive(pool.Continue(sid="", response="x", query_id="q-1", deadline_ms=9), 1)
    last = machine.receive(pool.Continue(sid="", response="y", query_id="q-0", deadline_ms=7), 1)
    assert last == Resume(("y", "x"), 7)


def test_malformed_is_answered():
    """C3.2: the text says so."""
    assert machine_in(Phase.IDLE).malformed("why").response == pool.Failure(error="malformed request: why")


def test_usage_takes_the_place_of_the_estimate():
    """C3.3: in the history and in the metrics."""
    machine = machine_in(Phase.IDLE)
    machine.receive(RUN, 0)
    machine.pause([Asked("abcde", "é" * 3)], 1)
    history = machine.receive(pool.Status(include_history=True), 2).response.conversation_history
    assert history == [
        {
            "query_id": "q-0",
            "prompt": "abcde",
            "prompt_tokens": 2 + 2,
            "started_at": 1,
            "response": None,
            "response_tokens": 0,
            "completed_at": None,
        }
    ]
    usage = pool.Usage(prompt_tokens=100, completion_tokens=10)
    machine.receive(pool.Continue(sid="", response="r", usage=usage), 3)
    metrics = machine.finish("Cancelled", 8).response.feed_result["Finished"]["metrics"]["auto"]
    assert metrics["total_tokens"] == {"tokens": 110, "source": "provided"}
    assert (metrics["elapsed_ms"], metrics["rounds"], metrics["pauses"]) == (8, 1, 1)


def test_token_estimate():
    """ceil(ascii / 4) + ceil(others * 2 / 3)."""
    assert [estimate_tokens(text) for text in ("", "a", "abcd", "abcde", "é", "ééé", "aé")] == [
        0,
        1,
        1,
        2,
        1,
        2,
        2,
    ]


class AnyOrder(RuleBasedStateMachine):
    """Requests and the job's own steps in any order, beside a model of a few lines."""

    def __init__(self):
        super().__init__()
        self.numbers = itertools.count(1)
        self.machine = PoolWorker("1", lambda: f"s-{next(self.numbers)}", reusable=True)
        self.phase, self.open, self.texts, self.asked = Phase.IDLE, set(), {}, 0

    def check(self, effect):
        if isinstance(effect, Reply | Exit):
            # Whatever is answered can travel.
            assert decode(encode(effect.response), PoolResponse) == effect.response

    @rule()
    def run(self):
        effect = self.machine.receive(RUN, 1)
        self.check(effect)
        fits = self.phase in (Phase.IDLE, Phase.FINISHED)
        assert isinstance(effect, Begin) == fits
        if fits:
            self.phase = Phase.RUNNING

    @precondition(lambda self: self.phase is Phase.RUNNING)
    @rule(count=st.integers(1, 4))
    def pause(self, count):
        self.check(self.machine.pause([Asked(f"p{i}") for i in range(count)], 2))
        self.phase, self.asked, self.texts = Phase.PAUSED, count, {}
        self.open = {f"q-{i}" for i in range(count)}

    @precondition(lambda self: self.phase is Phase.RUNNING)
    @rule(state=st.sampled_from(["Cancelled", {"Completed": {"result": None}}, {"Failed": {"error": "e"}}]))
    def finish(self, state):
        self.check(self.machine.finish(state, 3))
        self.phase = Phase.FINISHED

    @rule(number=st.integers(0, 5), text=st.text(max_size=3))
    def answer(self, number, text):
        query_id = f"q-{number}"
        effect = self.machine.receive(pool.Continue(sid="s-1", response=text, query_id=query_id), 4)
        self.check(effect)
        if self.phase is not Phase.PAUSED or query_id not in self.open:
            assert isinstance(effect.response, pool.Failure)
            return
        self.open.discard(query_id)
        self.texts[number] = text
        if self.open:
            assert effect.response.feed_result == {"Accepted": {"remaining": len(self.open)}}
        else:
            assert effect == Resume(tuple(self.texts[i] for i in range(self.asked)), None)
            self.phase = Phase.RUNNING

    @rule(history=st.booleans())
    def status(self, history):
        effect = self.machine.receive(pool.Status(include_history=history), 5)
        self.check(effect)
        told = effect.response.conversation_history
        assert (told is not None) == (history and self.phase is Phase.PAUSED)
        assert told is None or len(told) <= 10

    @invariant()
    def same_phase(self):
        assert self.machine.phase is self.phase
        assert self.machine.disconnected() == (self.phase is Phase.PAUSED)


AnyOrder.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestAnyOrder = AnyOrder.TestCase
