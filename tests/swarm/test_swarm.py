"""open_swarm: everything in one block, and nothing of it after."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
import trio.testing

from trio_swarm import (
    AskRequest,
    ChildCrashed,
    GateRequest,
    ScopeRule,
    SpawnError,
    Swarm,
    Terminated,
    connect_operator,
    open_swarm,
)

JOBS = "tests.swarm.jobs"


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class Everything:
    """An operator in process with three of the four verbs."""

    def __init__(self) -> None:
        self.after: list[object] = []

    async def ask(self, frame):
        return f"answer to {frame.question}"

    def before_spawn(self, frame):
        return frame.agent != "forbidden"

    async def after_spawn(self, frame):
        self.after.append(frame.result)


async def use_all(swarm: Swarm, out: Path) -> list[int]:
    """One of each, used once; the pids."""
    seat = await swarm.attach(Everything(), name="everything")
    server = await swarm.start_operators()
    child = await swarm.start_child(f"{JOBS}:shout", name="shouter")
    pod = await swarm.start_pod(f"{JOBS}:write", name="writer", scope=[ScopeRule(str(out), "write")])

    async def answer(query):
        return await seat.ask(query.prompt, task_id="ST-1")

    pool = await swarm.start_pool(f"{JOBS}:ask_first", size=1, on_query=answer)
    await seat.hook_before(task_id="ST-1", agent="allowed", attempt=1)

    assert await pool.run("job") == "job: answer to which?"
    assert await child.run("hello") == "HELLO"
    await pod.run(str(out / "file"))
    assert (out / "file").read_bytes() == b"written"
    async with connect_operator(server.url, roles=["remote"]) as client:
        remote = await server.wait_seat("remote")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_serve_one, client)
            assert await remote.ask("two?", task_id="ST-2") == "two?!"
    return list(swarm.report().survivors)


async def _serve_one(client) -> None:
    async for request in client:
        assert isinstance(request, AskRequest)
        request.answer(request.question + "!")
        return


async def test_all_four_parts_in_one_block(tmp_path) -> None:
    """Operators, a child, a pod and a pool work together, and the block leaves nothing of them."""
    async with open_swarm("all") as swarm:
        pids = await use_all(swarm, tmp_path)
        directory = swarm.directory
        assert directory.is_dir()

    report = swarm.report()
    assert len(pids) == 3
    assert not [pid for pid in pids if alive(pid)]
    assert report.survivors == ()
    assert {process.how for process in report.processes} <= {"asked", "exited"}
    assert not directory.exists()


@pytest.mark.parametrize("how", ["error", "cancel", "interrupt"])
async def test_nothing_is_left_however_the_block_is_left(tmp_path, how) -> None:
    """An error, a cancellation and Ctrl-C end everything, and come out as themselves."""
    pids: list[int] = []
    ends = {"error": ValueError("mine"), "interrupt": KeyboardInterrupt()}
    with trio.CancelScope() as scope:
        try:
            async with open_swarm() as swarm:
                pids += await use_all(swarm, tmp_path)
                if how == "cancel":
                    scope.cancel()
                    await trio.sleep_forever()
                raise ends[how]
        except (ValueError, KeyboardInterrupt) as error:
            assert error is ends[how]

    assert scope.cancelled_caught == (how == "cancel")
    assert not [pid for pid in pids if alive(pid)]


async def test_a_daemonised_grandchild_does_not_outlive_the_block() -> None:
    """A double-forked process in its own session is found and killed, and is in the report."""
    async with open_swarm() as swarm, swarm.open_pool(f"{JOBS}:daemonise", size=1) as pool:
        daemon = await pool.run(None)
        assert alive(daemon)

    assert not alive(daemon)
    assert sum(process.strays for process in swarm.report().processes) >= 1


async def test_a_stop_signal_ends_the_block_as_terminated() -> None:
    """stop_signals turn a signal into an exception out of the block, after the cleaning."""
    with pytest.raises(Terminated) as caught:
        async with open_swarm(stop_signals=[signal.SIGTERM]) as swarm:
            child = await swarm.start_child(f"{JOBS}:shout")
            os.kill(os.getpid(), signal.SIGTERM)
            await trio.sleep_forever()

    assert caught.value.signum == signal.SIGTERM
    assert child.pid is None or not alive(child.pid)


async def test_two_swarms_in_one_program_do_not_touch_each_other() -> None:
    """Leaving one block leaves the other's processes alone."""
    async with open_swarm("one") as one:
        pool = await one.start_pool(f"{JOBS}:double", size=1)
        async with open_swarm("two") as two:
            other = await two.start_pool(f"{JOBS}:double", size=1)
            assert await other.run(4) == 8

        assert await pool.run(5) == 10


async def test_stop_ends_one_thing_at_once() -> None:
    """A started thing can be stopped before the swarm; stopping again is no error."""
    async with open_swarm() as swarm:
        child = await swarm.start_child(f"{JOBS}:shout")
        pid = child.pid
        await swarm.stop(child)

        assert pid is not None
        assert not alive(pid)
        await swarm.stop(child)


async def test_errors_of_started_things_come_out_of_the_block() -> None:
    """What cannot be started raises where it is started, as itself."""
    with pytest.raises(SpawnError):
        async with open_swarm() as swarm:
            await swarm.start_child("tests.swarm.no_such_module:engine", name="lost")


async def test_a_job_that_kills_its_worker_is_an_outcome() -> None:
    """One poisonous job is given up after its attempts; the others are done."""
    async with open_swarm() as swarm, swarm.open_pool(size=2, max_attempts=2, max_restarts=9) as pool:
        assert await pool.run(code="return 1") == 1
        with pytest.raises(ChildCrashed) as caught:
            await pool.run(code="import os; os.abort()")
        assert caught.value.attempt == 2
        assert await pool.run(code="return 3") == 3


async def test_an_attached_operator_denies_and_is_told() -> None:
    """before_spawn's False denies; after_spawn is told, in its own time; names are unique."""
    operator = Everything()
    async with open_swarm() as swarm:
        seat = await swarm.attach(operator)
        with pytest.raises(Exception, match="reject"):
            await seat.hook_before(task_id="ST-1", agent="forbidden", attempt=1)
        seat.hook_after(task_id="ST-1", agent="allowed", attempt=1, result={"n": 1})
        with pytest.raises(ValueError, match="Everything"):
            await swarm.attach(Everything())
        assert swarm.seat("Everything") is seat

    assert operator.after == [{"n": 1}]


async def test_events_tell_what_happened() -> None:
    """Rooms and the user's own emit reach a subscriber in one numbered stream."""
    async with open_swarm() as swarm, swarm.subscribe() as events:
        await swarm.start_child(f"{JOBS}:shout", name="shouter")
        swarm.emit("mine", {"n": 1})
        kinds = []
        async for event in events:
            kinds.append(event.kind)
            if event.kind == "mine":
                break

    assert kinds == ["child_started", "mine"]


async def test_the_remaining_time_travels_to_a_remote_operator() -> None:
    """The caller's effective deadline arrives with the request, shrunk, never grown."""
    async with open_swarm() as swarm, swarm.serve_operators() as server:
        async with connect_operator(server.url, roles=["gate"]) as client:
            seat = await server.wait_seat("gate")
            with trio.move_on_after(5) as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_gate, seat)
                    request = await client.receive()
                    assert isinstance(request, GateRequest)
                    # remaining time, not wall time: the way here is not counted
                    assert request.deadline <= scope.deadline + 1
                    assert request.deadline > trio.current_time() + 1
                    request.ack()


async def _gate(seat) -> None:
    await seat.hook_before(task_id="ST-1", agent="a", attempt=1)


@pytest.mark.parametrize("how", ["in order", "by an error", "cancelled"])
async def test_a_swarm_that_was_left_starts_nothing(tmp_path, how) -> None:
    """Each way to start something says so, and not in the words of a nursery."""
    rules = [ScopeRule(str(tmp_path), "write")]
    with trio.CancelScope() as scope:
        try:
            async with open_swarm("gone") as swarm:
                if how == "by an error":
                    raise LookupError
                if how == "cancelled":
                    scope.cancel()
                    await trio.sleep_forever()
        except LookupError:
            pass
    for start in (
        lambda: swarm.start_child("echo"),
        lambda: swarm.start_pool(f"{JOBS}:count"),
        lambda: swarm.start_pod(f"{JOBS}:write", name="p", scope=rules),
        lambda: swarm.start_operators(),
        lambda: swarm.start_process(["true"], name="p"),
        lambda: swarm.attach(Everything()),
        lambda: swarm.open_child("echo").__aenter__(),
        lambda: swarm.open_pool(f"{JOBS}:count").__aenter__(),
        lambda: swarm.open_pod(f"{JOBS}:write", name="p", scope=rules).__aenter__(),
        lambda: swarm.serve_operators().__aenter__(),
    ):
        with pytest.raises(trio.ClosedResourceError, match="the swarm 'gone' was left"):
            await start()


async def test_a_swarm_that_is_being_ended_starts_nothing() -> None:
    """An outsider who comes while a started thing fails is told the same."""
    told = []

    async def comes(swarm: Swarm, left: trio.Event) -> None:
        await left.wait()
        with pytest.raises(trio.ClosedResourceError):
            await swarm.start_child("echo")
        told.append(True)

    async with trio.open_nursery() as nursery:
        left = trio.Event()
        with pytest.raises(LookupError):
            async with open_swarm() as swarm:
                nursery.start_soon(comes, swarm, left)
                await swarm.start_child("echo")
                left.set()
                raise LookupError
    assert told == [True]


async def test_a_seat_ends_with_its_name_free(tmp_path) -> None:
    """Also where its caller was cancelled while it was being seated."""
    async with open_swarm() as swarm:
        with trio.CancelScope() as scope:
            scope.cancel()
            await swarm.attach(Everything(), name="x")
        if "x" in swarm._seats:
            # It was quicker: then it is there, and can be had.
            await swarm.stop(swarm.seat("x"))
        assert swarm._seats == {}
        seat = await swarm.attach(Everything(), name="x")
        assert swarm.seat("x") is seat


KILLED = """
import os, signal, trio
from trio_swarm import open_swarm
async def main():
    async with open_swarm() as swarm:
        async with swarm.tasks.outputs.draft(swarm.tasks.create("a", "p").task_id) as draft:
            await draft.write(b"x" * 1_000_000)
        print(swarm.directory, swarm._spool, flush=True)
        await trio.sleep_forever()
trio.run(main)
"""


@pytest.fixture
def short() -> Iterator[Path]:
    """A directory in which a socket's path fits."""
    with tempfile.TemporaryDirectory(dir="/tmp") as base:
        yield Path(base)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
async def test_the_spool_is_where_files_go_private_and_gone_with_the_swarm(short, how) -> None:
    """Not where the sockets are, which may be memory; the warden removes both if nobody else can."""
    run, tmp = short / "run", short / "tmp"
    run.mkdir(mode=0o700)
    tmp.mkdir()
    env = {**os.environ, "XDG_RUNTIME_DIR": str(run), "TMPDIR": str(tmp), "PYTHONPATH": os.getcwd()}
    process = await trio.lowlevel.open_process(
        [sys.executable, "-c", KILLED], env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    try:
        said = b""
        while not said.endswith(b"\n"):
            said += await process.stdout.receive_some() or b"it ended too soon\n"
        directory, spool = map(Path, said.decode().split())
        modes = [stat.S_IMODE(path.stat().st_mode) for path in (directory, spool)]
    finally:
        process.send_signal(how)
        await process.wait()
        await process.stdout.aclose()

    with trio.fail_after(20):
        while spool.exists() or directory.exists():
            await trio.sleep(0.01)  # The warden is no child of ours: there is nothing to wait on.
    assert (directory.parent, spool.parent) == (run, tmp)
    assert modes == [0o700, 0o700]
    assert list(tmp.iterdir()) == []
