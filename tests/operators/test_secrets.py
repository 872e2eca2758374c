"""No token in a log, a URL, a repr or a traceback, even one that shows variables."""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from traceback import TracebackException
from typing import Any

import attrs
import pytest
import trio
import trio.testing
from websockets.exceptions import InvalidStatus

from tests.operators.support import Events, Login, log_in, rest, serving, socket_of
from tests.operators.test_sessions import age, fail, make_store
from trio_swarm._io.head import parse_head
from trio_swarm._io.http_messages import HttpError, Request, Response
from trio_swarm._io.http_routes import Route
from trio_swarm.errors import BadTokenError, HandshakeError, PeerGoneError, StoreError
from trio_swarm.operators import RolesTaken, connect_operator
from trio_swarm.operators.login import LoginRequest, Moment, Presented, bearer_of


def with_variables(error: BaseException) -> str:
    """The error as the most talkative reporter shows it."""
    return "".join(TracebackException.from_exception(error, capture_locals=True).format())


def beyond_the_test(error: BaseException) -> str:
    """The same, without the frames of the tests: those have the secrets as variables."""
    here, trace = str(Path(__file__).parent), error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename.startswith(here):
        trace = trace.tb_next
    return with_variables(error.with_traceback(trace))


@attrs.define(eq=False)
class Snoop(logging.Handler):
    """Everything that anybody logged, with the variables of every traceback."""

    seen: list[str] = attrs.field(factory=list)

    def __attrs_pre_init__(self) -> None:
        super().__init__(logging.DEBUG)

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.startswith(("websockets", "httpx2", "httpcore2")):
            return  # The other end of these tests, which is not ours.
        self.seen.append(f"{record.name} {record.getMessage()} {record.args!r}")
        if record.exc_info and record.exc_info[1] is not None:
            self.seen.append(with_variables(record.exc_info[1]))


@contextmanager
def snooping() -> Iterator[Snoop]:
    """On every logger there is, at its lowest level."""
    snoop, root = Snoop(), logging.getLogger()
    ours = [root, *map(logging.getLogger, ["trio_swarm.guard", "trio_swarm.operators", "trio-websocket"])]
    before = [each.level for each in ours]
    root.addHandler(snoop)
    for each in ours:
        each.setLevel(logging.DEBUG)
    try:
        yield snoop
    finally:
        root.removeHandler(snoop)
        for each, level in zip(ours, before, strict=True):
            each.setLevel(level)


def assert_silent(text: str, *secrets: str) -> None:
    for secret in secrets:
        at = text.find(secret)
        assert at < 0, f"a secret is in: ...{text[max(0, at - 400) : at + 60]}"


async def test_nothing_that_is_logged_holds_a_token(tmp_path) -> None:
    """A day in the life of a server: refusals, bugs, broken peers, a broken disk, its end."""
    state = tmp_path / "state"
    await make_store(state)

    async def bug(request: Request) -> Response:
        raise ZeroDivisionError("a bug")

    events = Events()
    routes = [Route("POST", "/v1/bug", bug, body="bytes"), Route("GET", "/v1/bug", bug)]
    with snooping() as snoop:
        async with serving(events, state=state, routes=routes) as server, rest(server) as client:
            login, other = await log_in(server, roles=["r"]), await log_in(server)
            secrets = [login.token, other.token, "a-guess-of-a-token"]
            for method in ("GET", "POST"):
                answer = await client.request(method, "/v1/bug", headers=login.bearer)
                assert answer.status_code == 500
            await client.get(
                f"/v1/operators/{login.sid}", headers={"Authorization": "Bearer a-guess-of-a-token"}
            )
            await client.get("/v1/operators", headers={"Authorization": "bearer a-guess-of-a-token"})
            with pytest.raises(InvalidStatus):
                async with socket_of(server, Login(login.sid, other.token)):
                    raise AssertionError("it was let in")
            async with socket_of(server, login) as peer:
                seat = await server.wait_seat("r")
                await peer.raw(f'{{"type": "answer", "req_id": 1, "token": "{login.token}"}}')
                await peer.raw(b"\xff\xfe")
                await server.disconnect("r")
            await broken_upgrade(server, login)
            await half_a_request(server, login)
            age(server, other, 1e6)
            await client.get("/v1/operators", headers=other.bearer)
            shown = repr([server, server.statistics(), seat, seat.statistics(), server.seats(), events.kept])
            shown += repr([server._table, list(server._table), server._sessions, server.url])
            shown += "".join(map(repr, _public_objects()))
        secrets += [f"Bearer {token}" for token in secrets]
    assert any("ZeroDivisionError" in text for text in snoop.seen), "nothing was snooped"
    assert_silent("\n".join(snoop.seen), *secrets)
    assert_silent(shown, *secrets)


def _public_objects() -> list[object]:
    """All objects of ours that are there at this moment."""
    return [
        each
        for each in gc.get_objects()
        # Of some types the module is no text: a metaclass may have a descriptor of that name.
        if str(type(each).__module__).startswith("trio_swarm") and not isinstance(each, type)
    ]


async def broken_upgrade(server, login: Login) -> None:
    """A WebSocket whose peer is gone before it is open, and one that sends nonsense."""
    host, _, port = server.url.removeprefix("http://").partition(":")
    opening = (
        f"GET /v1/operators/{login.sid}/ws HTTP/1.1\r\nHost: {host}:{port}\r\n"
        f"Authorization: Bearer {login.token}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    ).encode()
    for nonsense in (b"", b"\xff" * 100):
        stream = await trio.open_tcp_stream(host, int(port))
        await stream.send_all(opening + nonsense)
        if nonsense:
            while await stream.receive_some():
                pass
        await trio.aclose_forcefully(stream)


async def half_a_request(server, login: Login) -> None:
    """A body that never comes, and a head that is none."""
    host, _, port = server.url.removeprefix("http://").partition(":")
    start = f"DELETE /v1/operators/{login.sid} HTTP/1.1\r\nHost: {host}:{port}\r\n"
    start += f"Authorization: Bearer {login.token}"
    for rest_of_it in ("\r\nContent-Length: 5\r\n\r\n", "\r\nx y\r\n\r\n", "\x01\r\n\r\n", ""):
        async with await trio.open_tcp_stream(host, int(port)) as stream:
            await stream.send_all(f"{start}{rest_of_it}".encode())
            await stream.send_eof()
            while await stream.receive_some():
                pass


def a_request(authorization: str) -> Request:
    raw = f"GET /v1/operators/S-1 HTTP/1.1\r\nHost: x\r\nAuthorization: {authorization}\r\n\r\n"
    return Request(parse_head(raw.encode())[0], {"sid": "S-1"})


async def test_errors_at_the_edge_show_no_token(tmp_path) -> None:
    """Whatever variables a reporter adds to the traceback, and whoever is at fault."""
    state = tmp_path / "state"
    await make_store(state)
    fail(state, "INSERT", "(SELECT count(*) FROM sessions) > 1")
    fail_delete = "CREATE TRIGGER broken2 BEFORE DELETE ON sessions BEGIN SELECT RAISE(ABORT, 'no'); END"
    guess = "a-guess-of-a-token"
    async with serving(state=state) as server:
        login, late = await log_in(server, roles=["r"]), await log_in(server)
        secrets = [guess, login.token, late.token]

        def token_hex(size: int) -> str:
            made = os.urandom(size).hex()
            if size == 16:  # A token; a sid is shorter, and no secret.
                secrets.append(made)
            return made

        server._table._token_hex = token_hex
        assert server._sessions.store is not None
        server._sessions.store._connection.execute(fail_delete)
        api = server_api(server)
        session = server._table.find(login.sid)
        assert session is not None
        unknown, mine = a_request(f"Bearer {guess}"), a_request(f"Bearer {late.token}")
        mismatch = attrs.evolve(mine, params={"sid": login.sid})

        async def raised(kind: type[Exception], call: Callable[..., Any], *args: Any) -> None:
            with pytest.raises(kind) as error:
                result = call(*args)
                if isinstance(result, Awaitable):
                    await result
            assert_silent(beyond_the_test(error.value), *secrets)

        await raised(HttpError, api._authorised, unknown)
        await raised(HttpError, api._authorised, mismatch)
        await raised(HttpError, api._authorised, a_request(f"bearer {guess}"))
        await raised(BadTokenError, bearer_of, (f"bearer {guess}",))
        await raised(BadTokenError, bearer_of, (f"Bearer {guess}\u00e9",))
        await raised(BadTokenError, server._table.identify, Presented.of(guess))
        await raised(RolesTaken, server._sessions.mint, LoginRequest(("r",)))
        before = len(secrets)
        await raised(StoreError, server._sessions.mint, LoginRequest(("x",)))
        assert len(secrets) == before + 1, "no token was made"
        await raised(StoreError, server.remove, login.sid)
        await raised(StoreError, server._sessions.end, session, "x")
        session.last_access = Moment(0.0, -1e9)
        await raised(
            HttpError,
            api._authorised,
            attrs.evolve(a_request(f"Bearer {login.token}"), params={"sid": login.sid}),
        )
        asker: list[BaseException] = []

        async def ask() -> None:
            try:
                await server.seat(late.sid).ask("?", task_id="ST-1")
            except PeerGoneError as error:
                asker.append(error)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await trio.testing.wait_all_tasks_blocked()
            server._sessions.forget(server._table.find(late.sid), "over")
        assert_silent(beyond_the_test(asker[0]), *secrets)


def server_api(server):
    from trio_swarm.operators.api import OperatorApi

    return OperatorApi(server._sessions, joined=lambda session: None)


async def test_the_client_shows_no_token_either() -> None:
    """Of a login that worked, and a server that then went away."""
    with snooping() as snoop:
        async with serving() as server:
            url = server.url
            async with connect_operator(url, roles=["r"]) as client:
                session = server._table.find("r")
                assert session is not None
                await server.wait_seat("r")
                tokens = [each.token for each in _public_objects() if hasattr(each, "token")]
                tokens = [token for token in tokens if isinstance(token, str) and len(token) == 32]
                assert any(Presented.of(token).digest == session.digest for token in tokens)
                shown = repr(client) + "".join(map(repr, _public_objects()))
                with pytest.raises(RolesTaken) as taken:
                    async with connect_operator(url, roles=["r"]):
                        raise AssertionError("twice")
        with pytest.raises(HandshakeError) as gone:
            async with connect_operator(url):
                raise AssertionError("nobody is there")
    shown += beyond_the_test(taken.value) + beyond_the_test(gone.value) + "\n".join(snoop.seen)
    assert_silent(shown, *tokens)
