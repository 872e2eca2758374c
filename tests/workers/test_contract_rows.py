"""Rows of the contract's tables of endpoints (operators 1.2, 1.6, 1.7) that no other test would miss."""

from __future__ import annotations

import pytest

from tests.workers.support import bearer, inline, serving
from tests.workers.test_statuses import CREDENTIALS, ROUTES, call

KINDS = [
    None,
    "text/plain",
    "application/json",
    "application/x-www-form-urlencoded",
    "multipart/form-data",
    "?",
]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_submit_is_text_whatever_type_it_has(tmp_path, kind) -> None:
    """1.2 #11: raw bytes, any content type; a JSON string even where it says that it is JSON."""
    async with serving(tmp_path) as bench:
        _, attempt = bench.begun()
        headers = bearer(attempt.worker_handle) | ({} if kind is None else {"Content-Type": kind})
        answer = await bench.client.post("/v1/worker/submit", content=b'{"a": 1}\n', headers=headers)
        assert (answer.status_code, answer.content) == (204, b"")
        assert (attempt.final.value, attempt.final.ok) == ('{"a": 1}', True)


@pytest.mark.parametrize("more", [{}, {"attempt": 1}, {"attempt": None}, {"ok": True}, {"whatever": 1}])
async def test_a_result_is_ok_unless_it_says_otherwise(tmp_path, more) -> None:
    """1.2 #10: ``ok`` is true by default; the attempt may be named, or not."""
    async with serving(tmp_path) as bench:
        task, attempt = bench.begun()
        answer = await bench.result(task.task_id, attempt.capability_token, {"n": 1}, **more)
        assert (answer.status_code, answer.content) == (204, b"")
        assert (attempt.final.value, attempt.final.ok) == ({"n": 1}, True)


@pytest.mark.parametrize("form", ["capability_token", "worker_handle"])
async def test_the_system_prompt_is_that_of_the_attempt_that_is_named(tmp_path, form) -> None:
    """1.7: raw text, under the same credentials as the prompt; naming another attempt is refused."""
    async with serving(tmp_path) as bench:
        task, attempt = bench.begun(system="  be brief\n")
        credential = bearer(getattr(attempt, form))

        async def get(**query: str):
            query = {"task_id": task.task_id, **query}
            return await bench.client.get("/v1/worker/prompt/system", params=query, headers=credential)

        for query in ({}, {"attempt": "1"}):
            answer = await get(**query)
            assert (answer.status_code, answer.content) == (200, b"  be brief\n")
            assert answer.headers["content-type"].startswith("text/plain")
        assert (await get(attempt="2")).status_code == (403 if form == "capability_token" else 400)
        for bad in ("one", "-1", "", "1.0"):
            assert (await get(attempt=bad)).status_code == 400


async def test_a_credential_in_the_header_outranks_that_in_the_query(tmp_path) -> None:
    """1.2 #12: whichever of the two is the good one."""
    async with serving(tmp_path) as bench:
        task, attempt = bench.begun()
        other_task, other = bench.begun()
        event = inline("partial", 1)
        body = {"task_id": task.task_id, "attempt": 1, "producer_agent": "a", "event": event}

        async def emit(in_query: str | None, headers: dict[str, str]) -> int:
            params = {} if in_query is None else {"token": in_query}
            answer = await bench.client.post("/v1/data/emit", params=params, json=body, headers=headers)
            return answer.status_code

        good, wrong = attempt.capability_token, other.capability_token
        assert await emit(wrong, bearer(good)) == await emit("???", bearer(good)) == 200
        assert await emit(good, bearer(wrong)) == 403
        assert await emit("???", {}) == 400
        assert await emit(wrong, {}) == 403
        assert await emit(None, {}) == 400
        assert len(bench.board.outputs.of(task.task_id)) == 2
        assert bench.board.outputs.of(other_task.task_id) == ()


@pytest.mark.parametrize("route", ROUTES)
async def test_each_refusal_is_json_with_the_error_alone(tmp_path, route) -> None:
    """1.1: the family of all routes that are not the operators'."""
    async with serving(tmp_path) as bench:
        task, attempt = bench.begun(system="s")
        for status, make in CREDENTIALS.values():
            if status == 200:
                continue
            answer = await call(bench, route, task.task_id, bearer(make(bench, attempt)))
            assert (answer.status_code, answer.headers["content-type"]) == (status, "application/json")
            assert list(answer.json()) == ["error"]
            assert answer.json()["error"]
            assert ("www-authenticate" in answer.headers) == (status == 401)


async def test_an_unknown_role_is_told_which_there_are(tmp_path) -> None:
    """1.2 #6: 400, as JSON."""
    async with serving(tmp_path) as bench:
        body = {"agent_id": "a", "role": "boss", "ttl_secs": 60}
        answer = await bench.client.post("/v1/sessions", json=body)
        assert answer.status_code == 400
        assert all(role in answer.json()["error"] for role in ("operator", "worker", "observer", "senior"))
        for missing in body:
            fewer = {key: value for key, value in body.items() if key != missing} | {"role": "worker"}
            if missing != "role":
                assert (await bench.client.post("/v1/sessions", json=fewer)).status_code == 422
        del body["role"]
        assert (await bench.client.post("/v1/sessions", json=body)).status_code == 422


async def test_an_output_that_is_not_there_is_404_as_json(tmp_path) -> None:
    """1.2 #14: neither an id nor a name."""
    async with serving(tmp_path) as bench:
        _, attempt = bench.begun()
        for key in ("out-0123456789", "nobody", "%20", "a%2Fb"):
            answer = await bench.get(key, attempt.worker_handle)
            assert (answer.status_code, list(answer.json())) == (404, ["error"])
