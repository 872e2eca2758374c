"""Processes that are forked off a warmed interpreter are owned like all others."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from trio_swarm import SpawnError, open_swarm
from trio_swarm._io import procfs
from trio_swarm._io.process import open_warden, python_argv

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has child subreapers")

WORKER = "trio_swarm._child.pool_worker"


def argv(tmp_path: Path, name: str) -> list[str]:
    """A process that listens until it is told to end."""
    return python_argv(WORKER, "--sid", f"p-{name}", "--sock", str(tmp_path / f"{name}.sock"))


def command(pid: int) -> list[str]:
    return procfs.read(pid, "cmdline").decode().rstrip("\0").split("\0")


def stem_of(warden) -> int:
    children = [pid for pid, parent in procfs.parents().items() if parent == warden.pid]
    (stem,) = [pid for pid in children if "trio_swarm._child.stem" in command(pid)]
    return stem


@asynccontextmanager
async def one_branch(tmp_path):
    """A warden whose stem is up."""
    async with open_warden() as warden:
        first = await warden.start(argv(tmp_path, "first"), name="first")
        yield warden, first
    assert procfs.stat(first.pid) == []


async def gone(pid: int) -> None:
    """Until there is no such process; the kernel tells nobody who is not its parent."""
    while procfs.stat(pid)[:1] not in ([], [b"Z"]):
        await trio.sleep(0.005)


async def test_a_branch_is_the_wardens_own_and_looks_like_itself(tmp_path):
    """Parent, session, command line and mark are its own; the stem is nobody's business."""
    async with one_branch(tmp_path) as (warden, first):
        second = await warden.start(argv(tmp_path, "second"), name="second")

        for process in (first, second):
            fields = procfs.stat(process.pid)
            assert int(fields[procfs.PARENT]) == warden.pid
            assert int(fields[procfs.SESSION]) == process.pid
            assert command(process.pid) == argv(tmp_path, process.name)
            assert process.id in procfs.marks(process.pid)
            assert len(procfs.marks(process.pid)) == len(procfs.marks(first.pid))
        stem = stem_of(warden)
        assert stem not in warden.survivors()
        assert set(warden.survivors()) == {first.pid, second.pid}
        await second.stop()
        assert procfs.stat(stem) != []
    assert procfs.stat(stem) == []
    assert [each.name for each in warden.report()] == ["second", "first"]


def about_me(ctx, query):
    """A job: what a process that was forked sees of itself."""
    here = {name: os.environ.get(name) for name in ("TRIO_SWARM_PROCESS", "TRIO_SWARM_ROOM", "HOME")}
    fds = {int(each) for each in os.listdir("/proc/self/fd")}
    main = sys.modules["__main__"].__spec__.name
    return {"env": here, "fds": len(fds), "argv": sys.argv[1:3], "main": main, "cwd": os.getcwd()}


async def test_a_branch_sees_its_own_arguments_and_environment():
    """As if it had been executed."""
    async with open_swarm() as swarm, swarm.open_pool("tests.child.test_stem:about_me", size=2) as pool:
        found = [await pool.run({}) for _ in range(2)]
        for each in found:
            assert each["main"] == WORKER
            assert each["argv"][0] == "--sid"
            assert each["env"]["TRIO_SWARM_PROCESS"]
            assert each["env"]["TRIO_SWARM_ROOM"] is None
            assert each["env"]["HOME"] == os.environ.get("HOME")
            assert each["cwd"] == os.getcwd()
            assert each["fds"] < 12


def leave_a_daemon(ctx, query):
    """A job that forks a process into a session of its own, without executing anything."""
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.write(writer, str(os.getpid()).encode())
            os.close(writer)
            while True:
                signal.pause()
        os._exit(0)
    os.wait()
    os.close(writer)
    with os.fdopen(reader) as told:
        return int(told.read(20))


async def test_what_a_branch_leaves_behind_is_ended_with_it():
    """A daemon that was never executed carries the branch's mark, not the stem's."""
    async with open_swarm() as swarm:
        async with swarm.open_pool("tests.child.test_stem:leave_a_daemon", size=1) as pool:
            daemon = await pool.run({})
        with trio.fail_after(5):
            await gone(daemon)
        strays = [process for process in swarm.report().processes if process.strays]
    assert len(strays) == 1
    assert [process.how for process in swarm.report().processes] == ["asked"]


async def test_another_environment_is_executed_not_forked(tmp_path):
    """A forked interpreter could not heed it."""
    async with one_branch(tmp_path) as (warden, _):
        other = await warden.start(
            argv(tmp_path, "other"), name="other", env={"PYTHONHASHSEED": "7", "LC_ALL": "C"}
        )
        environment = procfs.read(other.pid, "environ")
        assert b"PYTHONHASHSEED=7\0" in environment
        assert b"TRIO_SWARM_ROOM" not in environment


async def test_a_module_that_cannot_be_imported_fails_as_ever(tmp_path):
    """The stem cannot fork it, the interpreter says why, and the stem goes on."""
    async with one_branch(tmp_path) as (warden, _):
        process = await warden.start(python_argv("trio_swarm.no_such_module"), name="none")
        how = await process.wait()
        assert how.code == 1
        assert "No module named trio_swarm.no_such_module" in process.stderr_tail
        again = await warden.start(argv(tmp_path, "again"), name="again")
        assert procfs.stat(again.pid) != []


async def test_a_killed_stem_loses_nobody(tmp_path):
    """Who was waiting for it is executed, the next one has a new stem."""
    async with one_branch(tmp_path) as (warden, first):
        stem = stem_of(warden)
        os.kill(stem, signal.SIGSTOP)
        started = []

        async def start() -> None:
            started.append(await warden.start(argv(tmp_path, "waiting"), name="waiting"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(start)
            await trio.testing.wait_all_tasks_blocked()
            os.kill(stem, signal.SIGKILL)
        third = await warden.start(argv(tmp_path, "third"), name="third")
        assert stem_of(warden) != stem
        assert set(warden.survivors()) == {first.pid, started[0].pid, third.pid}


async def test_a_start_that_is_cancelled_while_it_is_forked_leaves_nobody(tmp_path):
    """The order to stop it waits for its name to be known."""
    async with one_branch(tmp_path) as (warden, first):
        stem = stem_of(warden)
        os.kill(stem, signal.SIGSTOP)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: warden.start(argv(tmp_path, "late"), name="late"))
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        os.kill(stem, signal.SIGCONT)
        after = await warden.start(argv(tmp_path, "after"), name="after")
        with trio.fail_after(5):
            while len(warden.survivors()) != 2:
                await trio.sleep(0.005)
        assert set(warden.survivors()) == {first.pid, after.pid}
    assert [each.name for each in warden.report() if each.how == "stray"] == []


async def test_the_end_of_the_block_ends_a_start_that_is_under_way(tmp_path):
    """It raises there, and nothing is left of it."""
    failed = []
    async with trio.open_nursery() as nursery:
        async with open_warden() as warden:
            await warden.start(argv(tmp_path, "first"), name="first")
            os.kill(stem_of(warden), signal.SIGSTOP)

            async def start() -> None:
                with pytest.raises(SpawnError) as caught:
                    await warden.start(argv(tmp_path, "late"), name="late")
                failed.append(str(caught.value))

            nursery.start_soon(start)
            await trio.testing.wait_all_tasks_blocked()
    assert "warden" in failed[0]
    assert warden.survivors() == ()
    assert [each.name for each in warden.report()] == ["first"]


async def test_many_at_once(tmp_path):
    """Each under its own name, all of them gone at the end."""
    async with open_warden() as warden:
        async with trio.open_nursery() as nursery:
            for number in range(30):
                nursery.start_soon(lambda n=number: warden.start(argv(tmp_path, f"w{n}"), name=f"w{n}"))
        assert sorted(command(each.pid)[5] for each in warden.processes()) == sorted(
            f"p-w{n}" for n in range(30)
        )
    assert len(warden.report()) == 30
    assert {each.how for each in warden.report()} <= {"exited", "terminated"}
