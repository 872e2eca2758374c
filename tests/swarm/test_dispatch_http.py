"""Dispatch over real sockets: operators by the `websockets` package, workers by httpx2 (contract 8.7)."""

from __future__ import annotations

import json
import random
import re
from contextlib import asynccontextmanager

import attrs
import httpx2
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.operators.support import Result, log_in, socket_of
from tests.swarm.support import ADMIN, Scripted, a_bench
from trio_swarm.errors import PeerGoneError, RemoteError, StepCancelled, StepFailed
from trio_swarm.operators import WorkerResult
from trio_swarm.swarm.steps import OperatorBinding, RetryPolicy

D, S, M = "operator_delegate", "senior_escalation", "main_ai"


@attrs.define
class Worker:
    """A sub-agent that knows its spawn frame and a URL, and nothing of the library."""

    client: httpx2.AsyncClient
    task_id: str
    handle: str

    @property
    def bearer(self):
        return {"Authorization": f"Bearer {self.handle}"}

    async def fetch(self):
        params = {"task_id": self.task_id}
        return await self.client.get("/v1/worker/prompt", params=params, headers=self.bearer)

    async def submit(self, text, **params):
        return await self.client.post("/v1/worker/submit", content=text, params=params, headers=self.bearer)


@asynccontextmanager
async def a_step(tmp_path, **options):
    """A bench, its operator, and one dispatch under way whose spawn has arrived."""
    async with (
        a_bench(tmp_path) as bench,
        bench.serve(),
        bench.seated() as (seat, peer),
        bench.http() as http,
    ):
        async with trio.open_nursery() as nursery:
            result = Result()
            options.setdefault("layers", [D])
            nursery.start_soon(lambda: result.run(bench.dispatch, operator=seat, **options))
            spawn = await peer.next()
            assert spawn["type"] == "spawn"
            worker = Worker(http, spawn["task_id"], spawn["worker_handle"])
            yield bench, peer, spawn, worker, result


# -- canonical values (4.8) and the order of post and ack (4.7) ------------------------


@pytest.mark.parametrize(
    "text",
    ['{"n":1,"f":1.0,"yes":true,"none":null,"a":["é",[]]}', "[]", '"1"', "1", "null", "1e3"],
)
async def test_json_is_kept_as_json_by_the_one_route_and_as_text_by_the_other(tmp_path, text) -> None:
    """W40, W41: the step has it so, and so has who asks for the step over HTTP."""
    kept = {}
    for path in ("result", "submit"):
        async with a_step(tmp_path) as (bench, peer, spawn, worker, result):
            body = text if path == "submit" else f'{{"task_id":"{spawn["task_id"]}","value":{text}}}'
            headers = {**worker.bearer, "content-type": "application/json"}
            answer = await worker.client.post(f"/v1/worker/{path}", content=body, headers=headers)
            assert answer.status_code == 204, answer.text
            await peer.send(type="spawn_ack", req_id=spawn["req_id"])
            await result.done.wait()
            told = await worker.client.get(f"/v1/tasks/{bench.last.task_id}", headers=ADMIN)
            kept[path] = (result.value.value, told.json()["value"])
    # As text: True is not 1 there, nor 1.0.
    assert [json.dumps(each) for each in kept["result"]] == [json.dumps(json.loads(text))] * 2
    assert kept["submit"] == (text, text)


async def test_what_the_worker_posted_decides(tmp_path) -> None:
    """Final ok=true: the posted value, Pass; the ack's own value and ok are ignored."""
    async with a_step(tmp_path, prompt="the prompt", system="persona") as (
        _bench,
        peer,
        spawn,
        worker,
        result,
    ):
        fetched = (await worker.fetch()).json()
        assert (await worker.submit("posted\n")).status_code == 204
        await peer.send(type="spawn_ack", req_id=spawn["req_id"], value="mine", ok=False)
        await result.done.wait()

    assert (fetched["prompt"], fetched["system"], fetched["attempt"]) == ("the prompt", "persona", 1)
    assert result.value == WorkerResult("posted", True)


async def test_a_final_that_is_not_ok_blocks_an_ok_ack(tmp_path) -> None:
    """Final ok=false, ack ok=true: Blocked with the posted value."""
    async with a_step(tmp_path) as (bench, peer, spawn, worker, result):
        await worker.submit("broken", ok="false")
        await peer.send(type="spawn_ack", req_id=spawn["req_id"], value={}, ok=True)
        await result.done.wait()

    assert result.value == WorkerResult("broken", False)
    assert bench.last.outcome.reason == 'blocked: "broken"'


async def test_the_last_of_several_finals_decides(tmp_path) -> None:
    """Not the first."""
    async with a_step(tmp_path) as (bench, peer, spawn, worker, result):
        await worker.submit("first", ok="false")
        await worker.submit("second")
        await worker.submit("third", ok="false")
        await worker.submit("last")
        await peer.send(type="spawn_ack", req_id=spawn["req_id"])
        await result.done.wait()

    assert result.value == WorkerResult("last", True)
    assert bench.last.attempt.finals == 4


@pytest.mark.parametrize("error", ["subagent crashed", ""])
async def test_an_error_in_the_ack_outranks_every_final(tmp_path, error) -> None:
    """Any text, even an empty one; the post is ignored."""
    async with a_step(tmp_path) as (bench, peer, spawn, worker, result):
        await worker.submit("posted")
        await peer.send(type="spawn_ack", req_id=spawn["req_id"], value={}, ok=True, error=error)
        await result.done.wait()

    assert isinstance(result.error, StepFailed)
    assert result.error.reason == f"dispatch failed: worker fn returned error: {error}"
    assert isinstance(result.error.__cause__, RemoteError)
    assert bench.last.status == "failed"


@pytest.mark.parametrize(
    ("ack", "expected"),
    [
        ({"type": "spawn_ack", "value": {"n": 1}}, WorkerResult({"n": 1}, True)),
        ({"type": "spawn_ack", "value": {"n": 1}, "ok": False}, WorkerResult({"n": 1}, False)),
        ({"type": "spawn_ack"}, WorkerResult(None, True)),
        (
            {"type": "spawn_ack", "value": 0, "stats": {"num_turns": 2}},
            WorkerResult(0, True, {"num_turns": 2}),
        ),
        (
            {"type": "spawn_ack", "value": 0, "ok": False, "stats": {"num_turns": 2}},
            WorkerResult(0, False, {"num_turns": 2}),
        ),
        (
            {"type": "spawn_halt", "value": {"p": 1}, "reason": "enough"},
            WorkerResult({"halted": True, "reason": "enough", "value": {"p": 1}}, True),
        ),
    ],
)
async def test_without_a_post_the_operators_own_value_decides(tmp_path, ack, expected) -> None:
    """At once, since no worker has fetched the prompt: no grace is waited for."""
    async with a_step(tmp_path, grace=3600) as (_bench, peer, spawn, _worker, result):
        await peer.send(req_id=spawn["req_id"], **ack)
        await result.done.wait()

    assert result.value == expected
    assert result.value.stats == expected.stats


async def test_a_post_after_the_ack_is_not_lost(tmp_path) -> None:
    """Ack before POST: a worker that has its prompt is waited for, and what it posts decides."""
    async with a_step(tmp_path, grace=3600) as (bench, peer, spawn, worker, result):
        await worker.fetch()
        await peer.send(type="spawn_ack", req_id=spawn["req_id"], value={}, ok=True)
        while bench.last.waiting_for != "the worker's result":
            await trio.testing.wait_all_tasks_blocked(0.001)
        assert (await worker.submit("late, but in time", ok="false")).status_code == 204
        await result.done.wait()
        after = await worker.submit("much too late")

    assert result.value == WorkerResult("late, but in time", False)
    assert after.status_code == 410


async def test_a_worker_that_never_posts_costs_the_grace_alone(tmp_path) -> None:
    """Then the ack's own value is the Final, and a later post is refused, not lost in silence."""
    async with a_step(tmp_path, grace=0.05) as (bench, peer, spawn, worker, result):
        await worker.fetch()
        await peer.send(type="spawn_ack", req_id=spawn["req_id"], value={}, ok=True)
        await result.done.wait()
        after = await worker.submit("much too late")

    assert result.value == WorkerResult({}, True)
    assert after.status_code == 410
    assert bench.last.outcome.value == {}


@pytest.mark.parametrize("ok", [True, False])
async def test_a_post_after_an_ack_with_a_value_is_not_lost(tmp_path, ok) -> None:
    """4.8: the Final outranks what the operator said, in whatever order the two come."""
    async with a_step(tmp_path, grace=3600) as (bench, peer, spawn, worker, result):
        await worker.fetch()
        await peer.send(type="spawn_ack", req_id=spawn["req_id"], value="summary", ok=ok)
        while bench.last.waiting_for != "the worker's result":
            await trio.testing.wait_all_tasks_blocked(0.001)
        assert (await worker.submit("the result itself")).status_code == 204
        await result.done.wait()

    assert result.value == WorkerResult("the result itself", True)


@pytest.mark.parametrize("ok", [True, False])
async def test_a_halt_after_a_post_leaves_the_post_the_result(tmp_path, ok) -> None:
    """4.8: the halt's marker is what stands in for a Final, and here is one."""
    async with a_step(tmp_path) as (_bench, peer, spawn, worker, result):
        await worker.submit("posted", ok=str(ok).lower())
        await peer.send(type="spawn_halt", req_id=spawn["req_id"], value={"p": 1}, reason="enough")
        await result.done.wait()

    assert result.value == WorkerResult("posted", ok)


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_worker_of_a_given_execute_posts_too(tmp_path, when) -> None:
    """W26: no operator has a part in it; what was posted outranks what the callable returns."""
    late = trio.Event()

    async with a_bench(tmp_path) as bench, bench.serve(), bench.http() as http:
        async with trio.open_nursery() as nursery:

            async def work(step) -> None:
                worker = Worker(http, step.task_id, step.worker_handle)
                assert (await worker.fetch()).json()["prompt"] == "do it"
                if when == "after":
                    late.set()
                    while bench.last.waiting_for != "the worker's result":
                        await wait_all_tasks_blocked(0.001)
                assert (await worker.submit("posted", ok="false")).status_code == 204
                late.set()

            async def execute(step):
                assert step.base_url == bench.server.url
                nursery.start_soon(work, step)
                await late.wait()
                return "mine"

            result = await bench.dispatch(execute=execute, grace=3600)

    assert result == WorkerResult("posted", False)


@pytest.mark.parametrize(
    ("said", "failed"),
    [
        ({"type": "spawn_halt", "value": {"p": 1}, "reason": "enough"}, False),
        ({"type": "spawn_halt"}, False),
        ({"type": "spawn_ack", "error": "it burns"}, True),
    ],
)
async def test_a_halt_or_an_error_is_not_held_up(tmp_path, said, failed) -> None:
    """Stopped on purpose, or failed: there is nothing that a worker's post could add."""
    async with a_step(tmp_path, grace=3600) as (_bench, peer, spawn, worker, result):
        await worker.fetch()
        await peer.send(req_id=spawn["req_id"], **said)
        await result.done.wait()

    assert isinstance(result.error, StepFailed) is failed
    assert failed or result.value.value["halted"] is True


async def test_nothing_can_be_posted_while_the_senior_decides(tmp_path) -> None:
    """The question is about one Final; a later one would be overridden by an answer to another."""
    async with a_step(tmp_path, layers=[D, S]) as (_bench, peer, spawn, worker, result):
        await worker.submit("first", ok="false")
        await peer.send(type="spawn_ack", req_id=spawn["req_id"])
        ask = await peer.next()
        late = await worker.submit("second", ok="false")
        await peer.send(type="answer", req_id=ask["req_id"], value=None)
        await result.done.wait()

    assert ask["question"] == {"reason": "worker reported ok=false", "value": "first"}
    assert late.status_code == 410
    assert result.value == WorkerResult({"original": "first", "senior_answer": None}, True)


async def test_statistics_are_the_operators_or_else_the_workers(tmp_path) -> None:
    """The ack's; where it has none (or an empty one) what the worker posted; kept with the attempt."""
    async with a_step(tmp_path) as (bench, peer, spawn, worker, result):
        posted = await worker.client.post("/v1/worker/stats", json={"model": "m-1"}, headers=worker.bearer)
        await peer.send(type="spawn_ack", req_id=spawn["req_id"], value="v", stats={})
        await result.done.wait()
        known = (await worker.client.get(f"/v1/tasks/{spawn['task_id']}", headers=ADMIN)).json()
    async with a_step(tmp_path) as (_bench, peer, spawn, worker, other):
        await worker.client.post("/v1/worker/stats", json={"model": "m-1"}, headers=worker.bearer)
        await peer.send(type="spawn_ack", req_id=spawn["req_id"], value="v", stats={"model": "m-2"})
        await other.done.wait()

    assert posted.status_code == 204
    assert result.value.stats == {"model": "m-1"}
    assert (known["stats"], known["degradations"]) == ({"model": "m-1"}, [])
    assert other.value.stats == {"model": "m-2"}
    assert bench.last.attempt.stats == {"model": "m-1"}


@asynccontextmanager
async def half_a_post(bench, worker, framing, *, path="/v1/worker/submit"):
    """A worker's connection on which a post has begun, and the server reads on."""
    host, _, port = bench.server.url.removeprefix("http://").partition(":")
    async with await trio.open_tcp_stream(host, int(port)) as stream:
        head = f"POST {path} HTTP/1.1\r\nHost: {host}:{port}\r\nAuthorization: Bearer {worker.handle}\r\n"
        await stream.send_all(f"{head}{framing}".encode())
        await wait_all_tasks_blocked(0.01)
        yield stream


CHUNKED = "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"
COUNTED = "Content-Length: 10\r\n\r\nhello"


@pytest.mark.parametrize("framing", [CHUNKED, CHUNKED + "40000\r\nxxx", COUNTED])
@pytest.mark.parametrize("path", ["/v1/worker/submit", "/v1/worker/artifact?name=part"])
async def test_a_worker_that_dies_in_the_middle_of_a_post_has_posted_nothing(tmp_path, framing, path) -> None:
    """And the step goes on: another worker of the attempt posts, or the operator's own value decides."""
    async with a_step(tmp_path, grace=0.05) as (bench, peer, spawn, worker, result):
        await worker.fetch()
        async with half_a_post(bench, worker, framing, path=path):
            pass
        await wait_all_tasks_blocked(0.01)
        assert bench.last.attempt.final is None
        assert bench.board.outputs.of(bench.last.task_id) == ()
        assert (bench.last.status, bench.last.waiting_for) == ("running", "spawn of op")
        await peer.send(type="spawn_ack", req_id=spawn["req_id"], value="mine")
        await result.done.wait()

    assert result.value == WorkerResult("mine")
    assert bench.events.of("connection_error") == []


@pytest.mark.parametrize("framing", [CHUNKED, COUNTED])
async def test_a_task_that_is_cancelled_while_its_worker_posts(tmp_path, framing) -> None:
    """The post is refused when it has come to its end, and changes nothing."""
    rest = b"5\r\nworld\r\n0\r\n\r\n" if "chunked" in framing else b"world"
    async with a_step(tmp_path) as (bench, peer, _spawn, worker, result):
        await worker.fetch()
        async with half_a_post(bench, worker, framing) as stream:
            gone = await worker.client.delete(f"/v1/tasks/{bench.last.task_id}", headers=ADMIN)
            withdraw = await peer.next()
            await stream.send_all(rest)
            answer = bytes(await stream.receive_some())
        await result.done.wait()

    assert (gone.status_code, withdraw["reason"]) == (204, "cancelled")
    assert answer.startswith(b"HTTP/1.1 410 ")
    assert isinstance(result.error, StepCancelled)
    assert (bench.last.status, bench.last.outcome.value) == ("cancelled", None)
    assert bench.last.attempt.final is None


# -- the spawn -------------------------------------------------------------------------


async def test_the_spawn_tells_the_worker_where_to_go(tmp_path) -> None:
    """The four lines are enough for a worker that only replaces the handle's placeholder."""
    async with a_step(tmp_path, prompt="find me", agent="reviewer") as (bench, peer, spawn, _worker, result):
        lines = spawn["directive"].splitlines()
        at = lines.index("  agent_id: reviewer")
        keys = dict(line.strip().split(": ", 1) for line in lines[at : at + 4])
        async with httpx2.AsyncClient(base_url=keys["base_url"], trust_env=False) as client:
            there = Worker(client, keys["task_id"], spawn["worker_handle"])
            prompt = (await there.fetch()).json()["prompt"]
            await there.submit("found")
        await peer.send(type="spawn_ack", req_id=spawn["req_id"])
        await result.done.wait()
        async with bench.http() as http:
            (watched,) = re.findall(r"GET (http\S+/v1/runs/\S+)\)", spawn["directive"])
            seen = (await http.get(watched, headers=ADMIN)).json()

    assert prompt == "find me"
    assert result.value.value == "found"
    assert (seen["task_id"], seen["status"]) == (spawn["task_id"], "pass")
    assert re.fullmatch(r"ST-[0-9a-f]{16}", spawn["task_id"])
    assert re.fullmatch(r"wh-[0-9a-f]{8}", spawn["worker_handle"])
    assert f"DATA_EMIT: {keys['base_url']}/v1/data/emit" in spawn["directive"]


async def test_a_handle_is_dead_for_the_next_attempt(tmp_path) -> None:
    """Attempt 1's worker cannot complete attempt 2, and is told that it was superseded."""
    options = {"attempts": 2, "retry": RetryPolicy()}
    async with a_step(tmp_path, **options) as (_bench, peer, spawn, worker, result):
        await peer.send(type="spawn_ack", req_id=spawn["req_id"], error="crashed")
        again = await peer.next()
        late = await worker.submit("of the first attempt")
        fetch = await worker.fetch()
        second = Worker(worker.client, again["task_id"], again["worker_handle"])
        assert (await second.submit("of the second")).status_code == 204
        await peer.send(type="spawn_ack", req_id=again["req_id"])
        await result.done.wait()

    assert (spawn["attempt"], again["attempt"]) == (1, 2)
    assert spawn["task_id"] == again["task_id"]
    assert spawn["worker_handle"] != again["worker_handle"]
    assert (late.status_code, fetch.status_code) == (409, 409)
    assert result.value == WorkerResult("of the second", True)


@pytest.mark.parametrize("how", ["failed", "blocked", "rejected"])
async def test_a_handle_is_dead_while_the_next_attempt_is_waited_for(tmp_path, how) -> None:
    """A token dies with its attempt, not with the beginning of the next one."""
    retry = RetryPolicy({how}, first=3600, longest=3600)
    async with (
        a_bench(tmp_path) as bench,
        bench.serve(),
        bench.seated() as (seat, peer),
        bench.http() as http,
        trio.open_nursery() as nursery,
    ):
        result = Result()
        options = {"operator": seat, "layers": [D, M] if how == "rejected" else [D]}
        nursery.start_soon(lambda: result.run(bench.dispatch, attempts=2, retry=retry, **options))
        asked = await peer.next()
        worker = Worker(http, bench.last.task_id, bench.last.attempt.worker_handle)
        alive = await worker.fetch()
        if how == "blocked":
            await worker.submit("no", ok="false")
        said = {"failed": {"error": "x"}, "blocked": {}, "rejected": {"ok": False}}[how]
        reply = "hook_ack" if how == "rejected" else "spawn_ack"
        await peer.send(type=reply, req_id=asked["req_id"], **said)
        while bench.last.waiting_for != "attempt 2":
            await wait_all_tasks_blocked(0.001)
        token = bench.last.attempt.capability_token
        late = [
            await worker.fetch(),
            await worker.submit("x"),
            await Worker(http, worker.task_id, token).fetch(),
        ]
        bench.last.cancel("enough")
        await result.done.wait()

    assert alive.status_code == 200
    assert [each.status_code for each in late] == [410] * 3
    assert bench.last.attempts == 1


# -- operators that say no, go away or come back ---------------------------------------


async def test_a_rejected_spawn_leaves_the_task_terminal(tmp_path) -> None:
    """Its pollers are woken, nothing is spawned, no notice is sent (contract 6.1, 6.4)."""
    async with a_bench(tmp_path) as bench, bench.serve(), bench.seated() as (seat, peer):
        async with trio.open_nursery() as nursery:
            result = Result()
            nursery.start_soon(lambda: result.run(bench.dispatch, operator=seat))
            gate = await peer.next()
            task = bench.last
            assert (task.status, task.waiting_for) == ("running", "hook_before of op")
            await peer.send(type="hook_ack", req_id=gate["req_id"], ok=False, reason="not now")
            with trio.fail_after(5):
                outcome = await task.wait()
            await result.done.wait()
        assert seat.pending() == ()

    assert gate["type"] == "hook_before"
    assert (outcome.status, outcome.reason) == (
        "failed",
        "dispatch failed: spawn rejected by middleware: not now",
    )
    assert isinstance(result.error, StepFailed)


async def test_a_question_to_an_absent_senior_waits_for_it(tmp_path) -> None:
    """It is parked, delivered after the reconnect, and its answer counts."""
    async with a_bench(tmp_path) as bench, bench.serve() as server:
        worker = await bench.attach(Scripted(executes=WorkerResult("bad", ok=False)), "worker")
        login = await log_in(server, roles=["senior"])
        async with socket_of(server, login):
            senior = await server.wait_seat("senior")
        while senior.connected:
            await wait_all_tasks_blocked(0.001)
        async with trio.open_nursery() as nursery:
            result = Result()
            binding = OperatorBinding(worker, None, senior)
            nursery.start_soon(lambda: result.run(bench.dispatch, operator=binding))
            while bench.board.tasks() == () or bench.last.waiting_for != "ask of senior":
                await wait_all_tasks_blocked(0.001)
            async with socket_of(server, login) as peer:
                ask = await peer.next()
                await peer.send(type="answer", req_id=ask["req_id"], value="go on")
                await result.done.wait()

    assert result.value == WorkerResult({"original": "bad", "senior_answer": "go on"}, True)


async def test_a_senior_that_is_logged_out_leaves_the_step_blocked(tmp_path) -> None:
    """Ask error: the outcome says why nobody decided."""
    async with a_step(tmp_path, layers=[D, S]) as (bench, peer, spawn, _worker, result):
        await peer.send(type="spawn_ack", req_id=spawn["req_id"], value="bad", ok=False)
        await peer.next()
        await bench.server.remove("op", "gone home")
        await result.done.wait()

    assert result.value == WorkerResult("bad", False)
    assert bench.last.outcome.reason == 'blocked: "bad"; senior escalation failed: gone home'
    assert [data["error"] for data in bench.events.of("senior_failed")] == ["gone home"]


async def test_an_operator_that_is_logged_out_fails_what_it_executes(tmp_path) -> None:
    """DELETE while the spawn is in flight: the task ends, its worker's handle is dead."""
    async with a_step(tmp_path) as (bench, _peer, _spawn, worker, result):
        await worker.fetch()
        await bench.server.remove("op", "the session was deleted")
        await result.done.wait()
        late = await worker.submit("nobody waits")

    assert isinstance(result.error, StepFailed)
    assert result.error.reason == (
        "dispatch failed: worker fn returned error: ws operator spawn: the session was deleted"
    )
    assert isinstance(result.error.__cause__, PeerGoneError)
    assert late.status_code == 410


@pytest.mark.parametrize("how", ["task", "caller", "deadline"])
async def test_an_operator_is_told_that_its_spawn_is_not_wanted_any_more(tmp_path, how) -> None:
    """By a withdraw frame; the worker's credentials are dead."""
    async with (
        a_bench(tmp_path) as bench,
        bench.serve(),
        bench.seated() as (seat, peer),
        bench.http() as http,
    ):
        async with trio.open_nursery() as nursery:
            scope, result = trio.CancelScope(), Result()

            async def run() -> None:
                with scope:
                    await result.run(bench.dispatch, operator=seat, layers=[D])

            nursery.start_soon(run)
            spawn = await peer.next()
            if how == "task":
                bench.last.cancel("changed")
            elif how == "caller":
                scope.cancel()
            else:
                scope.deadline = trio.current_time()
            withdraw = await peer.next()
            await result.done.wait()
        late = await Worker(http, spawn["task_id"], spawn["worker_handle"]).submit("x")

    assert (withdraw["type"], withdraw["req_id"]) == ("withdraw", spawn["req_id"])
    assert withdraw["reason"] == ("deadline" if how == "deadline" else "cancelled")
    assert bench.last.status == ("timeout" if how == "deadline" else "cancelled")
    assert isinstance(result.error, StepCancelled) == (how == "task")
    assert scope.cancelled_caught == (how != "task")
    assert late.status_code == 410


async def test_a_deadline_travels_and_ends_as_timeout(tmp_path) -> None:
    """deadline_ms in the frames, withdraw with that reason, the status timeout."""
    async with a_bench(tmp_path) as bench, bench.serve(), bench.seated() as (seat, peer):
        async with trio.open_nursery() as nursery:

            async def run() -> None:
                with trio.move_on_after(0.2):
                    await bench.dispatch(operator=seat, layers=[D])

            nursery.start_soon(run)
            spawn = await peer.next()
            withdraw = await peer.next()

    assert 0 < spawn["deadline_ms"] <= 200
    assert withdraw["reason"] == "deadline"
    assert bench.last.status == "timeout"


async def test_a_cut_socket_in_the_middle_costs_nothing(tmp_path) -> None:
    """The same spawn, the same credentials, answered after the reconnect."""
    async with a_bench(tmp_path) as bench, bench.serve() as server, bench.http() as http:
        login = await log_in(server)
        async with trio.open_nursery() as nursery:
            async with socket_of(server, login) as peer:
                seat = await server.wait_seat(login.sid)
                result = Result()
                nursery.start_soon(lambda: result.run(bench.dispatch, operator=seat, layers=[D]))
                first = await peer.next()
                await server.disconnect(login.sid)
            async with socket_of(server, login) as peer:
                again = await peer.next()
                await Worker(http, again["task_id"], again["worker_handle"]).submit("done")
                await peer.send(type="spawn_ack", req_id=again["req_id"])
                await result.done.wait()

    first.pop("deadline_ms", None)
    again.pop("deadline_ms", None)
    assert again == first
    assert result.value.value == "done"


async def test_many_spawns_on_one_socket_answered_in_any_order(tmp_path) -> None:
    """128 at a time, each worker posting over HTTP, acks shuffled: each caller gets its own."""
    count = 128
    rng = random.Random(8)
    async with (
        a_bench(tmp_path) as bench,
        bench.serve(),
        bench.seated() as (seat, peer),
        bench.http() as http,
    ):
        results = [Result() for _ in range(count)]
        async with trio.open_nursery() as nursery:
            for n, result in enumerate(results):
                nursery.start_soon(
                    lambda n=n, result=result: result.run(
                        bench.dispatch, f"agent-{n}", f"prompt {n}", operator=seat, layers=[D]
                    )
                )
            spawns = [await peer.next() for _ in range(count)]
            assert bench.dispatcher.running == count
            rng.shuffle(spawns)
            for spawn in spawns:
                worker = Worker(http, spawn["task_id"], spawn["worker_handle"])
                if rng.random() < 0.5:
                    await worker.submit((await worker.fetch()).json()["prompt"])
                    await peer.send(type="spawn_ack", req_id=spawn["req_id"])
                else:
                    await peer.send(type="spawn_ack", req_id=spawn["req_id"], value=spawn["agent"])

    values = [result.value.value for result in results]
    assert all(value in (f"prompt {n}", f"agent-{n}") for n, value in enumerate(values))
    assert {task.status for task in bench.board.tasks()} == {"pass"}
