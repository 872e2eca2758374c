"""Rows of the operator contract, 3.3 and 3.4, that want the whole server: what becomes of a step."""

from __future__ import annotations

from functools import partial

import pytest
import trio

from tests.operators.support import Result
from tests.swarm.support import ADMIN, a_bench
from trio_swarm.errors import ApprovalDenied, PeerGoneError, StepCancelled, StepFailed

LAYERS = ["operator_delegate", "senior_escalation", "main_ai"]
REPLIES = {
    "answer": {"type": "answer", "value": 1},
    "hook_ack": {"type": "hook_ack", "ok": True},
    "spawn_ack": {"type": "spawn_ack", "value": "bad", "ok": False},
    "spawn_halt": {"type": "spawn_halt"},
}


async def rejected(tmp_path, end) -> tuple[str, object]:
    """Why the step failed when ``end`` happened to its operator's gate; nothing else was sent to it."""
    async with a_bench(tmp_path) as bench, bench.serve() as server, bench.seated() as (seat, peer):
        async with trio.open_nursery() as nursery:
            result = Result()
            nursery.start_soon(lambda: result.run(bench.dispatch, operator=seat, layers=LAYERS))
            gate = await peer.next()
            assert gate["type"] == "hook_before"
            await end(server, seat, peer, gate)
            with trio.fail_after(5):
                await result.done.wait()
        assert seat.pending() == ()
        assert seat.statistics().delivery.requests == 1
    assert isinstance(result.error, StepFailed)
    assert bench.last.status == "failed"
    return result.error.reason, result.error.__cause__


async def test_a_gate_whose_operator_is_deleted_rejects_the_spawn(tmp_path) -> None:
    """3.4, before: an error of the transport is a rejected spawn, not a hang."""

    async def delete(server, seat, _peer, _gate) -> None:
        assert await server.remove(seat.sid, "the session was deleted")

    reason, cause = await rejected(tmp_path, delete)
    assert reason == "dispatch failed: spawn rejected by middleware: the session was deleted"
    assert isinstance(cause, PeerGoneError)


async def test_a_gate_that_gives_no_reason_rejects_with_a_fixed_one(tmp_path) -> None:
    """3.4, before: rejected, the text is the fallback; replies of other kinds before it change nothing."""

    async def reject(_server, _seat, peer, gate) -> None:
        for kind in ("answer", "spawn_ack", "spawn_halt"):
            await peer.send(req_id=gate["req_id"], **REPLIES[kind])
        await peer.send(type="hook_ack", req_id=gate["req_id"], ok=False)

    reason, cause = await rejected(tmp_path, reject)
    assert reason == (
        "dispatch failed: spawn rejected by middleware: the operator rejected it and gave no reason"
    )
    assert isinstance(cause, ApprovalDenied)


async def test_replies_of_the_wrong_kind_change_no_step(tmp_path) -> None:
    """3.4, every row over one socket: each request is first answered by all the kinds that do not fit."""
    fits = {"hook_before": "hook_ack", "spawn": "spawn_ack", "ask": "answer"}
    async with a_bench(tmp_path) as bench, bench.serve(), bench.seated() as (seat, peer):
        async with trio.open_nursery() as nursery:
            result = Result()
            nursery.start_soon(lambda: result.run(bench.dispatch, operator=seat, layers=LAYERS))
            for verb, right in fits.items():
                frame = await peer.next()
                assert frame["type"] == verb
                for kind, reply in REPLIES.items():
                    if kind != right and not (verb == "spawn" and kind == "spawn_halt"):
                        await peer.send(req_id=frame["req_id"], **reply)
                await peer.send(req_id=frame["req_id"], **REPLIES[right])
            notice = await peer.next()
            for reply in REPLIES.values():
                await peer.send(req_id=notice["req_id"], **reply)
            await result.done.wait()
        while len(bench.events.of("reply_stray")) < 3 + 2 + 3 + 4:
            await trio.lowlevel.checkpoint()
        strays = [event["verdict"] for event in bench.events.of("reply_stray")]

    assert result.value.value == {"original": "bad", "senior_answer": 1}
    assert notice["type"] == "hook_after"
    assert strays == ["wrong_kind"] * 8 + ["unknown"] * 4


@pytest.mark.parametrize("waiting", ["hook_before", "spawn", "ask"])
async def test_a_cancelled_task_takes_back_its_own_request_alone(tmp_path, waiting) -> None:
    """S18 to S22: another task's request on the same seat is still open, and so is the session."""
    async with (
        a_bench(tmp_path) as bench,
        bench.serve(),
        bench.seated("op") as (seat, peer),
        bench.http() as http,
    ):
        body = {"agent": "a", "prompt": "p", "layers": LAYERS, "detach": True}
        ids = dict.fromkeys(("spawn_hook_id", "senior_bridge_id", "operator_backend_id"), "op")
        body["operator"] = {"kind": "main_ai", **ids}
        asked = {}
        for name in ("dropped", "kept"):
            started = await http.post("/v1/tasks", json=body, headers=ADMIN)
            frame = await peer.next()
            while frame["type"] != waiting:
                reply = {"hook_before": "hook_ack", "spawn": "spawn_ack"}[frame["type"]]
                await peer.send(req_id=frame["req_id"], **REPLIES[reply])
                frame = await peer.next()
            asked[name] = (started.json()["task_id"], frame["req_id"])
        described = await http.get(f"/v1/tasks/{asked['dropped'][0]}", headers=ADMIN)
        assert described.json()["waiting_for"] == f"{waiting} of op"
        gone = await http.delete(f"/v1/tasks/{asked['dropped'][0]}", headers=ADMIN)
        assert gone.status_code == 204
        assert await peer.next() == {
            "type": "withdraw",
            "req_id": asked["dropped"][1],
            "reason": "cancelled",
        }
        assert seat.pending() == (asked["kept"][1],)
        assert seat.connected


async def test_a_late_reply_is_refused_even_of_the_operator_that_has_the_step_again(tmp_path) -> None:
    """A13: what it says of its former attempt is no word on the present one."""
    async with a_bench(tmp_path) as bench, bench.serve(), bench.seated() as (seat, peer):
        async with trio.open_nursery() as nursery:
            result = Result()
            step = partial(bench.dispatch, operator=seat, layers=LAYERS[:1], attempts=2)
            nursery.start_soon(result.run, step)
            first = await peer.next()
            await peer.send(type="spawn_ack", req_id=first["req_id"], error="crashed")
            second = await peer.next()
            await peer.send(type="spawn_ack", req_id=first["req_id"], value="of the first after all")
            with trio.fail_after(5):
                while not bench.events.of("reply_stray"):
                    await trio.lowlevel.checkpoint()
            assert seat.pending() == (second["req_id"],)
            assert bench.last.outcome is None
            await peer.send(type="spawn_ack", req_id=second["req_id"], value="of the second")
            await result.done.wait()

    assert (first["task_id"], first["attempt"], second["attempt"]) == (second["task_id"], 1, 2)
    assert [event["verdict"] for event in bench.events.of("reply_stray")] == ["duplicate"]
    assert result.value.value == "of the second"


async def test_a_late_reply_is_no_word_on_the_next_step_of_the_same_operator(tmp_path) -> None:
    """A13: its former step was cancelled."""
    async with a_bench(tmp_path) as bench, bench.serve(), bench.seated() as (seat, peer):
        async with trio.open_nursery() as nursery:
            former, result = Result(), Result()
            step = partial(bench.dispatch, operator=seat, layers=LAYERS[:1])
            nursery.start_soon(former.run, step)
            first = await peer.next()
            bench.last.cancel("not wanted any more")
            assert (await peer.next())["type"] == "withdraw"
            nursery.start_soon(result.run, step)
            second = await peer.next()
            await peer.send(type="spawn_ack", req_id=first["req_id"], value="late")
            await peer.send(type="spawn_ack", req_id=second["req_id"], value="in time")
            with trio.fail_after(5):
                await result.done.wait()

    assert isinstance(former.error, StepCancelled)
    assert [event["verdict"] for event in bench.events.of("reply_stray")] == ["late"]
    assert result.value.value == "in time"
