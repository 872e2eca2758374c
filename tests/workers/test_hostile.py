"""Requests of any shape at the worker routes: each is answered, and none is a crash."""

from __future__ import annotations

import json
import random
from collections import Counter

import pytest

from tests.workers.support import files_in, forged, inline, minted, narrowed, serving
from trio_swarm.workers import Outcome

PATHS = (
    "/v1/worker/prompt",
    "/v1/worker/prompt/system",
    "/v1/worker/result",
    "/v1/worker/submit",
    "/v1/worker/artifact",
    "/v1/worker/degradation",
    "/v1/worker/stats",
    "/v1/data/emit",
    "/v1/data/name",
    "/v1/data/%00%ff%2F",
    "/v1/data/" + "n" * 300,
    "/v1/sessions",
)
JUNK = (
    "",
    "x",
    "-1",
    "1",
    "true",
    "false",
    "99999999999999999999",
    "\u0661",
    "%00",
    "é",
    "a" * 3000,
    "out-1",
)
QUERY = ("task_id", "attempt", "ok", "verdict", "name", "raw", "public", "parent_refs", "token", "x")


class Requests:
    """Random requests, half of them nearly right."""

    def __init__(self, seed: int, task_id: str, credentials: list[str]) -> None:
        self.random = random.Random(seed)
        self.task_id = task_id
        self.credentials = credentials

    def value(self, depth: int = 0):
        some = self.random
        kinds = [None, True, some.randint(-(2**70), 2**70), some.random(), some.choice(JUNK), self.task_id]
        if depth < 3:
            kinds.append([self.value(depth + 1) for _ in range(some.randint(0, 3))])
            kinds.append({some.choice(JUNK): self.value(depth + 1) for _ in range(some.randint(0, 3))})
        return some.choice(kinds)

    def body(self) -> bytes:
        some = self.random
        event = inline(some.choice(["partial", "artifact", "final"]), self.value())
        good = {"task_id": self.task_id, "attempt": 1, "value": 1, "event": event, "producer_agent": "p"}
        good |= {"agent_id": "a", "role": "worker", "ttl_secs": 60}
        for _ in range(some.randint(0, 2)):
            if some.random() < 0.3:
                good[some.choice([*good, "ok", "parent_refs", "public"])] = self.value()
        text = json.dumps(good).encode()
        cut = some.randint(0, len(text))
        return some.choice([text] * 10 + [text[:cut], b"\xff\xfe", b"[" * 5000, b"", text * 2, b"x" * 70_000])

    def query(self) -> dict[str, str]:
        some = self.random
        good = {"task_id": self.task_id, "attempt": "1", "raw": "1", "name": "part"}
        good |= {
            some.choice(QUERY): some.choice([*JUNK, *self.credentials]) for _ in range(some.randint(0, 2))
        }
        return {name: value for name, value in good.items() if some.random() < 0.8}

    def headers(self) -> list[tuple[str, bytes]]:
        some = self.random
        headers: list[tuple[str, bytes]] = []
        credential = some.choice([*self.credentials * 3, *JUNK[1:]]).encode()
        if some.random() < 0.95:
            headers.append(("authorization", some.choice([b"Bearer "] * 9 + [b"bearer "]) + credential))
        kind = some.choice([b"application/json"] * 9 + [b"text/plain", b"application/", b";;", b"a/b;c\x7fd"])
        headers.append(("content-type", kind))
        if some.random() < 0.3:
            headers.append(("idempotency-key", some.choice([b"k", b"k" * 300, b'"q"'])))
        return headers


@pytest.mark.parametrize("seed", range(4))
async def test_no_request_is_a_crash(tmp_path, seed) -> None:
    """No 500, no error reported, and what was refused has left nothing."""
    async with serving(tmp_path, max_tasks=3) as bench:
        task, attempt = bench.begun(system="s" * 30_000)
        old = task.begin()
        attempt = task.begin()
        token = attempt.capability_token
        credentials = [token, attempt.worker_handle, old.worker_handle, forged(token), minted(bench.clock)]
        credentials += [
            narrowed(token, scopes=["emit_output@out=p"]),
            narrowed(token, max_uses=3),
            token[:-1],
        ]
        requests = Requests(seed, task.task_id, credentials)
        seen: Counter[int] = Counter()
        for _ in range(400):
            path, method = (
                requests.random.choice(PATHS),
                requests.random.choice(["GET", "POST", "POST", "DELETE"]),
            )
            answer = await bench.client.request(
                method,
                path,
                params=requests.query(),
                content=requests.body() if method == "POST" else None,
                headers=requests.headers(),
            )
            seen[answer.status_code] += 1
            assert answer.status_code < 500, (method, path, answer.text)
            assert token not in answer.text
        assert min(seen[status] for status in (200, 204, 400, 403, 409, 410, 422)) > 0, seen
        assert bench.errors == []
        outputs = bench.board.outputs.of(task.task_id)
        assert len(files_in(bench.spool)) == sum(each.file is not None for each in outputs)
        assert bench.board.outputs.size == sum(each.size for each in outputs)
        task.settle(Outcome(task.task_id, "pass", None, 1))
        for _ in range(3):
            bench.board.create("a", "p")
        assert (files_in(bench.spool), bench.board.outputs.size) == ([], 0)
