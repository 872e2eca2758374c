"""Everything on listeners that a program gives, TLS and a Unix socket: by our own ends and by others."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import ssl
import subprocess
import sys
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import attrs
import httpx2
import pytest
import trio
import trustme
from websockets.trio.client import connect

from tests.swarm.support import ADMIN
from trio_swarm import open_swarm
from trio_swarm._io.unix import connect_unix, open_unix_listener
from trio_swarm.errors import PeerError
from trio_swarm.limits import SYSTEM_INLINE
from trio_swarm.operators import OperatorServer, connect_operator
from trio_swarm.workers import connect_worker

ROOT = str(Path(__file__).parents[2])
ADMIN_TOKEN = ADMIN["Authorization"].removeprefix("Bearer ")
PERSONA = "You are a careful coder. é\n" * 1000
assert len(PERSONA.encode()) > SYSTEM_INLINE
STEP = {"agent": "coder", "prompt": "do it", "system": PERSONA, "detach": True}


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def serving_with(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1", "localhost").configure_cert(context)
    return context


def trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(context)
    return context


@attrs.frozen
class Edge:
    """A served swarm, and how a peer that is not ours reaches it."""

    server: OperatorServer
    http: httpx2.AsyncClient
    open: object
    """Opens a WebSocket: a path and headers."""


@asynccontextmanager
async def serving_tls(authority, **options):
    plain = await trio.open_tcp_listeners(0, host="127.0.0.1")
    listeners = [trio.SSLListener(each, serving_with(authority), https_compatible=True) for each in plain]
    async with open_swarm() as swarm:
        async with swarm.serve_operators(listeners=listeners, admin_token=ADMIN_TOKEN, **options) as server:
            yield server


@asynccontextmanager
async def tls(authority, tmp_path):
    context = trusting(authority)
    async with (
        serving_tls(authority) as server,
        httpx2.AsyncClient(base_url=server.url, verify=context, trust_env=False) as http,
    ):
        yield Edge(server, http, partial(_open, server.url.replace("https", "wss"), ssl=context))


@asynccontextmanager
async def unix(authority, tmp_path):
    path = tmp_path / "socket"
    transport = httpx2.AsyncHTTPTransport(uds=str(path))
    async with (
        open_unix_listener(path) as listener,
        open_swarm() as swarm,
        swarm.serve_operators(listeners=[listener], admin_token=ADMIN_TOKEN) as server,
        httpx2.AsyncClient(base_url="http://localhost", transport=transport, trust_env=False) as http,
    ):
        assert (server.url, server.tcp_url) == ("http://localhost", None)
        yield Edge(server, http, partial(_open, "ws://localhost", path=path))


@asynccontextmanager
async def _open(root, target, headers, *, path=None, **options):
    if path is not None:
        options["stream"] = await connect_unix(path)
    async with connect(
        root + target, additional_headers=headers, compression=None, proxy=None, **options
    ) as websocket:
        yield websocket


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@pytest.mark.parametrize("edge", [tls, unix])
async def test_a_step_by_peers_that_are_not_ours(edge, authority, tmp_path) -> None:
    """REST login, WebSocket seat, the step's start, the worker's fetch and submit, the outcome."""
    async with edge(authority, tmp_path) as at:
        assert (await at.http.get("/v1/healthz")).text == "ok"
        login = (await at.http.post("/v1/operators", json={"roles": ["lead"]})).json()
        mine = bearer(login["token"])
        async with at.open(f"/v1/operators/{login['sid']}/ws", mine) as websocket:
            await at.server.wait_seat("lead")
            started = await at.http.post("/v1/tasks", json=STEP | {"operator_sid": "lead"}, headers=ADMIN)
            assert started.status_code == 202, started.text
            task = f"/v1/tasks/{started.json()['task_id']}"
            while (frame := json.loads(await websocket.recv()))["type"] != "spawn":
                ok = {"type": "hook_ack", "req_id": frame["req_id"], "ok": True}
                await websocket.send(json.dumps(ok))
            worker = bearer(frame["worker_handle"])
            await _works(at.http, frame["task_id"], worker)
            await websocket.send(json.dumps({"type": "spawn_ack", "req_id": frame["req_id"]}))
            with trio.fail_after(20):
                while (outcome := (await at.http.get(task, headers=ADMIN)).json())["status"] == "running":
                    await trio.sleep(0.02)
        assert (outcome["status"], outcome["value"]) == ("pass", "it is done é")
        assert (await at.http.delete(f"/v1/operators/{login['sid']}", headers=mine)).status_code == 204
        assert (await at.http.get(task, headers=bearer("wrong"))).status_code == 401


async def _works(http: httpx2.AsyncClient, task_id: str, mine: dict[str, str]) -> None:
    """The worker's end. The persona is large: it is fetched where the payload says, and is what it says."""
    payload = (await http.get("/v1/worker/prompt", params={"task_id": task_id}, headers=mine)).json()
    assert payload["prompt"] == "do it"
    assert "system" not in payload
    ref = payload["system_ref"]
    fetched = await http.get(ref["uri"], headers=mine)
    assert fetched.status_code == 200
    assert (fetched.text, len(fetched.content)) == (PERSONA, ref["size_bytes"])
    assert hashlib.sha256(fetched.content).hexdigest() == ref["sha256"]
    assert (await http.get(ref["uri"])).status_code == 400
    large = b"x" * 300_000
    query = {"raw": "1", "task_id": task_id, "attempt": "1"}
    assert (await http.post("/v1/data/log", params=query, content=large, headers=mine)).status_code == 200
    assert (await http.get("/v1/data/log", headers=mine)).content.count(b"x") >= len(large)
    assert (await http.post("/v1/worker/submit", content="it is done é", headers=mine)).status_code == 204


async def test_a_step_by_our_own_ends_over_tls(authority) -> None:
    """`connect_operator` and `connect_worker`; also after the connection was cut."""
    context = trusting(authority)
    async with (
        serving_tls(authority) as server,
        httpx2.AsyncClient(base_url=server.url, verify=context, trust_env=False) as http,
        connect_operator(server.url, roles=["lead"], ssl_context=context) as operator,
    ):
        await server.wait_seat("lead")
        for connections in (1, 2):
            started = await http.post("/v1/tasks", json=STEP | {"operator_sid": "lead"}, headers=ADMIN)
            assert started.status_code == 202, started.text
            request = await operator.receive()
            while request.kind != "spawn":
                request.ack()
                request = await operator.receive()
            assert server.url in request.directive
            worker = connect_worker(
                server.url, request.frame.worker_handle, task_id=request.task_id, ssl_context=context
            )
            async with worker as session:
                payload = await session.fetch_prompt()
                assert (payload.prompt, payload.system, payload.system_ref) == ("do it", PERSONA, None)
                await session.submit("done")
            request.ack()
            task = f"/v1/tasks/{request.task_id}"
            with trio.fail_after(20):
                while (outcome := (await http.get(task, headers=ADMIN)).json())["status"] == "running":
                    await trio.sleep(0.02)
            assert (outcome["status"], outcome["value"]) == ("pass", "done")
            assert operator.connections == connections
            await server.disconnect("lead")


async def test_a_person_at_a_terminal_over_tls(authority, tmp_path) -> None:
    """``trio-swarm operator https://...``: it trusts whom the system trusts, or ``SSL_CERT_FILE``."""
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    known = {"PYTHONPATH": ROOT, "PATH": os.environ["PATH"], "XDG_STATE_HOME": str(tmp_path)}
    trusting_env = known | {"SSL_CERT_FILE": str(tmp_path / "ca.pem")}
    async with serving_tls(authority) as server:
        command = [sys.executable, "-m", "trio_swarm", "operator", server.url, "--role", "lead"]
        refused = await trio.run_process(
            command, env=known, stdin=b"", check=False, capture_stdout=True, capture_stderr=True
        )
        assert refused.returncode == 1
        assert b"certificate verify failed" in refused.stderr
        assert b"Traceback" not in refused.stderr
        async with trio.open_nursery() as nursery:
            process = await nursery.start(
                partial(
                    trio.run_process,
                    command,
                    env=trusting_env,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                )
            )
            async with process.stdin, process.stdout, process.stderr:
                with trio.fail_after(20):
                    seat = await server.wait_seat("lead")
                    nursery.start_soon(process.stdin.send_all, b"answer 42\nleave\n")
                    assert await seat.ask("how much?", task_id="ST-1") == 42
                    await process.wait()


@pytest.mark.parametrize(
    "said", [b"GET /v1/healthz HTTP/1.1\r\nHost: localhost\r\n\r\n", b"\0" * 600, b"\x16\x03\x01\0\x05hello"]
)
async def test_who_speaks_no_tls_to_tls_is_hung_up_on(said, authority, caplog) -> None:
    """At once, without an error anywhere, and the others do not notice."""
    context = trusting(authority)
    async with (
        serving_tls(authority) as server,
        connect_operator(server.url, roles=["lead"], ssl_context=context) as operator,
    ):
        seat = await server.wait_seat("lead")
        host, _, port = server.url.removeprefix("https://").rpartition(":")
        for _ in range(20):
            async with await trio.open_tcp_stream(host, int(port)) as stream:
                with trio.fail_after(5):
                    await stream.send_all(said)
                    got = await drained(stream)
                assert b"HTTP/" not in got
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(seat.ask, "there?", task_id="ST-1"))
            (await operator.receive()).answer("yes")
        assert operator.connections == 1
    loud = [each for each in caplog.records if each.levelno >= logging.WARNING or each.exc_info]
    assert loud == []


async def drained(stream) -> bytes:
    try:
        return b"".join([bytes(data) async for data in stream])
    except trio.BrokenResourceError:
        return b""


async def test_an_operator_without_tls_is_told_so(authority) -> None:
    """That the server hung up, and no error of another kind."""
    async with serving_tls(authority) as server:
        plain = server.url.replace("https", "http")
        with pytest.raises(PeerError):
            async with connect_operator(plain):
                pytest.fail("connected")


async def test_the_admin_is_known_by_its_token(authority) -> None:
    """While another connection holds the share of the address: its own is not one that must hurry."""
    context = trusting(authority)
    async with serving_tls(authority, max_unproven=1) as server:
        host, _, port = server.url.removeprefix("https://").rpartition(":")
        async with (
            await trio.open_tcp_stream(host, int(port)),
            httpx2.AsyncClient(base_url=server.url, verify=context, trust_env=False) as http,
        ):
            for headers, status, closed in (
                (bearer("wrong"), 401, True),
                ({}, 401, True),
                (ADMIN, 200, False),
                (bearer("wrong"), 401, False),
            ):
                answer = await http.get("/v1/tasks", headers=headers)
                assert (answer.status_code, "connection" in answer.headers) == (status, closed)
