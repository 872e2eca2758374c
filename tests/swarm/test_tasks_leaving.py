"""Steps over HTTP when a server is left, and when a step takes its time to stop."""

from __future__ import annotations

from contextlib import asynccontextmanager

import httpx2
import pytest
import trio

from tests.operators.support import log_in, socket_of
from tests.swarm.support import ADMIN, Scripted, a_bench
from tests.swarm.test_tasks_api import Answers, until
from trio_swarm.swarm import tasks_api

STEP = {"agent": "a", "prompt": "p"}


class Lingering:
    """An operator whose step, once it is cancelled, stops only at ``go``; bounded, should a test fail."""

    def __init__(self) -> None:
        self.begun, self.go = trio.Event(), trio.Event()

    async def execute(self, frame) -> None:
        self.begun.set()
        try:
            await trio.sleep_forever()
        finally:
            with trio.move_on_after(15, shield=True):
                await self.go.wait()


@asynccontextmanager
async def client_of(server):
    """One that may outlive it."""
    async with httpx2.AsyncClient(base_url=server.url, headers=ADMIN, trust_env=False, timeout=20) as http:
        yield http


async def post(answers, server, **body) -> None:
    async with client_of(server) as http:
        await answers.post(http, **STEP, **body)


async def test_a_step_whose_operator_comes_while_the_server_is_left_is_not_started(tmp_path) -> None:
    """503: it had waited for one, and the port is open until another step has stopped."""
    first, answers, lingering = Answers(), Answers(), Lingering()
    async with a_bench(tmp_path) as bench, trio.open_nursery() as nursery:
        async with bench.serve() as server:
            login = await log_in(server, roles=["late"])
            await bench.attach(lingering, "lingering")
            nursery.start_soon(lambda: post(first, server, operator_sid="lingering"))
            await lingering.begun.wait()
            away = bench.attached.pop()  # Nobody is there: a step waits for whoever is logged in.
            nursery.start_soon(lambda: post(answers, server, operator_sid="late", detach=True))
            await until(lambda: bench.serving.waiting)

            async def come() -> None:
                await until(lambda: not bench.serving._servers)
                bench.attached.append(away)
                async with socket_of(server, login):
                    await until(lambda: answers.got)
                lingering.go.set()

            nursery.start_soon(come)
        assert [task.agent for task in bench.board.tasks()] == ["a"]
    (refused,) = answers.got
    assert (refused.status_code, refused.json()) == (503, {"error": "the server is going away"})
    assert first.got[0].json()["status"] == "cancelled"


async def test_leaving_waits_for_a_client_that_is_told_and_no_longer(tmp_path, monkeypatch) -> None:
    """As soon as it has its answer, however long it might have taken."""
    monkeypatch.setattr(tasks_api, "CLOSE_DEADLINE", 3600)
    answers, begun = Answers(), trio.Event()

    async def execute(frame) -> None:
        begun.set()
        await trio.sleep_forever()

    async with a_bench(tmp_path) as bench, trio.open_nursery() as nursery:
        await bench.attach(Scripted(executes=execute), "op")
        with trio.fail_after(20):
            async with bench.serve() as server:
                nursery.start_soon(lambda: post(answers, server, operator_sid="op"))
                await begun.wait()
    assert answers.got[0].json()["status"] == "cancelled"


@pytest.mark.parametrize("detach", [False, True])
async def test_a_cancel_is_answered_however_long_the_step_takes_to_stop(
    tmp_path, monkeypatch, detach
) -> None:
    """204 after a bounded wait: it was asked to."""
    monkeypatch.setattr(tasks_api, "CLOSE_DEADLINE", 0.05)
    answers, lingering = Answers(), Lingering()
    async with a_bench(tmp_path) as bench, trio.open_nursery() as nursery:
        await bench.attach(lingering, "op")
        async with bench.serve() as server, client_of(server) as http:
            nursery.start_soon(lambda: post(answers, server, operator_sid="op", detach=detach))
            await lingering.begun.wait()
            with trio.fail_after(10):
                answer = await http.delete(f"/v1/tasks/{bench.last.task_id}")
            assert answer.status_code == 204
            assert bench.last.outcome is None
            lingering.go.set()
            assert (await bench.last.wait()).status == "cancelled"
            await until(lambda: answers.got)
