"""Steps over HTTP: start, watch, cancel (operators contract 1.4, 8.8)."""

from __future__ import annotations

import json
import ssl
from contextlib import asynccontextmanager
from types import SimpleNamespace

import httpx2
import pytest
import trio
import trustme
from trio.testing import wait_all_tasks_blocked

from tests.operators.support import log_in, socket_of
from tests.swarm.support import ADMIN, Bench, Scripted, a_bench
from tests.swarm.test_dispatch_http import Worker
from trio_swarm._state.token import CapabilityToken, attenuate
from trio_swarm.limits import MAX_CONNECTIONS
from trio_swarm.operators import WorkerResult
from trio_swarm.operators.approvals import ApprovalPolicy
from trio_swarm.swarm.serving import _waiting
from trio_swarm.swarm.tasks_api import open_task_api

OVERRIDE = {"original": "2 tests failed", "senior_answer": "accept, known flake"}


def everything(sid: str, **more) -> dict:
    """The sid three times, as contract 1.4 wants it."""
    ids = {"spawn_hook_id": sid, "senior_bridge_id": sid, "operator_backend_id": sid}
    return {"kind": "main_ai", **ids, **more}


@asynccontextmanager
async def an_api(tmp_path, *operators: tuple[str, object], **options):
    async with a_bench(tmp_path) as bench:
        for name, operator in operators:
            await bench.attach(operator, name)
        async with bench.serve(**options), bench.http() as http:
            http.headers.update(ADMIN)
            yield bench, http


class Answers:
    """What requests in other tasks were answered."""

    def __init__(self) -> None:
        self.got = []

    async def post(self, http, **body) -> None:
        self.got.append(await http.post("/v1/tasks", json=body))


async def there() -> bool:
    return True


async def until(condition) -> None:
    with trio.fail_after(5):
        while not condition():
            await wait_all_tasks_blocked(0.001)


# -- the transcript of 8.8 -------------------------------------------------------------


@pytest.mark.parametrize(
    ("layers", "frames", "told"),
    [
        (["operator_delegate", "senior_escalation", "main_ai"], "ask hook_after", OVERRIDE),
        (["operator_delegate", "main_ai", "senior_escalation"], "hook_after ask", "2 tests failed"),
    ],
)
async def test_the_whole_transcript(tmp_path, layers, frames, told) -> None:
    """Login, gate, spawn, worker, ack, ask, notice, result, logout: each with a peer that is not ours."""
    async with an_api(tmp_path) as (bench, http):
        login = await log_in(bench.server, roles=["main-ai"])
        async with socket_of(bench.server, login) as peer, trio.open_nursery() as nursery:
            await bench.server.wait_seat("main-ai")
            answers = Answers()
            nursery.start_soon(
                lambda: answers.post(
                    http, agent="reviewer", prompt="review", layers=layers, operator=everything(login.sid)
                )
            )
            gate = await peer.next()
            await peer.send(type="hook_ack", req_id=gate["req_id"], ok=True)
            spawn = await peer.next()
            worker = Worker(http, spawn["task_id"], spawn["worker_handle"])
            prompt = (await worker.fetch()).json()
            assert (await worker.submit("2 tests failed", ok="false")).status_code == 204
            await peer.send(type="spawn_ack", req_id=spawn["req_id"], value={}, ok=True)
            seen = {}
            for _ in range(2):
                frame = await peer.next()
                seen[frame["type"]] = frame
                if frame["type"] == "ask":
                    await peer.send(type="answer", req_id=frame["req_id"], value="accept, known flake")
        gone = await http.delete(f"/v1/operators/{login.sid}", headers=login.bearer)
    (answer,) = answers.got

    assert (gate["type"], gate["agent"], gate["attempt"]) == ("hook_before", "reviewer", 1)
    assert "-hb-" in gate["req_id"]
    assert "-spawn-" in spawn["req_id"]
    assert (prompt["agent"], prompt["prompt"], prompt["attempt"]) == ("reviewer", "review", 1)
    assert list(seen) == frames.split()
    assert seen["ask"]["question"] == {"reason": "worker reported ok=false", "value": "2 tests failed"}
    assert seen["hook_after"]["result"] == told
    assert answer.status_code == 200
    assert answer.json() == {
        "task_id": spawn["task_id"],
        "status": "pass",
        "value": OVERRIDE,
        "attempt": 1,
    }
    assert gone.status_code == 204


# -- starting --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("operator", "status", "value", "reason"),
    [
        (Scripted(executes={"n": 1}), "pass", {"n": 1}, None),
        (Scripted(executes=WorkerResult("bad", ok=False)), "blocked", "bad", 'blocked: "bad"'),
        (
            Scripted(executes=RuntimeError("x")),
            "failed",
            None,
            "dispatch failed: worker fn returned error: RuntimeError: x",
        ),
        (Scripted(gate="no"), "failed", None, "dispatch failed: spawn rejected by middleware: no"),
    ],
    ids=["pass", "blocked", "failed", "rejected"],
)
async def test_each_outcome_is_answered_200(tmp_path, operator, status, value, reason) -> None:
    """And is what GET tells afterwards."""
    async with an_api(tmp_path, ("op", operator)) as (bench, http):
        layers = ["operator_delegate", "main_ai"]
        body = {"agent": "a", "prompt": {"x": 1}, "operator": everything("op"), "layers": layers}
        answer = await http.post("/v1/tasks", json=body)
        known = answer.json()
        later = (await http.get(f"/v1/tasks/{known['task_id']}")).json()

    assert answer.status_code == 200
    assert (known["status"], known["value"], known.get("reason")) == (status, value, reason)
    assert {key: later[key] for key in known} == known
    assert (later["agent"], later["waiting_for"], later["parent"]) == ("a", None, None)
    assert bench.last.prompt == '{"x":1}'


async def test_a_detached_step_is_answered_at_once_and_watched(tmp_path) -> None:
    """202 with the id; GET says what it waits for; the outcome comes later."""
    go = trio.Event()

    async def execute(frame):
        await go.wait()
        return "done"

    async with an_api(tmp_path, ("op", Scripted(executes=execute))) as (bench, http):
        body = {"agent": "a", "prompt": "p", "operator_sid": "op", "detach": True, "task_metadata": {"k": 1}}
        started = await http.post("/v1/tasks", json=body)
        where = f"/v1/tasks/{started.json()['task_id']}"
        await until(lambda: bench.last.waiting_for is not None)
        waiting = (await http.get(where)).json()
        go.set()
        await bench.last.wait()
        done = (await http.get(where)).json()

    assert started.status_code == 202
    assert list(started.json()) == ["task_id"]
    assert (waiting["status"], waiting["value"], waiting["waiting_for"]) == ("running", None, "spawn of op")
    assert waiting["task_metadata"] == {"k": 1}
    assert (done["status"], done["value"], done["waiting_for"]) == ("pass", "done", None)


async def test_a_client_that_goes_away_does_not_end_its_step(tmp_path) -> None:
    """I20: it goes on and is finalised, detached or not."""
    go = trio.Event()

    async def execute(frame):
        await go.wait()
        return "done"

    async with an_api(tmp_path, ("op", Scripted(executes=execute))) as (bench, http):
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(
                    lambda: http.post("/v1/tasks", json={"agent": "a", "prompt": "p", "operator_sid": "op"})
                )
                await until(lambda: bench.board.tasks() and bench.last.waiting_for == "spawn of op")
                scope.cancel()
        await http.aclose()
        go.set()
        outcome = await bench.last.wait()

    assert (outcome.status, outcome.value) == ("pass", "done")


async def test_a_step_does_not_run_in_the_task_of_its_connection(tmp_path) -> None:
    """Whatever ends that task: the step goes on, and is finalised."""
    go = trio.Event()

    async def execute(frame):
        await go.wait()
        return "done"

    head = SimpleNamespace(all=lambda name: ("Bearer t",))
    request = SimpleNamespace(
        head=head,
        proven=lambda: None,
        wait_gone=trio.sleep_forever,
        json={"agent": "a", "prompt": "p", "operator_sid": "op"},
    )
    async with a_bench(tmp_path) as bench:
        await bench.attach(Scripted(executes=execute), "op")
        async with open_task_api(bench.dispatcher, "t", somebody=there) as api:
            with trio.CancelScope() as connection:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(api.start, request)
                    await until(lambda: bench.board.tasks() and bench.last.waiting_for == "spawn of op")
                    connection.cancel()
            assert bench.last.status == "running"
            go.set()
            outcome = await bench.last.wait()

    assert (outcome.status, outcome.value) == ("pass", "done")


async def forever(frame):
    await trio.sleep_forever()


async def test_a_time_of_its_own_ends_a_step_as_timeout(tmp_path) -> None:
    """200 with that status; the operator is told, the task terminal."""
    async with an_api(tmp_path, ("op", Scripted(executes=forever))) as (bench, http):
        body = {"agent": "a", "prompt": "p", "operator_sid": "op", "timeout_secs": 1}
        answer = await http.post("/v1/tasks", json=body)

    assert answer.status_code == 200
    assert (answer.json()["status"], answer.json()["value"]) == ("timeout", None)
    assert bench.last.attempt.ended


async def test_the_ceiling_of_a_client_that_waits_is_504(tmp_path) -> None:
    """With the outcome beside the error."""
    async with an_api(tmp_path, ("op", Scripted(executes=forever)), sync_ceiling=0.05) as (bench, http):
        answer = await http.post("/v1/tasks", json={"agent": "a", "prompt": "p", "operator_sid": "op"})

    assert answer.status_code == 504
    assert answer.json()["status"] == "timeout"
    assert answer.json()["task_id"] == bench.last.task_id
    assert "0.05 s" in answer.json()["error"]


async def test_a_detached_step_has_no_ceiling(tmp_path) -> None:
    """Nobody waits for it on a connection: it takes the time that it takes."""
    seconds = []

    async def execute(frame):
        seconds.append(trio.current_effective_deadline() - trio.current_time())
        return "done"

    async with an_api(tmp_path, ("op", Scripted(executes=execute)), sync_ceiling=5) as (bench, http):
        body = {"agent": "a", "prompt": "p", "operator_sid": "op"}
        for more in ({"detach": True}, {"timeout_secs": 500}, {}):
            await http.post("/v1/tasks", json={**body, **more})
            await bench.last.wait()

    # Each test has 60 s.
    assert [each > 5 for each in seconds] == [True, True, False]


async def test_steps_over_http_are_bounded(tmp_path) -> None:
    """503 beyond max_running; there is room again when one has ended."""
    async with an_api(tmp_path, ("op", Scripted(executes=forever)), max_running=2) as (bench, http):
        body = {"agent": "a", "prompt": "p", "operator_sid": "op", "detach": True}
        first = await http.post("/v1/tasks", json=body)
        assert (await http.post("/v1/tasks", json=body)).status_code == 202
        refused = await http.post("/v1/tasks", json=body)
        await http.delete(f"/v1/tasks/{first.json()['task_id']}")
        await until(lambda: bench.dispatcher.running == 1)
        again = await http.post("/v1/tasks", json=body)

    assert refused.status_code == 503
    assert refused.json() == {"error": "2 steps are running already"}
    assert again.status_code == 202


async def test_a_named_operator_that_nobody_is(tmp_path) -> None:
    """400 in the contract's words, for each of the keys; role and sid are found."""
    async with an_api(tmp_path, ("op", Scripted(executes="x"))) as (bench, http):
        base = {"agent": "a", "prompt": "p", "operator_sid": "op"}
        answers = [await http.post("/v1/tasks", json={**base, "operator_sid": "x"})]
        for key in ("spawn_hook_id", "senior_bridge_id", "operator_backend_id"):
            answers.append(await http.post("/v1/tasks", json={**base, "operator": {key: "x"}}))

    assert {answer.status_code for answer in answers} == {400}
    assert answers[0].json() == {"error": "operator_sid: no such registered operator session 'x'"}
    assert answers[1].json() == {"error": "operator.spawn_hook_id: no such registered operator session 'x'"}
    assert bench.board.tasks() == ()


async def test_no_operator_at_all_is_503(tmp_path) -> None:
    """Registered, but nobody is connected: better said than waited for."""
    async with an_api(tmp_path) as (bench, http):
        login = await log_in(bench.server)
        body = {"agent": "a", "prompt": "p", "operator_sid": login.sid}
        answer = await http.post("/v1/tasks", json=body)

    assert (answer.status_code, answer.json()) == (503, {"error": "no operator is connected"})
    assert bench.board.tasks() == ()


async def test_an_operator_that_is_about_to_connect_is_waited_for(tmp_path) -> None:
    """A client has its WebSocket before the server has seated it: what it starts then is not refused."""
    async with an_api(tmp_path) as (bench, http):
        login = await log_in(bench.server)
        async with trio.open_nursery() as nursery:
            answers = Answers()
            nursery.start_soon(
                lambda: answers.post(http, agent="a", prompt="p", operator_sid=login.sid, detach=True)
            )
            await until(lambda: bench.serving.waiting)
            async with socket_of(bench.server, login) as peer:
                spawn = await peer.next()
                await peer.send(type="spawn_ack", req_id=spawn["req_id"], value="v")
                outcome = await bench.last.wait()

    assert [answer.status_code for answer in answers.got] == [202]
    assert (outcome.status, outcome.value) == ("pass", "v")


async def test_operator_sid_outranks_the_backend_and_fills_that_part_alone(tmp_path) -> None:
    """The other is never asked, and no hook fires without a kind (contract 1.4)."""
    one, two = Scripted(executes="one"), Scripted(executes="two")
    async with an_api(tmp_path, ("one", one), ("two", two)) as (_bench, http):
        body = {
            "agent": "a",
            "prompt": "p",
            "operator_sid": "one",
            "operator": {"operator_backend_id": "two", "spawn_hook_id": "two"},
        }
        answer = await http.post("/v1/tasks", json=body)
        await wait_all_tasks_blocked()

    assert answer.json()["value"] == "one"
    assert one.verbs() == ["execute"]
    assert two.verbs() == []


@pytest.mark.parametrize(
    ("default", "kind", "hooked"),
    [(None, None, False), ("main_ai", None, True), ("main_ai", "automate", False), (None, "composite", True)],
)
async def test_the_servers_kind_is_the_widest_tier(tmp_path, default, kind, hooked) -> None:
    """An automate that is said outranks it."""
    operator = Scripted(executes="x")
    async with an_api(tmp_path, ("op", operator), default_kind=default) as (_bench, http):
        body = {"agent": "a", "prompt": "p", "operator": everything("op", kind=kind)}
        assert (await http.post("/v1/tasks", json=body)).status_code == 200
        await wait_all_tasks_blocked()

    assert ("before" in operator.verbs()) == hooked


async def test_attempts_and_the_context_of_the_directive(tmp_path) -> None:
    """Retried as asked; alias, root and directory are header lines."""
    frames = []

    def execute(frame):
        frames.append(frame)
        return RuntimeError("x") if frame.attempt == 1 else "ok"

    async with an_api(tmp_path, ("op", Scripted(executes=execute))) as (_bench, http):
        about = {"project_name_alias": "al", "project_root": "/srv/r", "work_dir": "/srv/w"}
        body = {"agent": "a", "prompt": "p", "operator_sid": "op", "attempts": 3, **about}
        answer = await http.post("/v1/tasks", json=body)

    assert (answer.json()["status"], answer.json()["attempt"]) == ("pass", 2)
    for line in ("project_name_alias: al", "project_root: /srv/r", "work_dir: /srv/w"):
        assert line in frames[0].directive.splitlines()


async def test_a_step_can_name_the_one_above_it_and_the_fourth_level_is_the_last(tmp_path) -> None:
    """An operator elsewhere says so while it answers; the depth counts across processes."""
    go = trio.Event()

    async def execute(frame):
        await go.wait()

    async with an_api(tmp_path, ("op", Scripted(executes=execute))) as (bench, http):
        body = {"agent": "a", "prompt": "p", "operator_sid": "op", "detach": True}
        answers = [await http.post("/v1/tasks", json=body)]
        for _ in range(4):
            parent = bench.last.task_id
            answers.append(await http.post("/v1/tasks", json={**body, "parent_task_id": parent}))
        listed = (await http.get("/v1/tasks")).json()["tasks"]
        go.set()

    assert [answer.status_code for answer in answers] == [202, 202, 202, 202, 400]
    assert "4 levels" in answers[-1].json()["error"]
    assert [task["parent"] for task in listed] == [*(task["task_id"] for task in listed[1:]), None]


async def test_steps_one_after_the_other_are_no_depth(tmp_path) -> None:
    """A step may name one that is done as where it comes from, as often as it likes."""
    async with an_api(tmp_path, ("op", Scripted(executes="x"))) as (bench, http):
        body = {"agent": "a", "prompt": "p", "operator_sid": "op"}
        answers = [await http.post("/v1/tasks", json=body)]
        for _ in range(6):
            parent = bench.last.task_id
            answers.append(await http.post("/v1/tasks", json={**body, "parent_task_id": parent}))
        listed = (await http.get("/v1/tasks")).json()["tasks"]

    assert {answer.status_code for answer in answers} == {200}
    assert [task["parent"] for task in listed] == [*(task["task_id"] for task in listed[1:]), None]


BAD = [
    ([], 422, "expected an object"),
    ({"prompt": "p"}, 422, "expected agent and prompt"),
    ({"agent": "a"}, 422, "expected agent and prompt"),
    ({"blueprint": {}, "init_ctx": {}}, 422, "a blueprint is Python code"),
    ({"agent": 5, "prompt": "p"}, 422, "agent: expected a string"),
    ({"agent": "", "prompt": "p"}, 400, "agent: expected a text"),
    ({"agent": "a\nb", "prompt": "p"}, 400, "agent: line breaks"),
    ({"system": 5}, 422, "system: expected a string"),
    ({"operator": "op"}, 422, "operator: expected an object"),
    ({"operator": {"kind": "boss"}}, 400, "operator.kind: expected one of"),
    ({"operator": {"kind": 5}}, 400, "operator.kind: expected one of"),
    ({"operator": {"spawn_hook_id": 5}}, 422, "operator.spawn_hook_id: expected a string"),
    ({"operator": {"per_agent_kinds": []}}, 422, "operator.per_agent_kinds: expected an object"),
    ({"operator": {"per_agent_kinds": {"a": "x"}}}, 400, "operator.per_agent_kinds.a: expected one of"),
    ({"operator_sid": 5}, 422, "operator_sid: expected a string"),
    ({"operator_sid": None}, 400, "as operator_sid or operator.operator_backend_id"),
    ({"layers": ["main_ai"]}, 400, "keep operator_delegate among the layers"),
    ({"layers": "main_ai"}, 422, "layers: expected a list"),
    ({"layers": [5]}, 422, "layers: expected a list of names"),
    ({"layers": ["x"]}, 400, "'x' is no layer"),
    ({"layers": ["main_ai", "operator_delegate"]}, 400, "operator_delegate must be first"),
    ({"timeout_secs": 0}, 400, "timeout_secs: expected at least 1"),
    ({"timeout_secs": -1}, 422, "timeout_secs: expected a whole number"),
    ({"timeout_secs": 1.5}, 422, "timeout_secs: expected a whole number"),
    ({"timeout_secs": True}, 422, "timeout_secs: expected a whole number"),
    ({"timeout_secs": 2**64}, 422, "timeout_secs: expected a whole number"),
    ({"timeout_secs": 5, "detach": True}, 400, "exclude each other"),
    ({"detach": "yes"}, 422, "detach: expected true or false"),
    ({"task_metadata": [1]}, 422, "task_metadata: expected an object"),
    ({"attempts": 0}, 400, "attempts: expected 1 to"),
    ({"attempts": 10**6}, 400, "attempts: expected 1 to"),
    ({"work_dir": "a\u2028b"}, 400, "work_dir: line breaks"),
    ({"parent_task_id": "ST-nobody"}, 400, "is no task of this board"),
]


@pytest.mark.parametrize(("body", "status", "text"), BAD, ids=lambda each: json.dumps(each)[:50])
async def test_what_cannot_be_started(tmp_path, body, status, text) -> None:
    """422 for the shape, 400 for what it asks; one clear error, nothing started."""
    operator = Scripted(executes="never")
    base = {"agent": "a", "prompt": "p", "operator_sid": "op"}
    whole = isinstance(body, list) or bool({"agent", "prompt", "blueprint"} & body.keys())
    async with an_api(tmp_path, ("op", operator)) as (bench, http):
        answer = await http.post("/v1/tasks", json=body if whole else {**base, **body})

    assert (answer.status_code, list(answer.json())) == (status, ["error"])
    assert text in answer.json()["error"]
    assert bench.board.tasks() == ()
    assert operator.seen == []


async def test_unknown_keys_and_nulls_are_ignored(tmp_path) -> None:
    """As everywhere in the contract."""
    keys = ("system", "operator", "layers", "timeout_secs", "detach", "task_metadata", "attempts", "goal")
    async with an_api(tmp_path, ("op", Scripted(executes="x"))) as (_bench, http):
        body = {"agent": "a", "prompt": "p", "operator_sid": "op", **dict.fromkeys(keys)}
        answer = await http.post("/v1/tasks", json=body)

    assert answer.json()["status"] == "pass"


# -- listing and cancelling ------------------------------------------------------------


async def test_the_list_is_newest_first_and_bounded(tmp_path) -> None:
    """limit, total, and the text of a wrong limit."""
    async with an_api(tmp_path, ("op", Scripted(executes="x"))) as (_bench, http):
        for n in range(3):
            await http.post("/v1/tasks", json={"agent": f"a{n}", "prompt": "p", "operator_sid": "op"})
        every = (await http.get("/v1/tasks")).json()
        two = (await http.get("/v1/tasks", params={"limit": 2})).json()
        most = (await http.get("/v1/tasks", params={"limit": 100000})).json()
        wrong = [
            await http.get("/v1/tasks", params={"limit": bad}) for bad in ("0", "-1", "x", "", "٣", "9" * 99)
        ]

    assert [task["agent"] for task in every["tasks"]] == ["a2", "a1", "a0"]
    assert (every["total"], every["limit"], most["limit"]) == (3, 50, 200)
    assert [task["agent"] for task in two["tasks"]] == ["a2", "a1"]
    assert {answer.status_code for answer in wrong} == {400}


async def test_the_list_shows_no_more_of_a_step_than_fits(tmp_path) -> None:
    """It says what it left out; the step's own address shows all."""
    large, fits, agent = {"a": "x" * 4096}, {"a": "x" * 4088}, "ü" * 1000
    async with an_api(tmp_path, ("op", Scripted(executes="x"))) as (_bench, http):
        answers = [
            await http.post(
                "/v1/tasks",
                json={"agent": name, "prompt": "p", "operator_sid": "op", "task_metadata": metadata},
            )
            for name, metadata in (("a", large), ("a", fits), (agent, {}))
        ]
        listed = (await http.get("/v1/tasks")).json()["tasks"]
        whole = [(await http.get(f"/v1/tasks/{answer.json()['task_id']}")).json() for answer in answers]

    shown = [(task["task_metadata"], task["task_metadata_omitted"]) for task in reversed(listed)]
    assert shown == [(None, True), (fits, False), ({}, False)]
    assert [task["text_truncated"] for task in reversed(listed)] == [False, False, True]
    assert listed[0]["agent"] == "ü" * 510 + "…"
    assert [task["task_metadata"] for task in whole] == [large, fits, {}]
    assert whole[2]["agent"] == agent
    assert not any("task_metadata_omitted" in task for task in whole)


async def test_delete_of_a_step_that_makes_an_error_of_it_cancels_it(tmp_path) -> None:
    """204, and it has not failed."""

    async def execute(frame):
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            raise OSError("gave up") from None

    async with an_api(tmp_path, ("op", Scripted(executes=execute))) as (bench, http):
        body = {"agent": "a", "prompt": "p", "operator_sid": "op", "detach": True}
        address = f"/v1/tasks/{(await http.post('/v1/tasks', json=body)).json()['task_id']}"
        await until(lambda: bench.last.waiting_for is not None)
        assert (await http.delete(address)).status_code == 204
        assert (await http.get(address)).json()["status"] == "cancelled"


async def test_delete_cancels_what_runs_and_its_client_is_told(tmp_path) -> None:
    """204; the waiting client gets 200 with cancelled; the operator a withdraw; again is 204 too."""
    async with an_api(tmp_path) as (bench, http):
        async with bench.seated("op") as (_seat, peer), trio.open_nursery() as nursery:
            answers = Answers()
            nursery.start_soon(lambda: answers.post(http, agent="a", prompt="p", operator_sid="op"))
            spawn = await peer.next()
            where = f"/v1/tasks/{spawn['task_id']}"
            gone = await http.delete(where)
            withdraw = await peer.next()
        again = await http.delete(where)
        late = await Worker(http, spawn["task_id"], spawn["worker_handle"]).submit("x")

    (answer,) = answers.got
    assert (gone.status_code, again.status_code) == (204, 204)
    assert (withdraw["type"], withdraw["req_id"]) == ("withdraw", spawn["req_id"])
    assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")
    assert late.status_code == 410


async def test_delete_is_answered_when_the_step_has_ended(tmp_path) -> None:
    """Not while its executor still takes leave: after the 204 it is cancelled, and nothing of it runs."""
    leaving, gone = trio.Event(), trio.Event()
    answers = []

    async def execute(frame):
        try:
            await trio.sleep_forever()
        finally:
            leaving.set()
            with trio.CancelScope(shield=True):
                await gone.wait()

    async with an_api(tmp_path, ("op", Scripted(executes=execute))) as (bench, http):
        body = {"agent": "a", "prompt": "p", "operator_sid": "op", "detach": True}
        where = f"/v1/tasks/{(await http.post('/v1/tasks', json=body)).json()['task_id']}"
        await until(lambda: bench.last.waiting_for is not None)

        async def delete() -> None:
            answers.append((await http.delete(where)).status_code)
            answers.append(bench.last.status)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(delete)
            await leaving.wait()
            await wait_all_tasks_blocked(0.01)
            early = list(answers)
            gone.set()

    assert early == []
    assert answers == [204, "cancelled"]


async def test_an_unknown_task_is_404(tmp_path) -> None:
    """For looking and for cancelling."""
    async with an_api(tmp_path) as (_bench, http):
        answers = [await http.get("/v1/tasks/ST-none"), await http.get("/v1/runs/ST-none")]
        answers.append(await http.delete("/v1/tasks/ST-none"))

    assert [(answer.status_code, answer.json()) for answer in answers] == [
        (404, {"error": "no such task"})
    ] * 3


# -- who may ---------------------------------------------------------------------------

ROUTES = [
    ("POST", "/v1/tasks"),
    ("GET", "/v1/tasks"),
    ("GET", "/v1/tasks/ST-1"),
    ("DELETE", "/v1/tasks/ST-1"),
    ("GET", "/v1/runs/ST-1"),
]


@pytest.mark.parametrize(("method", "path"), ROUTES)
@pytest.mark.parametrize("shown", [None, "Bearer", "Bearer wrong", "bearer admin-secret", "Basic x"])
async def test_without_the_admins_token_there_is_nothing(tmp_path, method, path, shown) -> None:
    """401 with the scheme, before anything that the request says."""
    async with an_api(tmp_path) as (_bench, http):
        del http.headers["authorization"]
        headers = {"authorization": shown} if shown is not None else {}
        answer = await http.request(method, path, headers=headers, json=[] if method == "POST" else None)

    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert list(answer.json()) == ["error"]


async def test_an_operators_token_is_not_the_admins(tmp_path) -> None:
    """Nor is a worker's handle."""
    async with an_api(tmp_path) as (bench, http):
        login = await log_in(bench.server)
        answer = await http.get("/v1/tasks", headers=login.bearer)

    assert answer.status_code == 401


@pytest.mark.parametrize("token", ["", "a b", "a\n", "é"])
async def test_a_token_that_no_header_can_carry_is_refused(tmp_path, token) -> None:
    """At the opening, not at the first request."""
    async with a_bench(tmp_path) as bench:
        with pytest.raises(ValueError, match="admin_token"):
            async with open_task_api(bench.dispatcher, token, somebody=there):
                pass


async def test_the_wrong_method_says_which_are_right(tmp_path) -> None:
    """405 with Allow; 415 for a body that is no JSON."""
    async with an_api(tmp_path) as (_bench, http):
        put = await http.put("/v1/tasks", json={})
        text = await http.post("/v1/tasks", content="{}", headers={"content-type": "text/plain"})

    assert put.status_code == 405
    assert {"GET", "POST"} <= set(put.headers["allow"].replace(" ", "").split(","))
    assert text.status_code == 415


# -- the end ---------------------------------------------------------------------------


async def test_leaving_the_server_cancels_its_steps_and_tells_their_clients(tmp_path) -> None:
    """Detached or awaited: settled, and the waiting client has its answer before the port closes."""
    async with a_bench(tmp_path) as bench, trio.open_nursery() as nursery:
        await bench.attach(Scripted(executes=forever), "op")
        async with bench.serve():
            async with bench.http() as http:
                http.headers.update(ADMIN)
                answers = Answers()
                body = {"agent": "a", "prompt": "p", "operator_sid": "op"}
                await http.post("/v1/tasks", json={**body, "detach": True})
                nursery.start_soon(lambda: _ask_alone(bench, answers, body))
                await until(lambda: bench.dispatcher.running == 2)
        statuses = {task.status for task in bench.board.tasks()}

    assert statuses == {"cancelled"}
    (answer,) = answers.got
    assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")
    assert answer.json()["reason"] == "the server is going away"


async def test_a_server_that_is_leaving_says_503_to_whom_it_does_not_know_any_more(tmp_path) -> None:
    """Not 401, nor 400 for an operator that is gone: all that may be otherwise at the next server."""
    answers, left, slow = {}, trio.Event(), trio.Event()

    async def take_long(frame: object) -> None:
        try:
            await trio.sleep_forever()
        finally:
            with trio.move_on_after(10, shield=True):
                await slow.wait()

    async with a_bench(tmp_path) as bench, trio.open_nursery() as nursery:
        await bench.attach(Scripted(executes=take_long), "slow")
        async with bench.serve() as server:
            login = await log_in(server, roles=["lead"])
            order = bench.dispatcher.order("a", "p", operator="slow")
            task = bench.dispatcher.create(order)
            run = f"/v1/runs/{task.task_id}"

            async def come(*, task_status) -> None:
                async with httpx2.AsyncClient(base_url=server.url, trust_env=False, timeout=20) as http:
                    await http.get("/v1/healthz")
                    task_status.started()
                    await left.wait()
                    body = {"agent": "a", "prompt": "p", "operator_sid": "lead", "detach": True}
                    answers["start"] = await http.post("/v1/tasks", headers=ADMIN, json=body)
                    answers["nobody's start"] = await http.post("/v1/tasks", json=body)
                    server._sessions.forget(server._table.find(login.sid), "the server is going away")
                    answers["watch"] = await http.get(run, headers=login.bearer)
                    answers["admin's watch"] = await http.get(run, headers=ADMIN)
                    slow.set()

            async with bench.http() as http:
                await http.post(
                    "/v1/tasks",
                    headers=ADMIN,
                    json={"agent": "a", "prompt": "p", "operator_sid": "slow", "detach": True},
                )
                await until(lambda: bench.dispatcher.running == 1 and bench.last.waiting_for)
            await nursery.start(come)
            left.set()
    text = "the server is going away"
    assert {name: each.status_code for name, each in answers.items()} == {
        "start": 503,
        "nobody's start": 401,
        "watch": 503,
        "admin's watch": 200,
    }
    assert answers["start"].json() == answers["watch"].json() == {"error": text}


@pytest.mark.parametrize("size", [10, 8_000_000])
@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
async def test_leaving_the_server_lets_answers_leave_first(tmp_path, secure, size) -> None:
    """A step that is done has an answer under way: over TLS, or a large one, that takes several writes."""
    go = trio.Event()

    async def execute(frame):
        await go.wait()
        return "v" * size

    authority, answers = trustme.CA(), Answers()
    client, server = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.configure_trust(client)
    authority.issue_cert("127.0.0.1").configure_cert(server)
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    if secure:
        listeners = [trio.SSLListener(each, server, https_compatible=True) for each in listeners]

    async def ask(url) -> None:
        async with httpx2.AsyncClient(base_url=url, trust_env=False, timeout=20, verify=client) as http:
            http.headers.update(ADMIN)
            await answers.post(http, agent="a", prompt="p", operator_sid="op")

    async with a_bench(tmp_path) as bench, trio.open_nursery() as nursery:
        await bench.attach(Scripted(executes=execute), "op")
        async with bench.serve(listeners=listeners) as at:
            nursery.start_soon(ask, at.url)
            await until(lambda: bench.board.tasks() and bench.last.waiting_for == "spawn of op")
            go.set()
            await bench.last.wait()

    (answer,) = answers.got
    assert (answer.status_code, answer.json()["value"]) == (200, "v" * size)


async def _ask_alone(bench: Bench, answers: Answers, body: dict) -> None:
    async with bench.http() as http:
        http.headers.update(ADMIN)
        await answers.post(http, **body)


async def test_a_cancelled_server_settles_its_steps(tmp_path) -> None:
    """No task is left running however the block is left."""
    async with a_bench(tmp_path) as bench:
        await bench.attach(Scripted(executes=forever), "op")
        with trio.CancelScope() as scope:
            async with bench.serve(), bench.http() as http:
                body = {"agent": "a", "prompt": "p", "operator_sid": "op", "detach": True}
                await http.post("/v1/tasks", json=body, headers=ADMIN)
                await until(lambda: bench.dispatcher.running == 1)
                scope.cancel()
                await trio.sleep_forever()

    assert bench.last.status == "cancelled"
    assert bench.dispatcher.running == 0


# -- clients that wait -----------------------------------------------------------------


async def test_clients_that_wait_leave_connections_to_the_workers(tmp_path) -> None:
    """503 beyond max_waiting; a detached step holds no connection, and a worker always finds one."""
    async with an_api(tmp_path, ("op", Scripted(executes=forever)), max_connections=12) as (bench, http):
        body = {"agent": "a", "prompt": "p", "operator_sid": "op"}
        answers = Answers()
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(lambda: answers.post(http, **body))
            await until(lambda: bench.dispatcher.running == 3)
            refused = await http.post("/v1/tasks", json=body)
            detached = await http.post("/v1/tasks", json={**body, "detach": True})
            await until(lambda: bench.last.attempt is not None)
            worker = Worker(http, bench.last.task_id, bench.last.attempt.worker_handle)
            fetched = await worker.fetch()
            first, *others = bench.board.tasks()
            first.cancel("enough")
            await until(lambda: len(answers.got) == 1)
            nursery.start_soon(lambda: answers.post(http, **body))
            await until(lambda: len(bench.board.tasks()) == 5)
            for task in (*others, bench.last):
                task.cancel("enough")

    assert refused.status_code == 503
    assert refused.json() == {"error": "3 clients wait for their steps already; set detach, and ask later"}
    assert (detached.status_code, fetched.status_code) == (202, 200)
    assert [answer.status_code for answer in answers.got] == [200] * 4


async def test_a_client_that_hung_up_waits_no_more(tmp_path) -> None:
    """Its place is another's at once, and so is its connection; its step goes on."""
    go = trio.Event()

    async def execute(frame):
        await go.wait()
        return "done"

    async with an_api(tmp_path, ("op", Scripted(executes=execute)), max_waiting=2) as (bench, http):
        body, answers = {"agent": "a", "prompt": "p", "operator_sid": "op"}, Answers()
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(_ask_alone, bench, answers, body)
            await until(lambda: bench.dispatcher.running == 2)
            refused = await http.post("/v1/tasks", json=body)
            nursery.cancel_scope.cancel()
        async with trio.open_nursery() as nursery:
            later = Answers()

            async def ask() -> None:
                while not later.got or later.got[-1].status_code == 503:
                    await later.post(http, **body)

            nursery.start_soon(ask)
            await until(lambda: len(bench.board.tasks()) == 3)
            go.set()
        outcomes = [(await task.wait()).status for task in bench.board.tasks()]

    assert refused.status_code == 503
    assert answers.got == []
    assert (later.got[-1].status_code, later.got[-1].json()["value"]) == (200, "done")
    assert outcomes == ["pass"] * 3


@pytest.mark.parametrize(
    ("options", "most"), [({}, 64), ({"max_connections": 3}, 1), ({"max_waiting": 100}, 100)]
)
def test_how_many_may_wait(options, most) -> None:
    """A quarter of the connections unless it is said."""
    assert _waiting(options.get("max_waiting"), options.get("max_connections", MAX_CONNECTIONS)) == most


# -- the address in the directive ------------------------------------------------------


@asynccontextmanager
async def watched(tmp_path, **options):
    """A detached step that waits for its end, and who may look at it."""
    go = trio.Event()

    async def execute(frame):
        await go.wait()
        return {"n": 1}

    async with an_api(tmp_path, ("op", Scripted(executes=execute)), **options) as (bench, http):
        body = {"agent": "a", "prompt": "p", "operator_sid": "op", "detach": True}
        task_id = (await http.post("/v1/tasks", json=body)).json()["task_id"]
        del http.headers["authorization"]
        task = bench.board.find(task_id)
        await until(lambda: task.attempt is not None)

        async def look(token, path=f"/v1/runs/{task_id}", method="GET"):
            body = {} if method == "POST" else None
            return await http.request(method, path, headers={"authorization": f"Bearer {token}"}, json=body)

        yield bench, task, go, look


async def test_who_is_told_of_the_address_can_read_it(tmp_path) -> None:
    """An operator and the step's worker, by handle and by token: how it stands, and nothing else."""
    async with watched(tmp_path) as (bench, task, go, look):
        login = await log_in(bench.server)
        shown = (login.token, task.attempt.worker_handle, task.attempt.capability_token)
        running = [await look(each) for each in shown]
        go.set()
        await task.wait()
        ended = [await look(each) for each in shown]
        unknown = [(await look(each, "/v1/runs/ST-none")).status_code for each in shown]
        admin = await look("admin-secret")

    known = {"task_id": task.task_id, "status": "running", "value": None, "attempt": 1}
    assert [(each.status_code, each.json()) for each in running] == [(200, known)] * 3
    known |= {"status": "pass", "value": {"n": 1}}
    assert (ended[0].status_code, ended[0].json()) == (200, known)
    assert [(each.status_code, each.json()) for each in ended[1:]] == [
        (410, {"error": "the task has ended"})
    ] * 2
    assert unknown == [404, 403, 403]
    assert admin.json()["agent"] == "a"


async def test_a_workers_token_reads_the_address_as_far_as_it_is_narrowed(tmp_path) -> None:
    """5.2: by the verb ``read_task_state``, and each time is a use, one with those of other routes."""
    async with watched(tmp_path) as (_bench, task, _go, look):
        whole = CapabilityToken.decode(task.attempt.capability_token)
        reads, fetches, twice = (
            attenuate(whole, **narrower).encode()
            for narrower in (
                {"scopes": ["read_task_state"]},
                {"scopes": ["fetch_prompt"]},
                {"max_uses": 2},
            )
        )
        by_verb = [(await look(each)).status_code for each in (reads, reads, fetches)]
        prompt = f"/v1/worker/prompt?task_id={task.task_id}"
        by_use = [(await look(twice, *path)).status_code for path in ((), (prompt,), (), (prompt,))]
        task.attempt.end()
        dead = [(await look(each)).status_code for each in (reads, task.attempt.worker_handle)]

    assert by_verb == [200, 200, 403]
    assert by_use == [200, 200, 403, 403]
    assert dead == [410, 410]


async def test_who_is_not_told_of_the_address_cannot_read_it(tmp_path) -> None:
    """Neither other steps' workers, nor those of an earlier attempt, nor sessions that have ended."""
    async with watched(tmp_path) as (bench, task, _go, look):
        other = bench.board.create("b", "p").begin()
        login = await log_in(bench.server)
        await bench.server.remove(login.sid)
        narrow = attenuate(CapabilityToken.decode(task.attempt.capability_token), scopes=["emit_output"])
        expected = {
            other.worker_handle: 403,
            other.capability_token: 403,
            narrow.encode(): 403,
            login.token: 401,
            "x": 401,
            "wh-00000000": 410,
        }
        got = {each: (await look(each)).status_code for each in expected}
        earlier = task.attempt.worker_handle
        task.begin()
        superseded = await look(earlier)
        elsewhere = [
            (await look(task.attempt.worker_handle, path, method)).status_code
            for method, path in ROUTES
            if path != "/v1/runs/ST-1"
        ]

    assert got == expected
    assert superseded.status_code == 409
    assert set(elsewhere) == {401}


async def test_a_session_that_is_over_reads_nothing(tmp_path, mock_clock) -> None:
    """Its idle time has passed; asking does not renew it."""
    async with a_bench(tmp_path) as bench, bench.serve(sweep_every=0, join_within=10) as server:
        login = await log_in(server)
        assert await server.admits(login.token)
        mock_clock.jump(9)
        assert await server.admits(login.token)
        mock_clock.jump(11)
        assert not await server.admits(login.token)
        assert server.seats() == ()


async def test_handles_cannot_be_guessed_at_the_address(tmp_path) -> None:
    """The guesses count together with those at the workers' own routes."""
    async with watched(tmp_path) as (_bench, _task, _go, look):
        statuses = {(await look(f"wh-{number:08x}")).status_code for number in range(40)}
        late = await look("wh-00000000")
        missing = await look("admin-secret", "/v1/runs/ST-none")

    assert statuses == {410, 429}
    assert (late.status_code, int(late.headers["retry-after"]) > 0) == (429, True)
    assert missing.status_code == 404


# -- what an operator was given to do --------------------------------------------------


async def test_a_step_is_in_the_log_of_each_operator_that_it_addresses(tmp_path) -> None:
    """Once each, whatever its parts; and not in that of others."""
    async with a_bench(tmp_path) as bench, bench.serve() as server, bench.http() as http:
        logins = {name: await log_in(server, roles=[name]) for name in ("main", "gate", "other")}
        task_ids = []
        for prompt in ("first", "second"):
            order = bench.dispatcher.order(
                "coder",
                prompt,
                operator=server.seat("main"),
                approval=ApprovalPolicy("all"),
                approvers=["main", "gate"],
                metadata={"ticket": 7},
            )
            task_ids.append(bench.dispatcher.create(order).task_id)
        known = {
            name: (await http.get(f"/v1/operators/{login.sid}", headers=login.bearer)).json()
            for name, login in logins.items()
        }
        listed = (await http.get("/v1/operators", headers=logins["main"].bearer)).json()["operators"]

    for name in ("main", "gate"):
        assert [entry["run_id"] for entry in known[name]["observed"]] == task_ids
        assert known[name]["observed_total"] == 2
    assert known["other"]["observed"] == []
    assert known["main"]["observed"][0].items() >= {"slot": "coder", "goal": "first"}.items()
    assert known["main"]["observed"][0]["task_metadata"] == {"ticket": 7}
    assert sorted(each["observed_total"] for each in listed) == [0, 2, 2]
