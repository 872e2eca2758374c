"""Whose the values of a dispatch are: what one does with its own changes nothing for the others."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.operators.support import log_in, socket_of
from tests.swarm.support import ADMIN, Scripted, a_bench
from trio_swarm import WorkerResult, open_swarm
from trio_swarm.swarm.steps import OperatorBinding

VALUE = {"rows": [1, 2, 3]}


def spoil(value: Any) -> None:
    """As whoever has it alone may do."""
    value["rows"].clear()
    value["mine"] = object()


# -- metadata --------------------------------------------------------------------------


async def test_what_an_executor_puts_into_its_metadata_is_its_own(tmp_path) -> None:
    """Neither its next attempt sees it, nor the task, nor who is asked about it, nor the disk."""
    seen = []

    async def execute(step):
        seen.append([*step.metadata["ctx"]])
        step.metadata["ctx"]["client"] = object()
        if step.attempt == 1:
            raise ValueError("again")
        return 1

    async with (
        a_bench(tmp_path) as bench,
        bench.serve(state=tmp_path / "state") as server,
        bench.http() as http,
    ):
        login = await log_in(server, roles=["boss"])
        senior = OperatorBinding(senior="boss")
        await bench.dispatch(execute=execute, operator=senior, attempts=2, metadata={"ctx": {}})
        listed = await http.get("/v1/tasks", headers=ADMIN)
        session = await http.get(f"/v1/operators/{login.sid}", headers=login.bearer)

    assert seen == [[], []]
    assert bench.last.metadata == {"ctx": {}}
    assert listed.json()["tasks"][0]["task_metadata"] == {"ctx": {}}
    assert session.json()["observed"][0]["task_metadata"] == {"ctx": {}}


@pytest.mark.parametrize("when", ["ordered", "created", "executed"])
async def test_the_callers_metadata_stays_the_callers(tmp_path, when) -> None:
    """It may go on to use it, from the moment that the dispatch was checked."""
    given: dict[str, Any] = {"ctx": {"rows": [1]}}
    seen = []

    async def execute(step):
        if when == "executed":
            spoil(given["ctx"])
        seen.append(step.metadata)

    async with a_bench(tmp_path) as bench:
        order = bench.dispatcher.order("coder", "p", execute=execute, metadata=given)
        if when == "ordered":
            spoil(given["ctx"])
        task = bench.dispatcher.create(order)
        if when == "created":
            spoil(given["ctx"])
        await bench.dispatcher.run(order, task)
        spoil(task.metadata["ctx"])  # It is the task's alone.

    assert seen == [{"ctx": {"rows": [1]}}]
    assert order.metadata == {"ctx": {"rows": [1]}}


# -- values ----------------------------------------------------------------------------


@attrs.define
class Late:
    """It is told of nothing before `go`."""

    go: trio.Event = attrs.field(factory=trio.Event)
    told: list[Any] = attrs.field(factory=list)

    async def after_spawn(self, frame) -> None:
        await self.go.wait()
        self.told.append(frame.result)


@pytest.mark.parametrize("by", ["caller", "executor"])
async def test_what_becomes_of_the_value_changes_no_notice_and_no_answer(by) -> None:
    """To a notice that waits, and to the task, it is what it was when the step ended."""
    made: list[WorkerResult] = []

    async def execute(step):
        made.append(WorkerResult({"rows": [1, 2, 3]}, stats={"rows": [1]}))
        return made[0]

    hook = Late()
    async with open_swarm() as swarm:
        await swarm.attach(hook, name="boss")
        result = await swarm.dispatch("a", "p", execute=execute, operator="boss")
        assert result == WorkerResult(VALUE, True, {"rows": [1]})
        spoiled = result if by == "caller" else made[0]
        spoil(spoiled.value)
        spoil(spoiled.stats)
        hook.go.set()
        await wait_all_tasks_blocked()
        (task,) = swarm.tasks.tasks()

    assert hook.told == [VALUE]
    assert (task.outcome.value, task.attempt.stats) == (VALUE, {"rows": [1]})
    if by == "executor":
        assert result == WorkerResult(VALUE, True, {"rows": [1]})


async def test_an_operator_far_away_is_told_of_the_value_as_it_was() -> None:
    """The notice waited for it to come back."""

    async def execute(step):
        return {"rows": [1, 2, 3]}

    async with open_swarm() as swarm, swarm.serve_operators(port=0) as server:
        login = await log_in(server, roles=["boss"])
        seat = server.seat(login.sid)
        hook = OperatorBinding(hook=seat, kind="main_ai")
        result = []

        async def run() -> None:
            result.append(await swarm.dispatch("a", "p", execute=execute, operator=hook))

        async with trio.open_nursery() as nursery:
            async with socket_of(server, login) as peer:
                nursery.start_soon(run)
                gate = await peer.next()
                await seat.disconnect()
            while seat.connected:
                await trio.lowlevel.checkpoint()
            async with socket_of(server, login) as peer:
                await peer.send(type="hook_ack", req_id=gate["req_id"], ok=True)
                while not result:
                    await trio.lowlevel.checkpoint()
                spoil(result[0].value)
                with trio.fail_after(5):
                    while (frame := await peer.next())["type"] != "hook_after":
                        pass
    assert frame["result"] == VALUE


async def test_what_a_senior_is_asked_about_is_a_copy(tmp_path) -> None:
    """It may take it apart; and its answer is what it was when it gave it."""
    answer = {"rows": [7]}

    def asked(frame):
        spoil(frame.question["value"])
        return answer

    async def execute(step):
        return WorkerResult({"rows": [1, 2, 3]}, ok=False)

    async with a_bench(tmp_path) as bench:
        senior = OperatorBinding(senior=await bench.attach(Scripted(answers=asked)))
        result = await bench.dispatch(execute=execute, operator=senior)
        spoil(answer)

    assert result.value == {"original": VALUE, "senior_answer": {"rows": [7]}}
