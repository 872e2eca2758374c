"""What the operator tests share: a server on a real socket, and peers that are not ours."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import attrs
import httpx2
import trio
from websockets.trio.client import ClientConnection, connect

from trio_swarm._io.host import Host
from trio_swarm.operators import OperatorServer, Seat, serve_operators


@attrs.define
class Events:
    """A host's event sink that keeps everything."""

    kept: list[tuple[str, dict[str, object]]] = attrs.field(factory=list)

    def __call__(self, kind, data) -> None:
        self.kept.append((kind, dict(data)))

    def kinds(self) -> list[str]:
        return [kind for kind, _ in self.kept]

    def of(self, kind: str) -> list[dict[str, object]]:
        return [data for each, data in self.kept if each == kind]


def a_host(events: Events | None = None) -> Host:
    """A host without a warden: operators start no process."""
    return Host(warden=cast(Any, None), runtime_dir=Path("/nonexistent"), emit=events or Events())


@asynccontextmanager
async def serving(events: Events | None = None, **options: Any) -> AsyncIterator[OperatorServer]:
    async with serve_operators(a_host(events), **options) as server:
        yield server


@asynccontextmanager
async def rest(server: OperatorServer) -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(base_url=server.url, trust_env=False) as client:
        yield client


@attrs.frozen
class Login:
    sid: str
    token: str

    @property
    def bearer(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}


async def log_in(server: OperatorServer, **body: Any) -> Login:
    """Mint a session with httpx2."""
    async with rest(server) as client:
        answer = await client.post("/v1/operators", json=body)
    assert answer.status_code == 200, answer.text
    known = answer.json()
    return Login(known["sid"], known["token"])


@asynccontextmanager
async def socket_of(server: OperatorServer, login: Login, **options: Any) -> AsyncIterator[Peer]:
    """The session's WebSocket, by the `websockets` package."""
    url = server.url.replace("http", "ws", 1) + f"/v1/operators/{login.sid}/ws"
    known = {"additional_headers": login.bearer, "compression": None, "proxy": None, **options}
    async with connect(url, **known) as websocket:
        yield Peer(websocket)


@attrs.define
class Peer:
    """A scripted operator on an independent WebSocket implementation."""

    ws: ClientConnection

    async def next(self) -> dict[str, Any]:
        return json.loads(await self.ws.recv())

    async def send(self, **frame: Any) -> None:
        await self.ws.send(json.dumps(frame))

    async def raw(self, text: str | bytes) -> None:
        await self.ws.send(text)


@asynccontextmanager
async def seated(
    events: Events | None = None, **options: Any
) -> AsyncIterator[tuple[OperatorServer, Seat, Peer, Login]]:
    """A server with one operator that is connected."""
    async with serving(events, **options) as server:
        login = await log_in(server, roles=["main"])
        async with socket_of(server, login) as peer:
            yield server, await server.wait_seat("main"), peer, login


class Result:
    """What a task's call came to, for tests that look at it later."""

    def __init__(self) -> None:
        self.value: Any = None
        self.error: BaseException | None = None
        self.done = trio.Event()

    async def run(self, call, *args, **kwargs) -> None:
        try:
            self.value = await call(*args, **kwargs)
        except Exception as error:
            self.error = error
        finally:
            self.done.set()
