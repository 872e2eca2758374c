"""What the worker tests share: a board served on a real socket, and credentials of every kind."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import httpx2
import trio

from trio_swarm._io.http import FrontLimits, serve_http
from trio_swarm._io.http_routes import RouteTable
from trio_swarm._state.policy import EdgePolicy, loopback_hosts
from trio_swarm._state.token import CapabilityToken, attenuate, mint
from trio_swarm.workers import Attempt, Task, TaskBoard, WorkerApi

SECRET = b"a secret of the tests"


@attrs.define
class Clock:
    """Wall time that a test sets."""

    now: float = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


@attrs.define
class Events:
    kept: list[tuple[str, dict[str, object]]] = attrs.field(factory=list)

    def __call__(self, kind, data) -> None:
        self.kept.append((kind, dict(data)))

    def of(self, kind: str) -> list[dict[str, object]]:
        return [data for each, data in self.kept if each == kind]


@attrs.define(eq=False)
class Bench:
    """A served board and a client of it."""

    board: TaskBoard
    client: httpx2.AsyncClient
    clock: Clock
    events: Events
    spool: Path
    port: int
    errors: list[Exception]

    def begun(self, **options: Any) -> tuple[Task, Attempt]:
        """A task with its first attempt."""
        task = self.board.create("coder", "do it", **options)
        return task, task.begin()

    async def prompt(self, task_id: str, credential: str, **options: Any) -> httpx2.Response:
        return await self.client.get(
            "/v1/worker/prompt", params={"task_id": task_id}, headers=bearer(credential), **options
        )

    async def result(self, task_id: str, credential: str, value: Any = 1, **more: Any) -> httpx2.Response:
        body = {"task_id": task_id, "value": value, **more}
        return await self.client.post("/v1/worker/result", json=body, headers=bearer(credential))

    async def submit(self, credential: str, text: bytes = b"done", **query: Any) -> httpx2.Response:
        return await self.client.post(
            "/v1/worker/submit", params=query, content=text, headers=bearer(credential)
        )

    async def emit(
        self, task_id: str, credential: str, value: Any = 1, *, attempt: int = 1, **more: Any
    ) -> httpx2.Response:
        body = {"producer_agent": "coder", "event": inline("partial", value), **more}
        body |= {"task_id": task_id, "attempt": attempt}
        return await self.client.post("/v1/data/emit", json=body, headers=bearer(credential))

    async def raw(
        self, name: str, task_id: str, credential: str, content: Any, *, attempt: int = 1, **query: Any
    ) -> httpx2.Response:
        params = {"raw": "1", "task_id": task_id, "attempt": attempt, **query}
        headers = {**bearer(credential), "content-type": "text/csv"}
        return await self.client.post(f"/v1/data/{name}", params=params, content=content, headers=headers)

    async def get(self, key: str, credential: str | None = None) -> httpx2.Response:
        headers = {} if credential is None else bearer(credential)
        return await self.client.get(f"/v1/data/{key}", headers=headers)


def bearer(credential: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {credential}"}


def inline(kind: str, value: Any) -> dict[str, Any]:
    """An event with an inline content."""
    content = {"kind": "inline", "value": value}
    if kind == "artifact":
        return {"type": kind, "name": "report", "content": content}
    if kind == "final":
        return {"type": kind, "content": content, "ok": True}
    return {"type": "partial", "chunk": content}


def forged(token: str) -> str:
    """The same token with another signature."""
    decoded = CapabilityToken.decode(token)
    return attrs.evolve(decoded, sig_hex="0" * 64).encode()


def narrowed(token: str, **what: Any) -> str:
    return attenuate(CapabilityToken.decode(token), **what).encode()


def minted(clock: Clock, role: str = "worker", **more: Any) -> str:
    """A token of the right secret that the board has no record of."""
    fields: dict[str, Any] = {"agent_id": "somebody", "issued_at": int(clock.now)}
    fields |= {"expire_at": int(clock.now) + 60, "nonce": "ab" * 16, **more}
    return mint(secret=SECRET, role=role, **fields).encode()


@asynccontextmanager
async def serving(
    tmp_path: Path, *, limits: FrontLimits | None = None, store: Any = None, **options: Any
) -> AsyncIterator[Bench]:
    clock, events, spool, errors = Clock(), Events(), tmp_path / "spool", []
    board = TaskBoard(emit=events, secret=SECRET, clock=clock, spool=lambda: spool, **options)
    if store is not None:
        board.outputs = store(board, spool)
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listeners[0].socket.getsockname()[1]
        await nursery.start(
            partial(
                serve_http,
                listeners,
                RouteTable(WorkerApi(board).routes()),
                policy=EdgePolicy(loopback_hosts(port), frozenset()),
                limits=limits,
                on_error=lambda name, error: errors.append(error),
            )
        )
        # No time limit but the test's own: a machine may be busy.
        async with httpx2.AsyncClient(
            base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=None
        ) as client:
            yield Bench(board, client, clock, events, spool, port, errors)
        nursery.cancel_scope.cancel()


def files_in(spool: Path) -> list[Path]:
    return sorted(spool.iterdir()) if spool.exists() else []
