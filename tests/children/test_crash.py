"""Children that die, and children that do not obey (children contract, A6 and A8)."""

from __future__ import annotations

import os
import signal

import pytest
import trio
import trio.testing

from tests.children.support import HERE, iterate, open_host
from trio_swarm._io.fabric import Fabric
from trio_swarm.children import open_child
from trio_swarm.errors import ChildCrashed, RestartIntensityExceeded


async def test_a_run_that_lost_its_process_is_run_again(tmp_path):
    """SIGKILL mid-run: restarted, sent again, completed; the events tell which try."""
    attempts = []
    async with open_host(tmp_path) as (host, heard), open_child(host, f"{HERE}:die_once") as child:
        first = child.pid
        async with child.open_run(str(tmp_path / "died")) as run:
            async for event in run:
                attempts.append((event["type"], run.attempt))
        assert run.result == "survived"
        assert attempts == [("first", 1), ("second", 2)]
        assert child.pid != first
        assert heard.kinds() == ["child_started", "child_crashed", "child_restarted"]
        assert heard.of("child_crashed") == [{"child": child.name, "pid": first, "how": "killed by SIGKILL"}]
        assert (await Fabric(tmp_path / "agents").read(child.name)).pid == child.pid
        assert (child.statistics().crashes, child.statistics().restarts) == (1, 1)


async def test_a_process_killed_from_outside_in_a_run(tmp_path):
    """The wait of another task goes on over the restart."""
    async with open_host(tmp_path) as (host, _), open_child(host, "echo") as child:
        results = []

        async def slow():
            results.append(await child.run("slow __sleep_ms:300"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(slow)
            while child.state != "running":
                await trio.sleep(0.01)
            os.kill(child.pid, signal.SIGKILL)
        assert results == ["echo: slow"]


async def test_a_process_killed_while_idle_is_replaced_by_the_next_run(tmp_path):
    """Lazily: nobody needs it before."""
    async with open_host(tmp_path) as (host, heard), open_child(host, "echo") as child:
        os.kill(child.pid, signal.SIGKILL)
        while child.state != "down":
            await trio.sleep(0.01)
        assert child.pid is None
        assert child.record is None
        assert await child.run("again") == "echo: again"
        assert heard.kinds() == ["child_started", "child_crashed", "child_restarted"]


async def test_leaving_the_block_gives_up_a_restart(tmp_path, monkeypatch):
    """The run that waits for it is told as promised, and not when the new process comes up or does not."""
    slow, seen = tmp_path / "slow", tmp_path / "seen"
    (tmp_path / "slow_engine.py").write_text(
        "import os, signal\n"
        f"if os.path.exists({str(slow)!r}):\n"
        f"    open({str(seen)!r}, 'w').close()\n"
        "    signal.pause()\n"
        "async def echo(run):\n"
        "    return run.assignment\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    told = []

    async def one(child):
        with pytest.raises(trio.ClosedResourceError):
            await child.run("x")
        told.append(child.state)

    async with open_host(tmp_path) as (host, heard), trio.open_nursery() as nursery:
        async with open_child(host, "slow_engine:echo", register_wait=8) as child:
            slow.touch()
            os.kill(child.pid, signal.SIGKILL)
            nursery.start_soon(one, child)
            while not seen.exists():
                await trio.sleep(0.01)
        assert child.state == "closed"
    assert told == ["closed"]
    assert heard.kinds() == ["child_started", "child_crashed"]


async def test_leaving_the_block_in_a_restart_tries_no_other(tmp_path):
    """Also where the new process would come up: closed stays closed."""
    told = []

    async def one(child):
        with pytest.raises(trio.ClosedResourceError):
            await child.run("x")
        told.append(child.state)

    async with open_host(tmp_path) as (host, _), trio.open_nursery() as nursery:
        async with open_child(host, "echo") as child:
            os.kill(child.pid, signal.SIGKILL)
            while child.state != "down":
                await trio.sleep(0.01)
            nursery.start_soon(one, child)
            await trio.testing.wait_all_tasks_blocked()
    assert told == ["closed"]
    assert child.state == "closed"


async def test_a_run_that_kills_each_process_is_an_error_after_its_attempts(tmp_path):
    """ChildCrashed with the attempt and how; the child can still be used."""
    async with open_host(tmp_path) as (host, _), open_child(host, f"{HERE}:die", max_attempts=2) as child:
        with pytest.raises(ChildCrashed, match="killed by SIGKILL at attempt 2") as caught:
            await child.run("x")
        assert caught.value.attempt == 2
        assert child.state == "down"
        assert child.statistics().crashes == 2


async def test_more_crashes_than_allowed_give_the_child_up(tmp_path):
    """RestartIntensityExceeded, from that run and every later one; no loop."""
    async with (
        open_host(tmp_path) as (host, heard),
        open_child(host, f"{HERE}:die", max_restarts=1, within=60, max_attempts=9) as child,
    ):
        with pytest.raises(RestartIntensityExceeded) as caught:
            await child.run("x")
        assert [crash.attempt for crash in caught.value.attempts] == [1, 2]
        assert child.state == "failed"
        with pytest.raises(RestartIntensityExceeded):
            await child.run("x")
        assert heard.kinds().count("child_crashed") == 2
        assert heard.kinds().count("child_restarted") == 1


async def test_a_crash_in_an_open_run_is_raised_by_the_iteration(tmp_path):
    """Who never looks at the result learns of it all the same."""
    async with open_host(tmp_path) as (host, _), open_child(host, f"{HERE}:die", max_attempts=1) as child:
        with pytest.raises(ChildCrashed):
            await iterate(child, "x")


async def test_cancel_keeps_a_process_that_obeys(tmp_path):
    """The terminal is waited for, so that the next run is answered by its own."""
    async with open_host(tmp_path) as (host, _), open_child(host, "echo") as child:
        pid = child.pid
        with trio.move_on_after(0.1) as scope:
            await child.run("x __sleep_ms:60000")
        assert scope.cancelled_caught
        assert await child.run("y") == "echo: y"
        assert child.pid == pid
        assert child.statistics().crashes == 0


async def test_leaving_an_open_run_cancels_it(tmp_path):
    """Without a word from the user, and the process is kept."""
    async with open_host(tmp_path) as (host, _), open_child(host, f"{HERE}:hang") as child:
        pid = child.pid
        for _ in range(2):
            async with child.open_run("x") as run:
                async for _ in run:
                    break
        assert child.pid == pid


@pytest.mark.parametrize("engine", ["stubborn", "stuck"])
async def test_cancel_kills_a_process_that_does_not_obey(tmp_path, engine):
    """After 3 s; the next run starts another. That is no crash and costs no restart."""
    async with (
        open_host(tmp_path) as (host, heard),
        open_child(host, f"{HERE}:{engine}", max_restarts=0) as child,
    ):
        pid = child.pid
        begun = trio.current_time()
        async with child.open_run("x") as run:
            async for _ in run:
                break
        assert 2.5 < trio.current_time() - begun < 4.5
        async with child.open_run("x") as run:
            async for _ in run:
                assert child.pid != pid
                os.kill(child.pid, signal.SIGKILL)
                break
        assert heard.kinds()[:2] == ["child_started", "child_restarted"]
