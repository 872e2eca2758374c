"""Processes that are forked off a warmed interpreter are owned like all others."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio

from trio_swarm import SpawnError, open_swarm
from trio_swarm._io import procfs
from trio_swarm._io.process import open_warden, python_argv

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has child subreapers")

HERE = "tests.child.test_stem"
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


def descriptors(warden) -> int:
    """How many the warden has: one more, at least, for each start that it waits for."""
    return len(os.listdir(f"/proc/{warden.pid}/fd"))


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
    shown = subprocess.run(["/usr/bin/env", "-0"], capture_output=True, check=True).stdout.decode()
    fds = sorted(int(each) for each in os.listdir("/proc/self/fd"))[:-1]  # the last one lists them
    main = sys.modules["__main__"].__spec__.name
    return {
        "env": dict(os.environ),
        "passed on": shown.rstrip("\0").split("\0"),
        "fds": [(fd, os.get_inheritable(fd), os.readlink(f"/proc/self/fd/{fd}").split(":")[0]) for fd in fds],
        "argv": sys.argv[1:3],
        "main": main,
        "cwd": os.getcwd(),
    }


async def test_a_branch_is_as_if_it_had_been_executed(monkeypatch):
    """The same arguments, variables and descriptors, and the same for what it executes."""
    async with open_swarm() as swarm, swarm.open_pool(f"{HERE}:about_me") as forked:
        one = await forked.run({})
        monkeypatch.setenv("HOME", "/elsewhere")  # another environment: executed
        async with swarm.open_pool(f"{HERE}:about_me") as executed:
            two = await executed.run({})

    assert one["main"] == WORKER
    assert one["argv"][0] == "--sid"
    assert one["env"].keys() == two["env"].keys()
    assert one["env"]["TRIO_SWARM_PROCESS"] != two["env"]["TRIO_SWARM_PROCESS"]
    assert sorted(each.split("=")[0] for each in one["passed on"]) == sorted(one["env"])
    assert one["fds"] == two["fds"]
    assert one["cwd"] == two["cwd"] == os.getcwd()


async def test_a_module_that_was_written_meanwhile_is_found(tmp_path, monkeypatch):
    """The stem looked where it would be when it was not there."""
    late = tmp_path / "late"
    monkeypatch.syspath_prepend(str(late))
    async with open_swarm() as swarm:
        async with swarm.open_pool(f"{HERE}:about_me") as pool:
            await pool.run({})
        late.mkdir()
        (late / "stem_late_module.py").write_text("def job(ctx, query): return 42\n")
        async with swarm.open_pool("stem_late_module:job") as pool:
            assert await pool.run({}) == 42


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
        async with swarm.open_pool(f"{HERE}:leave_a_daemon", size=1) as pool:
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
        while not (environment := procfs.read(other.pid, "environ")):  # its exec is not quite over
            await trio.sleep(0.005)
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
        stem, held = stem_of(warden), descriptors(warden)
        os.kill(stem, signal.SIGSTOP)
        started = []

        async def start() -> None:
            started.append(await warden.start(argv(tmp_path, "waiting"), name="waiting"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(start)
            while descriptors(warden) <= held:
                await trio.sleep(0.005)
            os.kill(stem, signal.SIGKILL)
        third = await warden.start(argv(tmp_path, "third"), name="third")
        assert stem_of(warden) != stem
        assert set(warden.survivors()) == {first.pid, started[0].pid, third.pid}


async def test_a_start_that_is_cancelled_while_it_is_forked_leaves_nobody(tmp_path):
    """The order to stop it waits for its name to be known."""
    async with one_branch(tmp_path) as (warden, first):
        stem, held = stem_of(warden), descriptors(warden)
        os.kill(stem, signal.SIGSTOP)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: warden.start(argv(tmp_path, "late"), name="late"))
            while descriptors(warden) <= held:
                await trio.sleep(0.005)
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


async def test_a_module_that_is_no_program_is_executed(tmp_path):
    """Whatever that comes to: its way to be run is its own."""
    async with one_branch(tmp_path) as (warden, _):
        process = await warden.start(python_argv("trio_swarm.errors"), name="errors")
        assert (await process.wait()).code == 0
        assert process.stderr_tail == ""


async def test_a_branch_that_is_killed_before_it_is_known_is_reported_or_replaced(tmp_path):
    """The warden hears of it when it is dead already; if it has buried it by then, it executes another."""
    async with one_branch(tmp_path) as (warden, _):
        stem, before = stem_of(warden), set(procfs.parents())
        os.kill(stem, signal.SIGSTOP)
        held = descriptors(warden)
        started = []

        async def start() -> None:
            started.append(await warden.start(argv(tmp_path, "short"), name="short"))

        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(start)
                while descriptors(warden) <= held:  # it holds the pipe on which the branch may begin
                    await trio.sleep(0.005)
                os.kill(warden.pid, signal.SIGSTOP)
                os.kill(stem, signal.SIGCONT)
                new: list[int] = []
                while not new:
                    await trio.sleep(0.005)
                    family = procfs.parents()
                    new = [pid for pid in set(family) - before if family[pid] == warden.pid]
                # It sleeps only where it waits to begin: the stem knows its pid by then.
                while command(new[0]) != argv(tmp_path, "short") or procfs.stat(new[0])[0] != b"S":
                    await trio.sleep(0.005)
                os.kill(new[0], signal.SIGKILL)
                await gone(new[0])
                os.kill(warden.pid, signal.SIGCONT)
            if started[0].pid == new[0]:
                assert (await started[0].wait()).signal == signal.SIGKILL
            else:
                assert procfs.stat(started[0].pid) != []
        assert procfs.stat(new[0]) == []


async def test_an_order_that_is_too_long_for_the_stem_is_executed(tmp_path):
    """And the stem lives on."""
    async with one_branch(tmp_path) as (warden, _):
        stem = stem_of(warden)
        process = await warden.start([*argv(tmp_path, "long"), *["x" * 100_000] * 2], name="long")
        assert (await process.wait()).code == 2
        assert "unrecognized arguments" in process.stderr_tail or process.stderr_tail
        assert stem_of(warden) == stem


async def test_many_descriptors_at_once_are_not_held_by_the_warden(tmp_path):
    """What the stem has not taken yet counts against the warden's own limit."""
    fds = [os.open(os.devnull, os.O_RDONLY) for _ in range(100)]
    try:
        async with one_branch(tmp_path) as (warden, first):
            async with trio.open_nursery() as nursery:
                for number in range(12):
                    start = partial(
                        warden.start, argv(tmp_path, f"w{number}"), name=f"w{number}", pass_fds=fds
                    )
                    nursery.start_soon(start)
            assert len(warden.processes()) == 13
            assert first.exit is None
    finally:
        for fd in fds:
            os.close(fd)


FLOOD = """
import resource, sys, trio
from trio_swarm._io.process import open_warden, python_argv
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
async def one(warden, number):
    argv = python_argv("trio_swarm._child.pool_worker", "--sid", "p", "--sock", f"{sys.argv[1]}/{number}")
    await warden.start(argv, name=f"w{number}", stderr="null")
async def main():
    async with open_warden() as warden:
        async with trio.open_nursery() as nursery:
            for number in range(60):
                nursery.start_soon(one, warden, number)
        print(len(warden.processes()))
trio.run(main)
"""


def test_with_few_descriptors_the_warden_still_starts_everybody(tmp_path):
    """It has as many as its coordinator: where a fork would need more, it executes."""
    done = subprocess.run(
        [sys.executable, "-c", FLOOD, str(tmp_path)], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.stdout.strip(), done.stderr) == ("60", "")


@pytest.mark.slow
async def test_a_stem_that_hangs_is_not_waited_for_without_bound(tmp_path):
    """It is killed, who waited is executed, and the next has a new one."""
    async with one_branch(tmp_path) as (warden, _):
        stem = stem_of(warden)
        os.kill(stem, signal.SIGSTOP)
        with trio.fail_after(30):
            await warden.start(argv(tmp_path, "second"), name="second")
            await warden.start(argv(tmp_path, "third"), name="third")
        assert procfs.stat(stem) == []
        assert stem_of(warden) != stem


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
