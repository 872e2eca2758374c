"""The fuzzed server from outside, and a good operator beside the hostile ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

import attrs
import httpx2
import trio
from websockets.exceptions import ConnectionClosed
from websockets.trio.client import connect

from tests.fuzz.process import GOOD

ROOT = Path(__file__).parents[2]


@attrs.define(eq=False)
class FuzzedServer:
    """A running `tests.fuzz.process`."""

    url: str
    admin: str
    routes: list[list[str]]
    """Method and pattern of each."""
    _process: subprocess.Popen[str]
    _stderr: IO[bytes]

    @property
    def address(self) -> tuple[str, int]:
        parts = urlsplit(self.url)
        assert parts.hostname is not None
        assert parts.port is not None
        return parts.hostname, parts.port

    @property
    def host(self) -> str:
        return urlsplit(self.url).netloc

    async def order(self, what: str) -> dict[str, Any]:
        """Have the process do or say something."""
        return await trio.to_thread.run_sync(self.order_now, what)

    def order_now(self, what: str) -> dict[str, Any]:
        """The same, where there is no Trio."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(what + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def said(self) -> str:
        """Its standard error so far."""
        # Not by seek: the process writes where its descriptor is, and that is this one's copy.
        return os.pread(self._stderr.fileno(), 2**24, 0).decode("utf-8", "replace")

    def log_in(self, *roles: str) -> dict[str, str]:
        # Without TLS: making a context for it takes longer than all the rest.
        answer = httpx2.post(
            f"{self.url}/v1/operators", json={"roles": list(roles)}, verify=False, trust_env=False
        )
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def open(self) -> trio.SocketStream:
        sock = trio.socket.socket()
        try:
            await sock.connect(self.address)
        except BaseException:
            sock.close()
            raise
        return trio.SocketStream(sock)


@contextmanager
def fuzzed_server(**options: Any) -> Iterator[FuzzedServer]:
    """A server for the block; its options are those of ``serve_operators``, ``limits`` as a dict."""
    with tempfile.TemporaryFile() as stderr:
        process = subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "tests.fuzz.process", json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            cwd=ROOT,
        )
        with process:
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                line = process.stdout.readline()
                stderr.seek(0)
                assert line, stderr.read().decode()
                yield FuzzedServer(**json.loads(line), process=process, stderr=stderr)
                process.stdin.close()
                code = process.wait(30)
                stderr.seek(0)
                assert code == 0, stderr.read().decode()
            finally:
                process.kill()


@attrs.define
class Good:
    """An operator that answers everything, and looks at its session while it does."""

    sid: str
    answered: int = 0
    looked: int = 0
    slowest_look: float = 0.0


@asynccontextmanager
async def good_operator(server: FuzzedServer) -> AsyncIterator[Good]:
    """Seated for the block, which fails if it loses its connection or an answer."""
    login = server.log_in(GOOD)
    good = Good(login["sid"])
    bearer = {"Authorization": f"Bearer {login['token']}"}
    url = server.url.replace("http", "ws", 1) + f"/v1/operators/{good.sid}/ws"
    async with (
        httpx2.AsyncClient(base_url=server.url, trust_env=False, headers=bearer, timeout=15) as client,
        connect(url, additional_headers=bearer, compression=None, proxy=None) as websocket,
        trio.open_nursery() as nursery,
    ):
        answered, looked = trio.Event(), trio.Event()
        nursery.start_soon(_answer, websocket, good, answered)
        nursery.start_soon(_look, client, good, looked)
        await answered.wait()
        await looked.wait()
        yield good
        nursery.cancel_scope.cancel()


async def _answer(websocket: Any, good: Good, answered: trio.Event) -> None:
    while True:
        try:
            frame = json.loads(await websocket.recv())
        except ConnectionClosed as closed:
            raise AssertionError(f"the good operator lost its connection: {closed}") from closed
        reply = {"req_id": frame.get("req_id")}
        if frame["type"] == "ask":
            reply |= {"type": "answer", "value": frame["question"]}
        elif frame["type"] == "hook_before":
            reply |= {"type": "hook_ack", "ok": True}
        elif frame["type"] == "spawn":
            reply |= {"type": "spawn_ack", "value": {}}
        else:
            continue
        await websocket.send(json.dumps(reply))
        good.answered += 1
        answered.set()


async def _look(client: httpx2.AsyncClient, good: Good, looked: trio.Event) -> None:
    while True:
        began = trio.current_time()
        answer = await client.get(f"/v1/operators/{good.sid}")
        assert answer.status_code == 200, answer.text
        assert answer.json()["connected"] is True
        good.looked += 1
        looked.set()
        good.slowest_look = max(good.slowest_look, trio.current_time() - began)
        await trio.sleep(0.05)


async def unharmed(server: FuzzedServer, before: dict[str, Any], *, growth_kib: int) -> dict[str, Any]:
    """Nothing of what was done to the server has left a trace. Returns its figures at the end."""
    after = await server.order("settle")
    assert after["errors"] == [], server.said()[-4000:]
    assert server.said() == ""
    assert (after["good_away"], after["unanswered"]) == (0, 0)
    assert after["answered"] > before["answered"]
    assert after["tasks"] == before["tasks"], (before, after)
    assert after["fds"] == before["fds"], (before, after)
    assert after["rss_kib"] - before["rss_kib"] <= growth_kib, (before["rss_kib"], after["rss_kib"])
    return after
