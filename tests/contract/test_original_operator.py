"""An operator and a worker written for the original, at our server: transcript 8.8, by other libraries.

The operator knows the contract's sections 1 and 2 and nothing of this library: no header beyond
the bearer, no frame beyond the catalogue, no memory of what it has answered.
"""

from __future__ import annotations

import json
import re
from collections import deque
from contextlib import asynccontextmanager

import attrs
import httpx2
import pytest
import trio
from websockets.exceptions import ConnectionClosed
from websockets.trio.client import connect

from tests.swarm.support import ADMIN, a_bench

FIELDS = {
    "ask": {"req_id": str, "task_id": str, "question": object},
    "hook_before": {"req_id": str, "task_id": str, "agent": str, "attempt": int},
    "hook_after": {"req_id": str, "task_id": str, "agent": str, "attempt": int, "result": object},
    "spawn": {
        "req_id": str,
        "task_id": str,
        "agent": str,
        "attempt": int,
        "capability_token": str,
        "directive": str,
    },
}
MAY_BE_ABSENT = {"parent_req_id", "worker_handle", "worker"}
OURS = {"deadline_ms", "lineage"}
LAYERS = ["operator_delegate", "senior_escalation", "main_ai"]
OVERRIDE = {"original": "2 tests failed", "senior_answer": "accept, known flake"}


@attrs.define
class PlainOperator:
    """The reference client of 2.11: join, one frame at a time, ack, leave."""

    http: httpx2.AsyncClient
    url: str
    sid: str = ""
    bearer: dict[str, str] = attrs.field(factory=dict)
    queue: deque[dict] = attrs.field(factory=deque)
    dropped: list[str] = attrs.field(factory=list)
    _ws: object = None

    async def join(self, *roles: str) -> None:
        answer = await self.http.post("/v1/operators", json={"roles": list(roles)})
        known = answer.json()
        assert (answer.status_code, set(known), known["roles"]) == (200, {"sid", "token", "roles"}, [*roles])
        self.sid, self.bearer = known["sid"], {"Authorization": f"Bearer {known['token']}"}

    @asynccontextmanager
    async def connected(self):
        """The later client asks for its health before it connects again; both then upgrade."""
        with trio.fail_after(1):
            assert (await self.http.get("/v1/healthz")).is_success
        url = f"{self.url.replace('http', 'ws', 1)}/v1/operators/{self.sid}/ws"
        async with connect(url, additional_headers=self.bearer, proxy=None) as self._ws:
            yield

    async def wait(self, kind: str) -> dict:
        """The next frame, which is of that kind: its fields without ``type``."""
        while not self.queue:
            self._decode(await self._ws.recv())
        frame = self.queue.popleft()
        assert frame.pop("type") == kind
        return frame

    def _decode(self, text: str) -> None:
        """As its decoder does: what is unknown or incomplete is dropped, other keys are ignored."""
        assert isinstance(text, str)
        known = json.loads(text)
        fields = FIELDS.get(known.get("type"), {"type": None.__class__})
        if all(key in known and isinstance(known[key], kind) for key, kind in fields.items()):
            assert known["task_id"].startswith("ST-")  # The later client drops any other.
            more = known.keys() - {"type", *fields}
            assert more <= MAY_BE_ABSENT | OURS
            assert None not in [known[key] for key in more]  # Absent, never null (2).
            self.queue.append({key: known[key] for key in ("type", *fields, "worker_handle") if key in known})
        else:
            self.dropped.append(text)

    async def ack(self, req_id: str, kind: str, value=None, ok=True, error=None) -> None:
        """The shapes of 2.11: ``error`` doubles as the reason, a spawn's value is ``{}`` by default."""
        frame = {"type": kind, "req_id": req_id}
        if kind == "answer":
            frame["value"] = value
        elif kind == "hook_ack":
            frame |= {"ok": ok, **({} if error is None else {"reason": error})}
        else:
            frame |= {"value": {} if value is None else value, "ok": ok}
        await self._ws.send(json.dumps(frame))

    async def die(self) -> None:
        """Its socket is gone, without a close frame."""
        await trio.aclose_forcefully(self._ws.stream)

    async def leave(self) -> None:
        where = f"/v1/operators/{self.sid}"
        assert (await self.http.delete(where, headers=self.bearer)).status_code == 204
        assert (await self.http.delete(where, headers=self.bearer)).status_code == 404


@asynccontextmanager
async def at_our_server(tmp_path):
    """An operator that has joined, what a launch of one step is answered, and the server's bench."""
    async with a_bench(tmp_path) as bench, bench.serve() as server, bench.http() as http:
        operator = PlainOperator(http, server.url)
        await operator.join("main-ai")
        answers: list[httpx2.Response] = []

        async def launch() -> None:
            ids = ("spawn_hook_id", "senior_bridge_id", "operator_backend_id")
            body = {
                "agent": "reviewer",
                "prompt": "review",
                "layers": LAYERS,
                "operator": {"kind": "main_ai", **dict.fromkeys(ids, operator.sid)},
            }
            answers.append(await http.post("/v1/tasks", json=body, headers=ADMIN))

        async with trio.open_nursery() as nursery:
            yield bench, operator, lambda: nursery.start_soon(launch), answers


async def work(http: httpx2.AsyncClient, spawn: dict) -> None:
    """The sub-agent: four lines, the prompt, and what came of it (4.7)."""
    bearer = {"Authorization": f"Bearer {spawn['worker_handle']}"}
    lines = re.findall(r"^  (\w+): (\S+)", spawn["directive"], re.M)
    known = dict(lines)
    assert (known["task_id"], known["base_url"]) == (spawn["task_id"], str(http.base_url).rstrip("/"))
    params = {"task_id": known["task_id"]}
    prompt = await http.get("/v1/worker/prompt", params=params, headers=bearer)
    assert prompt.json() == {
        "task_id": spawn["task_id"],
        "attempt": 1,
        "agent": "reviewer",
        "prompt": "review",
    }
    posted = await http.post(
        "/v1/worker/submit", params={"ok": "false"}, content=b"2 tests failed\n", headers=bearer
    )
    assert (posted.status_code, posted.content) == (204, b"")


async def test_transcript_8_8(tmp_path) -> None:
    """From the login to the 204, in this order and with nothing else on the socket."""
    async with at_our_server(tmp_path) as (_bench, operator, launch, answers):
        async with operator.connected():
            launch()
            gate = await operator.wait("hook_before")
            assert (gate["agent"], gate["attempt"]) == ("reviewer", 1)
            await operator.ack(gate["req_id"], "hook_ack")
            spawn = await operator.wait("spawn")
            assert re.fullmatch(r"wh-[0-9a-f]{8}", spawn["worker_handle"])
            await work(operator.http, spawn)
            await operator.ack(spawn["req_id"], "spawn_ack")
            ask = await operator.wait("ask")
            assert ask["question"] == {"reason": "worker reported ok=false", "value": "2 tests failed"}
            await operator.ack(ask["req_id"], "answer", "accept, known flake")
            assert (await operator.wait("hook_after"))["result"] == OVERRIDE
        await operator.leave()

    for frame, infix in [(gate, "hb"), (spawn, "spawn"), (ask, "ask")]:
        assert re.fullmatch(rf"{operator.sid}-{infix}-[0-9a-f-]{{36}}", frame["req_id"])
    assert answers[0].json() == {
        "task_id": spawn["task_id"],
        "status": "pass",
        "value": OVERRIDE,
        "attempt": 1,
    }
    assert (operator.dropped, list(operator.queue)) == ([], [])


@pytest.mark.parametrize("remembers", [True, False])
async def test_its_socket_dies_between_every_two_frames(tmp_path, remembers) -> None:
    """It answers on the next one what it remembers, or what it is asked again; or both, and counts once."""
    async with at_our_server(tmp_path) as (bench, operator, launch, answers):
        asked: list[str] = []
        for kind, reply, value in [
            ("hook_before", "hook_ack", None),
            ("spawn", "spawn_ack", "by myself"),
            ("ask", "answer", "fine"),
        ]:
            async with operator.connected():
                if not asked:
                    launch()
                first = await operator.wait(kind)
                asked.append(first["req_id"])
                await operator.die()
            operator.queue.clear()
            async with operator.connected():
                if remembers:
                    await operator.ack(first["req_id"], reply, value, ok=kind != "spawn")
                # By now it is settled, or asked again under the same id; a second reply changes nothing.
                try:
                    again = first if remembers else await operator.wait(kind)
                    assert again == first
                    await operator.ack(again["req_id"], reply, value, ok=kind != "spawn")
                    while bench.server.seat(operator.sid).pending() == (first["req_id"],):
                        await trio.lowlevel.checkpoint()
                except ConnectionClosed:
                    raise AssertionError("an original is never hung up on for a second reply") from None
            operator.queue.clear()
        async with operator.connected():
            while not answers:
                await trio.lowlevel.checkpoint()
        await operator.leave()

    assert answers[0].json()["value"] == {"original": "by myself", "senior_answer": "fine"}
    assert len(set(asked)) == 3


async def test_what_an_original_cannot_read_it_can_ignore(tmp_path) -> None:
    """A withdrawal is a frame that its decoder drops; it goes on, and its late reply is ignored."""
    async with at_our_server(tmp_path) as (bench, operator, launch, answers):
        async with operator.connected():
            launch()
            gate = await operator.wait("hook_before")
            bench.last.cancel("changed")
            while not answers:
                await trio.lowlevel.checkpoint()
            await operator.ack(gate["req_id"], "hook_ack")
            launch()
            again = await operator.wait("hook_before")
            await operator.ack(again["req_id"], "hook_ack", ok=False, error="not today")
            while len(answers) < 2:
                await trio.lowlevel.checkpoint()
        await operator.leave()

    assert [json.loads(text)["type"] for text in operator.dropped] == ["withdraw"]
    assert [answer.json()["status"] for answer in answers] == ["cancelled", "failed"]
    assert answers[1].json()["reason"] == "dispatch failed: spawn rejected by middleware: not today"
