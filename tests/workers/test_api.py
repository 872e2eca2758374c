"""The worker routes over a real socket, with httpx2 as the worker (contract 1.2, 1.5, 1.7, 8.5)."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest
import trio

from tests.workers.support import bearer, files_in, inline, minted, narrowed, serving
from trio_swarm._io.head import parse_head
from trio_swarm._io.http_messages import Request
from trio_swarm._state.attached import AttachedSessions
from trio_swarm._state.token import CapabilityToken
from trio_swarm.limits import (
    GUESS_TURN,
    GUESSES_PER_PEER,
    KEY_LIFE,
    MAX_REPORTS,
    SYSTEM_INLINE,
    WAITING_HANDLES_PER_PEER,
    WORKER_SESSION_LIFE,
)
from trio_swarm.workers import Outcome, TaskBoard
from trio_swarm.workers.door import enter


async def test_a_worker_fetches_and_posts(tmp_path) -> None:
    """4.7, with the four-line credentials; the dispatcher sees that it was fetched, and the Final."""
    async with serving(tmp_path) as bench:
        task, attempt = bench.begun(system="be brief")
        answer = await bench.prompt(task.task_id, attempt.worker_handle)
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "application/json"
        assert answer.json() == {
            "task_id": task.task_id,
            "attempt": 1,
            "agent": "coder",
            "system": "be brief",
            "prompt": "do it",
        }
        assert attempt.fetched
        answer = await bench.submit(attempt.worker_handle, b"done\n")
        assert (answer.status_code, answer.content) == (204, b"")
        assert (await attempt.wait_final()).value == "done"
        assert [kind for kind, _ in bench.events.kept] == [
            "task_created",
            "attempt_started",
            "prompt_fetched",
            "final",
        ]


async def test_absent_is_absent_not_null(tmp_path) -> None:
    """1.5: no persona, no key; metadata comes as context."""
    async with serving(tmp_path) as bench:
        task, attempt = bench.begun()
        payload = (await bench.prompt(task.task_id, attempt.capability_token)).json()
        assert set(payload) == {"task_id", "attempt", "agent", "prompt"}
        task, attempt = bench.begun(metadata={"ticket": 7})
        payload = (await bench.prompt(task.task_id, attempt.capability_token)).json()
        assert payload["context"] == {"agent": "coder", "task_metadata": {"ticket": 7}}


async def test_looking_at_the_head_is_not_fetching(tmp_path) -> None:
    async with serving(tmp_path) as bench:
        task, attempt = bench.begun()
        answer = await bench.client.head(
            "/v1/worker/prompt", params={"task_id": task.task_id}, headers=bearer(attempt.worker_handle)
        )
        assert (answer.status_code, answer.content) == (200, b"")
        assert not attempt.fetched


@pytest.mark.parametrize("extra", [0, 1])
async def test_a_large_system_prompt_goes_by_reference(tmp_path, extra) -> None:
    """1.5: above 25 KiB of UTF-8, exactly one of system and system_ref; the reference holds."""
    system = "é" * (SYSTEM_INLINE // 2) + "x" * extra
    async with serving(tmp_path) as bench:
        task, attempt = bench.begun(system=system)
        payload = (await bench.prompt(task.task_id, attempt.worker_handle)).json()
        if not extra:
            assert payload["system"] == system
            assert "system_ref" not in payload
            return
        reference = payload["system_ref"]
        assert "system" not in payload
        answer = await bench.client.get(reference["uri"], headers=bearer(attempt.worker_handle))
        assert answer.headers["content-type"].startswith("text/plain")
        assert answer.content == system.encode()
        assert reference["sha256"] == hashlib.sha256(answer.content).hexdigest()
        assert (reference["size_bytes"], reference["mode"]) == (len(answer.content), "http")


async def test_no_system_prompt_is_404(tmp_path) -> None:
    """W13 to W17."""
    async with serving(tmp_path) as bench:
        task, attempt = bench.begun()
        answer = await bench.client.get(
            "/v1/worker/prompt/system",
            params={"task_id": task.task_id},
            headers=bearer(attempt.worker_handle),
        )
        assert answer.status_code == 404


@pytest.mark.parametrize("value", [None, 0, "", [1, {"a": None}], {"ok": False}, "text"])
async def test_a_result_is_any_json(tmp_path, value) -> None:
    """1.2 #10: null too; by handle too, which the original refuses."""
    async with serving(tmp_path) as bench:
        task, attempt = bench.begun()
        answer = await bench.result(task.task_id, attempt.worker_handle, value, ok=False)
        assert answer.status_code == 204
        assert (attempt.final.value, attempt.final.ok, attempt.final.by) == (value, False, "worker")


async def test_the_last_final_decides(tmp_path) -> None:
    """4.8."""
    async with serving(tmp_path) as bench:
        task, attempt = bench.begun()
        await bench.submit(attempt.worker_handle, b"first", ok="false")
        await bench.result(task.task_id, attempt.capability_token, "second")
        assert (attempt.final.value, attempt.final.ok, attempt.finals) == ("second", True, 2)
        await bench.emit(task.task_id, attempt.worker_handle, event=inline("final", "third"))
        assert (attempt.final.value, attempt.finals) == ("third", 3)


@pytest.mark.parametrize("ok", [True, False])
async def test_a_final_may_be_a_reference_to_a_file(tmp_path, ok) -> None:
    """1.5: the reference is the value; the server looks at no file, and none need be there."""
    reference = {"kind": "file_ref", "path": "/nonexistent/x", "mime": None, "size_hint": 5}
    async with serving(tmp_path) as bench:
        task, attempt = bench.begun()
        event = {"type": "final", "content": reference, "ok": ok}
        answer = await bench.emit(task.task_id, attempt.capability_token, event=event)
        assert answer.status_code == 200
        assert (attempt.final.value, attempt.final.ok) == (reference, ok)
        record = (await bench.get(answer.json()["out_id"], attempt.worker_handle)).json()
        assert record["event"] == event


async def test_an_old_attempt_cannot_complete_a_new_one(tmp_path) -> None:
    """5.3 [BUG]: the original looks up the attempt that is current."""
    async with serving(tmp_path) as bench:
        task, first = bench.begun()
        second = task.begin()
        assert first.worker_handle != second.worker_handle
        for credential in (first.worker_handle, first.capability_token):
            assert (await bench.submit(credential)).status_code == 409
        assert second.final is None
        assert (await bench.submit(second.worker_handle)).status_code == 204


async def test_a_token_is_the_contracts(tmp_path) -> None:
    """5.1: fields of a worker token, its times, its form; the handle has 11 characters."""
    async with serving(tmp_path) as bench:
        task, attempt = bench.begun()
        token = CapabilityToken.decode(attempt.capability_token)
        assert (token.agent_id, token.role, token.scopes) == (f"worker-of-{task.task_id}", "worker", ("*",))
        assert (token.issued_at, token.expire_at, token.max_uses) == (1_700_000_000, 1_700_001_800, None)
        assert re.fullmatch("wh-[0-9a-f]{8}", attempt.worker_handle)
        assert re.fullmatch("ST-[0-9a-f]{16}", task.task_id)
        for shown in (repr(attempt), repr(task), repr(bench.events.kept), repr(bench.board)):
            assert attempt.worker_handle not in shown
            assert attempt.capability_token not in shown
            assert token.nonce not in shown


async def test_uses_are_counted(tmp_path) -> None:
    """A narrowed token with two uses has two, whatever they are for; a refused request takes none."""
    async with serving(tmp_path) as bench:
        task, attempt = bench.begun()
        twice = narrowed(attempt.capability_token, max_uses=2)
        assert (await bench.prompt("ST-other", twice)).status_code == 403
        assert (await bench.prompt(task.task_id, twice)).status_code == 200
        assert (await bench.submit(twice)).status_code == 204
        assert (await bench.submit(twice)).status_code == 403
        assert attempt.finals == 1
        assert (await bench.submit(attempt.capability_token)).status_code == 204


async def test_scopes_mean_something(tmp_path) -> None:
    """Verbs, and the names of outputs."""
    async with serving(tmp_path) as bench:
        task, attempt = bench.begun()
        fetch = narrowed(attempt.capability_token, scopes=["fetch_prompt"])
        assert (await bench.prompt(task.task_id, fetch)).status_code == 200
        assert (await bench.submit(fetch)).status_code == 403
        named = narrowed(attempt.capability_token, scopes=["emit_output@out=log*"])
        assert (await bench.emit(task.task_id, named, producer_agent="log-1")).status_code == 200
        assert (await bench.emit(task.task_id, named, producer_agent="other")).status_code == 403
        assert (await bench.raw("log-2", task.task_id, named, b"x")).status_code == 200
        assert (await bench.raw("other", task.task_id, named, b"x")).status_code == 403
        final = {"producer_agent": "log-1", "event": inline("final", 1)}
        assert (await bench.emit(task.task_id, named, **final)).status_code == 403
        assert attempt.final is None


async def test_an_output_may_be_emitted_under_each_of_its_names_or_not_at_all(tmp_path) -> None:
    """Whoever may emit ``mine`` puts nothing in the place of the artifact, or of the agent's output."""
    async with serving(tmp_path) as bench:
        task, attempt = bench.begun()
        handle = attempt.worker_handle

        async def stage(name: str, credential: str, text: bytes) -> int:
            answer = await bench.client.post(
                "/v1/worker/artifact", params={"name": name}, content=text, headers=bearer(credential)
            )
            return answer.status_code

        assert await stage("report", handle, b"good") == 204
        await bench.emit(task.task_id, handle, "good", producer_agent="coder")
        mine = narrowed(attempt.capability_token, scopes=["emit_output@out=mine"])
        evil = {"producer_agent": "mine", "event": inline("artifact", "evil")}
        assert (await bench.emit(task.task_id, mine, **evil)).status_code == 403
        assert await stage("mine", mine, b"evil") == 403
        assert await stage("report", mine, b"evil") == 403
        assert (await bench.get("report", handle)).json()["event"]["content"]["value"] == "good"
        assert (await bench.get("coder", handle)).json()["event"]["chunk"]["value"] == "good"
        assert len(bench.board.outputs.of(task.task_id)) == 2

        both = narrowed(
            attempt.capability_token,
            scopes=["emit_output@out=mine", "emit_output@out=report", "emit_output@out=coder"],
        )
        assert (await bench.emit(task.task_id, both, **evil)).status_code == 200
        assert await stage("mine", both, b"x") == 204


async def test_artifacts(tmp_path) -> None:
    """W18 to W20: the name is trimmed; the same name twice keeps both, and the last is found."""
    async with serving(tmp_path) as bench:
        task, attempt = bench.begun()
        for text in (b"one", b"two  \n"):
            answer = await bench.client.post(
                "/v1/worker/artifact",
                params={"name": " part "},
                content=text,
                headers=bearer(attempt.worker_handle),
            )
            assert answer.status_code == 204
        assert [each.artifact for each in bench.board.outputs.of(task.task_id, 1)] == ["part", "part"]
        record = (await bench.get("part", attempt.worker_handle)).json()
        assert record["event"] == {
            "type": "artifact",
            "name": "part",
            "content": {"kind": "inline", "value": "two"},
        }
        assert record["producer_agent"] == "coder"
        assert attempt.final is None


@pytest.mark.parametrize("text", ["@file:/etc/hostname", "@file:relative", "@file:"])
async def test_no_body_makes_the_server_read_a_file(tmp_path, text) -> None:
    """W31 to W39: on submit, artifact and result alike it is a text like any other."""
    async with serving(tmp_path) as bench:
        task, attempt = bench.begun(metadata={"work_dir": "/etc"})
        staged = await bench.client.post(
            "/v1/worker/artifact?name=part", content=text, headers=bearer(attempt.worker_handle)
        )
        assert staged.status_code == 204
        record = (await bench.get("part", attempt.worker_handle)).json()
        assert record["event"]["content"] == {"kind": "inline", "value": text}
        assert (await bench.submit(attempt.worker_handle, text.encode())).status_code == 204
        assert attempt.final.value == text
        assert (await bench.result(task.task_id, attempt.worker_handle, {"f": text})).status_code == 204
        assert attempt.final.value == {"f": text}


async def test_reports_are_kept_with_the_attempt(tmp_path) -> None:
    """W27 to W30: in order, with what the server knows; bounded. Of statistics the last count."""
    async with serving(tmp_path) as bench:
        task, attempt = bench.begun()

        async def post(kind: str, body) -> int:
            answer = await bench.client.post(
                f"/v1/worker/{kind}", json=body, headers=bearer(attempt.worker_handle)
            )
            return answer.status_code

        for number in range(MAX_REPORTS):
            assert await post("degradation", {"n": number, "attempt": 99}) == 204
        assert await post("degradation", {"n": 1}) == 413
        assert [each["n"] for each in attempt.degradations] == list(range(MAX_REPORTS))
        assert attempt.degradations[0] == {
            "n": 0,
            "task_id": task.task_id,
            "step": "coder",
            "attempt": 1,
            "at": bench.clock.now,
        }
        assert await post("stats", {"usage": {"total_tokens": 1}}) == 204
        assert await post("stats", {"usage": {"total_tokens": 2}}) == 204
        assert attempt.stats == {"usage": {"total_tokens": 2}}


# -- asked twice ---------------------------------------------------------------------------


def keyed(credential: str, key: str) -> dict[str, str]:
    return {**bearer(credential), "Idempotency-Key": key}


REPEATABLE = {
    "submit": lambda task: ("/v1/worker/submit", {"content": b"text"}),
    "result": lambda task: ("/v1/worker/result", {"json": {"task_id": task.task_id, "value": 1}}),
    "artifact": lambda task: ("/v1/worker/artifact?name=x", {"content": b"text"}),
    "degradation": lambda task: ("/v1/worker/degradation", {"json": {"a": 1}}),
    "stats": lambda task: ("/v1/worker/stats", {"json": {"a": 1}}),
    "emit": lambda task: (
        "/v1/data/emit",
        {
            "json": {
                "task_id": task.task_id,
                "attempt": 1,
                "producer_agent": "p",
                "event": inline("final", 1),
            }
        },
    ),
    "named": lambda task: (
        "/v1/data/p",
        {"json": {"task_id": task.task_id, "attempt": 1, "event": inline("partial", "y" * 100_000)}},
    ),
    "raw": lambda task: (f"/v1/data/p?raw=1&task_id={task.task_id}&attempt=1", {"content": b"z" * 200_000}),
}


def traces(bench, task, attempt) -> tuple:
    """All that a post may leave."""
    outputs = [each.out_id for each in bench.board.outputs.of(task.task_id)]
    return attempt.finals, len(attempt.degradations), outputs, files_in(bench.spool), len(bench.events.kept)


@pytest.mark.parametrize("route", REPEATABLE)
@pytest.mark.parametrize("since", ["nothing", "ended", "superseded", "settled"])
async def test_the_same_request_again_is_answered_as_before(tmp_path, route, since) -> None:
    """Nothing is done twice, no use is taken; also when the attempt is over by now."""
    async with serving(tmp_path) as bench:
        task, attempt = bench.begun()
        path, content = REPEATABLE[route](task)
        once = narrowed(attempt.capability_token, max_uses=1)
        first = await bench.client.post(path, headers=keyed(once, "k1"), **content)
        assert first.status_code in (200, 204), first.text
        if since == "ended":
            attempt.end()
        elif since == "superseded":
            task.begin()
        elif since == "settled":
            task.settle(Outcome(task.task_id, "pass", 1, 1))
        left = traces(bench, task, attempt)
        for credential in (once, attempt.worker_handle):
            again = await bench.client.post(path, headers=keyed(credential, "k1"), **content)
            assert (again.status_code, again.content) == (first.status_code, first.content)
        assert traces(bench, task, attempt) == left


@pytest.mark.parametrize("route", REPEATABLE)
async def test_another_request_with_the_same_key_is_refused(tmp_path, route) -> None:
    """422, and nothing is done; without a key, or with another, it is done."""
    async with serving(tmp_path) as bench:
        task, attempt = bench.begun()
        path, content = REPEATABLE[route](task)
        await bench.client.post(path, headers=keyed(attempt.worker_handle, "k1"), **content)
        left = traces(bench, task, attempt)
        if "json" in content:
            other = {"json": {**content["json"], "more": 1}}
        else:
            other = {"content": content["content"] + b"!"}
        refused = await bench.client.post(path, headers=keyed(attempt.worker_handle, "k1"), **other)
        assert refused.status_code == 422
        assert traces(bench, task, attempt) == left
        for headers in (bearer(attempt.worker_handle), keyed(attempt.worker_handle, "k2")):
            done = await bench.client.post(path, headers=headers, **other)
            assert done.status_code in (200, 204)


async def test_a_key_belongs_to_its_attempt_and_route(tmp_path) -> None:
    async with serving(tmp_path) as bench:
        task, first = bench.begun()
        assert (
            await bench.client.post(
                "/v1/worker/submit", content=b"x", headers=keyed(first.worker_handle, "k")
            )
        ).status_code == 204
        answer = await bench.client.post(
            "/v1/worker/submit?ok=false", content=b"x", headers=keyed(first.worker_handle, "k")
        )
        assert answer.status_code == 422
        second = task.begin()
        answer = await bench.client.post(
            "/v1/worker/submit", content=b"y", headers=keyed(second.worker_handle, "k")
        )
        assert (answer.status_code, second.final.value) == (204, "y")


async def test_how_the_credential_is_shown_makes_no_difference(tmp_path) -> None:
    """In a header or in the query: it is the same request."""
    async with serving(tmp_path) as bench:
        task, attempt = bench.begun()
        body = {"task_id": task.task_id, "attempt": 1, "event": inline("partial", 1)}
        answers = [
            await bench.client.post("/v1/data/p", json=body, headers=keyed(attempt.worker_handle, "k")),
            *[
                await bench.client.post(
                    "/v1/data/p", params={"token": token}, json=body, headers={"Idempotency-Key": "k"}
                )
                for token in (attempt.capability_token, attempt.worker_handle)
            ],
        ]
        assert [each.status_code for each in answers] == [200] * 3
        assert len({each.json()["out_id"] for each in answers}) == 1


async def test_a_refused_request_is_not_remembered(tmp_path) -> None:
    """It may be sent again when it can be done."""
    async with serving(tmp_path) as bench:
        task, attempt = bench.begun()
        missing = {
            "task_id": task.task_id,
            "attempt": 1,
            "producer_agent": "p",
            "event": inline("partial", 1),
        }
        body = {**missing, "parent_refs": ["out-0000000000"]}
        headers = keyed(attempt.worker_handle, "k")
        assert (await bench.client.post("/v1/data/emit", json=body, headers=headers)).status_code == 422
        assert (await bench.client.post("/v1/data/emit", json=missing, headers=headers)).status_code == 200


@pytest.mark.parametrize("key", ["", "x" * 256, None])
async def test_a_bad_key_is_400(tmp_path, key) -> None:
    async with serving(tmp_path) as bench:
        _, attempt = bench.begun()
        headers = [("Authorization", f"Bearer {attempt.worker_handle}")]
        headers += [("Idempotency-Key", "a")] * 2 if key is None else [("Idempotency-Key", key)]
        answer = await bench.client.post("/v1/worker/submit", content=b"x", headers=headers)
        assert answer.status_code == 400
        assert attempt.final is None


async def test_keys_are_bounded_and_none_is_forgotten_soon(tmp_path, monkeypatch) -> None:
    """A new request is refused (503) rather than that an old one could be done again."""
    monkeypatch.setattr("trio_swarm._state.attempt.IDEMPOTENCY_KEYS", 70)
    async with serving(tmp_path) as bench:
        task, attempt = bench.begun()

        async def post(number: int):
            body = {"task_id": task.task_id, "attempt": 1, "event": inline("partial", number)}
            headers = keyed(attempt.worker_handle, str(number))
            return await bench.client.post("/v1/data/x", json=body, headers=headers)

        answers = [await post(number) for number in range(70)]
        assert (await post(0)).json() == answers[0].json()
        refused = await post(70)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, f"{KEY_LIFE:.0f}")
        assert len(bench.board.outputs.of(task.task_id)) == 70
        bench.clock.now += KEY_LIFE
        assert (await post(70)).status_code == 200
        assert (await post(1)).json() == answers[1].json()


async def test_two_at_the_same_time_are_done_once(tmp_path) -> None:
    """A client that gave its connection up too soon: both requests come to their end together."""
    async with serving(tmp_path) as bench:
        task, attempt = bench.begun()
        path = f"/v1/data/p?raw=1&task_id={task.task_id}&attempt=1"
        waiting, go = 0, trio.Event()
        answers = []

        async def content():
            nonlocal waiting
            yield b"a" * 100_000
            waiting += 1
            if waiting == 2:
                go.set()
            await go.wait()
            yield b"b"

        async def post() -> None:
            headers = keyed(attempt.worker_handle, "k")
            answers.append(await bench.client.post(path, content=content(), headers=headers))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(post)
            nursery.start_soon(post)
        assert [each.status_code for each in answers] == [200, 200]
        assert answers[0].json() == answers[1].json()
        assert len(bench.board.outputs.of(task.task_id)) == len(files_in(bench.spool)) == 1
        assert bench.board.outputs.size == 100_001


# -- guessing ------------------------------------------------------------------------------


async def test_guessing_handles_is_limited(tmp_path) -> None:
    """So many a minute, then 429 with Retry-After; full tokens go on; later it is over."""
    async with serving(tmp_path) as bench:
        task, attempt = bench.begun()
        for number in range(GUESSES_PER_PEER):
            assert (await bench.prompt(task.task_id, f"wh-{number:08x}")).status_code == 410
            bench.clock.now += 1
        limited = await bench.prompt(task.task_id, "wh-ffffffff")
        assert limited.status_code == 429
        wait = int(limited.headers["retry-after"])
        assert wait == 60 - GUESSES_PER_PEER
        assert (await bench.submit(attempt.capability_token)).status_code == 204
        assert (await bench.prompt(task.task_id, attempt.worker_handle)).status_code == 200
        bench.clock.now += wait
        assert (await bench.submit(attempt.worker_handle)).status_code == 204
        assert (await bench.prompt(task.task_id, "wh-ffffffff")).status_code == 410
        assert (await bench.prompt(task.task_id, "wh-ffffffff")).status_code == 429


async def test_garbage_shuts_out_no_worker(tmp_path) -> None:
    """One that guesses on the same machine: workers at work go on, new ones fetch their prompt."""
    async with serving(tmp_path) as bench:
        task, attempt = bench.begun()
        fresh_task, fresh = bench.begun()
        assert (await bench.prompt(task.task_id, attempt.worker_handle)).status_code == 200
        statuses = {
            (await bench.prompt(task.task_id, f"wh-{number:08x}")).status_code
            for number in range(GUESSES_PER_PEER * 2)
        }
        assert statuses == {410, 429}
        assert (await bench.submit(attempt.worker_handle)).status_code == 204
        assert (await bench.prompt(fresh_task.task_id, fresh.worker_handle)).status_code == 200
        assert (await bench.submit(fresh.worker_handle)).status_code == 204


async def test_the_first_request_of_a_worker_passes_while_others_guess(tmp_path) -> None:
    """Also one that does not name its task; and of the others hardly a hundred a second are looked at."""
    async with serving(tmp_path) as bench:
        fresh = [bench.begun() for _ in range(5)]
        statuses: list[int] = []
        over = False
        guessers = WAITING_HANDLES_PER_PEER - 1  # With one more it would be told to come again.

        async def guess(number: int) -> None:
            while not over:
                answer = await bench.submit(f"wh-{number:08x}")
                statuses.append(answer.status_code)
                number += 1000

        async with trio.open_nursery() as nursery:
            for number in range(guessers):
                nursery.start_soon(guess, number)
            while len(statuses) < GUESSES_PER_PEER:
                await trio.sleep(0.001)
            began, before = trio.current_time(), len(statuses)
            for _, attempt in fresh:
                assert (await bench.submit(attempt.worker_handle, b"mine")).status_code == 204
                assert attempt.final is not None
            took = trio.current_time() - began
            over = True
            looked_at = len(statuses) - before
        assert statuses.count(410) == GUESSES_PER_PEER
        assert set(statuses) == {410, 429}
        # As many as were answered and not seen yet, and one more than there are spaces between them.
        assert looked_at <= guessers + 1 + took / GUESS_TURN
        assert looked_at > 0, "the flood went on all the while"


async def test_who_names_its_task_on_any_route_waits_for_no_guesser(tmp_path) -> None:
    """And what is named has to fit; what comes beside those that may wait is told to come again."""
    async with serving(tmp_path) as bench:
        task, attempt = bench.begun()
        for number in range(GUESSES_PER_PEER):
            assert (await bench.submit(f"wh-{number:08x}")).status_code == 410
        posts = [("degradation", {}), ("stats", {}), ("artifact", {"name": "x"}), ("submit", {})]
        async with bench.board._turns._lock:  # Nobody's turn comes.
            for route, query in posts:
                path, mine = f"/v1/worker/{route}", bearer(attempt.worker_handle)
                named = {**query, "task_id": task.task_id}
                with trio.fail_after(10):
                    said = await bench.client.post(path, params=named, json={}, headers=mine)
                    assert said.status_code == 204, route
                    other = {**query, "task_id": bench.begun()[0].task_id}
                    said = await bench.client.post(path, params=other, json={}, headers=mine)
                    assert said.status_code == 400, route
            with trio.fail_after(10):
                query = {"task_id": task.task_id}
                said = await bench.client.get("/v1/data/x", params=query, headers=mine)
            assert said.status_code == 200


@pytest.mark.parametrize("kind", ["worker_handle", "capability_token"])
async def test_the_credential_of_an_ended_attempt_proves_nothing(kind) -> None:
    """Else whoever has an old one could keep as many connections as it likes."""
    board = TaskBoard(emit=lambda kind, data: None, spool=Path)
    first = board.create("a", "p").begin()
    task = board.find(first.task_id)
    assert task is not None
    seen: list[str] = []

    async def visit(attempt) -> None:
        raw = f"GET / HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {getattr(attempt, kind)}\r\n\r\n"
        request = Request(parse_head(raw.encode())[0], {}, on_proven=lambda: seen.append(kind))
        await enter(board, request, "fetch_prompt", task_id=task.task_id)

    await visit(first)
    assert seen == [kind]
    second = task.begin()
    await visit(first)
    assert seen == [kind], "superseded"
    await visit(second)
    task.cancel("over")
    await visit(second)
    assert seen == [kind] * 2


async def test_late_workers_are_no_guessers(tmp_path) -> None:
    """Handles that were good once are told so as often as they are shown."""
    async with serving(tmp_path) as bench:
        task, attempt = bench.begun()
        attempt.end()
        for _ in range(GUESSES_PER_PEER + 5):
            assert (await bench.prompt(task.task_id, attempt.worker_handle)).status_code == 410


# -- sessions ------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["operator", "Worker", "OBSERVER", "senior"])
async def test_sessions(tmp_path, role) -> None:
    """1.2 #6 and #7: any case, echoed; ended once, by whoever has the id, in every role."""
    async with serving(tmp_path) as bench:
        body = {"agent_id": "a", "role": role, "ttl_secs": 60}
        answer = await bench.client.post("/v1/sessions", json=body)
        known = answer.json()
        assert answer.status_code == 200
        assert re.fullmatch("[0-9a-f]{32}", known["session_id"])
        assert (known["role"], known["ttl_enforced"]) == (role, role.lower() != "operator")
        ended = await bench.client.request("DELETE", "/v1/sessions", headers=bearer(known["session_id"]))
        assert ended.status_code == 204
        again = await bench.client.request("DELETE", "/v1/sessions", headers=bearer(known["session_id"]))
        assert (again.status_code, again.json()) == (404, {"error": f"session: {known['session_id']}"})


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"role": "boss"}, 400),
        ({"role": ""}, 400),
        ({"ttl_secs": -1}, 422),
        ({"ttl_secs": "60"}, 422),
        ({"agent_id": "a|b"}, 422),
        ({"agent_id": ""}, 422),
        ({"ttl_secs": 2**64 - 1}, 200),
    ],
)
async def test_session_bodies(tmp_path, change, status) -> None:
    async with serving(tmp_path) as bench:
        body = {"agent_id": "a", "role": "worker", "ttl_secs": 60, **change}
        assert (await bench.client.post("/v1/sessions", json=body)).status_code == status


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Basic x"}, {"Authorization": "Bearer"}])
async def test_ending_a_session_needs_its_id(tmp_path, headers) -> None:
    """1.2 #7: 400 for all that is wrong with the header."""
    async with serving(tmp_path) as bench:
        answer = await bench.client.request("DELETE", "/v1/sessions", headers=headers)
        assert answer.status_code == 400


async def test_sessions_end_by_time_but_an_operators(tmp_path) -> None:
    async with serving(tmp_path) as bench:
        for role, status in (("worker", 404), ("operator", 204)):
            body = {"agent_id": "a", "role": role, "ttl_secs": 60}
            sid = (await bench.client.post("/v1/sessions", json=body)).json()["session_id"]
            bench.clock.now += 60
            answer = await bench.client.request("DELETE", "/v1/sessions", headers=bearer(sid))
            assert answer.status_code == status


@pytest.mark.parametrize("role", ["worker", "operator"])
async def test_sessions_are_bounded_and_shut_nobody_out(tmp_path, role) -> None:
    """Nobody need say who they are to make one: the oldest goes for a new one."""
    async with serving(tmp_path) as bench:
        bench.board.sessions = AttachedSessions(most=2)
        body = {"agent_id": "a", "role": role, "ttl_secs": 2**40}
        answers = [await bench.client.post("/v1/sessions", json=body) for _ in range(4)]
        assert [each.status_code for each in answers] == [200] * 4
        assert len(bench.board.sessions) == 2
        ends = []
        for answer in answers:
            shown = bearer(answer.json()["session_id"])
            ends.append((await bench.client.request("DELETE", "/v1/sessions", headers=shown)).status_code)
        assert ends == [404, 404, 204, 204]


@pytest.mark.parametrize("role", ["worker", "operator"])
async def test_no_session_is_for_ever(tmp_path, role) -> None:
    async with serving(tmp_path) as bench:
        body = {"agent_id": "a", "role": role, "ttl_secs": 2**40}
        for passed, status in ((WORKER_SESSION_LIFE - 1, 204), (WORKER_SESSION_LIFE, 404)):
            sid = (await bench.client.post("/v1/sessions", json=body)).json()["session_id"]
            bench.clock.now += passed
            answer = await bench.client.request("DELETE", "/v1/sessions", headers=bearer(sid))
            assert answer.status_code == status


async def test_a_session_is_no_credential(tmp_path) -> None:
    async with serving(tmp_path) as bench:
        task, _ = bench.begun()
        body = {"agent_id": "a", "role": "worker", "ttl_secs": 60}
        sid = (await bench.client.post("/v1/sessions", json=body)).json()["session_id"]
        assert (await bench.prompt(task.task_id, sid)).status_code == 400
        token = minted(bench.clock, nonce=sid)
        assert (await bench.prompt(task.task_id, token)).status_code == 410
