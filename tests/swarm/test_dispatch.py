"""Dispatch in process: the sequence, the layers, the retries, the failures, the ends."""

from __future__ import annotations

import itertools
import math

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.operators.support import Result
from tests.swarm.support import Scripted, a_bench
from trio_swarm.errors import (
    ApprovalDenied,
    ApprovalExpired,
    AskCycle,
    BusyError,
    PeerGoneError,
    Refused,
    RemoteError,
    StepCancelled,
    StepFailed,
)
from trio_swarm.frames.operator import Worker
from trio_swarm.limits import CLOSE_DEADLINE, MAX_DEPTH
from trio_swarm.operators import WorkerResult
from trio_swarm.operators.approvals import ApprovalPolicy
from trio_swarm.operators.directive import DirectiveContext
from trio_swarm.swarm.steps import OperatorBinding, RetryPolicy, collapse_kind
from trio_swarm.workers import Outcome

D, S, M = "operator_delegate", "senior_escalation", "main_ai"
NOT_OK = WorkerResult("2 tests failed", ok=False)
ASKED = {"reason": "worker reported ok=false", "value": "2 tests failed"}
OVERRIDE = {"original": "2 tests failed", "senior_answer": "accept"}


async def told(operator: Scripted) -> list[str]:
    """What it was shown, once the notices have been told."""
    await wait_all_tasks_blocked()
    return operator.verbs()


# -- the sequence ----------------------------------------------------------------------


async def test_a_step_passes(tmp_path) -> None:
    """Before, execute, after; the value, the statistics, the settled task, dead credentials."""
    operator = Scripted(executes=WorkerResult({"n": 1}, stats={"num_turns": 3}))
    async with a_bench(tmp_path) as bench:
        seat = await bench.attach(operator)
        result = await bench.dispatch(operator=seat, prompt={"a": [1]}, system="persona")
        verbs = await told(operator)
    task = bench.last

    assert result == WorkerResult({"n": 1}, True, {"num_turns": 3})
    assert verbs == ["before", "execute", "after"]
    assert operator.seen[-1] == ("after", {"n": 1})
    assert (task.status, task.attempts, task.waiting_for) == ("pass", 1, None)
    assert (task.outcome.value, task.outcome.attempt, task.outcome.reason) == ({"n": 1}, 1, "")
    assert (task.prompt, task.system) == ('{"a":[1]}', "persona")
    assert task.attempt.ended
    assert [kind for kind in bench.events.kinds() if kind != "step_waits"] == [
        "task_created",
        "attempt_started",
        "attempt_ended",
        "task_settled",
    ]
    assert [data["for"] for data in bench.events.of("step_waits")] == [
        "hook_before of Scripted",
        "spawn of Scripted",
    ]
    assert task.attempt.worker_handle not in repr(bench.events.kept)
    assert task.attempt.capability_token not in repr(bench.events.kept)


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ("  as it is \n", "  as it is \n"),
        ('{"a": 1}', '{"a": 1}'),
        ("", ""),
        (None, "null"),
        (True, "true"),
        (1.5, "1.5"),
        ([1, {"b": None}], '[1,{"b":null}]'),
        ({"é": "ü x", "a": []}, '{"é":"ü x","a":[]}'),
    ],
)
async def test_what_becomes_the_prompt(tmp_path, prompt, text) -> None:
    """6.1: a text verbatim, other JSON compact, in its own order."""
    async with a_bench(tmp_path) as bench:
        await bench.dispatch(operator=await bench.attach(Scripted()), prompt=prompt, layers=[D])

    assert bench.last.prompt == text


@pytest.mark.parametrize("executes", [None, WorkerResult(None, ok=False), False, ""])
async def test_the_notice_tells_the_value_whatever_it_is(tmp_path, executes) -> None:
    """2.4, 6.3: null where the result is none."""
    operator = Scripted(executes=executes)
    async with a_bench(tmp_path) as bench:
        await bench.dispatch(operator=await bench.attach(operator), layers=[D, M])
        await told(operator)

    value = executes.value if isinstance(executes, WorkerResult) else executes
    assert operator.seen[-1] == ("after", value)


ORDERS = [
    ([D], ["execute"], False, None),
    ([D, S], ["execute", "ask"], True, None),
    ([D, M], ["before", "execute", "after"], False, "2 tests failed"),
    ([D, S, M], ["before", "execute", "ask", "after"], True, OVERRIDE),
    ([D, M, S], ["before", "execute", "after", "ask"], True, "2 tests failed"),
]


@pytest.mark.parametrize(("layers", "calls", "ok", "after"), ORDERS)
async def test_each_order_of_the_layers(tmp_path, layers, calls, ok, after) -> None:
    """What is called, in which order, and which value the notice has (contract 6.3)."""
    operator = Scripted(executes=NOT_OK, answers="accept")
    async with a_bench(tmp_path) as bench:
        seat = await bench.attach(operator)
        result = await bench.dispatch(operator=seat, layers=layers)
        verbs = await told(operator)

    # A notice is told in a task of its own: its place among the calls says nothing.
    assert [verb for verb in verbs if verb != "after"] == [call for call in calls if call != "after"]
    assert ("after" in verbs) == ("after" in calls)
    assert dict(operator.seen).get("after") == after
    assert result == WorkerResult(OVERRIDE if ok else "2 tests failed", ok)
    assert bench.last.status == ("pass" if ok else "blocked")
    if "ask" in calls:
        assert ("ask", ASKED) in operator.seen


async def test_the_senior_is_asked_only_about_what_is_not_ok(tmp_path) -> None:
    """A pass is a pass."""
    operator = Scripted(executes="fine", answers="never")
    async with a_bench(tmp_path) as bench:
        result = await bench.dispatch(operator=await bench.attach(operator))

    assert result.ok
    assert "ask" not in operator.verbs()


async def test_a_senior_that_fails_leaves_the_step_blocked_and_is_seen(tmp_path) -> None:
    """Unlike in the original the outcome and an event say that nobody decided."""
    operator = Scripted(executes=NOT_OK, answers=RuntimeError("asleep"))
    async with a_bench(tmp_path) as bench:
        result = await bench.dispatch(operator=await bench.attach(operator, "boss"))

    assert result == NOT_OK
    assert bench.last.status == "blocked"
    assert bench.last.outcome.reason == 'blocked: "2 tests failed"; senior escalation failed: asleep'
    (failed,) = bench.events.of("senior_failed")
    assert (failed["senior"], failed["error"]) == ("boss", "asleep")


async def test_a_given_execute_does_the_step_between_gate_and_senior(tmp_path) -> None:
    """It gets the step; the operator gates and decides about what is not ok."""
    operator, steps = Scripted(answers="accept"), []

    async def execute(step):
        steps.append(step)
        return NOT_OK

    async with a_bench(tmp_path) as bench:
        seat = await bench.attach(operator)
        result = await bench.dispatch(
            agent="a", prompt="p", system="s", operator=seat, execute=execute, metadata={"m": 1}
        )
        verbs = await told(operator)
    (step,) = steps

    assert result == WorkerResult(OVERRIDE)
    assert verbs == ["before", "ask", "after"]
    assert (step.agent, step.prompt, step.system, step.attempt, step.metadata) == ("a", "p", "s", 1, {"m": 1})
    assert (step.task_id, step.base_url) == (bench.last.task_id, None)
    assert step.worker_handle.startswith("wh-")
    assert step.capability_token
    assert step.capability_token not in repr(step)
    assert step.worker_handle not in repr(step)


async def test_the_parts_can_be_three_operators(tmp_path) -> None:
    """By seat or by name; each takes its part alone."""
    back, hook, senior = Scripted(executes=NOT_OK), Scripted(), Scripted(answers="accept")
    async with a_bench(tmp_path) as bench:
        await bench.attach(back, "back")
        await bench.attach(hook, "hook")
        seat = await bench.attach(senior, "senior")
        binding = OperatorBinding("back", "hook", seat, kind="composite")
        result = await bench.dispatch(operator=binding)
        await wait_all_tasks_blocked()

    assert result.value == OVERRIDE
    assert (back.verbs(), hook.verbs(), senior.verbs()) == (["execute"], ["before", "after"], ["ask"])


@pytest.mark.parametrize(
    ("kind", "per_agent", "hooked"),
    [
        ("main_ai", {}, True),
        ("composite", {}, True),
        ("automate", {}, False),
        (None, {}, False),
        ("automate", {"coder": "main_ai"}, True),
        ("main_ai", {"coder": "automate"}, False),
        ("main_ai", {"other": "automate"}, True),
    ],
)
async def test_the_kind_decides_whether_hooks_fire(tmp_path, kind, per_agent, hooked) -> None:
    """The senior is asked for every kind (contract 6.3)."""
    operator = Scripted(executes=NOT_OK, answers="accept")
    async with a_bench(tmp_path) as bench:
        seat = await bench.attach(operator)
        await bench.dispatch(operator=OperatorBinding(seat, seat, seat, kind, per_agent))
        verbs = await told(operator)

    assert ("before" in verbs, "after" in verbs, "ask" in verbs) == (hooked, hooked, True)


def test_kinds_collapse_from_the_narrowest_tier() -> None:
    """K1 to K11: narrow wins, an automate that is said is not unset, the default is automate."""
    assert collapse_kind() == "automate"
    assert collapse_kind(None, None) == "automate"
    assert collapse_kind(None, "main_ai") == "main_ai"
    assert collapse_kind("composite", "main_ai") == "composite"
    assert collapse_kind("automate", "main_ai") == "automate"


# -- the failure map (6.4) -------------------------------------------------------------

MAP = [
    (Scripted(gate="budget"), "spawn rejected by middleware: budget", ApprovalDenied),
    (Scripted(gate=RuntimeError("broken")), "spawn rejected by middleware: broken", RuntimeError),
    (Scripted(gate=PeerGoneError("left")), "spawn rejected by middleware: left", PeerGoneError),
    (Scripted(executes=RemoteError("out of tokens")), "worker fn returned error: out of tokens", RemoteError),
    (Scripted(executes=RemoteError("")), "worker fn returned error: ", RemoteError),
    (
        Scripted(executes=PeerGoneError("the session was deleted")),
        "worker fn returned error: ws operator spawn: the session was deleted",
        PeerGoneError,
    ),
    (Scripted(executes=KeyError("k")), "worker fn returned error: KeyError: 'k'", KeyError),
]


@pytest.mark.parametrize(("operator", "reason", "cause"), MAP, ids=lambda each: str(each)[:40])
async def test_the_failure_map(tmp_path, operator, reason, cause) -> None:
    """The texts of contract 6.4, the cause chained, the task terminal and its poller awake."""
    operator.seen.clear()
    async with a_bench(tmp_path) as bench, trio.open_nursery() as nursery:
        order = bench.dispatcher.order("coder", "p", operator=await bench.attach(operator))
        task = bench.dispatcher.create(order)
        nursery.start_soon(task.wait)
        await wait_all_tasks_blocked()
        with pytest.raises(StepFailed) as caught:
            await bench.dispatcher.run(order, task)
        verbs = await told(operator)

    assert caught.value.reason == f"dispatch failed: {reason}"
    assert (caught.value.task_id, caught.value.attempt) == (task.task_id, 1)
    assert isinstance(caught.value.__cause__, cause)
    assert (task.status, task.outcome.value, task.outcome.reason) == ("failed", None, caught.value.reason)
    assert task.attempt.ended
    if reason.startswith("spawn rejected"):
        assert verbs == ["before"]
    else:
        # A worker's failure is told as a text, and is nothing to ask the senior about (6.3).
        assert verbs == ["before", "execute", "after"]
        assert operator.seen[-1] == ("after", reason)


async def test_a_callables_own_lost_peer_is_no_operators(tmp_path) -> None:
    """What it lost was a database, say: no session of an operator has ended."""

    async def execute(step):
        raise PeerGoneError("my database went away")

    async with a_bench(tmp_path) as bench:
        with pytest.raises(StepFailed) as caught:
            await bench.dispatch(execute=execute)
    error = "PeerGoneError: my database went away"
    assert caught.value.reason == f"dispatch failed: worker fn returned error: {error}"


async def test_a_value_that_is_no_json_is_the_executors_failure(tmp_path) -> None:
    """It could not be told to anybody."""

    async def execute(step):
        return {1, 2}

    async with a_bench(tmp_path) as bench:
        with pytest.raises(StepFailed, match="not JSON serializable"):
            await bench.dispatch(execute=execute)


async def test_a_notice_that_cannot_be_told_harms_nobody(tmp_path) -> None:
    """What the seat raises becomes an event."""
    operator = Scripted(executes="done")
    async with a_bench(tmp_path) as bench:
        seat = await bench.attach(operator)

        def broken(**about):
            raise RuntimeError("no room")

        seat.hook_after = broken
        result = await bench.dispatch(operator=seat)

    assert result.ok
    assert [data["error"] for data in bench.events.of("notice_failed")] == ["no room"]


# -- retries ---------------------------------------------------------------------------


async def test_what_failed_is_tried_again_with_new_credentials(tmp_path) -> None:
    """Attempts count, each with a token and a handle of its own; the last outcome counts."""
    frames = []

    def execute(frame):
        frames.append(frame)
        return RemoteError("flaky") if frame.attempt < 3 else "done"

    operator = Scripted(executes=execute)
    async with a_bench(tmp_path) as bench:
        result = await bench.dispatch(operator=await bench.attach(operator), attempts=5)

    assert result == WorkerResult("done")
    assert [frame.attempt for frame in frames] == [1, 2, 3]
    assert len({frame.capability_token for frame in frames}) == 3
    assert len({frame.worker_handle for frame in frames}) == 3
    assert [data["outcome"] for data in bench.events.of("attempt_ended")] == ["failed", "failed", "pass"]
    assert (bench.last.status, bench.last.outcome.attempt) == ("pass", 3)


@pytest.mark.parametrize(
    ("operator", "on", "tries"),
    [
        (Scripted(executes=NOT_OK), {"failed"}, 1),
        (Scripted(executes=NOT_OK), {"blocked"}, 3),
        (Scripted(executes=RemoteError("x")), {"blocked"}, 1),
        (Scripted(gate="no"), {"failed", "blocked"}, 1),
        (Scripted(gate="no"), {"rejected"}, 3),
        (Scripted(executes="fine"), {"failed", "blocked", "rejected"}, 1),
    ],
)
async def test_only_the_outcomes_of_the_policy_are_tried_again(tmp_path, operator, on, tries) -> None:
    """By default what failed; a denial or a blocked result is a decision."""
    operator.seen.clear()
    async with a_bench(tmp_path) as bench:
        seat = await bench.attach(operator)
        try:
            await bench.dispatch(operator=seat, layers=[D, M], attempts=3, retry=RetryPolicy(on))
        except StepFailed as failed:
            assert failed.attempt == tries
    assert bench.last.attempts == tries


async def test_the_policy_waits_longer_each_time(tmp_path, autojump_clock) -> None:
    """first, first * factor, ... but never longer than longest."""
    times = []

    def execute(frame):
        times.append(trio.current_time())
        return RemoteError("x")

    operator = Scripted(executes=execute)
    async with a_bench(tmp_path) as bench:
        seat = await bench.attach(operator)
        with pytest.raises(StepFailed):
            await bench.dispatch(operator=seat, attempts=5, retry=RetryPolicy(first=1, factor=3, longest=8))
    gaps = [round(b - a, 3) for a, b in itertools.pairwise(times)]

    assert gaps == [1, 3, 8, 8]


# -- the ends --------------------------------------------------------------------------


async def test_the_callers_cancel_goes_on_and_settles_the_task(tmp_path) -> None:
    """Cancelled comes out, the task is cancelled, whoever polls is woken."""

    async def execute(step):
        await trio.sleep_forever()

    async with a_bench(tmp_path) as bench, trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:
            nursery.start_soon(_cancel_when_blocked, scope)
            await bench.dispatch(execute=execute)
        assert scope.cancelled_caught
    outcome = bench.last.outcome

    assert (outcome.status, outcome.reason) == ("cancelled", "its caller was cancelled")
    assert bench.last.attempt.ended
    assert bench.dispatcher.running == 0


async def _cancel_when_blocked(scope) -> None:
    await wait_all_tasks_blocked()
    scope.cancel()


async def test_the_callers_deadline_is_a_timeout(tmp_path, autojump_clock) -> None:
    """Not a cancellation: the difference is in the status."""

    async def execute(step):
        await trio.sleep_forever()

    async with a_bench(tmp_path) as bench:
        with trio.move_on_after(5) as scope:
            await bench.dispatch(execute=execute)
        assert scope.cancelled_caught

    assert bench.last.status == "timeout"


@pytest.mark.parametrize("where", ["gate", "executes", "answers", "retry"])
async def test_the_tasks_cancel_ends_it_wherever_it_is(tmp_path, where) -> None:
    """StepCancelled, with the reason, out of each wait."""

    async def stay(frame):
        await trio.sleep_forever()

    operator = Scripted(executes=NOT_OK)
    if where != "retry":
        setattr(operator, where, stay)
    async with a_bench(tmp_path) as bench, trio.open_nursery() as nursery:
        seat = await bench.attach(operator)
        order = bench.dispatcher.order(
            "coder", "p", operator=seat, attempts=2, retry=RetryPolicy({"blocked"}, first=3600),
            layers=[D, S, M] if where != "retry" else [D],
        )  # fmt: skip
        task = bench.dispatcher.create(order)

        async def cancel() -> None:
            await wait_all_tasks_blocked()
            waited = {"gate": "hook_before of", "executes": "spawn of", "answers": "ask of"}
            assert task.waiting_for.startswith(waited.get(where, "attempt 2"))
            assert task.cancel("enough")

        nursery.start_soon(cancel)
        with pytest.raises(StepCancelled) as caught:
            await bench.dispatcher.run(order, task)

    assert caught.value.reason == "enough"
    assert (task.status, task.outcome.reason, task.waiting_for) == ("cancelled", "enough", None)


def swallowing(end):
    """Something that makes another end of its cancellation."""

    async def stay(*_):
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            if isinstance(end, Exception):
                raise end from None
            return end

    return stay


@pytest.mark.parametrize("end", [OSError("gave up"), WorkerResult("done anyway"), NOT_OK], ids=repr)
async def test_a_cancel_of_which_something_else_was_made_is_a_cancel_still(tmp_path, end) -> None:
    """`cancel` said that it came first; what the executor makes of it does not count."""
    async with a_bench(tmp_path) as bench, trio.open_nursery() as nursery:
        order = bench.dispatcher.order("coder", "p", execute=swallowing(end))
        task = bench.dispatcher.create(order)
        nursery.start_soon(_cancel_task_when_blocked, task)
        with pytest.raises(StepCancelled) as caught:
            await bench.dispatcher.run(order, task)

    assert (caught.value.reason, task.status, task.attempts) == ("enough", "cancelled", 1)


@pytest.mark.parametrize("where", ["gate", "executes", "answers"])
async def test_so_it_is_where_an_operator_makes_an_error_of_it(tmp_path, where) -> None:
    """And it is not told that the step failed."""
    operator = Scripted(executes=NOT_OK)
    setattr(operator, where, swallowing(OSError("gave up")))
    async with a_bench(tmp_path) as bench, trio.open_nursery() as nursery:
        seat = await bench.attach(operator)
        order = bench.dispatcher.order("coder", "p", operator=seat, layers=[D, S, M])
        task = bench.dispatcher.create(order)
        nursery.start_soon(_cancel_task_when_blocked, task)
        with pytest.raises(StepCancelled):
            await bench.dispatcher.run(order, task)

    assert task.status == "cancelled"
    assert "after" not in operator.verbs()


async def _cancel_task_when_blocked(task) -> None:
    await wait_all_tasks_blocked()
    assert task.cancel("enough")


async def test_a_deadline_of_which_an_error_was_made_is_a_timeout_still(tmp_path, autojump_clock) -> None:
    """And its scope is left as a cancelled one."""
    async with a_bench(tmp_path) as bench:
        with trio.move_on_after(5) as scope:
            await bench.dispatch(execute=swallowing(OSError("gave up")))
        assert scope.cancelled_caught

    assert bench.last.status == "timeout"


async def test_a_task_cancelled_before_it_runs_never_begins(tmp_path) -> None:
    """No attempt, no operator asked."""
    operator = Scripted(executes="x")
    async with a_bench(tmp_path) as bench:
        order = bench.dispatcher.order("coder", "p", operator=await bench.attach(operator))
        task = bench.dispatcher.create(order)
        task.cancel("changed my mind")
        with pytest.raises(StepCancelled):
            await bench.dispatcher.run(order, task)

    assert operator.seen == []
    assert (task.status, task.attempts) == ("cancelled", 0)


async def test_an_interrupt_settles_the_task_too(tmp_path) -> None:
    """An error that is nobody's outcome comes out as it is, and leaves nobody waiting."""

    async def execute(step):
        raise KeyboardInterrupt

    async with a_bench(tmp_path) as bench:
        with pytest.raises(KeyboardInterrupt):
            await bench.dispatch(execute=execute)

    assert bench.last.status == "failed"
    assert bench.last.attempt.ended


async def test_the_end_of_the_dispatcher_ends_what_runs(tmp_path) -> None:
    """Running steps are cancelled and waited for; new ones are refused."""
    outcome = []

    async def execute(step):
        await trio.sleep_forever()

    async with a_bench(tmp_path) as bench, trio.open_nursery() as nursery:

        async def run() -> None:
            try:
                await bench.dispatch(execute=execute)
            except StepCancelled as error:
                outcome.append(error.reason)

        nursery.start_soon(run)
        await wait_all_tasks_blocked()
        await bench.dispatcher.end("closing time")
        assert bench.dispatcher.running == 0
        with pytest.raises(trio.ClosedResourceError, match="closing time"):
            await bench.dispatch(execute=execute)

    assert outcome == ["closing time"]


async def test_a_step_that_heeds_no_cancel_holds_the_end_up_for_a_bounded_time(
    tmp_path, autojump_clock
) -> None:
    """It is left to the swarm's own end."""
    go, result = trio.Event(), Result()

    async def execute(step) -> None:
        with trio.move_on_after(3600, shield=True):
            await go.wait()

    async with a_bench(tmp_path) as bench, trio.open_nursery() as nursery:
        nursery.start_soon(lambda: result.run(bench.dispatch, execute=execute))
        await wait_all_tasks_blocked()
        began = trio.current_time()
        with trio.move_on_after(60):
            await bench.dispatcher.end("closing time")
        assert trio.current_time() - began == pytest.approx(CLOSE_DEADLINE)
        assert bench.dispatcher.running == 1
        go.set()
    assert isinstance(result.error, StepCancelled)


async def test_a_step_that_somebody_else_has_settled_is_not_tried_again(tmp_path) -> None:
    """While an attempt of it runs, which then fails."""
    tried = []

    async def execute(step) -> None:
        tried.append(step.attempt)
        bench.last.settle(Outcome(step.task_id, "cancelled", None, step.attempt, "by somebody else"))
        raise RuntimeError("and then it fails")

    async with a_bench(tmp_path) as bench:
        with pytest.raises(StepCancelled, match="its task was settled") as caught:
            await bench.dispatch(execute=execute, attempts=3)
    assert caught.value.__cause__ is None  # Not the board's word on an attempt too many.
    assert tried == [1]
    assert bench.last.outcome.reason == "by somebody else"


async def test_a_gate_that_makes_an_error_of_its_callers_deadline_rejects_nothing(tmp_path) -> None:
    """The cancellation goes on: it is the caller's, and the step ends as timeout."""

    class Gate:
        async def before_spawn(self, frame) -> None:
            try:
                await trio.sleep_forever()
            except trio.Cancelled:
                raise RuntimeError("interrupted") from None

        def execute(self, frame) -> None:
            never(frame)

    async with a_bench(tmp_path) as bench:
        seat = await bench.attach(Gate(), "gate")
        with trio.move_on_after(0.05) as scope:
            await bench.dispatch(operator=seat)
    assert scope.cancelled_caught
    assert bench.last.status == "timeout"


# -- nesting ---------------------------------------------------------------------------


async def test_a_step_within_a_step_knows_its_parent_and_the_fourth_is_the_last(tmp_path) -> None:
    """Depth is counted through execute, and the cap of four is a failure of the one too deep."""
    async with a_bench(tmp_path) as bench:

        async def execute(step):
            return [(await bench.dispatch(execute=execute)).value]

        with pytest.raises(StepFailed) as caught:
            await bench.dispatch(execute=execute)
        tasks = bench.board.tasks()

    assert [task.depth for task in tasks] == [0, 1, 2, 3]
    assert [task.parent for task in tasks] == [None, *(task.task_id for task in tasks[:-1])]
    assert "4 levels" in caught.value.reason
    error = caught.value
    while isinstance(error.__cause__, StepFailed):
        error = error.__cause__
    assert isinstance(error.__cause__, Refused)


async def test_an_operator_that_dispatches_is_a_parent_too(tmp_path) -> None:
    """While it answers a question; afterwards its own steps stand alone."""
    async with a_bench(tmp_path) as bench:

        async def quick(step):
            return "decided"

        async def answer(frame):
            return (await bench.dispatch("second", execute=quick)).value

        operator = Scripted(executes=NOT_OK, answers=answer)
        result = await bench.dispatch(operator=await bench.attach(operator))
        first, second = bench.board.tasks()
        await bench.dispatch(execute=quick)

    assert result.value["senior_answer"] == "decided"
    assert second.parent == first.task_id
    assert bench.last.parent is None


async def test_an_operator_that_would_wait_for_itself_is_an_error_that_names_it(tmp_path) -> None:
    """It executes a step and dispatches another to itself: never a hang."""
    async with a_bench(tmp_path) as bench:

        async def execute(frame):
            return (await bench.dispatch("inner", operator=seat)).value

        seat = await bench.attach(Scripted(executes=execute), "me")
        with pytest.raises(StepFailed, match="me -> me") as caught:
            await bench.dispatch("outer", operator=seat)

    inner = caught.value.__cause__
    assert isinstance(inner, StepFailed)
    assert isinstance(inner.__cause__, AskCycle)
    assert [task.status for task in bench.board.tasks()] == ["failed", "failed"]


# -- approvals -------------------------------------------------------------------------


async def test_several_approvers_by_a_policy(tmp_path) -> None:
    """All must agree here; the operator's own gate is not asked beside them."""
    operator, yes, no = Scripted(executes="x"), Scripted(), Scripted(gate="too late in the day")
    async with a_bench(tmp_path) as bench:
        seat = await bench.attach(operator, "op")
        await bench.attach(yes, "yes")
        await bench.attach(no, "no")
        policy = ApprovalPolicy("all")
        with pytest.raises(StepFailed) as caught:
            await bench.dispatch(operator=seat, approval=policy, approvers=["yes", "no"])
        result = await bench.dispatch(operator=seat, approval=policy, approvers=["yes"])

    assert caught.value.reason == "dispatch failed: spawn rejected by middleware: too late in the day"
    assert isinstance(caught.value.__cause__, ApprovalDenied)
    assert result.value == "x"
    assert "before" not in operator.verbs()


async def test_an_approval_that_nobody_gives_in_time(tmp_path, autojump_clock) -> None:
    """Denied by default, with the time in the reason."""

    async def stay(frame):
        await trio.sleep_forever()

    async with a_bench(tmp_path) as bench:
        seat = await bench.attach(Scripted(gate=stay, executes="x"))
        with pytest.raises(StepFailed, match="within 5 s") as caught:
            await bench.dispatch(operator=seat, approval=ApprovalPolicy(within=5))
        result = await bench.dispatch(operator=seat, approval=ApprovalPolicy(within=5, on_expiry="allow"))

    assert isinstance(caught.value.__cause__, ApprovalExpired)
    assert result.value == "x"


# -- what cannot work ------------------------------------------------------------------


async def never(step):
    raise AssertionError("called")


class GateOnly:
    def before_spawn(self, frame):
        return True


def nested(depth):
    value = 1
    for _ in range(depth):
        value = [value]
    return value


async def test_metadata_may_be_as_deep_as_a_worker_can_be_told(tmp_path) -> None:
    """One more level is refused: see the next test."""

    async def execute(step) -> str:
        return (await fetch(step)).json()["context"]["task_metadata"]

    async with a_bench(tmp_path) as bench, bench.serve(), bench.http() as http:

        async def fetch(step):
            return await http.get(
                f"/v1/worker/prompt?task_id={step.task_id}",
                headers={"Authorization": f"Bearer {step.worker_handle}"},
            )

        metadata = {"a": nested(MAX_DEPTH - 3)}
        told = await bench.dispatch(execute=execute, metadata=metadata)
    assert told.value == metadata


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"agent": "a\nb", "execute": never}, "agent: line breaks"),
        ({"agent": "", "execute": never}, "agent: expected a text"),
        ({"execute": never, "system": 5}, "system: expected a text"),
        ({"execute": never, "system": "\ud800"}, "system: expected a text of Unicode"),
        ({"execute": never, "prompt": "a\udfff"}, "prompt: expected a text of Unicode"),
        ({"execute": never, "prompt": ["\ud800"]}, "prompt: expected a text of Unicode"),
        ({"execute": never, "prompt": {1}}, "prompt: expected a text or other JSON"),
        ({"execute": never, "attempts": 0}, "attempts: expected 1 to"),
        ({"execute": never, "attempts": True}, "attempts: expected 1 to"),
        ({"execute": never, "attempts": 101}, "attempts: expected 1 to"),
        ({"execute": never, "grace": -1}, "grace: expected seconds"),
        ({"execute": never, "grace": math.nan}, "grace: expected seconds"),
        ({"execute": never, "metadata": [1]}, "metadata: expected an object"),
        ({"execute": never, "metadata": {"a": ["\ud800"]}}, "metadata: expected a text of Unicode"),
        ({"execute": never, "metadata": {"a": {1}}}, "metadata: expected a text or other JSON"),
        ({"execute": never, "metadata": {"a": nested(MAX_DEPTH - 2)}}, "^metadata: nested too deep"),
        ({"execute": never, "metadata": {"a": nested(5000)}}, "^metadata: "),
        ({"execute": never, "grace": "5"}, "^grace: expected seconds, not '5'"),
        ({"execute": never, "grace": True}, "^grace: expected seconds"),
        ({"execute": never, "attempts": "2"}, "^attempts: expected 1 to"),
        ({"execute": never, "retry": 5}, "^retry: expected RetryPolicy, not int"),
        ({"execute": never, "worker": "coder"}, "^worker: expected Worker, not str"),
        ({"execute": never, "worker": Worker('a"b', ())}, "^worker.variant: quotes"),
        ({"execute": never, "worker": Worker("a", (5,))}, "^worker: "),
        ({"execute": never, "context": {"work_dir": "/x"}}, "^context: expected DirectiveContext, not dict"),
        ({"execute": never, "layers": M}, "^layers: expected a list of names"),
        ({"execute": never, "layers": 5}, "^layers: expected a list of names"),
        ({"execute": never, "layers": [[]]}, r"^layers: \[\] is no layer"),
        ({"execute": 5}, "^execute: expected an async function, not int"),
        ({"operator": "all", "approval": "all"}, "^approval: expected ApprovalPolicy, not str"),
        ({"operator": "all", "approval": 2}, "^approval: expected ApprovalPolicy, not int"),
        (
            {"operator": "all", "approval": ApprovalPolicy(), "approvers": "all"},
            "approvers: expected a list",
        ),
        ({"operator": "all", "approval": ApprovalPolicy(), "approvers": 5}, "approvers: expected a list"),
        ({"operator": "all", "approval": ApprovalPolicy(), "approvers": [5]}, "^approvers: expected a seat"),
        ({"execute": never, "layers": ["nothing"]}, "'nothing' is no layer"),
        ({"execute": never, "layers": [M, D]}, "operator_delegate must be first"),
        ({}, "nobody can execute"),
        ({"operator": "nobody"}, "^operator: no such registered operator session 'nobody'"),
        (
            {"operator": OperatorBinding(senior="nobody"), "execute": never},
            "^operator.senior: no such registered operator session 'nobody'",
        ),
        ({"operator": 5}, "^operator: expected a seat or its name"),
        ({"operator": "gate"}, "nobody can execute"),
        ({"operator": "all", "layers": [S, M]}, "nobody can execute"),
        ({"operator": "all", "layers": [D], "execute": never}, "execute: it would never be called"),
        ({"execute": never, "approvers": ["gate"]}, "approvers: they need an approval policy"),
        ({"execute": never, "approval": ApprovalPolicy()}, "there is nobody to ask"),
        (
            {"execute": never, "approval": ApprovalPolicy(), "approvers": ["gate"], "layers": [S]},
            "the layer main_ai is not there",
        ),
        ({"execute": never, "approval": ApprovalPolicy(3), "approvers": ["gate", "all"]}, "can never agree"),
        ({"execute": never, "approval": ApprovalPolicy(), "approvers": ["gate", "gate"]}, "is there twice"),
        ({"execute": never, "approval": ApprovalPolicy(), "approvers": ["done"]}, "done gates nothing"),
    ],
)
async def test_what_cannot_work_is_said_before_anything_is_done(tmp_path, options, text) -> None:
    """ValueError, no task, nobody asked."""

    class Done:
        def execute(self, frame):
            return 1

    everything = Scripted()
    async with a_bench(tmp_path) as bench:
        await bench.attach(GateOnly(), "gate")
        await bench.attach(everything, "all")
        await bench.attach(Done(), "done")
        with pytest.raises(ValueError, match=text):
            await bench.dispatch(**options)

    assert bench.board.tasks() == ()
    assert everything.seen == []


async def test_too_many_steps_are_refused(tmp_path) -> None:
    """The board's own limit, as BusyError."""

    async def execute(step):
        with pytest.raises(BusyError):
            await bench.dispatch(execute=never)

    async with a_bench(tmp_path, max_tasks=1) as bench:
        assert (await bench.dispatch(execute=execute)).ok


@pytest.mark.parametrize("bad", [{"on": {"pass"}}, {"on": "failed"}, {"first": -1}, {"factor": 0.5}])
def test_a_retry_policy_is_checked(bad) -> None:
    """At its making."""
    with pytest.raises(ValueError, match=next(iter(bad))):
        RetryPolicy(**bad)


@pytest.mark.parametrize("bad", [{"kind": "boss"}, {"per_agent_kinds": {"a": "boss"}}])
def test_a_binding_is_checked(bad) -> None:
    """At its making."""
    with pytest.raises(ValueError, match="'boss' is none of"):
        OperatorBinding(**bad)


async def test_worker_binding_and_context_are_in_the_directive(tmp_path) -> None:
    """What the spawn says; metadata is a header line too."""
    frames = []

    def execute(frame):
        frames.append(frame)

    async with a_bench(tmp_path) as bench:
        await bench.dispatch(
            operator=await bench.attach(Scripted(executes=execute)),
            worker=Worker("code-worker", ("Read",)),
            context=DirectiveContext(work_dir="/srv/w"),
            metadata={"k": 1},
        )
    (frame,) = frames

    assert frame.worker == Worker("code-worker", ("Read",))
    assert 'subagent_type="code-worker"' in frame.directive
    assert 'work_dir: /srv/w\ntask_metadata: {"k":1}\n' in frame.directive
    assert frame.capability_token not in frame.directive
    assert frame.worker_handle not in frame.directive


async def test_a_chain_of_steps_is_not_a_depth(tmp_path) -> None:
    """Whose step has ended is below it no more, though its context was inherited from there."""
    async with a_bench(tmp_path) as bench, trio.open_nursery() as nursery:

        async def execute(step):
            nursery.start_soon(follow)
            return 1

        async def follow() -> None:
            await trio.testing.wait_all_tasks_blocked()
            assert bench.last.outcome is not None
            if len(bench.board.tasks()) < 7:
                await bench.dispatch(execute=execute)

        await bench.dispatch(execute=execute)
    assert [(task.depth, task.parent) for task in bench.board.tasks()] == [(0, None)] * 7


async def test_a_step_that_outlives_the_one_above_is_below_the_next_that_runs(tmp_path) -> None:
    go = trio.Event()
    async with a_bench(tmp_path) as bench, trio.open_nursery() as nursery:

        async def quick(step):
            return 1

        async def late() -> None:
            await go.wait()
            await bench.dispatch("late", execute=quick)
            done.set()

        async def inner(step):
            nursery.start_soon(late)
            return 1

        async def outer(step):
            await bench.dispatch("inner", execute=inner)
            go.set()
            await done.wait()
            return 1

        done = trio.Event()
        await bench.dispatch("outer", execute=outer)
    first, _, last = bench.board.tasks()
    assert (last.agent, last.parent, last.depth) == ("late", first.task_id, 1)


@pytest.mark.parametrize(
    ("policy", "seconds"),
    [
        (RetryPolicy(first=1, factor=1e10), 60),
        (RetryPolicy(first=1e-300, factor=1e300), 60),
        (RetryPolicy(first=0, factor=1e300), 0),
        (RetryPolicy(first=2, factor=1), 2),
        (RetryPolicy(first=1, factor=math.inf), 60),
    ],
)
def test_no_wait_between_attempts_is_too_large_to_count(policy, seconds) -> None:
    assert policy.delay(100) == seconds
