"""The parent's end under a scripted child (children contract, A6 and A9)."""

from __future__ import annotations

import json
from collections import Counter
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from trio_swarm._io.link import open_link
from trio_swarm._io.memory import memory_transport_pair
from trio_swarm.children.conversation import MAX_APPROVALS, Conversation, Lost
from trio_swarm.children.incarnation import Embodied
from trio_swarm.children.run import result_of
from trio_swarm.errors import RemoteError
from trio_swarm.frames import ChildFrame
from trio_swarm.frames.child import Run, Terminal

DONE = '{"kind":"terminal","status":"completed","result":"done"}'


class Process:
    """Stands for the process; a memory pair has none."""

    killed = False

    async def kill(self):
        await trio.lowlevel.checkpoint()
        self.killed = True


class Script:
    def __init__(self, transport, counts, process):
        self.transport, self.counts, self.process = transport, counts, process
        self.received = []

    async def say(self, *frames):
        await self.transport.send_batch([f if isinstance(f, str) else json.dumps(f) for f in frames])

    async def next(self):
        while not self.received:
            batch = await self.transport.receive_batch()
            assert batch, "hung up"
            self.received += [json.loads(message) for message in batch]
        return self.received.pop(0)


@asynccontextmanager
async def talking(on_approval=None, **options):
    ours, theirs = memory_transport_pair()
    process, counts = Process(), Counter()
    async with open_link(ours, ChildFrame) as link:
        body = Embodied(process, None, link)
        talk = Conversation("c", body, on_approval, lambda *_: None, counts, **options)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(talk.pump)
            try:
                yield talk, Script(theirs, counts, process)
            finally:
                talk.retire()
                await theirs.aclose()


async def run_with(script_lines, **options):
    """One run against a child that says these lines; its terminal, its events, the script."""
    events = []
    give, take = trio.open_memory_channel(64)

    async def collect():
        async for event in take:
            events.append(event)

    async with talking(**options) as (talk, script), trio.open_nursery() as nursery:
        nursery.start_soon(collect)

        async def child():
            await script.next()
            await script.say(*script_lines)

        nursery.start_soon(child)
        terminal = await talk.execute(Run("x"), give)
        give.close()
    return terminal, events, script


async def test_malformed_and_unknown_frames_are_counted_and_tolerated():
    """Our decision: upstream's parent ends the run over one frame; its child ignores it."""
    terminal, events, script = await run_with(
        [
            "{",
            '{"kind":"terminal"}',
            '{"kind":"session_message","delivery":1}',
            '{"kind":"event","event":1}',
            DONE,
        ]
    )
    assert terminal.result == "done"
    assert events == [1]
    assert script.counts["malformed"] == 2
    assert script.counts["unknown"] == 1


async def test_event_batches_are_iterated():
    """We never ask for them, and take them all the same (A9)."""
    batch = {
        "execution_epoch": 1,
        "first_seq": 1,
        "last_seq": 2,
        "qos": "durable",
        "events": [{"a": 1}, {"b": 2}],
    }
    terminal, events, _ = await run_with([{"kind": "event_batch", "batch": batch}, DONE])

    assert events == [{"a": 1}, {"b": 2}]
    assert terminal.status == "completed"


@pytest.mark.parametrize(
    ("request_frame", "reply"),
    [
        (
            {"kind": "subagent_request", "id": "s1", "body": {}},
            {"kind": "subagent_reply", "id": "s1", "body": {"error": "this parent starts no sub-agents"}},
        ),
        (
            {"kind": "sub_agent_request", "id": "s2", "tool_call_id": "t", "args": {}},
            {"kind": "sub_agent_reply", "id": "s2", "result": {"error": "this parent starts no sub-agents"}},
        ),
    ],
)
async def test_requests_for_sub_agents_are_answered_with_an_error(request_frame, reply):
    """Rather than with a failure (A9)."""
    async with talking() as (_, script):
        await script.say(request_frame)
        assert await script.next() == reply


async def test_a_terminal_that_nobody_waits_for_is_counted():
    """And does not answer the next run."""
    async with talking() as (talk, script), trio.open_nursery() as nursery:
        await script.say(DONE)
        while not script.counts["stray"]:
            await trio.testing.wait_all_tasks_blocked()

        async def child():
            await script.next()
            await script.say('{"kind":"terminal","status":"completed","result":"mine"}')

        nursery.start_soon(child)
        assert (await talk.execute(Run("x"), None)).result == "mine"


async def test_a_connection_that_ends_first_loses_the_run():
    """'actor child closed before terminal'."""
    async with talking() as (talk, script), trio.open_nursery() as nursery:

        async def child():
            await script.next()
            await script.transport.aclose()

        nursery.start_soon(child)
        with pytest.raises(Lost):
            await talk.execute(Run("x"), None)
        with pytest.raises(Lost):
            await talk.execute(Run("x"), None)


async def test_cancel_is_sent_and_its_terminal_waited_for():
    """The process is kept; the next run is answered by its own terminal."""
    async with talking() as (talk, script), trio.open_nursery() as nursery:

        async def child():
            assert (await script.next())["kind"] == "run"
            scope.cancel()
            assert await script.next() == {"kind": "cancel"}
            await script.say('{"kind":"terminal","status":"cancelled"}')
            await script.next()
            await script.say(DONE)

        scope = trio.CancelScope()
        nursery.start_soon(child)
        with scope:
            await talk.execute(Run("x"), None)
        assert scope.cancelled_caught
        assert (await talk.execute(Run("y"), None)).result == "done"
        assert not script.process.killed


async def test_a_child_that_does_not_answer_cancel_is_killed(autojump_clock):
    """After 3 s, although its caller is cancelled and a reader of its events does not read."""
    async with talking() as (talk, script), trio.open_nursery() as nursery:

        async def child():
            await script.next()
            await script.say(*['{"kind":"event","event":1}'] * 5)
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()

        give, take = trio.open_memory_channel(1)
        scope = trio.CancelScope()
        nursery.start_soon(child)
        with scope, take, give:
            await talk.execute(Run("x"), give)
        assert trio.current_time() > 0
        assert script.process.killed
        assert talk.killed
        assert talk.over


async def test_a_cancel_before_the_run_was_sent_says_nothing():
    """The child never hears of it, so there is no terminal to wait for."""
    async with talking() as (talk, script):
        with trio.CancelScope() as scope:
            scope.cancel()
            await talk.execute(Run("x"), None)
        assert not talk.over
        assert not script.process.killed


async def test_a_flood_of_approval_requests_is_denied_beyond_a_bound():
    """What a child asks for cannot grow without limit."""
    deciding = []

    async def decider(request):
        deciding.append(request.id)
        await trio.sleep_forever()

    async with talking(decider) as (talk, script), trio.open_nursery() as nursery:
        nursery.start_soon(talk.execute, Run("x"), None)
        await script.next()
        await script.say(*[{"kind": "approval_request", "id": str(n), "body": {}} for n in range(40)])
        denied = [await script.next() for _ in range(40 - MAX_APPROVALS)]
        assert all(frame["approved"] is False for frame in denied)
        assert len(deciding) == MAX_APPROVALS
        await script.say(DONE)


async def test_an_approval_outside_of_a_run_is_denied():
    """Even with a decider that allows everything."""

    async def decider(request):
        return True

    async with talking(decider) as (_, script):
        await script.say({"kind": "approval_request", "id": "sa-1", "body": {}})
        assert await script.next() == {"kind": "approval_reply", "id": "sa-1", "approved": False}


@pytest.mark.parametrize(
    ("terminal", "message"),
    [
        (Terminal(status="error"), "actor child errored"),
        (Terminal(status="error", error="provider returned 529"), "provider returned 529"),
        (Terminal(status="error", error="ValueError: no"), "ValueError: no"),
        (Terminal(status="cancelled"), "cancelled"),
        (Terminal(status="suspended", transcript=[{"role": "user"}]), "resuming is not wired"),
    ],
)
def test_terminals_that_complete_nothing_raise(terminal, message):
    """A6, and A7: a host that cannot resume reports an error."""
    with pytest.raises(RemoteError, match=message):
        result_of(terminal)


def test_completed_without_text_is_empty():
    """Result is optional on the wire."""
    assert result_of(Terminal(status="completed")) == ""
