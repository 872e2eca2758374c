"""Many steps, an operator that does anything, cancels at any moment: each task ends, nothing is left."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from websockets.trio.client import connect

from tests.operators.support import Login, Peer, log_in
from tests.swarm.support import Bench, a_bench
from tests.swarm.test_dispatch_http import Worker
from trio_swarm.errors import StepCancelled, StepFailed
from trio_swarm.operators import OperatorServer
from trio_swarm.swarm.steps import RetryPolicy

COUNT = 80
LAYERS = [
    ["operator_delegate"],
    ["operator_delegate", "main_ai"],
    ["operator_delegate", "senior_escalation", "main_ai"],
    ["operator_delegate", "main_ai", "senior_escalation"],
]


@asynccontextmanager
async def a_socket(server: OperatorServer, login: Login) -> AsyncIterator[Peer]:
    """Unlike `socket_of` it reads on although nobody takes the frames, and so notices the cut."""
    url = server.url.replace("http", "ws", 1) + f"/v1/operators/{login.sid}/ws"
    options = {"compression": None, "proxy": None, "max_queue": None, "close_timeout": 0.5}
    async with connect(url, additional_headers=login.bearer, **options) as websocket:
        yield Peer(websocket)


async def an_operator(bench: Bench, login, rng: random.Random) -> None:
    """Answers, refuses, fails, halts, says nonsense, forgets; and its socket breaks now and then."""
    assert bench.server is not None
    async with bench.http() as http:
        while True:
            try:
                async with a_socket(bench.server, login) as peer:
                    for _ in range(rng.randrange(5, 60)):
                        await reply(peer, await peer.next(), http, rng)
                    await bench.server.disconnect(login.sid)
            except Exception:
                continue


async def reply(peer: Peer, frame: dict, http, rng: random.Random) -> None:
    req_id, roll = frame["req_id"], rng.random()
    if frame["type"] not in ("hook_before", "spawn", "ask") or roll < 0.1:
        return
    if roll < 0.15:
        await peer.send(
            type="hook_ack" if frame["type"] != "hook_before" else "answer", req_id=req_id, ok=True
        )
        return
    if frame["type"] == "hook_before":
        await peer.send(type="hook_ack", req_id=req_id, ok=roll < 0.9)
    elif frame["type"] == "ask":
        await peer.send(type="answer", req_id=req_id, value=roll)
    elif roll < 0.3:
        await peer.send(type="spawn_ack", req_id=req_id, error="chaos")
    elif roll < 0.4:
        await peer.send(type="spawn_halt", req_id=req_id)
    else:
        worker = Worker(http, frame["task_id"], frame["worker_handle"])
        if roll < 0.8:
            await worker.fetch()
        if roll < 0.7:
            await worker.submit("posted", ok="true" if roll < 0.6 else "false")
        await peer.send(type="spawn_ack", req_id=req_id, ok=roll < 0.9)


async def one_step(bench: Bench, seat, n: int, seed: int, ends: list[str]) -> None:
    rng = random.Random(f"{seed}-{n}")
    retry = RetryPolicy({"failed", "blocked", "rejected"})
    order = bench.dispatcher.order(
        f"agent-{n}",
        "p",
        operator=seat,
        layers=rng.choice(LAYERS),
        attempts=rng.randint(1, 3),
        retry=retry,
        grace=0.05,
    )
    task = bench.dispatcher.create(order)
    seconds = rng.uniform(0, 1.5)
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cancel_some_time, rng.choice([task, scope]), seconds)
            with trio.move_on_after(rng.choice([seconds / 2, 60])):
                try:
                    result = await bench.dispatcher.run(order, task)
                    ends.append("ok" if result.ok else "blocked")
                except (StepFailed, StepCancelled) as error:
                    ends.append(type(error).__name__)
            nursery.cancel_scope.cancel()


async def cancel_some_time(what, seconds: float) -> None:
    await trio.sleep(seconds)
    what.cancel(*(["chaos"] if not isinstance(what, trio.CancelScope) else []))


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_every_task_ends_whatever_happens(tmp_path, seed) -> None:
    """All are settled, none is running, no request waits, no credential lives."""
    rng, ends = random.Random(seed), []
    async with a_bench(tmp_path) as bench, bench.serve() as server:
        login = await log_in(server)
        async with trio.open_nursery() as operators:
            operators.start_soon(an_operator, bench, login, rng)
            seat = await server.wait_seat(login.sid)
            async with trio.open_nursery() as steps:
                for n in range(COUNT):
                    steps.start_soon(one_step, bench, seat, n, seed, ends)
            assert seat.pending() == ()
            operators.cancel_scope.cancel()
        tasks = bench.board.tasks()

    assert len(tasks) == COUNT
    assert bench.dispatcher.running == 0
    assert {task.status for task in tasks} <= {"pass", "blocked", "failed", "cancelled", "timeout"}
    assert all(task.outcome is not None and task.waiting_for is None for task in tasks)
    assert all(task.attempt is None or task.attempt.ended for task in tasks)
    settled = [data["task_id"] for data in bench.events.of("task_settled")]
    assert sorted(settled) == sorted(task.task_id for task in tasks)
    assert "ok" in ends  # it was no idle run
