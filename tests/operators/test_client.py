"""`connect_operator`: against our server, and against a scripted original."""

from __future__ import annotations

import random
from contextlib import asynccontextmanager, suppress
from functools import partial

import attrs
import pytest
import trio
from trio.testing import wait_all_tasks_blocked
from websockets.exceptions import ConnectionClosed
from websockets.trio.server import serve as ws_serve

from tests.operators.support import Events, Result, a_host, log_in, rest, serving, socket_of
from trio_swarm._io.http_client import Address
from trio_swarm.errors import ApprovalDenied, FrameError, HandshakeError, PeerGoneError, RemoteError
from trio_swarm.frames.operator import HookAfter
from trio_swarm.operators import (
    AskRequest,
    GateRequest,
    OperatorSession,
    Reconnect,
    RolesTaken,
    SpawnRequest,
    Withdrawn,
    WorkerResult,
    connect_operator,
    joining,
    serve_operators,
)

QUICK = Reconnect(first=0.01, longest=0.05, give_up_after=5.0)
STEP = {"task_id": "ST-1", "agent": "coder", "attempt": 1}


@asynccontextmanager
async def together(events: Events | None = None, **options):
    async with (
        serving(events) as server,
        connect_operator(server.url, roles=["main"], reconnect=QUICK, **options) as client,
    ):
        yield server, await server.wait_seat("main"), client


async def test_each_request_and_its_replies() -> None:
    """Typed requests, and what each reply comes to at the other end."""
    async with together() as (_, seat, client), trio.open_nursery() as nursery:

        async def exchange(call, reply):
            result = Result()
            nursery.start_soon(result.run, call)
            request = await client.receive()
            assert reply(request)
            await result.done.wait()
            return result.error or result.value

        spawn = partial(seat.spawn, **STEP, directive="do it")
        gate = partial(seat.hook_before, **STEP)
        assert await exchange(partial(seat.ask, "q", task_id="ST-1"), lambda r: r.answer({"a": 1})) == {
            "a": 1
        }
        assert await exchange(gate, lambda r: r.ack()) is None
        denied = await exchange(gate, lambda r: r.reject("no"))
        assert isinstance(denied, ApprovalDenied)
        assert denied.reason == "no"
        assert await exchange(spawn, lambda r: r.ack()) == WorkerResult({}, True)
        assert await exchange(spawn, lambda r: r.ack(1, ok=False, stats={"m": 1})) == WorkerResult(
            1, False, {"m": 1}
        )
        failed = await exchange(spawn, lambda r: r.fail("broken"))
        assert isinstance(failed, RemoteError)
        assert str(failed) == "broken"
        halted = await exchange(spawn, lambda r: r.halt(reason="stop"))
        assert halted == WorkerResult({"halted": True, "reason": "stop", "value": {}}, True)
        seat.hook_after(**STEP, result="r")
        notice = await client.receive()
        assert isinstance(notice, HookAfter)
        assert notice.result == "r"


async def test_requests_carry_their_fields() -> None:
    """With the deadline on this end's clock."""
    async with together() as (_, seat, client), trio.open_nursery() as nursery:
        with trio.move_on_after(20):
            nursery.start_soon(partial(seat.ask, {"q": 1}, task_id="ST-9", parent_req_id="p"))
            ask = await client.receive()
            nursery.start_soon(partial(seat.hook_before, task_id="ST-9", agent="a", attempt=3))
            gate = await client.receive()
            nursery.start_soon(partial(seat.spawn, **STEP, directive="words", capability_token="secret-tok"))
            spawn = await client.receive()
            assert isinstance(ask, AskRequest)
            assert (ask.kind, ask.question, ask.task_id, ask.parent_req_id) == ("ask", {"q": 1}, "ST-9", "p")
            assert isinstance(gate, GateRequest)
            assert (gate.agent, gate.attempt) == ("a", 3)
            assert isinstance(spawn, SpawnRequest)
            assert (spawn.directive, spawn.frame.capability_token) == ("words", "secret-tok")
            assert "secret-tok" not in repr(spawn)
            assert trio.current_time() < ask.deadline < trio.current_time() + 61
        nursery.cancel_scope.cancel()


async def test_a_second_reply_is_an_error_and_a_withdrawn_request_takes_none() -> None:
    """Exactly one reply per request."""
    async with together() as (_, seat, client), trio.open_nursery() as nursery:
        nursery.start_soon(partial(seat.ask, 1, task_id="t"))
        first = await client.receive()
        with pytest.raises(FrameError):
            first.answer(object())
        assert first.answer(1)
        with pytest.raises(RuntimeError):
            first.answer(2)

        with trio.CancelScope() as scope:
            nursery.start_soon(_take_then_cancel, client, scope, taken := [])
            await seat.ask(2, task_id="t")
        notice = await client.receive()
        assert isinstance(notice, Withdrawn)
        assert (notice.request, notice.reason) == (taken[0], "cancelled")
        assert taken[0].withdrawn == "cancelled"
        assert not taken[0].answer("too late")


async def _take_then_cancel(client, scope, taken) -> None:
    taken.append(await client.receive())
    scope.cancel()


async def test_a_request_withdrawn_before_it_was_seen_is_never_shown() -> None:
    """Neither it nor the notice."""
    async with together() as (_, seat, client), trio.open_nursery() as nursery:
        with trio.move_on_after(0.05):
            await seat.ask("unseen", task_id="t")
        result = Result()
        nursery.start_soon(result.run, partial(seat.ask, "seen", task_id="t"))
        while client.statistics().withdrawn < 1 or client.statistics().requests < 2:
            await trio.sleep(0.005)
        request = await client.receive()
        assert request.question == "seen"
        request.answer(1)
        await result.done.wait()


async def test_a_lost_socket_is_opened_again_and_nothing_is_shown_twice() -> None:
    """Open requests stay open; an answer given while away is delivered."""
    async with together() as (server, seat, client), trio.open_nursery() as nursery:
        results = [Result() for _ in range(3)]
        for number, result in enumerate(results):
            nursery.start_soon(result.run, partial(seat.ask, number, task_id="t"))
        requests = [await client.receive() for _ in results]
        await server.disconnect("main")
        while client.connected:
            await trio.lowlevel.checkpoint()
        for request in requests[:2]:
            request.answer(request.question * 10)
        await seat.wait_connected()
        requests[2].answer(requests[2].question * 10)
        for result in results:
            await result.done.wait()

        assert sorted(result.value for result in results) == [0, 10, 20]
        assert client.connections == 2
        assert client.statistics().requests == 3
        assert seat.statistics().replies.accepted == 3


async def test_requests_are_taken_in_order_and_a_wait_that_ended_takes_none() -> None:
    """C13 to C15: first in, first out; a wait may be given up; who waits already is woken."""
    async with together() as (_, seat, client), trio.open_nursery() as nursery:
        with trio.move_on_after(0.02) as waited:
            await client.receive()
        assert waited.cancelled_caught
        first = []

        async def wait() -> None:
            first.append(await client.receive())

        nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        for number in range(20):
            nursery.start_soon(partial(seat.ask, number, task_id="t"))
            while client.statistics().requests <= number:
                await trio.lowlevel.checkpoint()
        with trio.CancelScope() as scope:
            scope.cancel()
            await client.receive()
        taken = [*first, *[await client.receive() for _ in range(19)]]
        assert [request.question for request in taken] == list(range(20))
        nursery.cancel_scope.cancel()


async def test_a_wait_that_is_cancelled_as_a_request_comes_loses_nothing() -> None:
    """It has the request, or the next one has: in every order of the two."""
    async with together() as (_, seat, client), trio.open_nursery() as nursery:
        taken = []

        async def wait(scope) -> None:
            with scope:
                taken.append(await client.receive())

        for number in range(30):
            scope = trio.CancelScope()
            nursery.start_soon(wait, scope)
            await wait_all_tasks_blocked()
            nursery.start_soon(partial(seat.ask, number, task_id="t"))
            while client.statistics().requests <= number:
                await trio.lowlevel.checkpoint()
            scope.cancel()
            await wait_all_tasks_blocked()
            if len(taken) <= number:
                with trio.fail_after(5):
                    taken.append(await client.receive())
        assert [request.question for request in taken] == list(range(30))
        nursery.cancel_scope.cancel()


async def test_each_change_of_the_connection_can_be_waited_for() -> None:
    """It is lost, and it is back."""
    async with together() as (server, _, client), trio.open_nursery() as nursery:
        seen = []

        async def watch() -> None:
            while seen != [False, True]:
                await client.connection_changed()
                seen.append(client.connected)
            nursery.cancel_scope.cancel()

        while not client.connected:
            await client.connection_changed()
        nursery.start_soon(watch)
        await wait_all_tasks_blocked()
        await server.disconnect("main")
        with trio.fail_after(10):
            await trio.sleep_forever()
    assert seen == [False, True]


async def test_leaving_sends_what_was_answered_and_deletes_the_session() -> None:
    """In every way out the roles are free again."""
    events = Events()
    async with serving(events) as server, trio.open_nursery() as nursery:
        result = Result()
        async with connect_operator(server.url, roles=["main"], reconnect=QUICK) as client:
            seat = await server.wait_seat("main")
            nursery.start_soon(result.run, partial(seat.ask, 1, task_id="t"))
            (await client.receive()).answer("last words")
        await result.done.wait()
        assert result.value == "last words"
        assert server.seats() == ()

        with pytest.raises(ZeroDivisionError):
            async with connect_operator(server.url, roles=["main"]):
                raise ZeroDivisionError
        assert server.seats() == ()
        with trio.CancelScope() as scope:
            async with connect_operator(server.url, roles=["main"]):
                scope.cancel()
                await trio.sleep_forever()
        assert server.seats() == ()


async def test_taken_roles_are_an_error_that_names_them() -> None:
    """409 comes back as `RolesTaken`."""
    async with serving() as server:
        await log_in(server, roles=["a", "b"])
        with pytest.raises(RolesTaken) as taken:
            async with connect_operator(server.url, roles=["c", "b"]):
                raise AssertionError("it was let in")
        assert taken.value.conflicts == ["b"]
        assert len(server.seats()) == 1


async def test_nobody_there() -> None:
    """A refused connection is a `HandshakeError`, a bad URL a ``ValueError``."""
    listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
    port = listener.socket.getsockname()[1]
    await listener.aclose()
    with pytest.raises(HandshakeError):
        async with connect_operator(f"http://127.0.0.1:{port}"):
            raise AssertionError("it was let in")
    for url in ("ws://127.0.0.1:1", "http://", "127.0.0.1:7777", "http://u:p@127.0.0.1:1", "http://h/?x=1"):
        with pytest.raises(ValueError, match="URL"):
            async with connect_operator(url):
                raise AssertionError("it was let in")


async def test_a_session_that_the_server_ends_ends_the_iteration() -> None:
    """Without an error: there is nothing more to do."""
    async with together() as (server, _, client), trio.open_nursery() as nursery:
        ended = trio.Event()

        async def work() -> None:
            async for _ in client:
                raise AssertionError("nothing was asked")
            ended.set()

        nursery.start_soon(work)
        assert await server.remove("main", "enough")
        await ended.wait()


async def test_a_session_taken_over_is_not_fought_for() -> None:
    """Close code 4001 ends the operator instead of a ping-pong of reconnects."""
    async with together() as (server, seat, client):
        login = client._session
        async with socket_of(server, login_of(login)) as peer:
            with pytest.raises(PeerGoneError, match="took the session over"):
                await client.receive()
            assert seat.connected
            await peer.ws.ping()
        assert client.connections == 1


def login_of(session):
    from tests.operators.support import Login

    return Login(session.sid, session.token)


async def test_a_server_that_stays_away_is_given_up() -> None:
    """After the bound, with an error that says so."""
    async with trio.open_nursery() as nursery:
        stop = trio.Event()
        url = await nursery.start(_serve_until, stop)
        hurry = Reconnect(first=0.01, longest=0.02, give_up_after=0.3)
        async with connect_operator(url, reconnect=hurry, rng=random.Random(1)) as client:
            stop.set()
            with pytest.raises(PeerGoneError):
                await client.receive()


async def _serve_until(stop, *, task_status) -> None:
    async with serve_operators(a_host()) as server:
        task_status.started(server.url)
        await stop.wait()


async def test_backoff_grows_to_its_bound_with_jitter_from_the_given_source() -> None:
    """Half to all of the doubled delay."""
    reconnect = Reconnect(first=0.1, longest=1.0)
    delays = [reconnect.delay(tries, random.Random(7)) for tries in range(6)]
    factor = random.Random(7).uniform(0.5, 1.0)
    assert delays == [pytest.approx(base * factor) for base in (0.1, 0.2, 0.4, 0.8, 1.0, 1.0)]


# -- an original: no features header, no redelivery, forgets nothing it has pending ---------


class Original:
    """As the contract describes it: REST by hand-written bytes, WebSocket by `websockets`."""

    def __init__(self) -> None:
        self.received: list[str] = []
        self.script: list[str] = []
        self.connected = 0

    async def on_socket(self, websocket) -> None:
        self.connected += 1
        if self.connected == 1:
            for text in self.script:
                await websocket.send(text)
        while True:
            try:
                self.received.append(await websocket.recv())
            except ConnectionClosed:
                return
            if self.connected == 1:
                await websocket.aclose()


async def test_the_client_works_with_an_original_server() -> None:
    """Replies that may have been lost with a socket are sent again to a server that does not redeliver."""
    original = Original()
    original.script = [
        "junk",
        '{"type":"ask","req_id":"op-1-ask-1","task_id":"T-1","question":1,"later":true}',
        '{"type":"novelty","req_id":"x"}',
        '{"type":"hook_after","req_id":"op-1-ha-1","task_id":"T-1","agent":"a","attempt":1,"result":null}',
    ]
    async with trio.open_nursery() as nursery:
        sockets = await nursery.start(
            partial(ws_serve, original.on_socket, 0, host="127.0.0.1", compression=None)
        )
        port = sockets.listeners[0].socket.getsockname()[1]
        url = await nursery.start(_original_rest, port)
        async with connect_operator(url, reconnect=QUICK) as client:
            assert (client.sid, client.roles) == ("op-1", ())
            request = await client.receive()
            assert request.question == 1
            assert isinstance(await client.receive(), HookAfter)
            request.answer("yes")
            while original.connected < 2 or len(original.received) < 2:
                await trio.sleep(0.005)
        assert original.received[0] == original.received[1]
        nursery.cancel_scope.cancel()


async def _original_rest(ws_port: int, *, task_status) -> None:
    """Answers the login itself; passes anything else on to the WebSocket server, byte for byte."""

    async def pump(source, sink) -> None:
        with suppress(trio.BrokenResourceError):  # Either end may have gone before the other.
            async for data in source:
                await sink.send_all(data)
            await sink.send_eof()

    async def one(stream) -> None:
        first = bytes(await stream.receive_some())
        if b"/ws" in first.split(b"\r\n")[0]:
            async with (
                await trio.open_tcp_stream("127.0.0.1", ws_port) as inner,
                trio.open_nursery() as nursery,
            ):
                await inner.send_all(first)
                nursery.start_soon(pump, stream, inner)
                await pump(inner, stream)
                nursery.cancel_scope.cancel()
            return
        body = b'{"sid":"op-1","token":"0f1e2d3c4b"}' if first.startswith(b"POST") else b""
        status = b"200 OK" if body else b"204 No Content"
        await stream.send_all(b"HTTP/1.1 %b\r\ncontent-length: %d\r\n\r\n%b" % (status, len(body), body))
        await stream.receive_some()

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, one, 0, host="127.0.0.1"))
        task_status.started(f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}")


@pytest.mark.parametrize(
    "body",
    [
        b"[]",
        b"{}",
        b'{"sid":"a/b","token":"t"}',
        b'{"sid":"a","token":"t\\r\\nX: y"}',
        b"nope",
        b'{"sid":1,"token":"t"}',
    ],
)
async def test_a_login_that_answers_nonsense_is_a_peer_error(body) -> None:
    """Nothing of it reaches a path or a header."""
    from trio_swarm.errors import ProtocolError

    async def one(stream) -> None:
        await stream.receive_some()
        await stream.send_all(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, one, 0, host="127.0.0.1"))
        with pytest.raises(ProtocolError):
            async with connect_operator(f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"):
                raise AssertionError("it was let in")
        nursery.cancel_scope.cancel()


async def test_the_sessions_end_is_told_over_rest_too() -> None:
    """Another who has the token may end it."""
    async with together() as (server, _, client):
        headers = dict(client._session.headers)
        async with rest(server) as http:
            await http.delete(f"/v1/operators/{client.sid}", headers=headers)
        with pytest.raises(trio.EndOfChannel):
            await client.receive()
        await wait_all_tasks_blocked()


async def test_a_session_that_the_server_fails_to_delete_is_told_of(caplog) -> None:
    """It lives on and holds its roles; the block is left all the same. The token is not shown."""
    told: list[bytes] = []

    async def one(stream) -> None:
        head = bytes(await stream.receive_some())
        told.append(head.partition(b" ")[0])
        status, body = b"200 OK", b'{"sid":"S-1","token":"0f1e2d3c4b"}'
        if not head.startswith(b"POST"):
            status, body = b"500 Internal Server Error", b'{"error":"disk","sid":"S-1","hint":"again"}'
        await stream.send_all(b"HTTP/1.1 %b\r\ncontent-length: %d\r\n\r\n%b" % (status, len(body), body))

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, one, 0, host="127.0.0.1"))
        url = f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        login = await joining.log_in(Address.parse(url), (), None, None, None)
        await joining.log_out(login)
        nursery.cancel_scope.cancel()

    assert told == [b"POST", b"DELETE"]
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == [
        "the session S-1 was not deleted: the server answered 500"
    ]
    assert "0f1e2d3c4b" not in caplog.text


async def test_a_reply_that_is_too_large_is_the_users_error() -> None:
    """Told at once; the request stays open and takes a smaller one."""
    async with together() as (_, seat, client), trio.open_nursery() as nursery:
        result = Result()
        nursery.start_soon(result.run, partial(seat.ask, 1, task_id="t"))
        request = await client.receive()
        with pytest.raises(FrameError):
            request.answer("x" * 2**24)
        assert request.answer("small")
        await result.done.wait()
        assert result.value == "small"


async def test_a_flush_does_not_outlast_the_session() -> None:
    """What was not sent never will be: `flush` says so, and later replies are not taken."""
    async with together() as (server, seat, client), trio.open_nursery() as nursery:
        results = [Result(), Result()]
        for number, result in enumerate(results):
            nursery.start_soon(result.run, partial(seat.ask, number, task_id="t"))
        first, second = await client.receive(), await client.receive()
        await server.disconnect("main")
        while client.connected:
            await trio.lowlevel.checkpoint()
        await server.remove("main", "enough")
        assert first.answer("never sent")
        with trio.fail_after(10), pytest.raises(PeerGoneError):
            await client.flush()
        assert not second.answer("too late")


@attrs.frozen
class Recorded(Reconnect):
    """Waits no time, and keeps what it was asked for."""

    tries: list[int] = attrs.field(factory=list)

    def delay(self, tries, rng) -> float:
        self.tries.append(tries)
        return 0.0


@pytest.mark.parametrize(("said", "tries"), [(None, [0, 1, 2, 3]), ("junk", [0, 0, 0, 0])])
async def test_a_connection_that_dies_at_once_counts_as_failed(said, tries) -> None:
    """Unless something was said on it."""

    async def on_socket(websocket) -> None:
        if said is not None:
            await websocket.send(said)

    recorded = Recorded()
    async with trio.open_nursery() as nursery:
        sockets = await nursery.start(partial(ws_serve, on_socket, 0, host="127.0.0.1", compression=None))
        url = await nursery.start(_original_rest, sockets.listeners[0].socket.getsockname()[1])
        async with connect_operator(url, reconnect=recorded):
            with trio.fail_after(10):
                while len(recorded.tries) < 4:
                    await trio.sleep(0.005)
        nursery.cancel_scope.cancel()
    assert recorded.tries[:4] == tries


@pytest.mark.parametrize("answer", [b'{"sid":"op-1","token":"0f1e2d3c4b"}', b"nonsense"])
async def test_a_login_cancelled_while_it_is_answered_leaves_no_session(answer) -> None:
    """Its answer is waited for, so that what it minted can be deleted."""
    asked, cancelled = trio.Event(), trio.Event()
    heads: list[bytes] = []

    async def one(stream) -> None:
        heads.append(bytes(await stream.receive_some()).split(b" HTTP")[0])
        asked.set()
        await cancelled.wait()
        await stream.send_all(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(answer), answer))

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, one, 0, host="127.0.0.1"))
        url = f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"

        async def cancel(scope) -> None:
            await asked.wait()
            scope.cancel()
            await wait_all_tasks_blocked()
            cancelled.set()

        with trio.CancelScope() as scope:
            nursery.start_soon(cancel, scope)
            async with connect_operator(url):
                raise AssertionError("it was let in")
        assert scope.cancelled_caught
        deleted = [b"DELETE /v1/operators/op-1"] if answer.startswith(b"{") else []
        assert heads == [b"POST /v1/operators", *deleted]
        nursery.cancel_scope.cancel()


# -- a session that is kept -----------------------------------------------------------------


async def test_a_kept_session_is_come_back_to() -> None:
    """In every way out it stays; what waits is asked again, and the token is never shown."""
    async with serving() as server, trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:
            async with connect_operator(server.url, roles=["main"], reconnect=QUICK, keep=True) as client:
                session = client.session
                seat, result = await server.wait_seat("main"), Result()
                nursery.start_soon(result.run, partial(seat.ask, "?", task_id="t"))
                first = await client.receive()
                scope.cancel()
                await trio.sleep_forever()
        while seat.connected:
            await trio.lowlevel.checkpoint()
        assert session.token not in repr(session) + repr(client)
        kept = type(session)(**attrs.asdict(session))

        async with connect_operator(server.url, session=kept, reconnect=QUICK) as client:
            assert (client.sid, client.roles, client.receipts) == (seat.sid, ("main",), True)
            again = await client.receive()
            assert again.req_id == first.req_id
            again.answer("back")
            await result.done.wait()
        assert result.value == "back"
        assert server.seats() == ()


async def test_a_session_that_is_over_cannot_be_taken_over() -> None:
    """The status says so; nobody else's session is touched, and none is made."""
    async with serving() as server:
        login = await log_in(server, roles=["other"])
        for sid, status in (("S-0", 404), (login.sid, 401)):
            with pytest.raises(HandshakeError) as refused:
                async with connect_operator(server.url, session=OperatorSession(sid, "0" * 32)):
                    raise AssertionError("it was let in")
            assert refused.value.status == status
        assert [seat.sid for seat in server.seats()] == [login.sid]
        for sid, token in (("a/b", "t"), ("a", "t\r\nX: y")):
            with pytest.raises(ValueError, match="cannot be used"):
                async with connect_operator(server.url, session=OperatorSession(sid, token)):
                    raise AssertionError("it was let in")


@pytest.mark.parametrize("result", ["text", {"n": 1}, [1, {"a": None}]])
async def test_a_handler_is_given_notices_of_any_result(result) -> None:
    """An object or a list is as good as a text."""
    async with together() as (_, seat, client), trio.open_nursery() as nursery:
        told, came = [], trio.Event()

        async def handle(item) -> None:
            told.append(item)
            came.set()

        nursery.start_soon(client.serve, handle)
        seat.hook_after(**STEP, result=result)
        with trio.fail_after(5):
            await came.wait()
        nursery.cancel_scope.cancel()
    assert [item.result for item in told] == [result]


async def test_what_is_withdrawn_while_it_waits_for_a_handler_is_not_handled() -> None:
    """Its step is over: nothing is done for it, and nobody is told of it."""
    async with together() as (_, seat, client), trio.open_nursery() as nursery:
        handled, go, begun = [], trio.Event(), trio.Event()

        async def handle(item) -> None:
            handled.append(item)
            begun.set()
            if item.question == "slow":
                await go.wait()
            item.answer("done")

        nursery.start_soon(partial(client.serve, handle, at_once=1))
        slow = Result()
        nursery.start_soon(slow.run, partial(seat.ask, "slow", task_id="ST-1"))
        await begun.wait()
        with trio.move_on_after(0.05):
            await seat.ask("late", task_id="ST-2")
        last = Result()
        nursery.start_soon(last.run, partial(seat.ask, "last", task_id="ST-3"))
        with trio.fail_after(5):
            while client.statistics().requests < 3 or client.statistics().withdrawn < 1:
                await trio.lowlevel.checkpoint()
        go.set()
        await slow.done.wait()
        await last.done.wait()
        nursery.cancel_scope.cancel()
    assert [item.question for item in handled] == ["slow", "last"]
