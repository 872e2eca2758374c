"""Rows of the contract's tables of endpoints (operators 1.1, 1.2, 1.7) that no other test would miss."""

from __future__ import annotations

import pytest
import trio

from tests.operators.support import log_in, rest, serving
from tests.operators.test_api import UPGRADE


async def test_the_door_of_the_socket_says_401_404_and_401_in_this_order() -> None:
    """1.2 #3: with the same plain texts as the resource beside it."""
    async with serving() as server, rest(server) as client:
        mine, other = await log_in(server), await log_in(server)
        missing, unknown, mismatch = (
            (401, "missing or empty Bearer token"),
            (404, "unknown sid"),
            (401, "token mismatch"),
        )
        for sid, authorization, expected in [
            ("S-nobody", None, missing),
            (mine.sid, None, missing),
            ("S-nobody", f"bearer {mine.token}", missing),
            ("S-nobody", f"Bearer {mine.token}", unknown),
            ("op-5b1e0000-0000-4000-8000-000000000000", f"Bearer {mine.token}", unknown),
            (mine.sid, f"Bearer {other.token}", mismatch),
        ]:
            headers = UPGRADE | ({} if authorization is None else {"Authorization": authorization})
            answer = await client.get(f"/v1/operators/{sid}/ws", headers=headers)
            assert (answer.status_code, answer.text) == expected
            assert answer.headers["content-type"].startswith("text/plain")
            assert ("www-authenticate" in answer.headers) == (answer.status_code == 401)
        assert not server.seat(mine.sid).connected


@pytest.mark.parametrize("bearer", ["", "Authorization: Bearer x\r\n"])
async def test_a_connection_that_cannot_be_upgraded_is_told_first(bearer) -> None:
    """1.1, 1.2 #3: 426 for HTTP/1.0, before anything about the bearer or the sid."""
    async with serving() as server:
        host = server.url.removeprefix("http://")
        lines = "".join(f"{name}: {value}\r\n" for name, value in UPGRADE.items())
        request = f"GET /v1/operators/S-nobody/ws HTTP/1.0\r\nHost: {host}\r\n{lines}{bearer}\r\n"
        async with await trio.open_tcp_stream("127.0.0.1", int(host.rpartition(":")[2])) as stream:
            await stream.send_all(request.encode())
            answer = b"".join([piece async for piece in stream]).decode()
        head, _, body = answer.partition("\r\n\r\n")
        assert head.split()[1] == "426"
        assert "upgrade: websocket" in head.lower()
        assert "content-type: text/plain" in head.lower()
        assert body


@pytest.mark.parametrize("method", ["GET", "DELETE"])
async def test_errors_of_the_bearer_are_plain_text_and_conflicts_are_json(method) -> None:
    """1.1: the two families of bodies; a token is named in none."""
    async with serving() as server, rest(server) as client:
        mine, other = await log_in(server, roles=["r"]), await log_in(server)
        for sid, headers in [(mine.sid, {}), ("S-nobody", mine.bearer), (mine.sid, other.bearer)]:
            answer = await client.request(method, f"/v1/operators/{sid}", headers=headers)
            assert answer.headers["content-type"].startswith("text/plain")
            assert mine.token not in answer.text
            assert other.token not in answer.text
        taken = await client.post("/v1/operators", json={"roles": ["r"]})
        assert (taken.status_code, taken.headers["content-type"]) == (409, "application/json")


async def test_a_deleted_session_is_204_and_then_404() -> None:
    """1.2 #5: empty, then as a sid that never was; for its socket as well."""
    async with serving() as server, rest(server) as client:
        login = await log_in(server)
        path = f"/v1/operators/{login.sid}"
        gone = await client.delete(path, headers=login.bearer)
        assert (gone.status_code, gone.content) == (204, b"")
        for answer in (
            await client.delete(path, headers=login.bearer),
            await client.get(path, headers=login.bearer),
            await client.get(f"{path}/ws", headers=login.bearer | UPGRADE),
        ):
            assert (answer.status_code, answer.text) == (404, "unknown sid")


async def test_an_answer_to_head_is_that_of_get_and_renews_too() -> None:
    """A client that only looks whether its session lives is somebody who is there."""
    async with serving() as server, rest(server) as client:
        login = await log_in(server)
        session = server._table.find(login.sid)
        assert session is not None
        before = session.last_access
        answer = await client.head(f"/v1/operators/{login.sid}", headers=login.bearer)
        assert (answer.status_code, answer.content) == (200, b"")
        assert session.last_access.at > before.at
        assert (await client.head(f"/v1/operators/{login.sid}")).status_code == 401
