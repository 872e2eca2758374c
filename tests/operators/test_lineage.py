"""Nested asks: who is asked on whose behalf, and what becomes of a ring of askers."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest
import trio

from tests.operators.support import Result, a_host, log_in, seated, serving, socket_of
from trio_swarm.errors import AskCycle, BusyError
from trio_swarm.frames.operator import HookAfter
from trio_swarm.limits import MAX_LINEAGE
from trio_swarm.operators import LocalSeat, Reconnect, connect_operator
from trio_swarm.operators.lineage import answering, identity, nesting, withdrawal_reason, withdrawing

QUICK = Reconnect(first=0.01, longest=0.05, give_up_after=5.0)


def test_outside_of_an_answer_nothing_is_nested() -> None:
    """And a parent that the caller names is kept."""
    assert nesting("a", None) == {"parent_req_id": None, "lineage": ()}
    assert nesting("a", "p") == {"parent_req_id": "p", "lineage": ()}


def test_what_is_asked_while_answering_names_its_parent_and_who_waits() -> None:
    """Outermost first; the name and the id."""
    with answering("r1", (), identity("alice", "S-1")), answering("r2", ["alice#S-1"], "S-2"):
        assert nesting("S-3", None) == {"parent_req_id": "r2", "lineage": ("alice#S-1", "S-2")}
        assert nesting("S-3", "mine")["parent_req_id"] == "mine"
    assert nesting("S-3", None)["lineage"] == ()


def test_a_cycle_is_named() -> None:
    """By names, from the one that is asked twice; the id decides, not the name."""
    with answering("r", ["x#S-0", "a#S-1", "b#S-2"], "c#S-3"):
        with pytest.raises(AskCycle) as cycle:
            nesting("a#S-1", None)
        assert cycle.value.cycle == ("a", "b", "c", "a")
        assert str(cycle.value) == "a cycle of askers: a -> b -> c -> a"
        with pytest.raises(AskCycle, match="c -> renamed"):
            nesting("renamed#S-3", None)
        assert nesting("a#S-9", None)["lineage"][-1] == "c#S-3"
        assert nesting("a#S-1", None, waits=False)["parent_req_id"] == "r"


def test_nesting_is_bounded() -> None:
    """A peer's lineage without end too: it is neither kept nor sent on."""
    with answering("r", [f"S-{number}" * 1000 for number in range(10_000)], "me"):
        with pytest.raises(BusyError, match="deep"):
            nesting("other", None)
        known = nesting("other", None, waits=False)["lineage"]
        assert len(known) == MAX_LINEAGE
        assert all(len(entry) <= 600 for entry in known)


async def test_tasks_inherit_it_until_the_answer_is_given() -> None:
    """`start_soon` copies the context; who goes on after the answer is nested no more."""
    found, go = [], trio.Event()

    async def look() -> None:
        found.append(nesting("b", None)["parent_req_id"])
        await go.wait()
        found.append(nesting("b", None)["parent_req_id"])

    async with trio.open_nursery() as nursery:
        with answering("outer", (), None):
            with answering("r", (), "a"):
                nursery.start_soon(look)
                await trio.testing.wait_all_tasks_blocked()
            go.set()
            await trio.testing.wait_all_tasks_blocked()
    assert found == ["r", "outer"]


def test_the_asker_can_say_why_it_gives_up() -> None:
    """Inside the block only."""
    assert withdrawal_reason() is None
    with withdrawing() as withdrawal:
        withdrawal.reason = "settled_by:x"
        assert withdrawal_reason() == "settled_by:x"
    assert withdrawal_reason() is None


class Asks:
    """An operator that asks another one whatever it is asked."""

    def __init__(self) -> None:
        self.others: list[LocalSeat] = []
        self.frames: list[object] = []

    async def ask(self, frame):
        self.frames.append(frame)
        if not self.others:
            return "end"
        result = Result()
        async with trio.open_nursery() as nursery:
            # In a task of its own: the context goes along.
            nursery.start_soon(result.run, partial(self.others[0].ask, frame.question, task_id=frame.task_id))
        if result.error is not None:
            raise result.error
        return result.value


async def test_in_process_the_object_that_answers_is_the_parent() -> None:
    """By itself: the seat knows when its object's method runs."""
    one, two = Asks(), Asks()
    async with LocalSeat.open(a_host(), one, name="a") as a, LocalSeat.open(a_host(), two, name="b") as b:
        one.others = [b]
        assert await a.ask("?", task_id="t") == "end"
        assert (one.frames[0].parent_req_id, one.frames[0].lineage) == (None, ())
        assert two.frames[0].parent_req_id == one.frames[0].req_id
        assert [entry.split("#")[0] for entry in two.frames[0].lineage] == ["a"]

        two.others = [a]
        with pytest.raises(AskCycle, match="a -> b -> a"):
            await a.ask("?", task_id="t")
        with pytest.raises(AskCycle, match="b -> a -> b"):
            await b.ask("?", task_id="t")
        two.others = []
        assert await a.ask("?", task_id="t") == "end"


async def test_what_is_done_with_a_notice_is_in_nobodys_way() -> None:
    """The one who told it does not wait, so that its own seat can be asked."""
    told = []

    class Told(Asks):
        async def after_spawn(self, frame) -> None:
            told.append((frame, await seat.ask("?", task_id="t")))
            done.set()

    obj, done = Told(), trio.Event()
    async with LocalSeat.open(a_host(), obj) as seat:
        seat.hook_after(task_id="t", agent="a", attempt=1, result=1)
        await done.wait()
    assert told[0][1] == "end"
    assert obj.frames[0].parent_req_id == told[0][0].req_id


async def test_two_seats_of_one_name_are_two() -> None:
    """Each has an id of its own."""
    one, two = Asks(), Asks()
    async with LocalSeat.open(a_host(), one, name="x") as a, LocalSeat.open(a_host(), two, name="x") as b:
        one.others = [b]
        assert await a.ask("?", task_id="t") == "end"


async def test_an_independent_operator_sees_the_lineage_and_is_not_troubled_without() -> None:
    """The extra key is absent when it is empty."""
    async with seated() as (_, seat, peer, login), trio.open_nursery() as nursery:
        nursery.start_soon(partial(seat.ask, 1, task_id="t"))
        assert "lineage" not in await peer.next()
        with answering("r1", ["boss#S-1"], "me#S-2"):
            for call in (
                partial(seat.ask, 1, task_id="t"),
                partial(seat.hook_before, task_id="t", agent="a", attempt=1),
                partial(seat.spawn, task_id="t", agent="a", attempt=1, directive="d"),
            ):
                nursery.start_soon(call)
            seat.hook_after(task_id="t", agent="a", attempt=1, result=1)
            frames = [await peer.next() for _ in range(4)]
        assert {frame["type"] for frame in frames} == {"ask", "hook_before", "spawn", "hook_after"}
        assert all(frame["parent_req_id"] == "r1" for frame in frames)
        assert all(frame["lineage"] == ["boss#S-1", "me#S-2"] for frame in frames)
        with answering("r2", [], f"main#{login.sid}"), pytest.raises(AskCycle, match="main -> main"):
            await seat.ask(1, task_id="t")
        nursery.cancel_scope.cancel()


async def test_a_client_that_answers_is_the_parent_of_what_it_asks() -> None:
    """``with request.answering()``: over the wire and in process alike."""
    async with (
        serving() as server,
        connect_operator(server.url, roles=["front"], reconnect=QUICK) as client,
        LocalSeat.open(a_host(), obj := Asks(), name="back") as back,
        trio.open_nursery() as nursery,
    ):
        front, result = await server.wait_seat("front"), Result()
        nursery.start_soon(result.run, partial(front.ask, "?", task_id="t"))
        request = await client.receive()
        with request.answering():
            assert await back.ask("?", task_id="t") == "end"
            with pytest.raises(AskCycle, match="front -> front"):
                await front.ask("!", task_id="t")
        assert obj.frames[0].parent_req_id == request.req_id
        assert obj.frames[0].lineage == (f"front#{client.sid}",)
        request.answer(1)
        await result.done.wait()
        back_again = await server.wait_seat("front")
        nursery.start_soon(partial(back_again.ask, "?", task_id="t"))
        (await client.receive()).answer(2)


async def test_a_client_that_serves_nests_by_itself_and_is_bounded() -> None:
    """Each handler in a task of its own, so many at a time; what one raises ends it."""
    running, most, go, handled = 0, 0, trio.Event(), []

    async def handle(item) -> None:
        nonlocal running, most
        if isinstance(item, HookAfter):
            handled.append(item.result)
            raise ZeroDivisionError
        running += 1
        most = max(most, running)
        assert nesting("x", None)["parent_req_id"] == item.req_id
        await go.wait()
        running -= 1
        item.answer(item.question)

    async with (
        serving() as server,
        connect_operator(server.url, roles=["main"], reconnect=QUICK) as client,
        trio.open_nursery() as nursery,
    ):
        seat, served = await server.wait_seat("main"), Result()
        nursery.start_soon(served.run, partial(client.serve, handle, at_once=3))
        results = [Result() for _ in range(10)]
        for number, result in enumerate(results):
            nursery.start_soon(result.run, partial(seat.ask, number, task_id="t"))
        while running < 3:
            await trio.lowlevel.checkpoint()
        await trio.testing.wait_all_tasks_blocked(0.02)
        go.set()
        for result in results:
            await result.done.wait()
        assert [result.value for result in results] == list(range(10))
        assert most == 3
        seat.hook_after(task_id="t", agent="a", attempt=1, result="end")
        await served.done.wait()
        assert isinstance(served.error, ZeroDivisionError)
        assert handled == ["end"]


async def test_a_withdrawal_says_what_the_asker_says() -> None:
    """In place of ``cancelled``."""
    async with serving() as server:
        login = await log_in(server)
        async with socket_of(server, login) as peer, trio.open_nursery() as nursery:
            with withdrawing() as withdrawal:
                nursery.start_soon(partial(server.seat(login.sid).ask, 1, task_id="t"))
                asked = await peer.next()
                withdrawal.reason = "settled_by:somebody"
                nursery.cancel_scope.cancel()
                with trio.CancelScope(shield=True):
                    frame = await peer.next()
        assert frame == {"type": "withdraw", "req_id": asked["req_id"], "reason": "settled_by:somebody"}


async def test_a_ring_of_three_processes_is_an_error_and_no_hang() -> None:
    """Each in a process of its own, with a server of its own: the lineage travels in the frames."""
    script = str(Path(__file__).with_name("nested_process.py"))
    root = str(Path(__file__).parents[2])
    with ExitStack() as stack:
        ring = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, script, name, *(["start"] if name == "a" else [])],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    cwd=root,
                    env={"PYTHONPATH": root, "PATH": "/usr/bin:/bin"},
                )
            )
            for name in "abc"
        ]
        for process in ring:
            stack.callback(process.kill)
        urls = [(await trio.to_thread.run_sync(process.stdout.readline)).strip() for process in ring]
        # b is the operator of a, c that of b, and a that of c.
        for process, url in zip(ring, [urls[2], urls[0], urls[1]], strict=True):
            process.stdin.write(url + "\n")
            process.stdin.flush()
        told = json.loads(await trio.to_thread.run_sync(ring[0].stdout.readline))
        for process in ring:
            process.stdin.close()
        for process in ring:
            assert await trio.to_thread.run_sync(process.wait) == 0

    # a asks its operator b, b asks c, c asks a; and a would have to ask b.
    assert told["cycle"] == "a cycle of askers: b -> c -> a -> b"
    assert told["lineage"] == ["b", "c"]
    assert "-ask-" in told["parent"]


async def test_what_is_asked_after_the_reply_is_no_part_of_the_request() -> None:
    """Nobody waits any more: asking back whoever has just answered is no cycle."""
    async with serving() as server, connect_operator(server.url, roles=["alice"]) as alice:
        seat = await server.wait_seat("alice")
        results = {name: Result() for name in ("first", "too early", "follow-up", "in a block of its own")}

        async def handle(item) -> None:
            if item.question != "first":
                item.answer("fine")
                return
            await results["too early"].run(seat.ask, "before the answer", task_id="T")
            item.answer("done")
            await results["follow-up"].run(seat.ask, "after it", task_id="T")
            with item.answering():
                await results["in a block of its own"].run(seat.ask, "after it", task_id="T")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(alice.serve, handle)
            nursery.start_soon(results["first"].run, partial(seat.ask, "first", task_id="T"))
            for result in results.values():
                await result.done.wait()
            nursery.cancel_scope.cancel()

    assert isinstance(results.pop("too early").error, AskCycle)
    assert {name: result.value for name, result in results.items()} == {
        "first": "done",
        "follow-up": "fine",
        "in a block of its own": "fine",
    }


async def test_what_is_asked_after_a_withdrawal_is_no_part_of_the_request() -> None:
    """The one who asked has gone, and the handler goes on."""
    async with serving() as server, connect_operator(server.url, roles=["alice"]) as alice:
        seat = await server.wait_seat("alice")
        async with trio.open_nursery() as nursery:
            scope, asked = trio.CancelScope(), Result()

            async def ask() -> None:
                with scope:
                    await seat.ask("first", task_id="T")

            nursery.start_soon(ask)
            item = await alice.receive()
            with item.answering():
                scope.cancel()
                await alice.receive()  # That it is withdrawn.
                nursery.start_soon(asked.run, partial(seat.ask, "second", task_id="T"))
                second = await alice.receive()
            second.answer("fine")
            await asked.done.wait()

    assert item.withdrawn == "cancelled"
    assert (asked.value, second.lineage, second.parent_req_id) == ("fine", (), None)


async def test_a_reason_of_withdrawal_ends_with_its_block() -> None:
    """Who was started in the block and lives on is given up for reasons of its own."""
    found, go = [], trio.Event()

    async def live_on() -> None:
        found.append(withdrawal_reason())
        await go.wait()
        found.append(withdrawal_reason())

    async with trio.open_nursery() as nursery:
        with withdrawing() as outer:
            outer.reason = "outer"
            with withdrawing() as inner:
                inner.reason = "settled_by:alice"
                nursery.start_soon(live_on)
                await trio.testing.wait_all_tasks_blocked()
            go.set()
            await trio.testing.wait_all_tasks_blocked()
            go = trio.Event()
            nursery.start_soon(live_on)
            await trio.testing.wait_all_tasks_blocked()
        go.set()
    assert found == ["settled_by:alice", "outer", "outer", None]
