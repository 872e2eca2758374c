"""Each frame over a real socket, with an operator that is not of this library."""

from __future__ import annotations

import math
from functools import partial

import pytest
import trio
from trio.testing import wait_all_tasks_blocked
from websockets.exceptions import ConnectionClosed

from tests.operators.support import Events, Result, log_in, rest, seated, serving, socket_of
from trio_swarm.errors import ApprovalDenied, BusyError, FrameError, PeerGoneError, RemoteError
from trio_swarm.frames.operator import Worker
from trio_swarm.operators import WorkerResult


def spawn(seat, **options):
    known = {"task_id": "ST-1", "agent": "coder", "attempt": 1, "directive": "do it"}
    return partial(seat.spawn, **{**known, **options})


def ask(seat, question="?", **options):
    return partial(seat.ask, question, task_id="ST-1", **options)


def gate(seat):
    return partial(seat.hook_before, task_id="ST-1", agent="coder", attempt=2)


async def test_a_question_travels_and_its_answer_comes_back() -> None:
    """2.2, 2.6; the id's infix and the absent keys are the contract's."""
    async with seated() as (_, seat, peer, login), trio.open_nursery() as nursery:
        result = Result()
        nursery.start_soon(result.run, ask(seat, {"reason": "r", "value": [1]}))
        frame = await peer.next()
        assert frame.pop("req_id").startswith(f"{login.sid}-ask-")
        assert frame == {
            "type": "ask",
            "task_id": "ST-1",
            "question": {"reason": "r", "value": [1]},
            "deadline_ms": pytest.approx(60_000, abs=5_000),
        }

        await peer.send(type="answer", req_id=seat.pending()[0], value=None)
        await result.done.wait()

        assert (result.value, result.error) == (None, None)
        assert seat.pending() == ()


async def test_a_gate_lets_pass() -> None:
    """2.3, 2.7."""
    async with seated() as (_, seat, peer, _login), trio.open_nursery() as nursery:
        result = Result()
        nursery.start_soon(result.run, gate(seat))
        frame = await peer.next()
        assert (frame["type"], frame["agent"], frame["attempt"]) == ("hook_before", "coder", 2)
        assert "-hb-" in frame["req_id"]

        await peer.send(type="hook_ack", req_id=frame["req_id"], ok=True)
        await result.done.wait()

        assert result.error is None


@pytest.mark.parametrize(("sent", "told"), [({"reason": "too late"}, "too late"), ({}, "gave no reason")])
async def test_a_gate_denies(sent, told) -> None:
    """2.7: the reason is the operator's, or a fixed one."""
    async with seated() as (_, seat, peer, _login), trio.open_nursery() as nursery:
        result = Result()
        nursery.start_soon(result.run, gate(seat))
        frame = await peer.next()
        await peer.send(type="hook_ack", req_id=frame["req_id"], ok=False, **sent)
        await result.done.wait()

        assert isinstance(result.error, ApprovalDenied)
        assert told in result.error.reason
        assert (result.error.by, result.error.subject) == ("main", "coder")


async def test_a_notice_is_sent_and_never_waits() -> None:
    """2.4: no pending entry; a reply to it is an unknown one."""
    events = Events()
    async with seated(events) as (_, seat, peer, _login):
        seat.hook_after(task_id="ST-1", agent="coder", attempt=1, result={"x": 1})
        frame = await peer.next()
        assert (frame["type"], frame["result"]) == ("hook_after", {"x": 1})
        assert "-ha-" in frame["req_id"]
        assert seat.pending() == ()

        await peer.send(type="answer", req_id=frame["req_id"], value=1)
        await peer.ws.ping()
        while not events.of("reply_stray"):
            await trio.lowlevel.checkpoint()

        assert events.of("reply_stray")[0]["verdict"] == "unknown"


async def test_a_notice_that_waits_tells_the_result_as_it_was() -> None:
    """Its sender may go on with it: what is no JSON later would not be told at all."""
    async with serving() as server:
        login, result = await log_in(server), {"a": [1]}
        server.seat(login.sid).hook_after(task_id="ST-1", agent="a", attempt=1, result=result)
        result["a"].append(object())
        async with socket_of(server, login) as peer:
            assert (await peer.next())["result"] == {"a": [1]}


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ({"type": "spawn_ack"}, WorkerResult(None, True)),
        ({"type": "spawn_ack", "value": {"a": 1}, "ok": False}, WorkerResult({"a": 1}, False)),
        ({"type": "spawn_ack", "value": {}, "stats": {"model": "m"}}, WorkerResult({}, True, {"model": "m"})),
        ({"type": "spawn_ack", "ok": True, "error": ""}, RemoteError),
        ({"type": "spawn_ack", "error": "crashed"}, RemoteError),
        (
            {"type": "spawn_halt", "value": 3, "reason": "agreed"},
            WorkerResult({"halted": True, "reason": "agreed", "value": 3}, True),
        ),
        ({"type": "spawn_halt"}, WorkerResult({"halted": True, "reason": None, "value": None}, True)),
    ],
)
async def test_a_spawn_comes_to_a_result(reply, expected) -> None:
    """2.5, 2.8, 2.9: ok, error and halt as the contract maps them."""
    async with seated() as (_, seat, peer, _login), trio.open_nursery() as nursery:
        result = Result()
        worker = Worker(variant="v", tools=("Read",))
        nursery.start_soon(
            result.run, spawn(seat, capability_token="tok", worker_handle="wh-1", worker=worker)
        )
        frame = await peer.next()
        assert (frame["directive"], frame["capability_token"]) == ("do it", "tok")
        assert (frame["worker_handle"], frame["worker"]) == ("wh-1", {"variant": "v", "tools": ["Read"]})

        await peer.send(req_id=frame["req_id"], **reply)
        await result.done.wait()

        if expected is RemoteError:
            assert isinstance(result.error, RemoteError)
            assert str(result.error) == reply["error"]
        else:
            assert result.value == expected


REPLIES = {
    "answer": {"type": "answer", "value": 1},
    "hook_ack": {"type": "hook_ack", "ok": True},
    "spawn_ack": {"type": "spawn_ack"},
    "spawn_halt": {"type": "spawn_halt"},
}
FITS = {"ask": {"answer"}, "hook_before": {"hook_ack"}, "spawn": {"spawn_ack", "spawn_halt"}}
CALLS = {"ask": ask, "hook_before": gate, "spawn": spawn}


@pytest.mark.parametrize("verb", CALLS)
@pytest.mark.parametrize("kind", REPLIES)
async def test_a_reply_of_the_wrong_kind_does_not_burn_the_request(verb, kind) -> None:
    """The matrix of 3.4, repaired: the right reply still counts."""
    events = Events()
    async with seated(events) as (_, seat, peer, _login), trio.open_nursery() as nursery:
        result = Result()
        nursery.start_soon(result.run, CALLS[verb](seat))
        req_id = (await peer.next())["req_id"]
        await peer.send(req_id=req_id, **REPLIES[kind])
        await peer.send(req_id=req_id, **REPLIES[next(iter(FITS[verb]))])
        await result.done.wait()

        assert result.error is None
        while seat.statistics().replies.accepted + len(events.of("reply_stray")) < 2:
            await trio.lowlevel.checkpoint()
        verdicts = [event["verdict"] for event in events.of("reply_stray")]
        assert verdicts == (["duplicate"] if kind in FITS[verb] else ["wrong_kind"])


MALFORMED = [
    "not json at all",
    "[]",
    '{"req_id":"x"}',
    '{"type":"unknown_kind","req_id":"x"}',
    '{"type":"hook_ack","req_id":"x"}',
    '{"type":"answer","req_id":"x"}',
    '{"type":"spawn_ack","req_id":7}',
    '{"type":"spawn_ack","req_id":"x","ok":"yes"}',
    '{"type":"hook_ack","req_id":"x","ok":true,"reason":5}',
    "[" * 100_000,
    '{"type":"answer","req_id":"\\ud800","value":NaN}',
]


async def test_malformed_frames_are_dropped_and_the_socket_stays() -> None:
    """2.10, and some of our own; a binary message is ignored too."""
    async with seated() as (_, seat, peer, _login), trio.open_nursery() as nursery:
        for text in MALFORMED:
            await peer.raw(text)
        await peer.raw(b"\x00\xff")
        result = Result()
        nursery.start_soon(result.run, ask(seat))
        frame = await peer.next()
        await peer.send(type="answer", req_id=frame["req_id"], value="still here")
        await result.done.wait()

        assert result.value == "still here"
        assert seat.statistics().malformed == len(MALFORMED)


async def test_late_duplicate_and_unknown_replies_are_counted() -> None:
    """3.3: they change nothing; here they are reported."""
    events = Events()
    async with seated(events) as (_, seat, peer, _login), trio.open_nursery() as nursery:
        result = Result()
        nursery.start_soon(result.run, ask(seat))
        first = (await peer.next())["req_id"]
        await peer.send(type="answer", req_id=first, value=1)
        await peer.send(type="answer", req_id=first, value=2)
        await result.done.wait()
        with trio.CancelScope() as scope:
            nursery.start_soon(_cancel_when_asked, peer, scope)
            await ask(seat)()
        late = (await peer.next())["req_id"]
        await peer.send(type="answer", req_id=late, value=3)
        await peer.send(type="answer", req_id="who?", value=3)
        while len(events.of("reply_stray")) < 3:
            await trio.lowlevel.checkpoint()

        assert result.value == 1
        assert [event["verdict"] for event in events.of("reply_stray")] == ["duplicate", "late", "unknown"]


async def _cancel_when_asked(peer, scope) -> None:
    await peer.next()
    scope.cancel()


@pytest.mark.parametrize("how", ["cancelled", "deadline"])
async def test_an_asker_that_gives_up_withdraws_its_request(how) -> None:
    """7.4 #2: the operator is told, and nothing stays in the table."""
    async with seated() as (_, seat, peer, _login), trio.open_nursery() as nursery:
        within = 0.2 if how == "deadline" else math.inf
        with trio.move_on_after(within) as scope:
            if how == "cancelled":
                nursery.start_soon(_cancel_when_pending, seat, scope)
            await ask(seat)()
        frames = [await peer.next(), await peer.next()]

        assert [frame["type"] for frame in frames] == ["ask", "withdraw"]
        assert frames[1] == {"type": "withdraw", "req_id": frames[0]["req_id"], "reason": how}
        if how == "deadline":
            assert 0 < frames[0]["deadline_ms"] <= 200
        assert seat.pending() == ()
        assert seat.statistics().delivery.outstanding == 0


async def test_a_spawn_of_no_step_is_given_up_by_its_asker_alone() -> None:
    """S22: not with another that names the same task, nor when that is settled."""
    async with seated() as (_, seat, peer, _login), trio.open_nursery() as nursery:
        results, scopes, asked = [Result() for _ in range(3)], [trio.CancelScope() for _ in range(3)], []

        async def run(result, scope) -> None:
            with scope:
                await result.run(spawn(seat))

        for result, scope in zip(results, scopes, strict=True):
            nursery.start_soon(run, result, scope)
            asked.append((await peer.next())["req_id"])
        await peer.send(type="spawn_ack", req_id=asked[0], value=1)
        await results[0].done.wait()
        assert seat.pending() == tuple(asked[1:])
        scopes[1].cancel()
        withdrawn = await peer.next()
        assert withdrawn == {"type": "withdraw", "req_id": asked[1], "reason": "cancelled"}
        assert seat.pending() == (asked[2],)
        await peer.send(type="spawn_ack", req_id=asked[2], value=3)
        await results[2].done.wait()

    assert [result.value and result.value.value for result in results] == [1, None, 3]


async def _cancel_when_pending(seat, scope) -> None:
    await wait_all_tasks_blocked(0.05)
    scope.cancel()


@pytest.mark.parametrize("verb", CALLS)
async def test_a_request_parks_while_the_operator_is_away(verb) -> None:
    """S6, S7: it is delivered by whichever socket comes."""
    async with serving() as server, trio.open_nursery() as nursery:
        login = await log_in(server)
        seat = server.seat(login.sid)
        result = Result()
        nursery.start_soon(result.run, CALLS[verb](seat))
        seat.hook_after(task_id="ST-1", agent="a", attempt=1, result=None)
        await wait_all_tasks_blocked()
        assert not seat.connected

        async with socket_of(server, login) as peer:
            frames = [await peer.next(), await peer.next()]
            assert {frame["type"] for frame in frames} == {verb, "hook_after"}
            asked = next(frame for frame in frames if frame["type"] == verb)
            await peer.send(req_id=asked["req_id"], **REPLIES[next(iter(FITS[verb]))])
            await result.done.wait()

        assert result.error is None
        assert seat.statistics().redelivered == 0


@pytest.mark.parametrize("verb", CALLS)
async def test_a_request_that_is_parked_fails_when_the_session_ends(verb) -> None:
    """S8: at once, though no socket ever came; and a later one does not park."""
    async with serving() as server, rest(server) as client, trio.open_nursery() as nursery:
        login = await log_in(server, roles=["main"])
        seat, result = server.seat(login.sid), Result()
        nursery.start_soon(result.run, CALLS[verb](seat))
        await wait_all_tasks_blocked()
        assert len(seat.pending()) == 1
        answer = await client.delete(f"/v1/operators/{login.sid}", headers=login.bearer)
        assert answer.status_code == 204
        with trio.fail_after(5):
            await result.done.wait()
            with pytest.raises(PeerGoneError):
                await CALLS[verb](seat)()
        await log_in(server, roles=["main"])

    assert isinstance(result.error, PeerGoneError)
    assert seat.pending() == ()


async def test_frames_come_in_the_order_in_which_they_were_made() -> None:
    """3.5: requests of every kind and notices alike, on one socket and again on the next."""
    made: list[str] = []
    async with serving() as server, trio.open_nursery() as nursery:
        login = await log_in(server)
        seat = server.seat(login.sid)

        async def make(number: int) -> None:
            verb = [*CALLS, "hook_after"][number % 4]
            made.append(f"{verb}/ST-{number}")
            about = {"task_id": f"ST-{number}", "agent": "a", "attempt": 1}
            if verb == "hook_after":
                seat.hook_after(**about, result=number)
            elif verb == "ask":
                await seat.ask(number, task_id=f"ST-{number}")
            else:
                await CALLS[verb](seat).func(**{**about, **({"directive": "d"} if verb == "spawn" else {})})

        async def read(peer, count: int) -> list[str]:
            frames = [await peer.next() for _ in range(count)]
            return [f"{frame['type']}/{frame['task_id']}" for frame in frames]

        async with socket_of(server, login) as peer:
            await server.wait_seat(login.sid)
            for number in range(40):
                nursery.start_soon(make, number)
            assert await read(peer, 40) == made
        for number in range(40, 80):
            nursery.start_soon(make, number)
        await wait_all_tasks_blocked()
        async with socket_of(server, login) as peer:
            told = {each for each in made[:40] if each.startswith("hook_after")}
            wanted = [each for each in made if each not in told]
            assert await read(peer, len(wanted)) == wanted
        nursery.cancel_scope.cancel()


async def test_two_first_sockets_that_race_leave_one_that_is_served() -> None:
    """3.3: whichever is the later one has the seat, and no other is left orphaned."""
    async with serving() as server, trio.open_nursery() as nursery:
        login = await log_in(server)
        seat, result, peers, ended = server.seat(login.sid), Result(), [], []

        async def come() -> None:
            async with socket_of(server, login) as peer:
                peers.append(peer)
                try:
                    while True:
                        frame = await peer.next()
                        await peer.send(type="answer", req_id=frame["req_id"], value="served")
                except ConnectionClosed as closed:
                    assert closed.rcvd is not None
                    ended.append(closed.rcvd.code)

        for _ in range(5):
            nursery.start_soon(come)
        with trio.fail_after(10):
            while len(ended) < 4:
                await trio.lowlevel.checkpoint()
            nursery.start_soon(result.run, ask(seat))
            await result.done.wait()

        assert (len(peers), ended) == (5, [4001] * 4)
        assert result.value == "served"
        assert seat.statistics().delivery.sockets == 5
        nursery.cancel_scope.cancel()


async def test_a_request_that_was_written_to_a_dying_socket_is_delivered_again() -> None:
    """7.4 #1: same id, in order, with the time that is left, and answered once."""
    events = Events()
    async with serving(events) as server, trio.open_nursery() as nursery:
        login = await log_in(server)
        seat = server.seat(login.sid)
        results = [Result() for _ in range(3)]
        async with socket_of(server, login) as peer:
            for number, result in enumerate(results):
                nursery.start_soon(result.run, ask(seat, number))
                await wait_all_tasks_blocked()
            first = [await peer.next() for _ in results]
            await server.disconnect(login.sid)
            with pytest.raises(ConnectionClosed):
                await peer.next()
        assert not seat.connected

        async with socket_of(server, login) as peer:
            again = [await peer.next() for _ in results]
            for frame in again:
                await peer.send(type="answer", req_id=frame["req_id"], value=frame["question"])
            for result in results:
                await result.done.wait()

        assert [frame["req_id"] for frame in again] == [frame["req_id"] for frame in first]
        assert all(new["deadline_ms"] <= old["deadline_ms"] for new, old in zip(again, first, strict=True))
        assert [result.value for result in results] == [0, 1, 2]
        assert server.statistics().redelivered == 3
        assert "operator_away" in events.kinds()
        assert events.of("redelivered")[0]["req_ids"] == [frame["req_id"] for frame in first]


async def test_a_new_socket_replaces_the_old_one() -> None:
    """7.4 #8: the old one is closed with a code that says so, and its end changes nothing."""
    async with serving() as server, trio.open_nursery() as nursery:
        login = await log_in(server)
        seat = server.seat(login.sid)
        async with socket_of(server, login) as old, socket_of(server, login) as new:
            with pytest.raises(ConnectionClosed) as closed:
                await old.next()
            assert closed.value.rcvd is not None
            assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (
                4001,
                "replaced by a newer connection",
            )
            assert seat.connected

            result = Result()
            nursery.start_soon(result.run, ask(seat))
            frame = await new.next()
            await new.send(type="answer", req_id=frame["req_id"], value=1)
            await result.done.wait()

            assert result.value == 1


async def test_deleting_a_session_fails_its_waits_and_closes_its_socket() -> None:
    """3.3, the DELETE row: at once, with code 1000 and a reason; S5, S8."""
    events = Events()
    async with seated(events) as (server, seat, peer, login), trio.open_nursery() as nursery:
        results = [Result() for _ in CALLS]
        for result, call in zip(results, CALLS.values(), strict=True):
            nursery.start_soon(result.run, call(seat))
        for _ in results:
            await peer.next()
        async with rest(server) as client:
            assert (
                await client.delete(f"/v1/operators/{login.sid}", headers=login.bearer)
            ).status_code == 204
            assert (
                await client.delete(f"/v1/operators/{login.sid}", headers=login.bearer)
            ).status_code == 404
        for result in results:
            await result.done.wait()
        with pytest.raises(ConnectionClosed) as closed:
            await peer.next()

        assert all(isinstance(result.error, PeerGoneError) for result in results)
        assert len({id(result.error) for result in results}) == 3
        assert closed.value.rcvd is not None
        assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (1000, "the session was deleted")
        assert events.of("operator_left")[0]["failed"] == 3
        with pytest.raises(PeerGoneError):
            await ask(seat)()
        with pytest.raises(PeerGoneError):
            await seat.wait_connected()


async def test_leaving_the_server_fails_what_still_waits() -> None:
    """Nothing waits for ever on an operator of a server that is no more."""
    result = Result()
    async with trio.open_nursery() as nursery, seated() as (_, seat, peer, _login):
        nursery.start_soon(result.run, ask(seat))
        await peer.next()
    assert isinstance(result.error, PeerGoneError)


async def test_too_many_pending_requests_are_refused() -> None:
    """MAX_PENDING is a refusal, not a queue without end."""
    async with seated(max_pending=2) as (_, seat, _peer, _login), trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(ask(seat))
        await wait_all_tasks_blocked()
        with pytest.raises(BusyError):
            await ask(seat)()
        nursery.cancel_scope.cancel()


async def test_what_is_no_json_is_the_callers_error() -> None:
    """It never reaches the wire, and leaves nothing behind."""
    async with seated() as (_, seat, _peer, _login):
        with pytest.raises(FrameError):
            await ask(seat, object())()
        with pytest.raises(FrameError):
            seat.hook_after(task_id="t", agent="a", attempt=1, result={1, 2})
        assert seat.statistics().delivery.requests == 0


async def test_notices_beyond_the_bound_drop_the_oldest() -> None:
    """7.4 #7: bounded while the operator is away; each loss is an event."""
    events = Events()
    async with serving(events, max_notices=2) as server:
        login = await log_in(server)
        seat = server.seat(login.sid)
        for number in range(4):
            seat.hook_after(task_id="t", agent="a", attempt=1, result=number)
        async with socket_of(server, login) as peer:
            kept = [(await peer.next())["result"] for _ in range(2)]

        assert kept == [2, 3]
        assert len(events.of("notice_dropped")) == 2


async def test_a_frame_that_is_too_large_fails_its_request_alone() -> None:
    """The seat, its socket and everybody else's request go on."""
    async with seated(max_frame=64 * 1024) as (_, seat, peer, _login), trio.open_nursery() as nursery:
        with pytest.raises(FrameError):
            await ask(seat, "x" * 2**25)()
        result = Result()
        nursery.start_soon(result.run, ask(seat, "small"))
        frame = await peer.next()
        await peer.send(type="answer", req_id=frame["req_id"], value="fine")
        await result.done.wait()
        assert result.value == "fine"


async def test_a_silent_peer_is_detached_and_one_that_answers_pings_stays(autojump_clock) -> None:
    """J48, J49: total silence is death; any byte, a pong included, is life."""
    events = Events()
    async with serving(events, ping_every=3, silence=15) as server:
        mute, alive = await log_in(server, roles=["mute"]), await log_in(server, roles=["alive"])
        host, port = server.url.removeprefix("http://").split(":")
        async with await trio.open_tcp_stream(host, int(port)) as stream, socket_of(server, alive):
            await stream.send_all(
                f"GET /v1/operators/{mute.sid}/ws HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: Upgrade\r\n"
                f"Upgrade: websocket\r\nAuthorization: Bearer {mute.token}\r\nSec-WebSocket-Version: 13\r\n"
                "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode()
            )
            await server.wait_seat("mute")
            await trio.sleep(14)
            assert server.seat("mute").connected
            await trio.sleep(3)
            assert not server.seat("mute").connected
            assert server.seat("alive").connected
            assert events.of("operator_away") == [{"sid": mute.sid, "name": "mute"}]


async def test_a_crowd_of_cancelled_requests_pushes_out_no_notice() -> None:
    """The operator is told of every withdrawal and of everything else, when it is back."""
    events = Events()
    async with serving(events) as server:
        login = await log_in(server)
        seat = server.seat(login.sid)
        async with trio.open_nursery() as nursery:
            async with socket_of(server, login) as peer:
                for number in range(300):
                    nursery.start_soon(ask(seat, number))
                asked = {(await peer.next())["req_id"] for _ in range(300)}
                await server.disconnect(login.sid)
            for number in range(200):
                seat.hook_after(task_id="ST-1", agent="a", attempt=1, result=number)
            nursery.cancel_scope.cancel()
        async with socket_of(server, login) as peer:
            frames = [await peer.next() for _ in range(500)]

    assert [frame["result"] for frame in frames if frame["type"] == "hook_after"] == list(range(200))
    assert {frame["req_id"] for frame in frames if frame["type"] == "withdraw"} == asked
    assert events.of("notice_dropped") == []


async def test_a_notice_larger_than_a_frame_is_dropped_and_named() -> None:
    """It would fare no better on the next socket; what comes behind it is told."""
    events = Events()
    async with seated(events, max_frame=1000) as (_, seat, peer, _login):
        seat.hook_after(task_id="ST-1", agent="a", attempt=1, result="x" * 2000)
        seat.hook_after(task_id="ST-1", agent="a", attempt=2, result="y")
        assert (await peer.next())["attempt"] == 2
        [dropped] = events.of("notice_dropped")
        assert "-ha-" in str(dropped["req_id"])
        with trio.fail_after(5):
            while seat.statistics().delivery.notices:
                await trio.lowlevel.checkpoint()


STATS = [{"usage": {"total_tokens": 19001}}, {}, "a text", 7, [1], {"usage": "much"}, None]


@pytest.mark.parametrize("stats", STATS)
async def test_no_shape_of_statistics_fails_an_ack(stats) -> None:
    """S14, S15: told as the operator told it, whatever it is."""
    async with seated() as (_, seat, peer, _login), trio.open_nursery() as nursery:
        result = Result()
        nursery.start_soon(result.run, spawn(seat))
        frame = await peer.next()
        await peer.send(type="spawn_ack", req_id=frame["req_id"], value=1, stats=stats)
        await result.done.wait()

    assert result.value == WorkerResult(1, True, stats)


async def test_a_notice_that_was_kept_for_an_absent_operator_is_no_loss() -> None:
    """S12, S13, repaired: nothing is dropped and nothing is said of it."""
    events = Events()
    async with serving(events) as server:
        login = await log_in(server)
        seat = server.seat(login.sid)
        seat.hook_after(task_id="t", agent="a", attempt=1, result="while away")
        async with socket_of(server, login) as peer:
            assert (await peer.next())["result"] == "while away"
            seat.hook_after(task_id="t", agent="a", attempt=1, result="while there")
            assert (await peer.next())["result"] == "while there"

    assert not [kind for kind in events.kinds() if kind.startswith("notice")]
