"""Tasks and attempts in process: who waits is woken, and nothing is decided twice."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.workers.support import Clock, Events, serving
from trio_swarm._state.board import Denied
from trio_swarm.errors import BusyError, FrameError, PeerGoneError, Refused
from trio_swarm.limits import (
    GUESS_TURN,
    GUESSES_PER_PEER,
    GUESSES_PER_SERVER,
    WAITING_HANDLES,
    WAITING_HANDLES_PER_PEER,
)
from trio_swarm.workers import Final, Outcome, Task, TaskBoard


def a_board(**options) -> TaskBoard:
    options = {"emit": Events(), "clock": Clock(), "spool": lambda: Path("/nonexistent"), **options}
    return TaskBoard(**options)


def ended(task: Task, status="pass", value=None, reason="") -> Outcome:
    return Outcome(task.task_id, status, value, task.attempts, reason)


async def test_a_task_from_its_beginning_to_its_end() -> None:
    events = Events()
    board = a_board(emit=events)
    task = board.create("coder", "do it", system="s", metadata={"a": 1})
    assert (task.status, task.attempts, task.attempt, task.outcome) == ("pending", 0, None, None)
    assert (task.depth, task.created, task.metadata) == (0, 1_700_000_000.0, {"a": 1})
    attempt = task.begin()
    assert (task.status, task.attempts, attempt.number) == ("running", 1, 1)
    assert task.attempt is attempt
    task.settle(ended(task, value=3))
    assert (task.status, task.outcome.value, attempt.ended) == ("pass", 3, True)
    assert board.find(task.task_id) is task
    assert board.tasks() == (task,)
    assert [kind for kind, _ in events.kept] == ["task_created", "attempt_started", "task_settled"]
    with pytest.raises(Refused):
        task.begin()


async def test_each_board_has_a_secret_of_its_own_unless_it_is_given_one() -> None:
    """5.1: 32 random bytes; so no token outlives its process. With the same one it is known as a token."""

    def status(issuer: TaskBoard, judge: TaskBoard) -> int:
        token = issuer.create("a", "p").begin().capability_token
        with pytest.raises(Denied) as caught:
            judge._machine.admit(token, "fetch_prompt", now=Clock().now)
        return caught.value.status

    first, second = a_board(), a_board()
    assert len(first._secret) == len(second._secret) == 32
    assert (status(first, second), status(second, first)) == (401, 401)
    assert status(a_board(secret=b"same"), a_board(secret=b"same")) == 410


async def test_settling_wakes_everybody_and_the_first_wins() -> None:
    task = a_board().create("a", "p")
    got = []

    async def wait() -> None:
        got.append(await task.wait())

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        task.settle(ended(task, "failed", reason="first"))
        task.settle(ended(task, "pass", reason="second"))
    assert [each.reason for each in got] == ["first"] * 3
    assert (await task.wait()).reason == task.outcome.reason == "first"


async def test_a_final_wakes_who_waits_and_the_last_is_told() -> None:
    attempt = a_board().create("a", "p").begin()
    got = []

    async def wait() -> None:
        got.append(await attempt.wait_final())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        attempt.append_final("v", False, by="ack")
    assert got == [Final("v", False, "ack")] * 2
    attempt.end()
    attempt.append_final("w", True, by="senior")
    assert await attempt.wait_final() == attempt.final == Final("w", True, "senior")
    assert attempt.finals == 2


@pytest.mark.parametrize("how", ["end", "settle", "superseded"])
async def test_an_attempt_that_ends_without_a_final_says_so(how) -> None:
    """Nobody waits for ever on a worker that cannot post any more."""
    task = a_board().create("a", "p")
    attempt = task.begin()
    async with trio.open_nursery() as nursery:

        async def wait() -> None:
            with pytest.raises(PeerGoneError):
                await attempt.wait_final()
            assert not await attempt.wait_fetched()

        nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        if how == "end":
            attempt.end()
        elif how == "settle":
            task.settle(ended(task))
        else:
            task.begin()


async def test_waiting_can_be_cancelled() -> None:
    task = a_board().create("a", "p")
    attempt = task.begin()
    for wait in (task.wait, attempt.wait_final, attempt.wait_fetched):
        with trio.move_on_after(0) as scope:
            await wait()
        assert scope.cancelled_caught


async def test_cancel_without_a_runner_ends_the_task() -> None:
    task = a_board().create("a", "p")
    assert task.cancel("enough")
    assert (task.outcome.status, task.outcome.reason) == ("cancelled", "enough")
    assert not task.cancel("again")


async def test_cancel_stops_the_runner_which_settles() -> None:
    task = a_board().create("a", "p")
    async with trio.open_nursery() as nursery:

        async def run() -> None:
            with trio.CancelScope() as scope, task.runs_in(scope):
                await trio.sleep_forever()
            assert task.outcome is None
            task.settle(ended(task, "cancelled", reason=task.cancel_requested))

        nursery.start_soon(run)
        await wait_all_tasks_blocked()
        assert task.cancel("enough")
        assert not task.cancel("again")
        assert (await task.wait()).reason == "enough"


async def test_a_runner_that_is_done_is_not_cancelled() -> None:
    task = a_board().create("a", "p")
    with trio.CancelScope() as scope, task.runs_in(scope):
        pass
    assert task.cancel("late")
    assert not scope.cancel_called
    assert task.status == "cancelled"


async def test_a_runner_that_comes_late_is_cancelled_at_once() -> None:
    task = a_board().create("a", "p")
    with trio.CancelScope() as first, task.runs_in(first):
        task.cancel("now")
        with trio.CancelScope() as second, task.runs_in(second):
            await trio.sleep_forever()
    assert second.cancel_called


async def test_tasks_are_bounded() -> None:
    """The finished go, oldest first; when none is finished, no more are taken."""
    board = a_board(max_tasks=2)
    first, second = board.create("a", "p"), board.create("b", "p")
    with pytest.raises(BusyError, match="2 tasks"):
        board.create("c", "p")
    second.settle(ended(second))
    first.settle(ended(first))
    third = board.create("c", "p")
    assert board.tasks() == (first, third)
    assert board.find(second.task_id) is None


@pytest.mark.parametrize("where", ["value", "prompt", "system", "metadata", "final", "report", "stats"])
async def test_what_ended_tasks_hold_is_bounded(where) -> None:
    """By bytes, wherever they are: those that ended first go. What runs stays, with all it has."""
    board = a_board(max_kept=10 * 2**20)
    text = "x" * (3 * 2**20)
    running = board.create("a", text, system=text, metadata={"a": text})
    running.begin().append_final(text, True, by="worker")
    tasks = []
    for _ in range(20):
        told = {"system": text} if where == "system" else {}
        told |= {"metadata": {"deep": [text + "y"]}} if where == "metadata" else {}
        task = board.create("a", text + "z" if where == "prompt" else "p", **told)
        attempt = task.begin()
        if where == "final":
            attempt.append_final({"v": [text]}, True, by="worker")
        if where == "report":
            assert attempt._report({"v": text})
        if where == "stats":
            attempt.stats = {"v": text}
        task.settle(ended(task, value=[text] if where == "value" else None))
        assert (await task.wait()).status == "pass"
        tasks.append(task)
    assert board.tasks() == (running, *tasks[-3:])
    running.settle(ended(running))
    assert board.tasks()[0] is running


async def test_outputs_in_memory_count_for_the_bound(tmp_path) -> None:
    """And they go with their task."""
    async with serving(tmp_path, max_kept=100_000) as bench:
        for _ in range(5):
            task, attempt = bench.begun()
            await bench.emit(task.task_id, attempt.worker_handle, "x" * 40_000)
            task.settle(ended(task))
        assert len(bench.board.tasks()) == 2
        assert bench.board.outputs.size < 90_000


async def test_what_gave_way_counts_no_more(tmp_path) -> None:
    """Else tasks would be forgotten for what they do not hold."""
    async with serving(tmp_path, max_kept=100_000) as bench:
        first, attempt = bench.begun()
        await bench.emit(first.task_id, attempt.worker_handle, "x" * 50_000)
        first.settle(ended(first))
        store = bench.board.outputs
        store._remove(store._index.give_up(1, bench.board._machine.yielding()))
        second, attempt = bench.begun()
        await bench.emit(second.task_id, attempt.worker_handle, "x" * 60_000)
        second.settle(ended(second))
        assert bench.board.tasks() == (first, second)


@pytest.mark.parametrize("what", ["final", "stats"])
async def test_what_comes_after_the_end_counts_too(what) -> None:
    """Whoever runs a step may learn late that another has settled it."""
    board = a_board(max_kept=2**20)
    tasks, text = [], "x" * (2**19)
    for _ in range(8):
        task = board.create("a", "p")
        attempt = task.begin()
        task.settle(ended(task))
        if what == "final":
            attempt.append_final(text, True, by="executor")
        else:
            attempt.keep_stats(text)
        text += "y"
        tasks.append(task)
    assert board.tasks() == (tasks[-1],)
    tasks[0].attempt.append_final(text, True, by="executor")  # It is forgotten: nothing is counted.
    assert board.tasks() == (tasks[-1],)


async def test_while_a_task_runs_its_finals_make_nobody_go() -> None:
    board = a_board(max_kept=1)
    first, second = board.create("a", "p"), board.create("a", "p")
    first.settle(ended(first, value="x" * 10_000))
    second.begin().append_final("x" * 10_000, True, by="worker")
    assert board.tasks() == (first, second)


async def test_the_latest_is_kept_whatever_it_holds() -> None:
    board = a_board(max_kept=1)
    first, second = board.create("a", "p"), board.create("a", "p")
    first.settle(ended(first, value="x" * 10_000))
    assert board.find(first.task_id) is first
    second.settle(ended(second))
    assert board.tasks() == (second,)


async def test_tasks_below_tasks_are_limited() -> None:
    """5.2: depth 3 is the deepest."""
    board = a_board()
    task = board.create("a", "p")
    for depth in (1, 2, 3):
        task = board.create("a", "p", parent=task.task_id)
        assert task.depth == depth
    with pytest.raises(Refused, match="levels"):
        board.create("a", "p", parent=task.task_id)
    with pytest.raises(Refused, match="no task"):
        board.create("a", "p", parent="ST-0000000000000000")
    assert len(board.tasks()) == 4


# -- guesses -------------------------------------------------------------------------------


def limited(board: TaskBoard) -> None:
    """Somebody at 1.1.1.1 has shown unknown handles."""
    for number in range(GUESSES_PER_PEER):
        with pytest.raises(Denied):
            board._machine.admit(f"wh-{number:08x}", "fetch_prompt", now=board._clock(), peer="1.1.1.1")


async def test_handles_are_looked_at_in_turn_while_others_guess(autojump_clock) -> None:
    """First come, first served, whether they are good or not; who goes away holds up nobody."""
    board = a_board()
    limited(board)
    good = board.create("a", "p").begin().worker_handle
    turns: list[tuple[str, float]] = []

    async def take_turn(name: str, handle: str, task_status=trio.TASK_STATUS_IGNORED) -> None:
        with trio.CancelScope() as scope:
            task_status.started(scope)
            await board._take_turn(handle, "1.1.1.1", None)
            turns.append((name, round((trio.current_time() - began) / GUESS_TURN, 3)))

    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        scopes = {}
        for name, handle in [("a", "wh-aaaa"), ("b", "wh-bbbb"), ("good", good), ("c", "wh-cccc")]:
            scopes[name] = await nursery.start(take_turn, name, handle)
            await wait_all_tasks_blocked()
        scopes["b"].cancel()
    assert turns == [("a", 1), ("good", 2), ("c", 3)]


async def test_not_all_handles_may_wait_for_their_turn(autojump_clock) -> None:
    """So many of one place, so many in all; who names its task is looked at in the middle of it."""
    board = a_board()
    for number in range(GUESSES_PER_SERVER):
        board._machine._guesses.missed(f"1.1.2.{number}", board._clock())
    task = board.create("a", "p")
    handle = task.begin().worker_handle

    async def refused(peer: str) -> None:
        with pytest.raises(Denied) as caught:
            await board._take_turn(handle, peer, None)
        assert (caught.value.status, caught.value.retry_after) == (429, 1)

    async with trio.open_nursery() as nursery:
        for peer in ("1.1.1.1", "2.2.2.2"):
            for _ in range(WAITING_HANDLES_PER_PEER):
                nursery.start_soon(board._take_turn, handle, peer, None)
            await wait_all_tasks_blocked()
            await refused(peer)
        assert WAITING_HANDLES == 2 * WAITING_HANDLES_PER_PEER
        await refused("3.3.3.3")
        before = trio.current_time()
        await board._take_turn(handle, "3.3.3.3", task.task_id)
        assert trio.current_time() == before
        await trio.sleep(GUESS_TURN * 1.5)
        await board._take_turn(handle, "3.3.3.3", None)
    assert not board._turns._waiting


async def test_who_names_its_task_or_has_a_token_waits_for_no_guesser(autojump_clock) -> None:
    board = a_board()
    limited(board)
    task = board.create("a", "p")
    attempt = task.begin()
    began = trio.current_time()
    await board._take_turn(attempt.worker_handle, "1.1.1.1", task.task_id)
    await board._take_turn(attempt.capability_token, "1.1.1.1", None)
    await board._take_turn(attempt.worker_handle, "2.2.2.2", None)
    assert trio.current_time() == began
    await board._take_turn(attempt.worker_handle, "1.1.1.1", None)
    assert trio.current_time() > began


@pytest.mark.parametrize(
    "bad",
    [{"prompt": "\ud800"}, {"system": "\ud800"}, {"metadata": {"a": float("nan")}}, {"metadata": {"a": {1}}}],
)
async def test_what_cannot_be_told_to_a_worker_is_refused_at_once(bad) -> None:
    board = a_board()
    with pytest.raises(FrameError):
        board.create("a", **{"prompt": "p", **bad})
    assert board.tasks() == ()


async def test_a_handle_is_never_given_twice() -> None:
    handles = iter(["aaaaaaaa", "aaaaaaaa", "bbbbbbbb"])
    count = iter(range(100))
    board = a_board(new_hex=lambda size: next(handles) if size == 4 else f"{next(count):0{2 * size}x}")
    task = board.create("a", "p")
    assert [task.begin().worker_handle for _ in range(2)] == ["wh-aaaaaaaa", "wh-bbbbbbbb"]


@pytest.mark.parametrize(
    "options", [{"token_ttl": 0}, {"token_ttl": float("nan")}, {"token_ttl": float("inf")}, {"secret": b""}]
)
def test_bad_settings_are_named(options) -> None:
    (name,) = options
    with pytest.raises(ValueError, match=name):
        a_board(**options)
