"""Receipts: what became of a reply, for operators that want to know, and for nobody else."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio
from trio.testing import wait_all_tasks_blocked
from websockets.trio.client import connect

from tests.operators.support import Events, Login, Peer, Result, log_in, rest, serving
from trio_swarm.errors import PeerGoneError
from trio_swarm.frames.operator import Answer
from trio_swarm.operators import Reconnect, ReplyRefused, connect_operator
from trio_swarm.operators.intake import Receipts
from trio_swarm.operators.ledger import Ledger

QUICK = Reconnect(first=0.01, longest=0.05, give_up_after=5.0)
STEP = {"task_id": "ST-1", "agent": "coder", "attempt": 1}
REPLIES = {
    "answer": {"type": "answer", "value": 1},
    "hook_ack": {"type": "hook_ack", "ok": True},
    "spawn_ack": {"type": "spawn_ack"},
    "spawn_halt": {"type": "spawn_halt"},
}
FITS = {
    "ask": {"answer"},
    "hook_before": {"hook_ack"},
    "spawn": {"spawn_ack", "spawn_halt"},
    "hook_after": (),
}


@asynccontextmanager
async def seated(how="header", **options):
    """One independent operator that asks for receipts by the header or by the query."""
    async with serving(**options) as server:
        login = await log_in(server, roles=["main"])
        async with opened(server, login, how) as peer:
            yield server, await server.wait_seat("main"), peer


@asynccontextmanager
async def opened(server, login: Login, how: str):
    query = {"query": "?receipts=1", "query0": "?receipts=0"}.get(how, "")
    url = server.url.replace("http", "ws", 1) + f"/v1/operators/{login.sid}/ws{query}"
    headers = {**login.bearer, **({"Trio-Swarm-Receipts": "1"} if how == "header" else {})}
    async with connect(url, additional_headers=headers, compression=None, proxy=None) as websocket:
        yield Peer(websocket)


async def receipt(peer) -> tuple[str, bool, str | None]:
    frame = await peer.next()
    assert frame.pop("type") == "receipt"
    return frame["req_id"], frame["accepted"], frame.get("reason")


def call(seat, verb):
    more = {"spawn": {"directive": "d"}, "hook_after": {"result": 1}}.get(verb, {})
    known = {"question": 1, "task_id": "t"} if verb == "ask" else {**STEP, **more}
    return partial(getattr(seat, verb), **known)


async def test_a_login_says_that_there_are_receipts() -> None:
    """Beside the other features."""
    async with serving() as server, rest(server) as client:
        answer = await client.post("/v1/operators", json={})
        assert "receipts" in answer.headers["trio-swarm-features"]


@pytest.mark.parametrize("how", ["header", "query"])
@pytest.mark.parametrize("verb", FITS)
@pytest.mark.parametrize("kind", REPLIES)
async def test_the_matrix_of_requests_and_replies(how, verb, kind) -> None:
    """Four by four: the one that fits counts, each other is refused and uses nothing up."""
    async with seated(how) as (_, seat, peer), trio.open_nursery() as nursery:
        result = Result()
        if verb == "hook_after":
            call(seat, verb)()
        else:
            nursery.start_soon(result.run, call(seat, verb))
        req_id = (await peer.next())["req_id"]
        await peer.send(req_id=req_id, **REPLIES[kind])
        if kind in FITS[verb]:
            assert await receipt(peer) == (req_id, True, None)
        else:
            why = "unknown" if verb == "hook_after" else "wrong_kind"
            assert await receipt(peer) == (req_id, False, why)
            assert seat.pending() == (() if verb == "hook_after" else (req_id,))
            for fitting in list(FITS[verb])[:1]:
                await peer.send(req_id=req_id, **REPLIES[fitting])
                assert await receipt(peer) == (req_id, True, None)
        if verb != "hook_after":
            await result.done.wait()
            assert result.error is None


@pytest.mark.parametrize("how", ["header", "none", "query0"])
async def test_duplicate_late_unknown_and_malformed_replies(how) -> None:
    """Each with its reason; and without a word to an operator that did not ask for receipts."""
    async with seated(how) as (_, seat, peer), trio.open_nursery() as nursery:
        result = Result()
        nursery.start_soon(result.run, call(seat, "ask"))
        answered = (await peer.next())["req_id"]
        await peer.send(type="answer", req_id=answered, value=1)
        await peer.send(type="answer", req_id=answered, value=2)
        await peer.send(type="answer", req_id="who?", value=2)
        await peer.send(type="answer", req_id="no value")
        await peer.send(type="answer", req_id="y" * 2000, value=1)
        await peer.send(type="novelty", req_id="new")
        await peer.send(type="answer", req_id="\ud800", value=1)
        for text in ("junk", "[]", '{"type":"answer"}', '{"type":"answer","req_id":7,"value":1}', "[" * 3000):
            await peer.raw(text)
        expected = [
            (answered, True, None),
            (answered, False, "duplicate"),
            ("who?", False, "unknown"),
            ("no value", False, "malformed"),
            ("new", False, "malformed"),
        ]
        if how == "header":
            assert [await receipt(peer) for _ in expected] == expected
        await result.done.wait()
        nursery.start_soon(call(seat, "ask"))
        assert (await peer.next())["type"] == "ask"
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("why", ["cancelled", "deadline"])
async def test_a_late_reply_is_told_what_settled_its_request(why) -> None:
    """``late:`` and the reason of the withdrawal."""
    async with seated() as (_, seat, peer), trio.open_nursery() as nursery:
        with trio.move_on_after(0.1 if why == "deadline" else 30) as scope:
            if why == "cancelled":
                nursery.start_soon(_cancel_when_pending, seat, scope)
            await call(seat, "ask")()
        req_id = (await peer.next())["req_id"]
        assert (await peer.next())["type"] == "withdraw"
        await peer.send(type="answer", req_id=req_id, value=1)
        assert await receipt(peer) == (req_id, False, f"late:{why}")


async def _cancel_when_pending(seat, scope) -> None:
    await wait_all_tasks_blocked(0.02)
    scope.cancel()


def test_receipts_that_nobody_takes_are_bounded() -> None:
    """The oldest go; an id that cannot be written is left out."""
    receipts = Receipts()
    receipts.put("\ud800", None)
    for number in range(10_000):
        receipts.put(str(number), None)
    kept = receipts.take()
    assert (len(kept), kept[-1].req_id) == (4096, "9999")
    assert receipts.take() == []


# -- the client ----------------------------------------------------------------------------


@asynccontextmanager
async def together(events: Events | None = None):
    async with (
        serving(events) as server,
        connect_operator(server.url, roles=["main"], reconnect=QUICK) as client,
    ):
        yield server, await server.wait_seat("main"), client


async def test_a_client_can_wait_for_the_receipt() -> None:
    """True if the reply counts; nothing to wait for before there is one."""
    async with together() as (_, seat, client), trio.open_nursery() as nursery:
        assert client.receipts
        nursery.start_soon(call(seat, "ask"))
        request = await client.receive()
        with pytest.raises(RuntimeError, match="not replied"):
            await request.settled()
        request.answer(1)
        settled = await request.settled()
        assert settled
        assert settled.reason is None


async def test_a_reply_that_crosses_its_withdrawal_is_known_to_be_late() -> None:
    """To who waits, and as an item for who does not."""
    async with together() as (_, seat, client), trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:
            nursery.start_soon(_answer_and_cancel, client, scope, taken := [])
            await call(seat, "ask")()
        request = taken[0]
        settled = await request.settled()
        assert not settled
        assert settled.reason == "late:cancelled"
        item = await client.receive()
        assert isinstance(item, ReplyRefused)
        assert (item.request, item.req_id, item.reason) == (request, request.req_id, "late:cancelled")


async def _answer_and_cancel(client, scope, taken) -> None:
    request = await client.receive()
    assert request.answer(1)  # It leaves at the next checkpoint, and by then:
    scope.cancel()
    taken.append(request)


async def test_a_request_that_was_withdrawn_first_is_settled_without_a_reply() -> None:
    """There is no reply to wait for."""
    async with together() as (_, seat, client), trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:
            nursery.start_soon(_take_then_cancel, client, scope, taken := [])
            await call(seat, "ask")()
        await client.receive()
        assert not taken[0].answer("too late")
        assert (await taken[0].settled()).reason == "late:cancelled"


async def _take_then_cancel(client, scope, taken) -> None:
    taken.append(await client.receive())
    scope.cancel()


async def test_a_session_that_ends_first_is_an_error_and_no_hang() -> None:
    """Whoever waits is told that nobody will say."""
    async with together() as (server, seat, client), trio.open_nursery() as nursery:
        result, told = Result(), Result()
        nursery.start_soon(result.run, call(seat, "ask"))
        request = await client.receive()
        await server.disconnect("main")
        request.answer(1)
        await server.remove("main", "enough")
        await told.run(request.settled)
        assert isinstance(told.error, PeerGoneError)
        await result.done.wait()


def a_ledger() -> Ledger[str]:
    ledger = Ledger[str]()
    ledger.connected(redelivers=True, receipts=True)
    return ledger


def replied(ledger: Ledger[str], req_id: str) -> None:
    assert ledger.arrived(req_id) == "new"
    ledger.show(req_id, req_id)
    assert ledger.reply(req_id, Answer(req_id=req_id, value=1), 1)
    ledger.written(ledger.take())


def test_a_reply_without_receipt_is_sent_again_and_is_no_duplicate_of_itself() -> None:
    """The receipt may have been lost with the socket: the copy of ours that was first counts."""
    ledger = a_ledger()
    for req_id in "ab":
        replied(ledger, req_id)
    told = ledger.receipt("a", True, None)
    assert told is not None
    assert (told.request, told.refused) == ("a", None)
    ledger.connected(redelivers=True, receipts=True)
    assert [frame.req_id for frame in ledger.take()] == ["b"]
    told = ledger.receipt("b", False, "duplicate")
    assert told is not None
    assert told.refused is None
    assert ledger.receipt("b", False, "duplicate") is None
    assert ledger.receipt("nobody's", True, None) is None
    assert ledger.unreceipted() == []
    ledger.connected(redelivers=True, receipts=True)
    assert ledger.take() == []


def test_a_duplicate_of_a_reply_that_was_sent_once_was_somebody_elses() -> None:
    """It does not count."""
    ledger = a_ledger()
    replied(ledger, "a")
    assert ledger.unreceipted() == ["a"]
    told = ledger.receipt("a", False, "duplicate")
    assert told is not None
    assert told.refused == "duplicate"


async def test_a_receipt_lost_with_its_socket_comes_on_the_next() -> None:
    """An independent server: it takes the answer, and hangs up instead of saying so."""
    from websockets.trio.server import serve as ws_serve

    from tests.operators.test_client import _original_rest

    sockets = 0
    ask = json.dumps({"type": "ask", "req_id": "r", "task_id": "t", "question": 1})
    seen = []

    async def on_socket(websocket) -> None:
        nonlocal sockets
        sockets += 1
        seen.append(websocket.request.headers.get("Trio-Swarm-Receipts"))
        if sockets == 1:
            await websocket.send(ask)
            await websocket.recv()
            return
        again = json.loads(await websocket.recv())
        verdict = {"type": "receipt", "req_id": again["req_id"], "accepted": False, "reason": "duplicate"}
        await websocket.send(json.dumps(verdict))
        await websocket.wait_closed()

    from trio_swarm.operators import OperatorSession

    session = OperatorSession(sid="op-1", token="t", features=("receipts", "redelivery"))
    async with trio.open_nursery() as nursery:
        server = await nursery.start(partial(ws_serve, on_socket, 0, host="127.0.0.1", compression=None))
        port = server.listeners[0].socket.getsockname()[1]
        url = await nursery.start(_original_rest, port)
        async with connect_operator(url, session=session, reconnect=QUICK) as client:
            request = await client.receive()
            request.answer(1)
            assert await request.settled()
        assert (sockets, seen) == (2, ["1", "1"])
        nursery.cancel_scope.cancel()
