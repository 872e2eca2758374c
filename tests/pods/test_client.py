"""The client against a scripted pod: events unknown or bad, and originals that know no run ids (B2.4, B7)."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager

import attrs
import pytest
import trio
import trio.testing
from trio.testing import memory_stream_pair

from trio_swarm.errors import (
    BusyError,
    PeerError,
    ProtocolError,
    RemoteError,
    RestartIntensityExceeded,
    SlowPeerError,
)
from trio_swarm.pods import client as client_module
from trio_swarm.pods.client import open_pod_client
from trio_swarm.pods.pod import Pod


@attrs.define(eq=False)
class Process:
    """As much of one as a pod looks at."""

    pid: int = 1
    killed: bool = False

    async def kill(self):
        self.killed = True
        await trio.lowlevel.checkpoint()


@attrs.define(eq=False)
class Scripted:
    """The pod's end of the wire."""

    stream: trio.abc.Stream
    pod: Pod
    client: client_module.PodClient
    process: Process
    buffer: bytes = b""

    async def heard(self):
        """The next method."""
        while b"\n" not in self.buffer:
            self.buffer += await self.stream.receive_some(65536)
        line, _, self.buffer = self.buffer.partition(b"\n")
        return json.loads(line)

    async def say(self, *events):
        """Events as (name, data) pairs, or lines as they are."""
        lines = [
            each if isinstance(each, str) else json.dumps({"event": each[0], "data": each[1]})
            for each in events
        ]
        await self.stream.send_all("".join(line + "\n" for line in lines).encode())


@asynccontextmanager
async def scripted(**kwargs):
    ours, theirs = memory_stream_pair()
    process = Process()
    async with open_pod_client(ours, name="p", on_notification=lambda event: None, **kwargs) as client:
        pod = Pod("p", (), 1)
        pod.connect(process, client)
        yield Scripted(theirs, pod, client, process)
        await theirs.aclose()


START, END = ("turn_start", {"turn": 0}), ("run_end", {"result": "finished"})
ALREADY = ("error", {"code": "already_running", "message": "Pod is already executing a turn"})
GREETING = {"pod_name": "p", "cwd": "/", "provider": "openai", "model": "m", "scope_summary": "", "tools": []}


def text(value):
    return ("text_done", {"text": value})


def told(*inputs):
    items = [
        {"type": "message", "role": "user", "content": [{"type": "text", "text": each}]} for each in inputs
    ]
    return ("history", {"items": items, "greeting": GREETING})


@asynccontextmanager
async def running(script, message="mine"):
    """Our run in the background; yields where its outcome will be."""
    outcome = []
    async with trio.open_nursery() as nursery:

        async def run():
            try:
                outcome.append(await script.pod.run(message))
            except Exception as error:
                outcome.append(error)

        nursery.start_soon(run)
        while (await script.heard())["method"] != "run":
            continue
        yield outcome


async def test_an_originals_run(autojump_clock):
    """No ids: the next turn_start is ours."""
    async with scripted(tells_runs_apart=False) as script:
        async with running(script) as outcome:
            await script.say(START, text("a"), ("turn_end", {"turn": 0, "result": "finished"}), END)
        assert outcome[0].text == "a"


async def test_unknown_events_are_skipped(autojump_clock):
    """A newer pod does not break an older client (B7)."""
    async with scripted(tells_runs_apart=False) as script:
        async with running(script) as outcome:
            await script.say(START, ("llm_call_start", {"x": 1}), text("a"), ("status", {}), END)
        assert outcome[0].text == "a"
        assert script.client.unknown == 2


@pytest.mark.parametrize("line", ["nonsense", '{"event":"turn_start","data":{"turn":-1}}', "[]"])
async def test_a_bad_event_ends_the_connection(autojump_clock, line):
    """Fail closed: nobody knows what it meant."""
    async with scripted() as script:
        await script.say(line)
        await script.client.ended.wait()
        assert isinstance(script.client.fault, ProtocolError)


async def test_a_foreign_run_that_goes_on_is_not_ours(autojump_clock):
    """Its second turn_start neither: the refusal is ours."""
    async with scripted(tells_runs_apart=False) as script:
        await script.say(START)
        while not script.client.running:
            await trio.sleep(0.01)
        async with running(script) as outcome:
            await script.say(("turn_start", {"turn": 1}), text("theirs"), ALREADY)
        assert isinstance(outcome[0], BusyError)


async def test_a_foreign_end_before_our_start(autojump_clock):
    """Its error is not ours, the turn_start after it is."""
    async with scripted(tells_runs_apart=False) as script:
        await script.say(START)
        while not script.client.running:
            await trio.sleep(0.01)
        async with running(script) as outcome:
            await script.say(("error", {"code": "internal", "message": "theirs"}), START, text("ours"), END)
        assert outcome[0].text == "ours"


@pytest.mark.parametrize("last", ["mine", "theirs"])
async def test_a_contested_turn_is_settled_by_the_history(autojump_clock, last):
    """A refusal after a turn_start: the last user message tells whose turn it was."""
    async with scripted(tells_runs_apart=False) as script:
        async with running(script) as outcome:
            await script.say(START, ALREADY, text("x"), END)
            assert (await script.heard())["method"] == "get_history"
            await script.say(told("old", last))
        if last == "mine":
            assert outcome[0].text == "x"
        else:
            assert isinstance(outcome[0], BusyError)


async def test_other_peoples_refusals_and_bad_lines_do_not_count(autojump_clock):
    """The original broadcasts them all."""
    async with scripted() as script:
        async with running(script) as outcome:
            run_id = script.client.turn.run_id
            await script.say(
                ALREADY,
                ("error", {"code": "not_running", "message": "Pod is not running"}),
                ("error", {"code": "internal", "message": "invalid method: x"}),
                json.dumps({"event": "turn_start", "data": {"turn": 3}, "run_id": run_id}),
                ("error", {"code": "not_paused", "message": "Pod is not paused"}),
                ("error", {"code": "provider_error", "message": "overloaded"}),
            )
        assert isinstance(outcome[0], RemoteError)
        assert str(outcome[0]) == "provider_error: overloaded"


async def test_a_pod_that_never_takes_the_run_is_replaced(autojump_clock):
    """An overall limit, however many unrelated events come (B6)."""
    async with scripted() as script:
        async with running(script) as outcome, trio.open_nursery() as nursery:

            async def chatter():
                while not outcome:
                    await script.say(
                        (
                            "notification",
                            {"level": "warn", "source": "pod", "message": "m", "timestamp_ms": 1},
                        )
                    )
                    await trio.sleep(1)

            nursery.start_soon(chatter)
        assert isinstance(outcome[0], SlowPeerError)
        assert script.process.killed
        assert trio.current_time() == pytest.approx(client_module.ANSWER_DEADLINE, abs=2)


async def test_history_has_a_limit_and_keeps_its_order(autojump_clock):
    """An answer that comes late goes to who asked first, not to the next."""
    async with scripted() as script:
        with pytest.raises(SlowPeerError):
            await script.client.history()
        await script.heard()
        async with trio.open_nursery() as nursery:

            async def answer():
                await script.heard()
                await script.say(told("late"), told("right"))

            nursery.start_soon(answer)
            history = await script.client.history()
        assert history.items[0].content[0].text == "right"


async def test_a_lost_connection_ends_what_waits(autojump_clock):
    """With what its owner finds out."""
    async with scripted() as script, trio.open_nursery() as nursery:
        errors = []

        async def ask():
            try:
                await script.client.history()
            except PeerError as error:
                errors.append(error)

        nursery.start_soon(ask)
        nursery.start_soon(ask)
        await script.heard()
        await script.stream.aclose()
        await script.client.ended.wait()
        script.client.fail(lambda: PeerError("gone"))
        script.client.fail(lambda: KeyError("too late"))
        await trio.testing.wait_all_tasks_blocked()
        assert [str(error) for error in errors] == ["gone", "gone"]
        assert errors[0] is not errors[1]


async def test_a_question_that_never_left_gets_no_answer(autojump_clock):
    """Cancelled before it was sent: the next answer is the next caller's."""
    async with scripted() as script:
        with trio.CancelScope() as scope:
            scope.cancel()
            await script.client.history()
        assert scope.cancelled_caught
        async with trio.open_nursery() as nursery:

            async def answer():
                await script.heard()
                await script.say(told("right"))

            nursery.start_soon(answer)
            history = await script.client.history()
        assert history.items[0].content[0].text == "right"


async def test_a_turn_that_is_too_large_is_cancelled(autojump_clock, monkeypatch):
    """Else the engine would go on and the pod be busy for whoever comes next."""
    monkeypatch.setattr("trio_swarm.pods.turn.MAX_TURN_TEXT", 10)
    async with scripted(tells_runs_apart=False) as script:
        async with running(script) as outcome:
            await script.say(START, text("x" * 11))
            assert (await script.heard())["method"] == "cancel"
            assert outcome == []
            await script.say(("error", {"code": "internal", "message": "the run was cancelled"}))
        assert isinstance(outcome[0], ProtocolError)
        assert not script.process.killed

        async with running(script) as outcome:
            await script.say(START, text("small"), END)
        assert outcome[0].text == "small"


async def test_a_turn_that_is_too_large_and_does_not_end_costs_the_process(autojump_clock, monkeypatch):
    """The limit is what the caller hears of."""
    monkeypatch.setattr("trio_swarm.pods.turn.MAX_TURN_TEXT", 10)
    async with scripted(tells_runs_apart=False) as script:
        async with running(script) as outcome:
            await script.say(START, text("x" * 11))
        assert isinstance(outcome[0], ProtocolError)
        assert script.process.killed


async def test_who_waits_for_a_pod_that_is_given_up_hears_why():
    """Also who comes later; leaving it afterwards changes nothing."""

    def why():
        return RestartIntensityExceeded("pod p", max_restarts=0, within=1.0)

    pod, errors = Pod("p", (), 1), []

    async def wait():
        with pytest.raises(RestartIntensityExceeded) as caught:
            await pod.run("x")
        errors.append(caught.value)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        pod.close(why)
        pod.close()
    await wait()
    assert errors[0] is not errors[1]
    assert pod.state == "closed"
