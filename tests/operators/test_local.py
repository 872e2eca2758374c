"""Operators that are objects of this process."""

from __future__ import annotations

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.operators.support import Events, a_host
from trio_swarm.errors import ApprovalDenied, FrameError, PeerGoneError
from trio_swarm.frames.operator import Ask, HookAfter, HookBefore, Spawn
from trio_swarm.operators import AnySeat, LocalSeat, WorkerResult


class Everything:
    """One of each, sync and async mixed; keeps what it was given."""

    def __init__(self, verdict=None, result=None) -> None:
        self.seen: list[object] = []
        self.verdict = verdict
        self.result = result

    async def ask(self, frame):
        self.seen.append(frame)
        return {"answer": frame.question}

    def before_spawn(self, frame):
        self.seen.append(frame)
        if isinstance(self.verdict, Exception):
            raise self.verdict
        return self.verdict

    async def after_spawn(self, frame):
        self.seen.append(frame)

    def execute(self, frame):
        self.seen.append(frame)
        return self.result


async def gate(seat: AnySeat) -> None:
    await seat.hook_before(task_id="ST-1", agent="a", attempt=1)


async def test_the_methods_get_the_frames_of_the_wire() -> None:
    """The same four verbs as a remote seat's, with the time that is left."""
    obj = Everything(result=5)
    async with LocalSeat.open(a_host(), obj, name="me") as seat:
        with trio.fail_after(10):
            assert await seat.ask("q", task_id="ST-1", parent_req_id="p") == {"answer": "q"}
            await gate(seat)
            seat.hook_after(task_id="ST-1", agent="a", attempt=1, result=[1])
            result = await seat.spawn(task_id="ST-1", agent="a", attempt=1, directive="d")
        assert (seat.sid, seat.name, seat.connected) == ("me", "me", True)
    asked, gated, spawned, told = sorted(obj.seen, key=lambda frame: isinstance(frame, HookAfter))

    assert result == WorkerResult(5, True)
    assert isinstance(asked, Ask)
    assert asked.req_id.startswith("me-ask-")
    assert asked.parent_req_id == "p"
    assert asked.deadline_ms is not None
    assert 9_000 < asked.deadline_ms <= 10_000
    assert isinstance(gated, HookBefore)
    assert isinstance(spawned, Spawn)
    assert isinstance(told, HookAfter)
    assert told.result == [1]


@pytest.mark.parametrize("verdict", [None, True])
async def test_a_gate_lets_pass(verdict) -> None:
    """None and True are yes."""
    async with LocalSeat.open(a_host(), Everything(verdict)) as seat:
        await gate(seat)


@pytest.mark.parametrize(
    ("verdict", "reason"),
    [(False, "gave no reason"), ("not today", "not today"), ("", ""), (ApprovalDenied("no"), "no")],
)
async def test_a_gate_denies(verdict, reason) -> None:
    """False, a reason, or the exception itself."""
    async with LocalSeat.open(a_host(), Everything(verdict), name="g") as seat:
        with pytest.raises(ApprovalDenied) as denied:
            await gate(seat)
    assert reason in denied.value.reason


async def test_a_gate_that_is_not_understood_stays_shut() -> None:
    """Anything else is an error, not a yes."""
    async with LocalSeat.open(a_host(), Everything(1)) as seat:
        with pytest.raises(TypeError, match="returned a int"):
            await gate(seat)


async def test_a_result_is_taken_as_it_is() -> None:
    """`WorkerResult` with its own ok."""
    kept = WorkerResult("v", False)
    async with LocalSeat.open(a_host(), Everything(result=kept)) as seat:
        assert await seat.spawn(task_id="t", agent="a", attempt=1, directive="d") is kept


async def test_a_missing_verb_is_named_when_it_is_called() -> None:
    """And an object with none is no operator."""

    class OnlyGate:
        def before_spawn(self, frame) -> None:
            return None

    async with LocalSeat.open(a_host(), OnlyGate()) as seat:
        assert seat.verbs == {"before_spawn"}
        with pytest.raises(TypeError, match="cannot ask"):
            await seat.ask("q", task_id="t")
        with pytest.raises(TypeError, match="cannot execute"):
            await seat.spawn(task_id="t", agent="a", attempt=1, directive="d")
        with pytest.raises(TypeError, match="cannot after_spawn"):
            seat.hook_after(task_id="t", agent="a", attempt=1, result=None)
    with pytest.raises(TypeError, match="none of ask"):
        LocalSeat(object(), emit=Events())


async def test_after_spawn_never_slows_or_breaks_the_caller() -> None:
    """It runs in a task of its own; what it raises is an event; the queue is bounded."""
    events, started, go, told = Events(), trio.Event(), trio.Event(), []

    class Slow:
        async def after_spawn(self, frame) -> None:
            started.set()
            await go.wait()
            told.append(frame.result)
            if frame.result == 0:
                raise RuntimeError("oops")

    async with LocalSeat.open(a_host(events), Slow(), name="s", max_notices=2) as seat:
        seat.hook_after(task_id="t", agent="a", attempt=1, result=0)
        await started.wait()
        for number in range(1, 5):
            seat.hook_after(task_id="t", agent="a", attempt=1, result=number)
        assert told == []
        go.set()

    assert told == [0, 3, 4]
    assert len(events.of("notice_dropped")) == 2
    assert events.of("notice_failed") == [{"sid": "s", "error": "RuntimeError: oops"}]


async def test_a_notice_tells_the_result_as_it_was() -> None:
    """Whatever its sender makes of it before it is told; and what is no JSON is refused as on a wire."""
    obj, result = Everything(), {"a": [1]}
    async with LocalSeat.open(a_host(), obj) as seat:
        seat.hook_after(task_id="t", agent="a", attempt=1, result=result)
        result["a"].append(2)
        with pytest.raises(FrameError, match="cannot be written as JSON"):
            seat.hook_after(task_id="t", agent="a", attempt=1, result={1})
    assert [frame.result for frame in obj.seen] == [{"a": [1]}]


async def test_a_cancelled_ask_is_cancelled_inside_the_object() -> None:
    """It runs in the caller's task."""

    class Forever:
        cancelled = False

        async def ask(self, frame) -> None:
            try:
                await trio.sleep_forever()
            except trio.Cancelled:
                self.cancelled = True
                raise

    obj = Forever()
    async with LocalSeat.open(a_host(), obj) as seat, trio.open_nursery() as nursery:
        nursery.start_soon(lambda: seat.ask("q", task_id="t"))
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert obj.cancelled


async def test_an_error_of_the_block_leaves_as_itself() -> None:
    """Not in a group because of the seat's nursery."""
    with pytest.raises(ZeroDivisionError):
        async with LocalSeat.open(a_host(), Everything()):
            raise ZeroDivisionError


VERBS = {
    "ask": lambda seat: seat.ask("q", task_id="ST-1"),
    "hook_before": gate,
    "spawn": lambda seat: seat.spawn(task_id="ST-1", agent="a", attempt=1, directive="d"),
}


@pytest.mark.parametrize("verb", VERBS)
async def test_a_verb_after_the_block_raises_and_calls_nothing(verb) -> None:
    """As that of a remote seat whose session is over."""
    obj = Everything()
    async with LocalSeat.open(a_host(), obj, name="me") as seat:
        pass
    assert not seat.connected
    with pytest.raises(PeerGoneError, match="'me' is gone: its block was left"):
        await VERBS[verb](seat)
    assert obj.seen == []


async def test_a_notice_after_the_block_raises() -> None:
    """Nobody would ever be told of it."""
    async with LocalSeat.open(a_host(), Everything(), name="me") as seat:
        pass
    with pytest.raises(PeerGoneError, match="its block was left"):
        seat.hook_after(task_id="ST-1", agent="a", attempt=1, result=1)


async def test_the_block_that_raised_has_ended_too() -> None:
    """In every way out."""
    with pytest.raises(KeyError):
        async with LocalSeat.open(a_host(), Everything()) as seat:
            raise KeyError
    with pytest.raises(PeerGoneError):
        await seat.ask("q", task_id="ST-1")
