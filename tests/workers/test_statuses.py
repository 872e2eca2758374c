"""The table of contract 1.6, cell by cell, with what we answer where the original says 500 or nothing.

Each row is a situation, each column a route; a number is the status, None where the cell is empty.
"""

from __future__ import annotations

import hashlib
import re

import pytest

from tests.workers.support import Bench, bearer, forged, inline, minted, narrowed, serving
from trio_swarm._state.token import ROLE_VERBS, CapabilityToken, mint
from trio_swarm.workers import Outcome

ROUTES = ("prompt", "result", "submit", "emit", "get", "artifact", "degradation", "stats", "system")


async def call(bench: Bench, route: str, task_id: str, headers: dict[str, str], attempt: int = 1, **query):
    client = bench.client
    event = {"task_id": task_id, "attempt": attempt, "producer_agent": "coder", "event": inline("partial", 1)}
    if route in ("prompt", "system"):
        path = "/v1/worker/prompt" + ("/system" if route == "system" else "")
        return await client.get(path, params={"task_id": task_id}, headers=headers)
    if route == "result":
        return await client.post("/v1/worker/result", json={"task_id": task_id, "value": 1}, headers=headers)
    if route == "submit":
        return await client.post("/v1/worker/submit", params=query, content=b"x", headers=headers)
    if route == "emit":
        return await client.post("/v1/data/emit", json=event, headers=headers)
    if route == "get":
        return await client.get("/v1/data/coder", headers=headers)
    if route == "artifact":
        return await client.post("/v1/worker/artifact?name=part", content=b"x", headers=headers)
    return await client.post(f"/v1/worker/{route}", json={"note": "x"}, headers=headers)


HEADERS = {
    "other scheme": "Basic {}",
    "lower case": "bearer {}",
    "other blank": "Bearer\t{}",
    # Blanks at the end of a header's value are not part of it (RFC 9110, 5.5).
    "empty": "Bearer",
    "no scheme": "{}",
    "two": "Bearer {0} {0}",
}


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("header", [*HEADERS, "missing", "non-ASCII", "twice"])
async def test_header_problems_are_400_never_401(tmp_path, route, header) -> None:
    """1.1 and the first row; reading data without a credential is 401, since that route had none.

    It is the header that is at fault: the credential in it is good.
    """
    async with serving(tmp_path) as bench:
        task, attempt = bench.begun(system="persona")
        handle = attempt.worker_handle
        headers = {"Authorization": HEADERS[header].format(handle)} if header in HEADERS else {}
        if header == "non-ASCII":
            headers = {"Authorization": f"Bearer {handle}\xe9".encode("latin-1")}
        elif header == "twice":
            headers = [("Authorization", f"Bearer {handle}")] * 2
        answer = await call(bench, route, task.task_id, headers)
        assert answer.status_code == (401 if (route, header) == ("get", "missing") else 400)
        assert list(answer.json()) == ["error"]
        assert answer.headers["trio-swarm-features"] == "idempotency"
        assert task.attempt.final is None


CREDENTIALS = {
    # situation: (status, what the bearer is)
    "undecodable": (400, lambda bench, attempt: "???"),
    "not JSON": (400, lambda bench, attempt: "YWJj"),
    "other JSON": (400, lambda bench, attempt: "e30"),
    "handle": (200, lambda bench, attempt: attempt.worker_handle),
    "full token": (200, lambda bench, attempt: attempt.capability_token),
    "handle unknown": (410, lambda bench, attempt: "wh-00000000"),
    "handle-like, long": (410, lambda bench, attempt: "wh-" + "z" * 61),
    "too long for a handle": (400, lambda bench, attempt: "wh-" + "z" * 62),
    "bad signature": (401, lambda bench, attempt: forged(attempt.capability_token)),
    "role without the verb": (403, lambda bench, attempt: minted(bench.clock, "observer")),
    "role without the verb, operator": (403, lambda bench, attempt: minted(bench.clock, "operator")),
    "nonce unknown": (410, lambda bench, attempt: minted(bench.clock)),
    "scope for another task": (
        403,
        lambda bench, attempt: narrowed(attempt.capability_token, scopes=["*@task=ST-other"]),
    ),
    "scope for another attempt": (
        403,
        lambda bench, attempt: narrowed(attempt.capability_token, scopes=["*@attempt=2"]),
    ),
    "scope for another verb": (
        403,
        lambda bench, attempt: narrowed(attempt.capability_token, scopes=["verify_token"]),
    ),
    "scope that fits": (
        200,
        lambda bench, attempt: narrowed(
            attempt.capability_token, scopes=[f"*@task={attempt.task_id}&attempt=1"]
        ),
    ),
    "no use left": (403, lambda bench, attempt: narrowed(attempt.capability_token, max_uses=0)),
}


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("situation", CREDENTIALS)
async def test_credentials(tmp_path, route, situation) -> None:
    """Each form of credential on each route; a refusal changes nothing and shows no secret."""
    status, make = CREDENTIALS[situation]
    async with serving(tmp_path) as bench:
        task, attempt = bench.begun(system="persona")
        await bench.emit(task.task_id, attempt.capability_token)
        credential = make(bench, attempt)
        answer = await call(bench, route, task.task_id, bearer(credential))
        if status == 200:
            assert answer.status_code in (200, 204), answer.text
            return
        assert answer.status_code == status, answer.text
        assert answer.headers.get("www-authenticate") == ("Bearer" if status == 401 else None)
        if situation in ("undecodable", "not JSON", "other JSON"):
            assert answer.json()["error"].startswith("invalid token: ")
        assert credential not in answer.text
        assert (attempt.final, attempt.fetched, attempt.stats, attempt.degradations) == (
            None,
            False,
            None,
            [],
        )
        assert len(bench.board.outputs.of(task.task_id)) == 1


FIELDS = {
    "agent_id": "somebody",
    "role": "worker",
    "issued_at": 1_700_000_000,
    "expire_at": 1_700_000_060,
    "nonce": "0123456789abcdef" * 2,
}


@pytest.mark.parametrize(
    ("status", "make"),
    [
        (401, lambda bench, token: forged(token)),
        (401, lambda bench, token: mint(secret=b"of another server", **FIELDS).encode()),
        (410, lambda bench, token: minted(bench.clock, nonce=FIELDS["nonce"])),
    ],
)
async def test_a_token_that_is_refused_is_named_by_its_fingerprint(tmp_path, status, make) -> None:
    """E1, E27: the beginning of the digest of its nonce, by which its owner knows it; never the nonce."""
    async with serving(tmp_path) as bench:
        task, attempt = bench.begun()
        token = make(bench, attempt.capability_token)
        nonce = CapabilityToken.decode(token).nonce
        answer = await bench.prompt(task.task_id, token)
        assert answer.status_code == status
        assert hashlib.sha256(nonce.encode()).hexdigest()[:12] in answer.json()["error"]
        assert nonce not in answer.text


VERBS = {
    "prompt": "fetch_prompt",
    "system": "fetch_prompt",
    "result": "post_result",
    "submit": "post_result",
    "degradation": "post_result",
    "stats": "post_result",
    "emit": "emit_output",
    "artifact": "emit_output",
    "get": "fetch_data",
}


@pytest.mark.parametrize("route", ROUTES)
async def test_each_route_has_its_verb(tmp_path, route) -> None:
    """5.2: a token with that verb alone is let in, one with all of a worker's others is not."""
    async with serving(tmp_path) as bench:
        task, attempt = bench.begun(system="persona")
        token = attempt.capability_token
        await bench.emit(task.task_id, token)
        others = narrowed(token, scopes=sorted(ROLE_VERBS["worker"] - {VERBS[route]}))
        refused = await call(bench, route, task.task_id, bearer(others))
        assert (refused.status_code, attempt.final, attempt.stats) == (403, None, None)
        alone = narrowed(token, scopes=[VERBS[route]])
        assert (await call(bench, route, task.task_id, bearer(alone))).status_code in (200, 204)


async def test_a_reader_may_be_held_to_outputs_by_name(tmp_path) -> None:
    """The name is what the reader asks for: an id where it asks by that."""
    async with serving(tmp_path) as bench:
        task, attempt = bench.begun()
        token = attempt.capability_token
        out_id = (await bench.emit(task.task_id, token, producer_agent="log-1")).json()["out_id"]
        await bench.emit(task.task_id, token, producer_agent="plan")
        logs = narrowed(token, scopes=["fetch_data@out=log*"])
        statuses = {
            key: (await bench.get(key, logs)).status_code for key in ("log-1", "log-2", "plan", out_id)
        }
        assert statuses == {"log-1": 200, "log-2": 404, "plan": 403, out_id: 403}


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("form", ["capability_token", "worker_handle"])
@pytest.mark.parametrize("event", ["expired", "ended", "superseded", "settled", "forgotten"])
async def test_credentials_die(tmp_path, route, form, event) -> None:
    """401 for an expired token and 410 for such a handle; 409 superseded; 410 for all else."""
    async with serving(tmp_path, token_ttl=60, max_tasks=1) as bench:
        task, attempt = bench.begun(system="persona")
        credential, expected = getattr(attempt, form), 410
        if event == "expired":
            bench.clock.now += 60
            expected = 401 if form == "capability_token" else 410
        elif event == "ended":
            attempt.end()
        elif event == "superseded":
            task.begin()
            expected = 409
        else:
            task.settle(Outcome(task.task_id, "pass", 1, 1))
            if event == "forgotten":
                bench.board.create("other", "x")
        answer = await call(bench, route, task.task_id, bearer(credential))
        assert answer.status_code == expected, answer.text
        assert (attempt.final, attempt.fetched) == (None, False)


@pytest.mark.parametrize("event", ["fresh", "one second before its end"])
@pytest.mark.parametrize("form", ["capability_token", "worker_handle"])
async def test_credentials_are_good_until_then(tmp_path, event, form) -> None:
    async with serving(tmp_path, token_ttl=60) as bench:
        task, attempt = bench.begun()
        if event != "fresh":
            bench.clock.now += 59
        assert (await bench.prompt(task.task_id, getattr(attempt, form))).status_code == 200


@pytest.mark.parametrize("route", ["prompt", "result", "emit", "system"])
@pytest.mark.parametrize("addressed", ["another task", "unknown task"])
async def test_credentials_of_another_task(tmp_path, route, addressed) -> None:
    """A handle's is 400, a token's 403; whether the task exists makes no difference."""
    async with serving(tmp_path) as bench:
        _, attempt = bench.begun(system="persona")
        other, _ = bench.begun(system="persona")
        where = other.task_id if addressed == "another task" else "ST-0000000000000000"
        by_handle = await call(bench, route, where, bearer(attempt.worker_handle))
        by_token = await call(bench, route, where, bearer(attempt.capability_token))
        assert (by_handle.status_code, by_token.status_code) == (400, 403)
        assert where not in by_handle.text + by_token.text
        assert other.attempt.final is None


@pytest.mark.parametrize("route", ["result", "emit", "raw", "prompt"])
async def test_credentials_of_another_attempt(tmp_path, route) -> None:
    """An attempt that is named must be the credential's."""
    async with serving(tmp_path) as bench:
        task, attempt = bench.begun()

        async def by(credential: str):
            if route == "result":
                return await bench.result(task.task_id, credential, attempt=2)
            if route == "emit":
                return await bench.emit(task.task_id, credential, attempt=2)
            if route == "raw":
                return await bench.raw("x", task.task_id, credential, b"x", attempt=2)
            return await bench.client.get(
                "/v1/worker/prompt",
                params={"task_id": task.task_id, "attempt": "2"},
                headers=bearer(credential),
            )

        statuses = [(await by(getattr(attempt, form))).status_code for form in FORMS]
        assert statuses == [403, 400]
        assert attempt.final is None


FORMS = ("capability_token", "worker_handle")


@pytest.mark.parametrize(
    ("query", "status", "ok"),
    [
        ("", 204, True),
        ("ok=true", 204, True),
        ("ok=false", 204, False),
        ("ok=yes", 400, None),
        ("ok=", 400, None),
        ("ok=True", 400, None),
        ("verdict=pass", 204, True),
        ("verdict=pass&ok=true", 204, True),
        ("verdict=pass&ok=false", 400, None),
        ("verdict=blocked", 204, False),
        ("verdict=blocked&ok=false", 204, False),
        ("verdict=blocked&ok=true", 400, None),
        ("verdict=skip", 204, True),
        ("verdict=skip&ok=false", 400, None),
        ("verdict=maybe", 400, None),
        ("verdict=", 400, None),
    ],
)
async def test_the_outcome_of_a_submit(tmp_path, query, status, ok) -> None:
    """W1 to W4 and I25 to I29; the last row of 1.6."""
    async with serving(tmp_path) as bench:
        _, attempt = bench.begun()
        answer = await bench.client.post(
            f"/v1/worker/submit?{query}", content=b"text", headers=bearer(attempt.worker_handle)
        )
        assert answer.status_code == status
        if ok is None:
            assert attempt.final is None
            if "verdict=maybe" in query:
                assert all(word in answer.json()["error"] for word in ("pass", "blocked", "skip"))
            return
        assert answer.content == b""
        value = {"skipped": True, "value": "text"} if "skip" in query else "text"
        assert (attempt.final.value, attempt.final.ok, attempt.final.by) == (value, ok, "worker")


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", ""),
        (b"  kept  inside \n\t\r\n", "  kept  inside"),
        ("trailing\u2003\u00a0\u2028".encode(), "trailing"),
        (b"bad \xff\xfe byte", "bad \ufffd\ufffd byte"),
        (b'{"a": 1}', '{"a": 1}'),
        (b"@file:/etc/hostname", "@file:/etc/hostname"),
        (b"nul \x00 inside", "nul \x00 inside"),
    ],
)
async def test_a_submitted_body_is_text(tmp_path, body, text) -> None:
    """1.6: replacement characters, trailing whitespace away, always a string."""
    async with serving(tmp_path) as bench:
        _, attempt = bench.begun()
        assert (await bench.submit(attempt.worker_handle, body)).status_code == 204
        assert attempt.final.value == text


@pytest.mark.parametrize(
    ("path", "body", "kind", "status"),
    [
        ("/v1/worker/result", b"{}", "text/plain", 415),
        ("/v1/worker/result", b"", "application/json", 400),
        ("/v1/worker/result", b"{", "application/json", 400),
        ("/v1/worker/result", b"[]", "application/json", 422),
        ("/v1/worker/result", b'{"task_id": "x"}', "application/json", 422),
        ("/v1/worker/result", b'{"task_id": "x", "value": 1, "ok": "yes"}', "application/json", 422),
        ("/v1/worker/result", b'{"task_id": "x", "value": 1, "attempt": -1}', "application/json", 422),
        ("/v1/worker/result", b" " * (2 * 2**20 + 1), "application/json", 413),
        ("/v1/worker/submit", b"x" * (2 * 2**20 + 1), "text/plain", 413),
        ("/v1/data/emit", b"{}", "application/json", 422),
        ("/v1/data/emit", b"{}", None, 415),
        ("/v1/data/name", b"{}", "application/json", 422),
        ("/v1/data/name", b"{}", "text/plain", 415),
        ("/v1/data/name", b" " * (2 * 2**20 + 1), "application/json", 413),
        ("/v1/data/name?raw=1", b"x", "text/plain", 400),
        ("/v1/data/name?raw=1&task_id=x", b"x", "text/plain", 400),
        ("/v1/data/name?raw=1&task_id=x&attempt=one", b"x", "text/plain", 400),
        ("/v1/data/name?raw=1&task_id=x&attempt=1&public=yes", b"x", "text/plain", 400),
        ("/v1/worker/artifact", b"x", None, 400),
        ("/v1/worker/artifact?name=%20", b"x", None, 400),
        ("/v1/worker/degradation", b"3", "application/json", 422),
        ("/v1/worker/stats", b'{"a": "' + b"x" * 17_000 + b'"}', "application/json", 413),
        ("/v1/sessions", b"{}", "application/json", 422),
        ("/v1/sessions", b"{}", "text/plain", 415),
    ],
)
async def test_bodies_are_judged_before_credentials(tmp_path, path, body, kind, status) -> None:
    """1.1: a bad body or query is told first. Here there is no credential at all."""
    async with serving(tmp_path) as bench:
        headers = {} if kind is None else {"content-type": kind}
        answer = await bench.client.post(path, content=body, headers=headers)
        assert answer.status_code == status, answer.text
        assert answer.headers["trio-swarm-features"] == "idempotency"


@pytest.mark.parametrize(
    "path", ["/v1/worker/prompt", "/v1/worker/prompt?task_id=", "/v1/worker/prompt/system"]
)
async def test_a_prompt_needs_its_task(tmp_path, path) -> None:
    async with serving(tmp_path) as bench:
        assert (await bench.client.get(path)).status_code == 400


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("DELETE", "/v1/data/emit", "POST"),
        ("DELETE", "/v1/data/name", "GET, HEAD, POST"),
        ("GET", "/v1/worker/submit", "POST"),
        ("POST", "/v1/worker/prompt", "GET, HEAD"),
        ("GET", "/v1/sessions", "DELETE, POST"),
    ],
)
async def test_methods(tmp_path, method, path, allow) -> None:
    """1.1: 405 with Allow."""
    async with serving(tmp_path) as bench:
        answer = await bench.client.request(method, path)
        assert (answer.status_code, answer.headers["allow"]) == (405, allow)


async def test_emit_is_no_name_to_get(tmp_path) -> None:
    """1.2 #14: the path of emit is only for POST."""
    async with serving(tmp_path) as bench:
        answer = await bench.client.get("/v1/data/emit")
        assert answer.status_code == 405
        assert re.search(r"\bPOST\b", answer.headers["allow"])
