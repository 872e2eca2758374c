"""The REST resource, with httpx2 as the client (contract 1.1 to 1.3, 8.7)."""

from __future__ import annotations

import re
from contextlib import AsyncExitStack

import httpx2
import pytest
import trio
from websockets.exceptions import InvalidStatus

from tests.operators.support import Events, Login, a_host, log_in, rest, serving, socket_of
from trio_swarm._io.http_messages import Response
from trio_swarm._io.http_routes import Route
from trio_swarm.operators import serve_operators


async def test_health_is_plain_text() -> None:
    """1.2 #1."""
    async with serving() as server, rest(server) as client:
        answer = await client.get("/v1/healthz")
        assert (answer.status_code, answer.text) == (200, "ok")
        assert answer.headers["content-type"].startswith("text/plain")
        head = await client.head("/v1/healthz")
        assert (head.status_code, head.content) == (200, b"")


async def test_a_login_mints_a_session() -> None:
    """1.2 #2: sid and token in the later profile's form, roles always; unknown keys ignored."""
    events = Events()
    async with serving(events) as server, rest(server) as client:
        answer = await client.post("/v1/operators", json={"roles": ["a", "b"], "whatever": 1})
        known = answer.json()

        assert answer.status_code == 200
        assert set(known) == {"sid", "token", "roles"}
        assert re.fullmatch(r"S-[0-9a-f]{16}", known["sid"])
        assert re.fullmatch(r"[0-9a-f]{32}", known["token"])
        assert known["roles"] == ["a", "b"]
        assert (await client.post("/v1/operators", json={})).json()["roles"] == []
        assert server.seat("a") is server.seat(known["sid"])
        assert events.of("operator_joined")[0] == {"sid": known["sid"], "name": "a", "roles": ["a", "b"]}
        assert known["token"] not in repr(server.seats()) + repr(events.kept) + repr(list(server._table))


async def test_roles_are_exclusive_all_or_nothing() -> None:
    """1.3: conflicts in the order asked; others not reserved; freed by DELETE."""
    async with serving() as server, rest(server) as client:
        holder = await log_in(server, roles=["a", "b", "a"])
        refused = await client.post("/v1/operators", json={"roles": ["c", "b", "a"]})
        assert refused.status_code == 409
        assert refused.json() == {"error": "roles conflict", "conflicts": ["b", "a"]}
        await log_in(server, roles=["c"])

        await client.delete(f"/v1/operators/{holder.sid}", headers=holder.bearer)
        await log_in(server, roles=["b", "a"])


async def test_two_logins_racing_for_a_role_have_one_winner() -> None:
    """8.7: the check and the claim are one step."""
    statuses = []
    async with serving() as server, rest(server) as client:

        async def join() -> None:
            statuses.append((await client.post("/v1/operators", json={"roles": ["x"]})).status_code)

        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(join)
    assert sorted(statuses) == [200] + [409] * 9


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"{}", "text/plain", 415),
        (b"{}", None, 415),
        (b"{}", "application/x-www-form-urlencoded", 415),
        (b"", "application/json", 400),
        (b"{", "application/json", 400),
        (b'{"roles": NaN}', "application/json", 400),
        (b"\xff\xfe", "application/json", 400),
        (b"[" * 50_000, "application/json", 400),
        (b"[]", "application/json", 422),
        (b"3", "application/json", 422),
        (b'{"roles": "a"}', "application/json", 422),
        (b'{"roles": [1]}', "application/json", 422),
        (b'{"roles": [""]}', "application/json", 422),
        (b'{"roles": null}', "application/json", 422),
        (b'{"desc": 4}', "application/json", 422),
        (b'{"capability_manifest": []}', "application/json", 422),
        (b'{"desc": "' + b"x" * 70_000 + b'"}', "application/json", 422),
        (b'{"roles": ["S-0123456789abcdef"]}', "application/json", 422),
        (b" " * (320 * 2**10 - 2) + b"{}", "application/json", 200),
        (b" " * (320 * 2**10 - 1) + b"{}", "application/json", 413),
        (b"{}", "application/json; charset=utf-8", 200),
        (b"{}", "application/vnd.x+json", 200),
    ],
)
async def test_bodies_are_judged_as_the_contract_says(content, kind, status) -> None:
    """1.1: 415 before 413, 400 and 422."""
    async with serving() as server, rest(server) as client:
        headers = {} if kind is None else {"Content-Type": kind}
        answer = await client.post("/v1/operators", content=content, headers=headers)
        assert answer.status_code == status


@pytest.mark.parametrize(
    ("method", "path", "status", "allow"),
    [
        ("GET", "/", 404, None),
        ("GET", "/v1/operators/", 404, None),
        ("GET", "/v1/operators/x/y", 404, None),
        ("PUT", "/v1/operators", 405, "GET, HEAD, POST"),
        ("PUT", "/v1/operators/S-1", 405, "DELETE, GET, HEAD"),
        ("POST", "/v1/healthz", 405, "GET, HEAD"),
        ("POST", "/v1/operators/S-1/ws", 405, "GET"),
    ],
)
async def test_unknown_paths_and_methods(method, path, status, allow) -> None:
    """1.1: 404 and 405, both with an empty body."""
    async with serving() as server, rest(server) as client:
        answer = await client.request(method, path)
        assert (answer.status_code, answer.headers.get("allow"), answer.content) == (status, allow, b"")


@pytest.mark.parametrize("method", ["GET", "DELETE"])
async def test_the_order_of_401_404_and_401(method) -> None:
    """1.2: no usable bearer, then unknown sid, then another's token; plain text."""
    async with serving() as server, rest(server) as client:
        mine, other = await log_in(server), await log_in(server)

        async def status(sid: str, authorization: str | None) -> tuple[int, str]:
            headers = {} if authorization is None else {"Authorization": authorization}
            answer = await client.request(method, f"/v1/operators/{sid}", headers=headers)
            return answer.status_code, answer.text

        missing = (401, "missing or empty Bearer token")
        for bad in (None, f"bearer {mine.token}", f"Basic {mine.token}", mine.token, "Bearer"):
            assert await status("S-nobody", bad) == missing
            assert await status(mine.sid, bad) == missing
        assert await status("S-nobody", f"Bearer {mine.token}") == (404, "unknown sid")
        assert await status(mine.sid, f"Bearer {other.token}") == (401, "token mismatch")
        assert (await status(mine.sid, f"Bearer  {mine.token}"))[0] in {200, 204}


async def test_connected_is_true_only_while_it_is() -> None:
    """1.3, the [BUG] repaired; desc and manifest come back as given."""
    async with serving() as server, rest(server) as client:
        manifest = {"provider_id": "p", "capabilities": []}
        login = await log_in(server, roles=["r"], desc="me", capability_manifest=manifest)

        async def known() -> dict:
            return (await client.get(f"/v1/operators/{login.sid}", headers=login.bearer)).json()

        assert await known() == {
            "sid": login.sid,
            "roles": ["r"],
            "connected": False,
            "desc": "me",
            "observed": [],
            "observed_total": 0,
            "capability_manifest": manifest,
        }
        async with socket_of(server, login):
            await server.wait_seat("r")
            assert (await known())["connected"] is True
        while server.seat("r").connected:
            await trio.sleep(0.001)
        assert (await known())["connected"] is False


UPGRADE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}


@pytest.mark.parametrize(
    ("changed", "status"),
    [
        ({"Upgrade": None}, 400),
        ({"Connection": "keep-alive"}, 400),
        ({"Sec-WebSocket-Version": None}, 400),
        ({"Sec-WebSocket-Version": "8"}, 400),
        ({"Sec-WebSocket-Key": None}, 400),
        ({"Sec-WebSocket-Key": "short"}, 400),
        ({}, 401),
    ],
)
async def test_upgrade_headers_are_judged_before_the_bearer(changed, status) -> None:
    """1.2 #3: 400 comes first, and only then 401."""
    async with serving() as server, rest(server) as client:
        headers = {key: value for key, value in {**UPGRADE, **changed}.items() if value is not None}
        answer = await client.get("/v1/operators/S-nobody/ws", headers=headers)
        assert answer.status_code == status
        if changed.keys() == {"Sec-WebSocket-Version"}:
            assert answer.headers["sec-websocket-version"] == "13"


async def test_the_socket_wants_the_sessions_own_token() -> None:
    """1.2 #3: 404, then 401, before the upgrade."""
    async with serving() as server:
        mine, other = await log_in(server), await log_in(server)
        for login, status in [
            (Login("S-nobody", mine.token), 404),
            (Login(mine.sid, other.token), 401),
            (Login(mine.sid, "é".encode().decode("latin-1")), 401),
        ]:
            with pytest.raises(InvalidStatus) as refused:
                async with socket_of(server, login):
                    raise AssertionError("it was let in")
            assert refused.value.response.status_code == status


async def test_the_number_of_sessions_is_bounded() -> None:
    """A login needs no token, so that something must; who is connected does not go for another."""
    async with serving(max_sessions=2) as server, rest(server) as client:
        async with AsyncExitStack() as stack:
            for _ in range(2):
                login = await log_in(server)
                await stack.enter_async_context(socket_of(server, login))
                await server.wait_seat(login.sid)
            assert (await client.post("/v1/operators", json={})).status_code == 503
        while server.statistics().connected == 2:
            await trio.sleep(0.001)
        # Who had a socket, and was never given anything, does: a socket costs nobody anything either.
        assert (await client.post("/v1/operators", json={})).status_code == 200
        assert len(server.seats()) == 2


async def test_logins_of_nobody_shut_nobody_out() -> None:
    """However many: those that nobody came to make room, the one of the longest silence first."""
    events = Events()
    async with serving(events, max_sessions=4) as server:
        seated = await log_in(server, roles=["main"])
        async with socket_of(server, seated):
            await server.wait_seat("main")
            idle = [await log_in(server) for _ in range(20)]
            honest = await log_in(server, roles=["honest"])
            async with socket_of(server, honest):
                await server.wait_seat("honest")
            assert [seat.sid for seat in server.seats()] == [
                each.sid for each in (seated, *idle[-2:], honest)
            ]
            assert events.of("operator_left") == [
                {
                    "sid": each.sid,
                    "name": each.sid,
                    "reason": "it made room: nobody was connected, and nothing had been given to it",
                    "failed": 0,
                }
                for each in idle[:-2]
            ]
            async with rest(server) as client:
                gone = await client.get(f"/v1/operators/{idle[0].sid}", headers=idle[0].bearer)
                assert gone.status_code == 404
                # It was heard of: the other one goes.
                await client.get(f"/v1/operators/{idle[-2].sid}", headers=idle[-2].bearer)
                assert (await client.post("/v1/operators", json={"roles": ["main"]})).status_code == 409
                assert len(events.of("operator_left")) == 18
                await client.post("/v1/operators", json={})
                assert events.of("operator_left")[-1]["sid"] == idle[-1].sid


async def test_it_serves_any_listeners(tmp_path) -> None:
    """A Unix socket that the program opened itself."""
    socket = trio.socket.socket(trio.socket.AF_UNIX)
    path = str(tmp_path / "s")
    await socket.bind(path)
    socket.listen()
    transport = httpx2.AsyncHTTPTransport(uds=path)
    async with (
        serve_operators(a_host(), listeners=[trio.SocketListener(socket)]) as server,
        httpx2.AsyncClient(transport=transport, base_url=server.url, trust_env=False) as client,
    ):
        assert (await client.get("/v1/healthz")).text == "ok"


async def test_a_token_that_is_not_ascii_is_no_token() -> None:
    """1.1: 401, as for a missing one; and after the checks of the upgrade."""
    bad = "Authorization: Bearer \u00e9\r\n"
    async with serving() as server:
        login = await log_in(server)
        host = server.url.removeprefix("http://")
        for path, status in [(login.sid, 401), (f"{login.sid}/ws", 400)]:
            request = f"GET /v1/operators/{path} HTTP/1.1\r\nHost: {host}\r\n{bad}\r\n"
            async with await trio.open_tcp_stream("127.0.0.1", int(host.rpartition(":")[2])) as stream:
                await stream.send_all(request.encode("latin-1"))
                assert int((await stream.receive_some()).split()[1]) == status


async def test_listeners_do_not_outlive_a_server_that_could_not_be_made() -> None:
    """A route given twice is an error, and nothing listens after it."""
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")

    async def healthz(request) -> Response:
        raise AssertionError("never served")

    with pytest.raises(ValueError, match="routed twice"):
        async with serving(listeners=listeners, routes=[Route("GET", "/v1/healthz", healthz)]):
            raise AssertionError("it was served")
    assert [listener.socket.fileno() for listener in listeners] == [-1]


async def test_a_session_without_a_socket_ends_by_itself() -> None:
    """Its role is free again; one that is connected stays."""
    events = Events()
    async with serving(events, join_within=0.2) as server:
        joined = await log_in(server, roles=["stays"])
        async with socket_of(server, joined):
            await server.wait_seat("stays")
            await log_in(server, roles=["never came"])
            with trio.fail_after(10):
                while not events.of("operator_left"):
                    await trio.sleep(0.005)
            assert [seat.name for seat in server.seats()] == ["stays"]
            assert "0.2 s of the login" in str(events.of("operator_left")[0]["reason"])
            await log_in(server, roles=["never came"])


async def test_a_session_left_by_its_operator_ends_by_itself() -> None:
    """After ``idle_within`` from the end of its last socket."""
    events = Events()
    async with serving(events, idle_within=0.05) as server:
        async with socket_of(server, await log_in(server, roles=["gone"])):
            await server.wait_seat("gone")
        with trio.fail_after(10):
            while not events.of("operator_left"):
                await trio.sleep(0.005)
        assert server.seats() == ()
        assert "nobody was connected for 0.05 s" in str(events.of("operator_left")[0]["reason"])
