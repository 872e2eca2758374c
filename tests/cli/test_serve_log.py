"""What ``trio-swarm serve`` logs, and a standard error that nobody reads: the server goes on."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import httpx2
import pytest

from tests.cli.test_serve import WITHIN, Serving, _env, serving
from tests.pipes import full_pipe, text_in
from trio_swarm.limits import MAX_CONNECTIONS

HUNG_UP = "connections already, hanging up"


@contextmanager
def a_flood(at: Serving) -> Iterator[None]:
    """As many connections as it takes, of an admin: nobody must go for one more, which it hangs up on.

    It says so in its log before it does.
    """
    host, _, port = at.url.removeprefix("http://").partition(":")
    token = at.lines[1].removeprefix("admin token ")
    ask = f"GET /v1/tasks HTTP/1.1\r\nHost: {host}:{port}\r\nAuthorization: Bearer {token}\r\n\r\n"
    with ExitStack() as stack:
        for _ in range(2 * MAX_CONNECTIONS):  # Those of the last time may not all have gone yet.
            with suppress(ConnectionError):
                peer = stack.enter_context(socket.create_connection((host, int(port)), timeout=WITHIN))
                peer.sendall(ask.encode())
                if peer.recv(4096):
                    continue
            break
        else:
            pytest.fail("it hung up on nobody")
        yield


def is_healthy(at: Serving) -> bool:
    """Asked until it has room again."""
    until = time.monotonic() + WITHIN
    while True:
        try:
            answer = httpx2.get(f"{at.url}/v1/healthz", trust_env=False, timeout=WITHIN)
        except httpx2.TransportError:
            assert time.monotonic() < until
            continue
        return answer.text == "ok"


def test_a_log_that_nobody_reads_stops_nothing(tmp_path) -> None:
    """It answers while a line waits, and ends in order at the signal."""
    with full_pipe() as (_, writer), serving(stderr=writer) as at:
        for _ in range(2):
            with a_flood(at):
                pass
            assert is_healthy(at)
        assert at.end(signal.SIGTERM)[0] == 0


def test_a_log_that_is_read_late_is_whole(tmp_path) -> None:
    """What waited is written when there is room, before the server is gone."""
    with full_pipe() as (reader, writer), serving("--host", "0.0.0.0", stderr=writer) as at:
        with a_flood(at):
            pass
        assert is_healthy(at)
        text = text_in(reader)
        assert at.end(signal.SIGTERM)[0] == 0
        lines = (text + text_in(reader)).lstrip("x").splitlines()
    assert "warning: it listens beyond this machine without TLS" in lines[0]
    assert "warning: workers are told to come to" in lines[1]
    assert HUNG_UP in lines[2]


def test_a_log_that_is_read_has_the_bare_message() -> None:
    with serving() as at:
        with a_flood(at):
            pass
        assert is_healthy(at)
        status, _, err = at.end(signal.SIGTERM)
    assert status == 0
    assert re.fullmatch(rf"\w+: 256 {HUNG_UP} \(1 since the last such line\)\n", err), err


def test_without_standard_error_it_serves() -> None:
    """As after ``2>&-``: what is descriptor 2 by then is something else."""
    argv = ["/bin/sh", "-c", f"exec {sys.executable} -m trio_swarm serve --port 0 2>&-"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=_env()) as process:
        try:
            assert process.stdout is not None
            at = Serving(process, [process.stdout.readline().rstrip("\n") for _ in range(2)])
            with a_flood(at):
                pass
            assert is_healthy(at)
            assert at.end(signal.SIGTERM)[0] == 0
        finally:
            process.kill()


@pytest.mark.parametrize(("argv", "status"), [(["--port", "x"], 2), (["--host", "no.such.host.invalid"], 3)])
def test_an_error_that_nobody_reads_keeps_no_process(argv, status) -> None:
    with full_pipe() as (_, writer):
        command = [sys.executable, "-m", "trio_swarm", "serve", *argv]
        done = subprocess.run(command, stderr=writer, check=False, timeout=WITHIN, env=_env())
    assert done.returncode == status
