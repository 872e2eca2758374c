"""A worker over TLS."""

from __future__ import annotations

import ssl
import subprocess
from collections import deque
from functools import partial
from pathlib import Path

import pytest
import trio

from tests.workers.cutting import CutListener
from tests.workers.support import Clock, Events
from trio_swarm._io.http import serve_http
from trio_swarm._io.http_routes import RouteTable
from trio_swarm._state.policy import EdgePolicy, loopback_hosts
from trio_swarm.errors import PeerGoneError
from trio_swarm.workers import TaskBoard, WorkerApi
from trio_swarm.workers.client import Retry, connect_worker

AT_ONCE = Retry(tries=3, first=0)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory) -> Path:
    """A certificate of localhost and its key, in one file."""
    where = tmp_path_factory.mktemp("tls")
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost"
    files = "-out both.pem -keyout key.pem"
    made = subprocess.run(
        [*command.split(), "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", *files.split()],
        cwd=where,
        capture_output=True,
        check=False,
    )
    if made.returncode:
        pytest.skip("no openssl command")
    both = where / "both.pem"
    both.write_text(both.read_text() + (where / "key.pem").read_text())
    return both


async def test_a_worker_over_tls(certificate, tmp_path) -> None:
    """A handshake that is lost has sent nothing, so the post is sent again before the server is known;
    one that cannot be trusted never sends it."""
    board = TaskBoard(emit=Events(), clock=Clock(), spool=lambda: tmp_path / "spool")
    attempt = board.create("a", "p").begin()
    served = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    served.load_cert_chain(certificate)
    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port, cuts = listener.socket.getsockname()[1], deque(["unread", "unread"])
        secure = trio.SSLListener(CutListener(listener, cuts), served, https_compatible=True)
        serve = partial(serve_http, policy=EdgePolicy(loopback_hosts(port)))
        await nursery.start(serve, [secure], RouteTable(WorkerApi(board).routes()))
        connected = partial(
            connect_worker,
            f"https://127.0.0.1:{port}",
            attempt.worker_handle,
            task_id=attempt.task_id,
            retry=AT_ONCE,
        )

        trusting = ssl.create_default_context(cafile=str(certificate))
        async with connected(ssl_context=trusting) as worker:
            await worker.submit("done")
            assert not cuts
            content = b"x" * 1_000_000
            assert await worker.read(await worker.put("raw", content)) == content
        async with connected() as worker:
            with pytest.raises(PeerGoneError, match="was not sent: no TLS with"):
                await worker.submit("again")
        nursery.cancel_scope.cancel()
    assert attempt.finals == 1
