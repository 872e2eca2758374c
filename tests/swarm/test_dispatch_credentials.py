"""How long a worker's credentials last: over gates, absences and ends (contract: operators 3.5, 5)."""

from __future__ import annotations

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.operators.support import Result, log_in, socket_of
from tests.swarm.support import Scripted, a_bench
from tests.swarm.test_dispatch_http import Worker
from tests.workers.support import Clock
from trio_swarm._state.token import CapabilityToken
from trio_swarm.errors import Refused
from trio_swarm.operators import WorkerResult

D, M = "operator_delegate", "main_ai"


async def test_a_renewed_attempt_has_both_tokens_and_the_same_handle(tmp_path) -> None:
    """E7 to E9: nothing is widened, the old token lives on until its own end, the fresh one longer."""
    clock = Clock()
    async with a_bench(tmp_path, clock=clock) as bench, bench.serve(), bench.http() as http:
        task = bench.board.create("coder", "p")
        attempt = task.begin()
        handle, old = attempt.worker_handle, attempt.capability_token
        clock.now += 1750
        assert attempt.good_for == 50
        new = attempt.renew()
        assert attempt.good_for == 1800
        first, second = CapabilityToken.decode(old), CapabilityToken.decode(new)
        before = [(await Worker(http, task.task_id, each).fetch()).status_code for each in (old, new, handle)]
        clock.now += 50
        after = [(await Worker(http, task.task_id, each).fetch()).status_code for each in (old, new, handle)]
        attempt.end()
        ended = [(await Worker(http, task.task_id, each).fetch()).status_code for each in (new, handle)]
        with pytest.raises(Refused):
            attempt.renew()

    assert (attempt.worker_handle, attempt.capability_token) == (handle, new)
    assert (first.agent_id, first.role, first.scopes, first.max_uses) == (
        second.agent_id,
        second.role,
        second.scopes,
        second.max_uses,
    )
    assert second.expire_at - second.issued_at == first.expire_at - first.issued_at == 1800
    assert (before, after, ended) == ([200] * 3, [401, 200, 200], [410, 410])
    assert attempt.good_for == 0
    assert new not in repr(attempt)


async def test_a_set_life_holds_for_what_is_renewed_too(tmp_path) -> None:
    """E13, E14: token_ttl counts from the beginning of the attempt, and again from its renewal."""
    clock = Clock()
    async with a_bench(tmp_path, clock=clock, token_ttl=77) as bench, bench.serve(), bench.http() as http:
        task = bench.board.create("coder", "p")
        attempt = task.begin()
        assert attempt.good_for == 77
        clock.now += 70
        token = CapabilityToken.decode(attempt.renew())
        assert (token.issued_at, token.expire_at) == (clock.now, clock.now + 77)
        worker = Worker(http, task.task_id, attempt.worker_handle)
        clock.now += 76
        good = await worker.fetch()
        clock.now += 1
        dead = await worker.fetch()

    assert (good.status_code, dead.status_code) == (200, 410)


async def test_another_attempts_renewal_is_refused(tmp_path) -> None:
    """E10 to E12: one that was superseded gets no second life."""
    async with a_bench(tmp_path) as bench:
        task = bench.board.create("coder", "p")
        first = task.begin()
        task.begin()
        with pytest.raises(Refused):
            first.renew()


@pytest.mark.parametrize(("waited", "renewed"), [(1739, False), (1740, True), (4000, True)])
async def test_a_gate_that_takes_long_leaves_the_worker_its_time(tmp_path, waited, renewed) -> None:
    """Leave came late: what the operator hands on is good, for an executor in process too."""
    clock, steps = Clock(), []

    async def gate(frame):
        clock.now += waited
        return True

    async def execute(step):
        steps.append(step)
        token = CapabilityToken.decode(step.capability_token)
        return token.expire_at - clock.now

    async with a_bench(tmp_path, clock=clock) as bench:
        hook = await bench.attach(Scripted(gate=gate))
        result = await bench.dispatch(operator=hook, execute=execute)

    assert result.value == (1800 if renewed else 1800 - waited)
    assert len(bench.events.of("credentials_renewed")) == renewed


async def test_a_spawn_that_waited_for_its_operator_hands_on_what_a_worker_can_use(tmp_path) -> None:
    """S9 from end to end: half an hour away, and the step is done after the return."""
    clock = Clock()
    async with a_bench(tmp_path, clock=clock) as bench, bench.serve() as server, bench.http() as http:
        login = await log_in(server)
        async with trio.open_nursery() as nursery:
            result = Result()
            seat = server.seat(login.sid)
            nursery.start_soon(lambda: result.run(bench.dispatch, operator=seat, layers=[D]))
            await wait_all_tasks_blocked()
            minted = bench.last.attempt.capability_token
            clock.now += 1800
            async with socket_of(server, login) as peer:
                spawn = await peer.next()
                worker = Worker(http, spawn["task_id"], spawn["worker_handle"])
                fetched = await worker.fetch()
                body = {"task_id": spawn["task_id"], "value": "done"}
                headers = {"Authorization": f"Bearer {spawn['capability_token']}"}
                posted = await http.post("/v1/worker/result", json=body, headers=headers)
                await peer.send(type="spawn_ack", req_id=spawn["req_id"])
                await result.done.wait()

    assert (fetched.status_code, posted.status_code) == (200, 204)
    assert spawn["capability_token"] not in ("", minted)
    assert result.value == WorkerResult("done")


@pytest.mark.parametrize("hold", [0, 1800, 10_000])
async def test_the_operators_own_value_survives_a_hold_past_the_tokens_life(tmp_path, hold) -> None:
    """E19, E20: the server needs no token of the worker's to write it; nothing is minted for it."""
    clock = Clock()
    async with a_bench(tmp_path, clock=clock) as bench, bench.serve(), bench.seated() as (seat, peer):
        async with trio.open_nursery() as nursery:
            result = Result()
            nursery.start_soon(lambda: result.run(bench.dispatch, operator=seat, layers=[D]))
            spawn = await peer.next()
            clock.now += hold
            await peer.send(type="spawn_ack", req_id=spawn["req_id"], value="late")
            await result.done.wait()

    assert result.value == WorkerResult("late")
    assert bench.events.of("credentials_renewed") == []
