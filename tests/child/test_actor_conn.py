"""The driver of one connection, over the in-memory pair and under a mock clock where time counts."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from trio_swarm._child.actor_conn import Connection
from trio_swarm._child.actor_engines import echo
from trio_swarm._io.memory import memory_transport_pair
from trio_swarm.errors import FrameError
from trio_swarm.limits import MAX_FRAME


class Peer:
    def __init__(self, transport):
        self.transport = transport
        self.received = []
        self.runaways = 0

    async def send(self, **frame):
        await self.transport.send_batch([json.dumps(frame)])

    async def next(self):
        while not self.received:
            batch = await self.transport.receive_batch()
            assert batch, "hung up"
            self.received += [json.loads(message) for message in batch]
        return self.received.pop(0)


@asynccontextmanager
async def connected(engine, **options):
    ours, theirs = memory_transport_pair()
    peer = Peer(theirs)

    async def runaway():
        peer.runaways += 1

    connection = Connection(ours, engine, on_runaway=runaway, **options)

    async def serve():
        await connection.serve()
        await ours.aclose()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        yield peer, connection
        await theirs.aclose()


async def test_echo_streams_then_completes():
    """3 events for 2 words, then the terminal."""
    async with connected(echo) as (peer, _):
        await peer.send(kind="run", assignment="two words")
        got = [await peer.next() for _ in range(4)]
    assert [frame["kind"] for frame in got] == ["event", "event", "event", "terminal"]
    assert got[1]["event"] == {"type": "token", "content": "words "}


@pytest.mark.parametrize(
    ("assignment", "result"),
    [
        ("", "echo: "),
        ("  a   b ", "echo: a b"),
        ("a __sleep_ms:1 b", "echo: a b"),
        ("__sleep_ms:1 __sleep_ms:2", "echo: __sleep_ms:2"),
        ("__sleep_ms:x a", "echo: __sleep_ms:x a"),
    ],
)
async def test_the_echo_contract(assignment, result):
    """Split on whitespace, the first sleep word removed (A5)."""
    async with connected(echo) as (peer, _):
        await peer.send(kind="run", assignment=assignment)
        while (frame := await peer.next())["kind"] != "terminal":
            pass
    assert frame["result"] == result


async def test_echo_honors_cancel(autojump_clock):
    """During its sleep, at once, without output."""
    async with connected(echo) as (peer, _):
        await peer.send(kind="run", assignment="a __sleep_ms:10000")
        await trio.testing.wait_all_tasks_blocked()
        begun = trio.current_time()
        await peer.send(kind="cancel")
        assert await peer.next() == {"kind": "terminal", "status": "cancelled"}
        assert trio.current_time() == begun


async def test_an_engine_waits_when_nobody_reads():
    """At most 64 events of ours wait; no queue grows without bound."""
    emitted = []

    async def engine(run):
        for n in range(10_000):
            await run.emit({"n": n})
            emitted.append(n)
        return ""

    async with connected(engine) as (peer, _):
        await peer.send(kind="run", assignment="x")
        await trio.testing.wait_all_tasks_blocked()
        held = len(emitted)
        assert 64 <= held < 2000
        await peer.send(kind="cancel")
        while (await peer.next())["kind"] != "terminal":
            pass
        assert len(emitted) < 10_000


async def test_a_peer_that_never_reads_is_dropped(autojump_clock):
    """After the send deadline; the engine is cancelled."""
    ended = trio.Event()

    async def engine(run):
        try:
            while True:
                await run.emit({"x": "y"})
        finally:
            ended.set()

    async with connected(engine, send_deadline=5.0) as (peer, _):
        await peer.send(kind="run", assignment="x")
        begun = trio.current_time()
        await ended.wait()
        assert 5 <= trio.current_time() - begun < 6


async def test_an_approval_without_an_answer_is_denied_in_the_end(autojump_clock):
    """A parent should deny by itself after 300 s; the child does not wait for ever."""

    async def engine(run):
        return str(await run.request_approval("Bash", "execute"))

    async with connected(engine, approval_wait=20.0) as (peer, _):
        await peer.send(kind="run", assignment="x")
        await peer.next()
        begun = trio.current_time()
        assert (await peer.next())["result"] == "False"
        assert trio.current_time() - begun == pytest.approx(20, abs=0.1)


async def test_disconnect_denies_before_it_cancels():
    """A tool call that waits in a shield sees False, not a guess."""
    answers = []

    async def engine(run):
        with trio.CancelScope(shield=True):
            answers.append(await run.request_approval("Bash", "execute"))
        return ""

    async with connected(engine) as (peer, _):
        await peer.send(kind="run", assignment="x")
        await peer.next()
    assert answers == [False]


async def test_a_runaway_engine_is_reported_once_and_refused(autojump_clock):
    """Its terminal is sent for it; what it says later is refused; the driver is told."""
    let_go = trio.Event()
    refused = []

    async def engine(run):
        with trio.CancelScope(shield=True):
            await let_go.wait()
            try:
                await run.emit({"late": True})
            except trio.BrokenResourceError:
                refused.append(True)
        return ""

    async with connected(engine, drain=3.0) as (peer, connection):
        await peer.send(kind="run", assignment="x")
        await trio.testing.wait_all_tasks_blocked()
        await peer.send(kind="cancel")
        begun = trio.current_time()
        assert await peer.next() == {"kind": "terminal", "status": "cancelled"}
        assert trio.current_time() - begun == pytest.approx(3, abs=0.1)
        assert await peer.transport.receive_batch() == ()
        assert connection.tainted
        while not peer.runaways:
            await trio.sleep(0.1)
        let_go.set()
    assert peer.runaways == 1
    assert refused == [True]


async def test_what_has_no_json_form_is_the_engines_error():
    """Told where it was made, not in the writer, where it would end the connection."""

    async def engine(run):
        for event in ({"x": {1}}, {"x": float("nan")}, {"x": "y" * (MAX_FRAME + 1)}):
            with pytest.raises((TypeError, ValueError)):
                await run.emit(event)
        return "fine"

    async with connected(engine) as (peer, _):
        await peer.send(kind="run", assignment="x")
        assert (await peer.next())["result"] == "fine"


async def test_a_result_that_does_not_fit_is_an_error_that_says_so():
    """Not a connection that the peer drops for an over-long message."""

    async def engine(run):
        await trio.lowlevel.checkpoint()
        return "x" * (MAX_FRAME + 1)

    async with connected(engine) as (peer, _):
        await peer.send(kind="run", assignment="x")
        frame = await peer.next()
    assert frame["status"] == "error"
    assert "does not fit" in frame["error"]


async def test_an_event_that_does_not_fit_in_bytes_is_refused():
    """The parent counts bytes; the engine is told, and may go on."""

    async def engine(run):
        with pytest.raises(FrameError, match="does not fit"):
            await run.emit({"text": "é" * (MAX_FRAME // 2)})
        return "fine"

    async with connected(engine) as (peer, _):
        await peer.send(kind="run", assignment="x")
        assert (await peer.next())["result"] == "fine"


async def test_steering_beyond_the_inbox_is_dropped():
    """Bounded, and nothing else suffers."""

    async def engine(run):
        await start.wait()
        run.inbox.receive_nowait()
        return str(1 + run.inbox.statistics().current_buffer_used)

    start = trio.Event()
    async with connected(engine) as (peer, _):
        await peer.send(kind="run", assignment="x")
        for n in range(100):
            await peer.send(kind="message", text=str(n))
        await trio.testing.wait_all_tasks_blocked()
        start.set()
        assert (await peer.next())["result"] == "64"


async def test_an_approval_body_too_large_for_a_frame_is_the_engines_error():
    """It is raised where it was asked, nothing is sent, and the connection goes on."""
    caught = []

    async def engine(run):
        try:
            await run.request_approval("x" * MAX_FRAME, "execute")
        except FrameError as error:
            caught.append(str(error))
        return str(await run.request_approval("Bash", "execute"))

    async with connected(engine) as (peer, _):
        await peer.send(kind="run", assignment="x")
        asked = await peer.next()
        assert asked["kind"] == "approval_request"
        assert len(json.dumps(asked)) < 1000
        await peer.send(kind="approval_reply", id=asked["id"], approved=True)
        terminal = await peer.next()
    assert (terminal["status"], terminal["result"]) == ("completed", "True")
    assert len(caught) == 1
    assert "does not fit into a frame" in caught[0]
