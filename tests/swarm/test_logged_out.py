"""Steps of operators that log out, come back or hand over their role (contract 8.3 J12 to J18; 8.4)."""

from __future__ import annotations

import errno
import os
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.operators.support import log_in, socket_of
from tests.swarm.support import ADMIN, a_bench
from tests.swarm.test_dispatch_http import Worker
from trio_swarm.swarm.attempt import AttemptRun

LAYERS = ["operator_delegate", "senior_escalation", "main_ai"]
ODD = "r/1 \u00fc\u2028%2F"


def parts(name: str, **more: object) -> dict:
    ids = {"spawn_hook_id": name, "senior_bridge_id": name, "operator_backend_id": name}
    return {"kind": "main_ai", **ids, **more}


@asynccontextmanager
async def an_api(tmp_path, **options):
    async with a_bench(tmp_path) as bench, bench.serve(**options) as server, bench.http() as http:
        http.headers.update(ADMIN)
        yield bench, server, http


async def start(http, **body) -> str:
    answer = await http.post("/v1/tasks", json={"agent": "a", "prompt": "p", "detach": True, **body})
    assert answer.status_code == 202, answer.text
    return answer.json()["task_id"]


async def outcome(bench, http, task_id: str) -> dict:
    with trio.fail_after(10):
        await bench.board.find(task_id).wait()
    return (await http.get(f"/v1/tasks/{task_id}")).json()


async def do(peer, value: object) -> dict:
    """Execute the next step."""
    spawn = await peer.next()
    assert spawn["type"] == "spawn"
    await peer.send(type="spawn_ack", req_id=spawn["req_id"], value=value)
    return spawn


@pytest.mark.parametrize(
    ("where", "status", "reason"),
    [
        ("gate", "failed", "dispatch failed: spawn rejected by middleware: {}"),
        ("spawn", "failed", "dispatch failed: worker fn returned error: ws operator spawn: {}"),
        ("parked", "failed", "dispatch failed: worker fn returned error: ws operator spawn: {}"),
        ("question", "blocked", 'blocked: "bad"; senior escalation failed: {}'),
    ],
)
async def test_a_logout_ends_each_wait_for_that_operator(tmp_path, where, status, reason) -> None:
    """J12, J14, J16: whatever it was asked, and whether or not it has seen it; the step says why."""
    async with an_api(tmp_path) as (bench, server, http):
        login = await log_in(server, roles=["main"])
        layers = LAYERS if where == "gate" else LAYERS[:2]
        beside = await log_in(server, roles=["somebody else"])
        async with socket_of(server, login) as peer, socket_of(server, beside):
            await server.wait_seat("main")
            await server.wait_seat("somebody else")
            if where == "parked":
                await server.disconnect("main")
            task_id = await start(http, operator=parts("main"), layers=layers)
            if where == "parked":
                while bench.board.find(task_id).waiting_for != "spawn of main":
                    await wait_all_tasks_blocked(0.001)
            else:
                frame = await peer.next()
                if where == "question":
                    await peer.send(type="spawn_ack", req_id=frame["req_id"], value="bad", ok=False)
                    frame = await peer.next()
                assert frame["type"] == {"gate": "hook_before", "spawn": "spawn", "question": "ask"}[where]
            gone = await http.delete(f"/v1/operators/{login.sid}", headers=login.bearer)
            assert gone.status_code == 204
            known = await outcome(bench, http, task_id)
            (left,) = bench.events.of("operator_left")
    assert (known["status"], known["waiting_for"]) == (status, None)
    assert known["reason"] == reason.format("the session was deleted")
    assert (left["sid"], left["failed"]) == (login.sid, 1)


async def test_a_step_that_is_done_keeps_its_outcome_when_its_operator_leaves(tmp_path) -> None:
    """J15."""
    async with an_api(tmp_path) as (bench, server, http):
        login = await log_in(server, roles=["main"])
        async with socket_of(server, login) as peer:
            await server.wait_seat("main")
            task_id = await start(http, operator_sid="main")
            await do(peer, {"n": 1})
            before = await outcome(bench, http, task_id)
            await http.delete(f"/v1/operators/{login.sid}", headers=login.bearer)
        after = (await http.get(f"/v1/tasks/{task_id}")).json()
        listed = (await http.get("/v1/tasks")).json()["tasks"]
    assert (before["status"], before["value"]) == ("pass", {"n": 1})
    assert after == before
    assert [each["status"] for each in listed] == ["pass"]


async def test_a_role_is_looked_up_for_each_step(tmp_path) -> None:
    """J17, J18, A3, A4, A7 to A9: the next goes to the new holder, to nobody where there is none."""
    async with an_api(tmp_path) as (bench, server, http):
        first, beside = await log_in(server, roles=[ODD]), await log_in(server, roles=["other"])
        async with socket_of(server, beside) as other:
            await server.wait_seat("other")
            async with socket_of(server, first) as peer:
                await server.wait_seat(ODD)
                await start(http, operator_sid=ODD)
                await do(peer, "first")
            await http.delete(f"/v1/operators/{first.sid}", headers=first.bearer)
            vacant = await http.post("/v1/tasks", json={"agent": "a", "prompt": "p", "operator_sid": ODD})
            second = await log_in(server, roles=[ODD])
            async with socket_of(server, second) as peer:
                await server.wait_seat(ODD)
                task_ids = [await start(http, operator_sid=ODD), await start(http, operator_sid="other")]
                spawns = [await do(peer, "second"), await do(other, "as ever")]
                values = [(await outcome(bench, http, each))["value"] for each in task_ids]
    assert vacant.status_code == 400
    assert vacant.json() == {"error": f"operator_sid: no such registered operator session '{ODD}'"}
    assert [spawn["task_id"] for spawn in spawns] == task_ids
    assert values == ["second", "as ever"]


async def test_a_restored_session_can_be_named_before_it_connects(tmp_path) -> None:
    """I3: the step waits for it."""
    state = tmp_path / "state"
    async with an_api(tmp_path, state=state) as (bench, server, http):
        login = await log_in(server, roles=["main"])
    async with an_api(tmp_path, state=state) as (bench, server, http):
        beside = await log_in(server)
        async with socket_of(server, beside):
            await server.wait_seat(beside.sid)
            task_ids = [await start(http, operator_sid=name) for name in (login.sid, "main")]
            async with socket_of(server, login) as peer:
                for _ in task_ids:
                    await do(peer, "here again")
                values = [(await outcome(bench, http, each))["value"] for each in task_ids]
    assert values == ["here again"] * 2


async def test_that_a_result_is_there_is_not_its_value(tmp_path) -> None:
    """J31, J32: while the step runs nobody who watches is told what was posted, nor how good it is."""
    async with an_api(tmp_path) as (bench, server, http):
        login = await log_in(server, roles=["main"])
        async with socket_of(server, login) as peer:
            await server.wait_seat("main")
            task_id = await start(http, operator_sid="main")
            spawn = await peer.next()
            worker = Worker(http, task_id, spawn["worker_handle"])
            assert (await worker.submit("bad", ok="false")).status_code == 204
            seen = [
                (await http.get(f"/v1/runs/{task_id}", headers=each)).json()
                for each in (ADMIN, login.bearer, worker.bearer)
            ]
            await peer.send(type="spawn_ack", req_id=spawn["req_id"])
            ended = await outcome(bench, http, task_id)
    assert [(each["status"], each["value"]) for each in seen] == [("running", None)] * 3
    assert seen[0]["waiting_for"] == "spawn of main"
    assert "bad" not in str(seen)
    assert (ended["status"], ended["value"]) == ("blocked", "bad")


async def test_a_result_that_cannot_be_kept_leaves_its_step_as_it_was(tmp_path, monkeypatch) -> None:
    """I23: 507 for a Final that a full disk does not take; it is no Final, and the next one is."""

    def full(fd, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    async with an_api(tmp_path) as (bench, server, http):
        login = await log_in(server, roles=["main"])
        async with socket_of(server, login) as peer:
            await server.wait_seat("main")
            task_id = await start(http, operator_sid="main")
            spawn = await peer.next()
            bearer = {"Authorization": f"Bearer {spawn['worker_handle']}"}

            async def final(value: str) -> int:
                event = {"type": "final", "content": {"kind": "inline", "value": value}, "ok": True}
                body = {"task_id": task_id, "attempt": 1, "producer_agent": "a", "event": event}
                return (await http.post("/v1/data/emit", json=body, headers=bearer)).status_code

            with monkeypatch.context() as patch:
                patch.setattr("trio_swarm._io.spool.os.write", full)
                refused = await final("x" * 100_000)
            task = bench.board.find(task_id)
            as_it_was = (task.status, task.attempt.final, len(bench.board.outputs.of(task_id)))
            accepted = await final("y" * 100_000)
            await peer.send(type="spawn_ack", req_id=spawn["req_id"])
            known = await outcome(bench, http, task_id)
    assert (refused, as_it_was) == (507, ("running", None, 0))
    assert accepted == 200
    assert (known["status"], known["value"]) == ("pass", "y" * 100_000)


@pytest.mark.parametrize("attempt", [1, 2])
async def test_a_fault_of_ours_never_leaves_a_step_running(tmp_path, monkeypatch, attempt) -> None:
    """I24: after the attempt has begun; whoever waits for the step is told, and the server goes on."""
    run = AttemptRun.run

    async def broken(self) -> object:
        if self.attempt.number == attempt:
            raise OSError(errno.EIO, "store on fire")
        return await run(self)

    async with an_api(tmp_path) as (bench, server, http):
        monkeypatch.setattr(AttemptRun, "run", broken)
        login = await log_in(server, roles=["main"])
        async with socket_of(server, login) as peer:
            await server.wait_seat("main")
            task_id = await start(http, operator_sid="main", attempts=2)
            if attempt == 2:
                spawn = await peer.next()
                await peer.send(type="spawn_ack", req_id=spawn["req_id"], error="once more")
            known = await outcome(bench, http, task_id)
            assert bench.dispatcher.running == 0
            monkeypatch.undo()
            again = await start(http, operator_sid="main")
            await do(peer, "fine")
            assert (await outcome(bench, http, again))["value"] == "fine"
    assert (known["status"], known["attempt"], known["waiting_for"]) == ("failed", attempt, None)
    assert "store on fire" in known["reason"]
