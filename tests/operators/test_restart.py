"""A server that takes another's place: what the former one had asked is over."""

from __future__ import annotations

import json
from contextlib import suppress
from functools import partial

import pytest
import trio
from websockets.exceptions import ConnectionClosed
from websockets.trio.server import serve as ws_serve

from tests.operators.restarts import line_of_servers
from tests.operators.support import Result, log_in, rest, serving, socket_of
from tests.operators.test_client import _original_rest
from trio_swarm.operators import (
    AskRequest,
    OperatorSession,
    Reconnect,
    ReplyRefused,
    Settled,
    Withdrawn,
    connect_operator,
)
from trio_swarm.operators.api import INSTANCE_HEADER
from trio_swarm.operators.lineage import nesting

QUICK = Reconnect(first=0.01, longest=0.05, give_up_after=30.0)


async def until(condition) -> None:
    with trio.fail_after(20):
        while not condition():
            await trio.sleep(0.002)


async def test_a_server_says_which_one_it_is_on_sockets_alone(tmp_path) -> None:
    """The same to everybody, another when it is served again, and nothing of it over REST."""
    said = []
    for _ in range(2):
        async with serving(state=tmp_path / "state") as server:
            for _ in range(2):
                login = await log_in(server)
                async with socket_of(server, login) as peer:
                    said.append(peer.ws.response.headers[INSTANCE_HEADER])
            async with rest(server) as client:
                for answer in (
                    await client.post("/v1/operators", json={}),
                    await client.get(f"/v1/operators/{login.sid}", headers=login.bearer),
                    await client.get("/v1/healthz"),
                ):
                    assert answer.status_code == 200
                    assert INSTANCE_HEADER not in answer.headers
    assert said[0] == said[1] != said[2] == said[3]
    assert all(len(each) == 32 and int(each, 16) >= 0 for each in said)


async def test_requests_of_a_server_that_was_killed_are_over(tmp_path) -> None:
    """Shown, hidden, answered on the dead socket and answered while there was none."""
    flushed = Result()
    async with line_of_servers(tmp_path / "state") as line, trio.open_nursery() as nursery:
        await line.start("open", "written", "kept", "hidden")
        async with connect_operator(line.url, reconnect=QUICK) as client:
            shown, written, kept = [await client.receive() for _ in range(3)]
            assert [each.question for each in (shown, written, kept)] == ["open", "written", "kept"]
            await until(lambda: client.statistics().requests == 4)
            with shown.answering():
                assert nesting("x#x", None)["lineage"] == (client.identity,)
                line.stop()
                assert written.answer(1)
                await client.flush()
                await line.kill()
                await until(lambda: not client.connected)
                assert kept.answer(2)
                assert client.statistics().unsent == 1
                nursery.start_soon(flushed.run, client.flush)

                await line.start("new")
                await until(lambda: client.connected)
                with trio.fail_after(20):
                    told = [await client.receive() for _ in range(4)]
                assert nesting("x#x", None)["lineage"] == ()
            withdrawn, *refused, new = told
            assert withdrawn == Withdrawn(shown, "server_restarted")
            assert refused == [ReplyRefused(written, "unknown"), ReplyRefused(kept, "unknown")]
            assert isinstance(new, AskRequest)
            assert new.question == "new"

            assert shown.withdrawn == "server_restarted"
            assert not shown.answer("too late")
            assert (await shown.settled()).reason == "late:server_restarted"
            for request in (written, kept):
                assert request.withdrawn is None
                assert (await request.settled()).reason == "unknown"
            known = client.statistics()
            assert (known.open, known.unsent, known.withdrawn) == (1, 0, 2)
            with trio.fail_after(20):
                await flushed.done.wait()
            assert flushed.error is None
            assert new.answer("for you")
            assert await line.says() == '"for you"'
            assert await new.settled()
        assert client.connections == 2


async def test_a_socket_that_is_lost_ends_nothing_while_the_server_is_the_same(tmp_path) -> None:
    """Each of its sockets says the same."""
    async with serving(state=tmp_path / "state") as server, trio.open_nursery() as nursery:
        async with connect_operator(server.url, reconnect=QUICK) as client:
            seat, results = await server.wait_seat(), [Result(), Result()]
            for number, result in enumerate(results):
                nursery.start_soon(result.run, lambda number=number: seat.ask(number, task_id="t"))
            first, second = await client.receive(), await client.receive()
            await server.disconnect(client.sid)
            await until(lambda: not client.connected)
            assert first.answer("a")
            await until(lambda: client.connected)
            assert second.answer("b")
            assert await first.settled()
            assert await second.settled()
            assert (first.withdrawn, second.withdrawn) == (None, None)
            for result in results:
                await result.done.wait()
            assert client.statistics().withdrawn == 0
            assert client.connections == 2


async def test_a_handler_is_told_and_what_it_had_not_begun_is_never_begun(tmp_path) -> None:
    """A server within the same process, left and served again, is another one too."""
    handled, go_on = [], trio.Event()

    async def handle(item) -> None:
        handled.append(item)
        if isinstance(item, AskRequest):
            await go_on.wait()
            item.answer("!")

    async def asks(server, *questions, task_status=trio.TASK_STATUS_IGNORED) -> None:
        results = [Result() for _ in questions]
        seat = await server.wait_seat()
        async with trio.open_nursery() as nursery:
            for result, question in zip(results, questions, strict=True):
                nursery.start_soon(result.run, lambda question=question: seat.ask(question, task_id="t"))
            await until(lambda: len(seat.pending()) == len(questions))
            task_status.started()
        answers.extend(result.value for result in results)

    answers: list[object] = []
    async with trio.open_nursery() as nursery:
        async with serving(state=tmp_path / "state") as server:
            port = int(server.url.rpartition(":")[2])
            client = await nursery.start(_connected, server.url, handle)
            await nursery.start(asks, server, 1, 2)
            await until(lambda: client.statistics().requests == 2 and handled)
        assert client.statistics().withdrawn == 0
        async with serving(state=tmp_path / "state", port=port) as server:
            await until(lambda: client.statistics().withdrawn == 2)
            await nursery.start(asks, server, 3)
            go_on.set()
            await until(lambda: len(answers) == 3)
        nursery.cancel_scope.cancel()
    first, notice, new = handled
    assert notice == Withdrawn(first, "server_restarted")
    assert new.question == 3
    assert answers == [None, None, "!"]


async def _connected(url, handle, *, task_status) -> None:
    async with connect_operator(url, reconnect=QUICK) as client:
        task_status.started(client)
        await client.serve(handle, at_once=1)


class Told:
    """An independent server: asks the same on each socket, and says each time which one it is."""

    def __init__(self, *instances: str | None) -> None:
        self.instances = list(instances)
        self.came: list[list[int]] = []
        self.cut = trio.Event()

    def about(self, websocket, request, response) -> None:
        instance = self.instances.pop(0)
        if instance is not None:
            response.headers[INSTANCE_HEADER] = instance

    async def on_socket(self, websocket) -> None:
        came: list[int] = []
        self.came.append(came)
        for req_id in ("open", "replied"):
            await websocket.send(json.dumps({"type": "ask", "req_id": req_id, "task_id": "t", "question": 1}))
        try:
            async with trio.open_nursery() as nursery:
                if len(self.came) == 1:
                    nursery.start_soon(self._cut, websocket)
                while True:
                    came.append(json.loads(await websocket.recv())["value"])
        except* ConnectionClosed:
            pass  # The client left, or the socket was cut.

    async def _cut(self, websocket) -> None:
        await self.cut.wait()
        await websocket.aclose()


@pytest.mark.parametrize(
    ("instances", "another"),
    [
        (("1", "2"), True),
        ((None, "2"), True),
        (("1", "1"), False),
        ((None, None), False),
        (("1", None), False),
        (("1", ""), False),
    ],
)
async def test_the_same_id_of_another_server_is_another_request(instances, another) -> None:
    """Whoever says nothing, or the same, is the same: its request is not shown twice."""
    told = Told(*instances)
    session = OperatorSession(sid="op-1", token="t", features=("redelivery",))
    async with trio.open_nursery() as nursery:
        sockets = await nursery.start(
            partial(
                ws_serve, told.on_socket, 0, host="127.0.0.1", compression=None, process_response=told.about
            )
        )
        url = await nursery.start(_original_rest, sockets.listeners[0].socket.getsockname()[1])
        async with connect_operator(url, session=session, reconnect=QUICK) as client:
            first, replied = await client.receive(), await client.receive()
            assert replied.answer(1)
            await until(lambda: told.came[0] == [1])
            told.cut.set()
            await until(lambda: client.connections == 2 and client.statistics().repeated == 2 - 2 * another)
            if another:
                with trio.fail_after(20):
                    notice, again, replied_again = [await client.receive() for _ in range(3)]
                assert notice == Withdrawn(first, "server_restarted")
                assert (again.req_id, replied_again.req_id) == ("open", "replied")
                assert not first.answer(3)
                assert again.answer(2)
                await until(lambda: told.came[1] == [2])
            else:
                assert first.answer(3)
                await until(lambda: told.came[1] == [1, 3])
            assert client.statistics().withdrawn == int(another)
        nursery.cancel_scope.cancel()


async def _asks_again(websocket) -> None:
    """Takes no notice of the replies, gives no receipts, and asks the first again."""
    for req_id in ("a", "b", "a"):
        await websocket.send(json.dumps({"type": "ask", "req_id": req_id, "task_id": "t", "question": 1}))
        with suppress(ConnectionClosed):  # The client leaves the last one.
            await websocket.recv()


async def test_a_reply_that_was_let_go_is_over_when_its_request_comes_again() -> None:
    """Who waits for what became of it would wait for ever: of one id only the last one is known."""
    session = OperatorSession(sid="op-1", token="t", features=("redelivery", "receipts"))
    async with trio.open_nursery() as nursery:
        sockets = await nursery.start(partial(ws_serve, _asks_again, 0, host="127.0.0.1", compression=None))
        url = await nursery.start(_original_rest, sockets.listeners[0].socket.getsockname()[1])
        async with connect_operator(url, session=session, reconnect=QUICK) as client:
            client._ledger._remembered = 1  # Instead of thousands.
            with trio.fail_after(20):
                first = await client.receive()
                assert first.answer(1)
                second = await client.receive()
                assert second.answer(2)
                notice, again = await client.receive(), await client.receive()
                assert notice == ReplyRefused(first, "unknown")
                assert await first.settled() == Settled("unknown")
            assert (again.req_id, again is first) == ("a", False)
        nursery.cancel_scope.cancel()
