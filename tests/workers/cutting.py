"""A worker's server that loses connections where a test wants it to, over real sockets."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Literal

import attrs
import trio
import trio.abc

from trio_swarm._io.http import FrontLimits, serve_http
from trio_swarm._io.http_messages import Request, Response
from trio_swarm._io.http_routes import Route, RouteTable
from trio_swarm._state.policy import EdgePolicy, loopback_hosts

Cut = Literal["unread", "body", "unanswered", "half", "none", "deaf"]
"""Where a connection ends: before anything is read, after the first piece of it, when the answer is
written, within it; deaf never reads, nor answers."""

FEATURE = ((b"trio-swarm-features", b"redelivery, idempotency"),)


@attrs.define(eq=False)
class CutStream(trio.abc.HalfCloseableStream):
    inner: trio.SocketStream
    cut: Cut
    reads: int = 0

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        if self.cut == "deaf":
            await trio.sleep_forever()
        self.reads += 1
        if self.cut == "unread" or (self.cut == "body" and self.reads > 1):
            await self.aclose()
            raise trio.BrokenResourceError
        return await self.inner.receive_some(max_bytes)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        if self.cut == "half":
            await self.inner.send_all(bytes(data)[: len(data) // 2])
        if self.cut in ("half", "unanswered"):
            await self.aclose()
            raise trio.BrokenResourceError
        await self.inner.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self.inner.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        await self.inner.send_eof()

    async def aclose(self) -> None:
        await self.inner.aclose()


@attrs.define(eq=False)
class CutListener(trio.abc.Listener[CutStream]):
    inner: trio.SocketListener
    cuts: deque[Cut]

    async def accept(self) -> CutStream:
        stream = await self.inner.accept()
        return CutStream(stream, self.cuts.popleft() if self.cuts else "none")

    async def aclose(self) -> None:
        await self.inner.aclose()


@attrs.define(eq=False)
class Backend:
    """The routes of one task's server, in the simplest way; with or without idempotency keys."""

    keys: bool = True
    cuts: deque[Cut] = attrs.field(factory=deque)
    """Of the next connections, in their order."""
    answers: dict[str, Response] = attrs.field(factory=dict)
    """By path: what is answered instead of the usual."""
    seen: list[tuple[str, str, dict[str, str], bytes]] = attrs.field(factory=list)
    """Each request that was read: method, path, headers of interest, body."""
    applied: list[bytes] = attrs.field(factory=list)
    """Bodies of posts that took effect."""
    remembered: dict[str, Response] = attrs.field(factory=dict)
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def handle(self, request: Request) -> Response:
        head = request.head
        path = head.target.partition("?")[0]
        headers = {
            name: head.get(name) or "" for name in ("authorization", "content-type", "idempotency-key")
        }
        self.seen.append((head.method, head.target, headers, request.body))
        if path in self.answers:
            return self.answers[path]
        if head.method == "GET":
            return self.told(self.read(path))
        key = headers["idempotency-key"]
        if self.keys and key in self.remembered:
            return self.remembered[key]
        self.applied.append(request.body)
        emitted = path.startswith("/v1/data")
        answer = self.told(
            Response.json(200, {"out_id": f"out-{len(self.applied):010x}"}) if emitted else Response(204)
        )
        self.remembered[key] = answer
        return answer

    def read(self, path: str) -> Response:
        if path == "/v1/worker/prompt":
            return Response.json(
                200, {"task_id": "T-1", "attempt": 1, "agent": "coder", "prompt": "do it", "new": 1}
            )
        if path.startswith("/v1/data/"):
            return Response.json(200, record(path.rpartition("/")[2]))
        return Response.text(404)

    def told(self, answer: Response) -> Response:
        return attrs.evolve(answer, headers=(*answer.headers, *FEATURE)) if self.keys else answer


def record(out_id: str) -> dict[str, Any]:
    content = {"kind": "inline", "value": [1]}
    event = {"type": "artifact", "name": "n", "content": content}
    return {
        "id": out_id,
        "task_id": "T-1",
        "attempt": 1,
        "producer_agent": "coder",
        "event": event,
        "parent_refs": [],
        "run_id": "R-1",
    }


@asynccontextmanager
async def backend(*, max_body: int = 2**20, **options: Any) -> AsyncIterator[Backend]:
    """Serve a `Backend` on a loopback port."""
    served = Backend(**options)
    paths = ["/v1/worker/prompt", "/v1/worker/prompt/system", "/v1/data/{key}"]
    posts = ["result", "submit", "artifact", "degradation", "stats"]
    routes = [Route("GET", path, served.handle) for path in paths]
    routes += [Route("POST", f"/v1/worker/{path}", served.handle, body="bytes") for path in posts]
    routes.append(Route("POST", "/v1/data/emit", served.handle, body="bytes"))
    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        served.port = listener.socket.getsockname()[1]
        serve = partial(
            serve_http,
            policy=EdgePolicy(hosts=loopback_hosts(served.port)),
            limits=FrontLimits(max_body=max_body),
        )
        await nursery.start(serve, [CutListener(listener, served.cuts)], RouteTable(routes))
        yield served
        nursery.cancel_scope.cancel()


def body_of(seen: tuple[str, str, dict[str, str], bytes]) -> Any:
    return json.loads(seen[3])
