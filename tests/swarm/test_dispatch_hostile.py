"""Dispatch against executors that do their worst, and cancellations at every step."""

from __future__ import annotations

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.operators.support import Result, log_in, socket_of
from tests.operators.test_limits import _address, _upgrade
from tests.swarm.support import ADMIN, Scripted, a_bench
from trio_swarm.errors import StepCancelled, StepFailed
from trio_swarm.operators import WorkerResult
from trio_swarm.swarm.steps import RetryPolicy
from trio_swarm.workers import Outcome

D, S, M = "operator_delegate", "senior_escalation", "main_ai"
ENDED = {"pass", "blocked", "failed", "cancelled", "timeout"}


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text of mine")


async def untidy(frame):
    """Is cancelled in a nursery, and fails in tidying up: both come out in one group."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fails_when_cancelled)
        await trio.sleep_forever()


async def fails_when_cancelled() -> None:
    try:
        await trio.sleep_forever()
    finally:
        raise ValueError("untidy")


# -- cancellation ----------------------------------------------------------------------


@pytest.mark.parametrize("how", ["scope", "task"])
async def test_a_cancel_at_every_step_settles_once_and_leaves_nothing(tmp_path, how) -> None:
    """The cancel comes at each checkpoint in turn of a dispatch with gate, spawn, ask and retry."""
    ends = set()
    async with a_bench(tmp_path) as bench:
        seat = await bench.attach(Scripted(executes=WorkerResult("bad", ok=False), answers=later_on))
        for steps in range(80):
            order = bench.dispatcher.order(
                "coder", "p", operator=seat, layers=[D, S, M], attempts=2,
                retry=RetryPolicy({"blocked"}, first=0),
            )  # fmt: skip
            task = bench.dispatcher.create(order)
            end = await _cancelled_after(steps, how, bench, order, task)
            ends.add(end)
            assert task.status in ENDED
            assert task.outcome is not None
            assert task.attempt is None or task.attempt.ended
            assert (task.waiting_for, bench.dispatcher.running) == (None, 0)
            assert not task._scopes
            with trio.fail_after(1):
                assert await task.wait() is task.outcome
            assert {"cancelled": end == "cancelled", "pass": end == "pass"}[task.status]
    settled = [data["task_id"] for data in bench.events.of("task_settled")]

    assert ends == {"cancelled", "pass"}  # at first always, at last never
    assert len(settled) == len(set(settled)) == 80


async def later_on(frame):
    for _ in range(5):
        await trio.lowlevel.checkpoint()
    return "accept"


async def _cancelled_after(steps, how, bench, order, task) -> str:
    scope = trio.CancelScope()
    got = []

    async def run() -> None:
        with scope:
            try:
                got.append(await bench.dispatcher.run(order, task))
            except StepCancelled:
                return

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        for _ in range(steps):
            await trio.lowlevel.checkpoint()
        if how == "scope":
            scope.cancel()
        else:
            task.cancel("enough")
    return "pass" if got else "cancelled"


async def test_an_error_beside_the_tasks_cancel_is_still_a_cancelled_step(tmp_path) -> None:
    """It is the cause; before, a group came out that nobody had been promised."""
    async with a_bench(tmp_path) as bench, trio.open_nursery() as nursery:
        result = Result()
        nursery.start_soon(lambda: result.run(bench.dispatch, execute=untidy))
        await wait_all_tasks_blocked()
        assert bench.last.cancel("enough")
        await result.done.wait()

    assert isinstance(result.error, StepCancelled)
    assert result.error.reason == "enough"
    assert isinstance(result.error.__cause__, ExceptionGroup)
    assert (bench.last.status, bench.last.outcome.reason) == ("cancelled", "enough")


@pytest.mark.parametrize("how", ["DELETE", "timeout"])
async def test_an_untidy_operator_does_not_take_the_server_down(tmp_path, how) -> None:
    """An error beside the cancellation of a step that was started over HTTP ended every other one."""
    async with a_bench(tmp_path) as bench, bench.serve(), bench.http() as http:
        await bench.attach(Scripted(executes=untidy), "op")
        body = {"agent": "coder", "prompt": "p", "operator": {"operator_backend_id": "op"}}
        if how == "DELETE":
            started = await http.post("/v1/tasks", json={**body, "detach": True}, headers=ADMIN)
            await wait_all_tasks_blocked()
            assert started.status_code == 202
            address = f"/v1/tasks/{started.json()['task_id']}"
            assert (await http.delete(address, headers=ADMIN)).status_code == 204
        else:
            answer = await http.post("/v1/tasks", json={**body, "timeout_secs": 1}, headers=ADMIN)
            assert answer.json()["status"] == "timeout"
        assert (await http.get("/v1/healthz")).text == "ok"

    assert bench.last.status == {"DELETE": "cancelled", "timeout": "timeout"}[how]


# -- whatever an executor raises or returns --------------------------------------------


def deep():
    value: list = []
    for _ in range(100_000):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("what", "said"),
    [
        (Unprintable(), "Unprintable: Unprintable"),
        (ValueError("a\ud800b"), "ValueError: a?b"),
        (ExceptionGroup("several", [ValueError("x"), KeyError("y")]), "ExceptionGroup: several"),
        (lambda frame: deep(), "ValueError"),
        (lambda frame: {1, 2}, "ValueError"),
    ],
)
async def test_any_error_is_an_outcome(tmp_path, what, said) -> None:
    """Its text too, and what the hook is told of it."""
    operator = Scripted(executes=what)
    async with a_bench(tmp_path) as bench:
        with pytest.raises(StepFailed, match="worker fn returned error") as caught:
            await bench.dispatch(operator=await bench.attach(operator))
        await wait_all_tasks_blocked()

    assert said in caught.value.reason
    caught.value.reason.encode()
    assert bench.last.status == "failed"
    assert [verb for verb, _ in operator.seen] == ["before", "execute", "after"]


@pytest.mark.parametrize("error", [SystemExit(3), BaseExceptionGroup("g", [KeyboardInterrupt()])])
async def test_what_is_no_error_of_the_step_goes_on_and_settles_it(tmp_path, error) -> None:
    """Nobody who waits for the task waits on."""

    async def execute(step):
        raise error

    async with a_bench(tmp_path) as bench:
        with pytest.raises(type(error)):
            await bench.dispatch(execute=execute)

    assert (bench.last.status, bench.last.attempt.ended) == ("failed", True)
    assert bench.dispatcher.running == 0


async def test_a_large_value_is_kept_whole_and_shown_in_part(tmp_path) -> None:
    """Ten megabytes: the value is the value, the reason stays a reason."""
    large = "x" * 10_000_000
    async with a_bench(tmp_path) as bench:
        seat = await bench.attach(Scripted(executes=WorkerResult(large, ok=False)))
        result = await bench.dispatch(operator=seat, layers=[D])

    assert result.value == large
    assert len(bench.last.outcome.reason) < 2100


async def test_statistics_that_are_no_json_are_dropped(tmp_path) -> None:
    """They made every look at the task a 500."""
    async with a_bench(tmp_path) as bench, bench.serve(), bench.http() as http:
        seat = await bench.attach(Scripted(executes=WorkerResult("v", stats={"used": {1, 2}})))
        result = await bench.dispatch(operator=seat, layers=[D])
        seen = await http.get(f"/v1/tasks/{bench.last.task_id}", headers=ADMIN)

    assert result == WorkerResult("v", True, None)
    assert (seen.status_code, seen.json()["stats"]) == (200, None)
    assert len(bench.events.of("stats_dropped")) == 1


# -- tasks that others settle or forget ------------------------------------------------


async def test_a_task_that_somebody_else_settles_is_theirs(tmp_path) -> None:
    """The runner does not say otherwise, and begins no other attempt."""
    attempts = []

    async def execute(step):
        attempts.append(step.attempt)
        task = bench.board.find(step.task_id)
        task.settle(Outcome(task.task_id, "failed", "theirs", 1, "somebody else"))
        raise ValueError("mine")

    async with a_bench(tmp_path) as bench:
        retry = RetryPolicy(first=3600, longest=3600)  # For which nobody waits.
        with pytest.raises(StepCancelled, match="its task was settled"):
            await bench.dispatch(execute=execute, attempts=3, retry=retry)
        outcome = bench.last.outcome

    assert attempts == [1]
    assert (outcome.status, outcome.value, outcome.reason) == ("failed", "theirs", "somebody else")


async def test_a_task_that_somebody_else_settles_between_two_attempts(tmp_path) -> None:
    """Its runner ends then, and does not wait for an attempt that will not come."""

    async def execute(step):
        raise ValueError("flaky")

    async with a_bench(tmp_path) as bench, trio.open_nursery() as nursery:
        retry, result = RetryPolicy(first=3600, longest=3600), Result()
        nursery.start_soon(lambda: result.run(bench.dispatch, execute=execute, attempts=2, retry=retry))
        await wait_all_tasks_blocked()
        task = bench.last
        assert task.waiting_for == "attempt 2"
        task.settle(Outcome(task.task_id, "failed", "theirs", 1, "somebody else"))
        await result.done.wait()

    assert isinstance(result.error, StepCancelled)
    assert (task.outcome.value, task.attempts, task.waiting_for) == ("theirs", 1, None)


async def test_a_task_that_is_forgotten_while_it_is_dispatched(tmp_path) -> None:
    """Settled by somebody else, evicted for a newer one: its runner ends like any other."""
    async with a_bench(tmp_path, max_tasks=1) as bench, trio.open_nursery() as nursery:
        go, result = trio.Event(), Result()

        async def execute(step):
            await go.wait()
            return "late"

        nursery.start_soon(lambda: result.run(bench.dispatch, execute=execute))
        await wait_all_tasks_blocked()
        old = bench.last
        old.settle(Outcome(old.task_id, "failed", None, 1))
        newer = bench.board.create("other", "p")
        assert bench.board.find(old.task_id) is None
        go.set()
        await result.done.wait()

    assert isinstance(result.error, StepCancelled)
    assert bench.board.tasks() == (newer,)
    assert newer.status == "pending"
    assert bench.dispatcher.running == 0


# -- slow operators --------------------------------------------------------------------


async def test_a_hook_after_never_slows_the_step(tmp_path) -> None:
    """The one who is told hangs for ever over the first notice; a hundred steps go by."""
    told = []

    class Hanging:
        async def after_spawn(self, frame) -> None:
            told.append(frame.task_id)
            await trio.sleep_forever()

    async def execute(step):
        return "done"

    async with a_bench(tmp_path) as bench, trio.open_nursery() as nursery:
        hook = await bench.attach(Hanging())
        with trio.fail_after(20):
            for _ in range(100):
                assert (await bench.dispatch(operator=hook, execute=execute)).value == "done"
            await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert len(told) == 1


async def test_a_notice_to_an_operator_that_went_waits_and_the_step_does_not(tmp_path) -> None:
    """It gave leave and left; the step ends, and it is told when it comes back (contract 3.3)."""
    go, result = trio.Event(), Result()

    async def execute(step):
        await go.wait()
        return "done"

    async with a_bench(tmp_path) as bench, bench.serve() as server, trio.open_nursery() as nursery:
        login = await log_in(server)
        async with socket_of(server, login) as peer:
            seat = await server.wait_seat(login.sid)
            nursery.start_soon(lambda: result.run(bench.dispatch, operator=seat, execute=execute))
            gate = await peer.next()
            await peer.send(type="hook_ack", req_id=gate["req_id"], ok=True)
            while bench.last.waiting_for != "execute":
                await trio.lowlevel.checkpoint()
        while seat.connected:
            await trio.lowlevel.checkpoint()
        go.set()
        with trio.fail_after(5):
            await result.done.wait()
        assert result.value == WorkerResult("done")
        async with socket_of(server, login) as peer:
            frame = await peer.next()

    assert (frame["type"], frame["result"]) == ("hook_after", "done")


async def test_an_operator_that_does_not_read_changes_nothing_for_others(tmp_path) -> None:
    """More is due to it than any buffer holds; the steps of others go on, and are no slower for it."""
    large = "y" * 2**20
    async with a_bench(tmp_path) as bench, bench.serve() as server, bench.seated() as (good, peer):
        mute = await log_in(server, roles=["mute"])
        async with await trio.open_tcp_stream(*_address(server)) as stream, trio.open_nursery() as nursery:
            await stream.send_all(_upgrade(server, mute))
            hook = await server.wait_seat("mute")

            async def answering() -> None:
                while True:
                    frame = await peer.next()
                    await peer.send(type="spawn_ack", req_id=frame["req_id"], value=frame["agent"])

            nursery.start_soon(answering)
            for _ in range(20):
                nursery.start_soon(lambda: hook.ask(large, task_id="ST-1"))
            with trio.fail_after(30):
                for number in range(20):
                    hook.hook_after(task_id="t", agent="a", attempt=1, result=large)
                    done = await bench.dispatch(f"agent-{number}", operator=good, layers=[D])
                    assert done.value == f"agent-{number}"
            assert hook.statistics().delivery.notices > 0, "it took everything: nothing was shown"
            nursery.cancel_scope.cancel()
