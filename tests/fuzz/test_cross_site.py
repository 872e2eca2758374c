"""Host and Origin at every route: a page of another site, or of a name that was rebound, gets nowhere.

The routes are those of the server's own table; each request has a good credential, as a browser
that was tricked would send along, and the refusal comes before anything is looked at or done.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import trio

from tests.fuzz.harness import FuzzedServer, fuzzed_server
from tests.fuzz.openapi import UPGRADE, document, routes

APP = "https://app.example"
ROUTES = sorted(routes())


@pytest.fixture(scope="module")
def server() -> Iterator[FuzzedServer]:
    with fuzzed_server(allowed_origins=[APP], allowed_hosts=["swarm.example"]) as running:
        yield running
        assert running.said() == ""


@pytest.fixture(scope="module")
def world(server) -> dict[str, Any]:
    work, login = server.order_now("task"), server.log_in("main")
    return {"login": login, **work}


def request(server: FuzzedServer, world: dict[str, Any], method: str, path: str, *headers: str) -> bytes:
    """A request that would do something, but for its ``headers``."""
    upgrade = path == UPGRADE
    about = {} if upgrade else document()["paths"][path][method.lower()]
    needed = "operator" if upgrade else next(iter((about.get("security") or [{"": []}])[0]))
    secret = {"operator": world["login"]["token"], "admin": server.admin, "worker": world["capability"]}.get(
        needed, "x"
    )
    target = path.format(sid=world["login"]["sid"], id=world["task_id"], name="coder")
    lines = [
        f"{method} {target}?task_id={world['task_id']}&name=part HTTP/1.1",
        f"Authorization: Bearer {secret}",
    ]
    if upgrade:
        lines += ["Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13"]
        lines += ["Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="]
    elif "requestBody" in about:
        lines += ["Content-Type: application/json", "Content-Length: 2"]
    body = "{}" if "requestBody" in about else ""
    return ("\r\n".join([*lines, *headers, "", ""]) + body).encode()


async def status_of(server: FuzzedServer, data: bytes) -> tuple[int, bytes]:
    async with await server.open() as stream:
        await stream.send_all(data)
        got = bytearray()
        with trio.fail_after(10):
            while b"\r\n\r\n" not in got:
                piece = await stream.receive_some()
                assert piece, bytes(got)
                got += piece
    return int(got.split(b" ", 2)[1]), bytes(got)


def refusals(server: FuzzedServer) -> list[tuple[int, list[str]]]:
    """Headers that are refused, and how."""
    here, port = f"Host: {server.host}", server.address[1]
    wrong_hosts = [
        "evil.example", f"evil.example:{port}", "127.0.0.1", "localhost", f"127.0.0.1:{port + 1}",
        f"localhost.:{port}",
        f"127.0.0.1.evil.example:{port}", f"swarm.example.evil.example:{port}", f"evil-swarm.example:{port}",
        f"0.0.0.0:{port}", f"[::]:{port}", f"127.1:{port}", f"2130706433:{port}", f"user@127.0.0.1:{port}",
        "*", "null",
        f"127.0.0.1:{port}:{port}", f"127.0.0.1:0{port}", f"127.0.0.1:{port}, 127.0.0.1:{port}",
        f"127.0.0.1:{port}/",
    ]  # fmt: skip
    wrong_origins = [
        "null", "https://evil.example", f"http://127.0.0.1:{port}", f"http://localhost:{port}", "http://app.example",
        "https://app.example.evil.example", "https://app.example:8443", "https://evil-app.example",
        "app.example",
        "https://app.example/", "https://app.example https://evil.example", "*", "file://",
        "https://app.example, x",
    ]  # fmt: skip
    found: list[tuple[int, list[str]]] = [(400, []), (400, [here, here]), (400, [here, "Host: evil.example"])]
    found += [(421, [f"Host: {host}"]) for host in wrong_hosts]
    # A rebound name of a browser: the page's own origin, under which it comes to us.
    found += [(421, [f"Host: evil.example:{port}", f"Origin: http://evil.example:{port}"])]
    found += [(421, [f"Host: evil.example:{port}", f"Origin: {APP}"])]
    found += [(403, [here, f"Origin: {origin}"]) for origin in wrong_origins]
    found += [
        (403, [here, f"Origin: {APP}", f"Origin: {APP}"]),
        (403, [here, f"Origin: {APP}", "Origin: null"]),
    ]
    found += [(403, [here, f"Sec-Fetch-Site: {site}"]) for site in ("cross-site", "same-site", "x")]
    found += [(403, [here, "Sec-Fetch-Site: none", "Sec-Fetch-Site: cross-site"])]
    return found


@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_every_route_refuses_foreign_hosts_and_origins(server, world, method, path) -> None:
    before = await server.order("stats")
    for wanted, headers in refusals(server):
        status, answer = await status_of(server, request(server, world, method, path, *headers))
        assert status == wanted, (headers, answer)
        assert b"access-control" not in answer.lower()
        assert b"evil" not in answer
    after = await server.order("stats")
    assert after["events"] == before["events"]
    assert after["sessions"] == before["sessions"]


@pytest.mark.parametrize("method", ["OPTIONS", "HEAD", "PUT", "TRACE"])
async def test_other_methods_and_paths_are_refused_as_well(server, world, method) -> None:
    """A preflight is told nothing either, and who may not come in cannot find out what is there."""
    for path in ("/v1/tasks", "/v1/operators", "/nowhere"):
        for wanted, headers in refusals(server):
            lines = "\r\n".join(
                [f"{method} {path} HTTP/1.1", *headers, "Access-Control-Request-Method: POST", "", ""]
            )
            status, answer = await status_of(server, lines.encode())
            assert status == wanted, (method, path, headers, answer)
            assert b"\r\nallow:" not in answer.lower()


@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_what_was_allowed_by_name_may_pass(server, world, method, path) -> None:
    """It would not be the policy that refuses, else the test above proves nothing."""
    port = server.address[1]
    hosts = (
        server.host,
        f"localhost:{port}",
        f"LOCALHOST:{port}",
        f"[::1]:{port}",
        "swarm.example",
        f"swarm.example:{port}",
    )
    headers = [[f"Host: {host}"] for host in hosts]
    headers += [
        [f"Host: {server.host}", f"Origin: {APP}"],
        [f"Host: {server.host}", "Origin: HTTPS://APP.example"],
    ]
    headers += [[f"Host: {server.host}", f"Sec-Fetch-Site: {site}"] for site in ("none", "same-origin")]
    headers += [[f"Host: {server.host}", f"Origin: {APP}", "Sec-Fetch-Site: cross-site"]]
    if method == "DELETE":  # Of what is not there: the rest is needed still.
        world = {**world, "task_id": "ST-0", "login": {"sid": "S-0", "token": "t"}}
    for each in headers:
        status, answer = await status_of(server, request(server, world, method, path, *each))
        assert status not in (403, 421), (each, answer)
        assert path != UPGRADE or status == 101, answer
