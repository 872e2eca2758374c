"""The end of ``trio-swarm serve`` as its operators and waiting clients see it."""

from __future__ import annotations

import json
import signal
import socket
import threading
import time

import httpx2
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from tests.cli.test_serve import WITHIN, Serving, known, log_in, serving


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_cuts_nobody_off(number, tmp_path) -> None:
    """The operator is told that its spawn is taken back and that the server goes, the client how it ended."""
    flags = ("--state", tmp_path / "state", "--token-file", tmp_path / "token")
    with serving(*flags) as at:
        login = log_in(at, roles=["op"])
        admin = {"Authorization": f"Bearer {(tmp_path / 'token').read_text().strip()}"}
        answers: list[httpx2.Response] = []
        body = {"agent": "a", "prompt": "p", "operator_sid": "op", "layers": ["operator_delegate"]}

        def start() -> None:
            url = f"{at.url}/v1/tasks"
            answers.append(httpx2.post(url, json=body, headers=admin, timeout=WITHIN, trust_env=False))

        with seat_of(at, login) as peer:
            client = threading.Thread(target=start)
            client.start()
            spawn = json.loads(peer.recv(timeout=WITHIN))
            at.process.send_signal(number)
            withdraw = json.loads(peer.recv(timeout=WITHIN))
            with pytest.raises(ConnectionClosed) as closed:
                peer.recv(timeout=WITHIN)
            client.join(WITHIN)
        out, err = at.process.communicate(timeout=WITHIN)
        assert (at.process.returncode, out, err) == (0, "", "")

    assert (spawn["type"], withdraw["type"], withdraw["req_id"]) == ("spawn", "withdraw", spawn["req_id"])
    assert closed.value.rcvd is not None
    assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (1001, "the server is going away")
    (answer,) = answers
    assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")
    assert answer.json()["reason"] == "the server is going away"
    with serving(*flags) as at:
        assert known(at, login) == 200


def test_an_operator_that_does_not_answer_holds_the_end_up_for_a_bounded_time() -> None:
    """Nor do further signals shorten it, or change its status."""
    with serving() as at:
        login = log_in(at)
        host, _, port = at.url.removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port))) as peer:
            peer.sendall(
                f"GET /v1/operators/{login['sid']}/ws HTTP/1.1\r\nHost: {host}:{port}\r\n"
                f"Authorization: Bearer {login['token']}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
                "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode()
            )
            assert peer.recv(4096).startswith(b"HTTP/1.1 101")
            began = time.monotonic()
            for each in (signal.SIGTERM, signal.SIGINT):
                at.process.send_signal(each)
            assert at.end(signal.SIGTERM) == (0, "", "")
            assert time.monotonic() - began < WITHIN
            assert b"the server is going away" in peer.recv(4096)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_behind_the_end_changes_no_status(number) -> None:
    """Whenever it comes, until the process is gone: the server has ended in order."""
    for gap in (0.0, 0.01, 0.03, 0.06, 0.1):
        with serving() as at:
            at.process.send_signal(signal.SIGTERM)
            time.sleep(gap)
            assert at.end(number) == (0, "", "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_worker_of_the_server_before_is_told_so(number, tmp_path) -> None:
    """Restarted between output and result: 410 for its handle, 401 for its token; a new step works."""
    flags = ("--state", tmp_path / "state", "--token-file", tmp_path / "token")
    body = {"agent": "a", "prompt": "p", "operator_sid": "op", "layers": ["operator_delegate"]}
    event = {"type": "partial", "chunk": {"kind": "inline", "value": 1}}
    with serving(*flags) as at:
        login = log_in(at, roles=["op"])
        admin = {"Authorization": f"Bearer {(tmp_path / 'token').read_text().strip()}"}
        with httpx2.Client(base_url=at.url, trust_env=False) as http, seat_of(at, login) as peer:
            detached = http.post("/v1/tasks", json={**body, "detach": True}, headers=admin)
            old = json.loads(peer.recv(timeout=WITHIN))
            emit = {"task_id": old["task_id"], "attempt": 1, "producer_agent": "a", "event": event}
            emitted = http.post("/v1/data/emit", json={**emit, "public": True}, headers=shown(old))
            assert (detached.status_code, emitted.status_code) == (202, 200)
            at.process.send_signal(number)
            at.process.wait(WITHIN)
    with (
        serving(*flags) as at,
        httpx2.Client(base_url=at.url, trust_env=False) as http,
        seat_of(at, login) as peer,
    ):
        result = {"task_id": old["task_id"], "value": 1}
        token = {"Authorization": f"Bearer {old['capability_token']}"}
        statuses = [
            http.post("/v1/worker/submit", content="x", headers=shown(old)).status_code,
            http.post("/v1/worker/result", json=result, headers=shown(old)).status_code,
            http.post("/v1/worker/result", json=result, headers=token).status_code,
            http.post("/v1/data/emit", json=emit, headers=token).status_code,
            http.get(f"/v1/data/{emitted.json()['out_id']}").status_code,
            http.get(f"/v1/tasks/{old['task_id']}", headers=admin).status_code,
        ]
        assert statuses == [410, 410, 401, 401, 401, 404]
        peer.send(json.dumps({"type": "spawn_ack", "req_id": old["req_id"]}))  # Nobody waits for it.
        http.post("/v1/tasks", json={**body, "detach": True}, headers=admin)
        new = json.loads(peer.recv(timeout=WITHIN))
        assert new["task_id"] != old["task_id"]
        assert http.post("/v1/worker/submit", content="new", headers=shown(new)).status_code == 204
        peer.send(json.dumps({"type": "spawn_ack", "req_id": new["req_id"]}))
        until = time.monotonic() + WITHIN
        where = f"/v1/tasks/{new['task_id']}"
        while (stands := http.get(where, headers=admin).json())["status"] == "running":
            assert time.monotonic() < until
            time.sleep(0.01)
        assert (stands["status"], stands["value"]) == ("pass", "new")


def shown(spawn: dict[str, str]) -> dict[str, str]:
    return {"Authorization": f"Bearer {spawn['worker_handle']}"}


def seat_of(at: Serving, login: dict[str, str]) -> ClientConnection:
    url = at.url.replace("http", "ws", 1) + f"/v1/operators/{login['sid']}/ws"
    headers = {"Authorization": f"Bearer {login['token']}"}
    return connect(url, additional_headers=headers, compression=None, proxy=None)
