"""Children that are killed while they start, and the time between restarts."""

from __future__ import annotations

import os
import signal
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from tests.children.support import HERE, open_host
from tests.starting import Gate
from trio_swarm._state.supervise import Backoff
from trio_swarm.children import incarnation, open_child
from trio_swarm.errors import RestartIntensityExceeded, SpawnError


@pytest.fixture
def gate(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    return Gate(tmp_path)


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
async def test_a_first_process_killed_while_it_starts_is_replaced(tmp_path, gate, signum):
    """The block is entered all the same."""
    async with open_host(tmp_path) as (host, heard), trio.open_nursery() as nursery:
        nursery.start_soon(lambda: gate.kill_one(host.warden, signum=signum))
        async with open_child(host, gate.target) as child:
            assert await child.run("x") == "through"
            assert heard.kinds() == ["child_crashed", "child_started"]
            how = f"killed by {signum.name} while it started"
            assert heard.of("child_crashed")[0]["how"] == how
            assert child.statistics().crashes == 1


async def test_a_restart_killed_while_it_starts_is_tried_again(tmp_path, gate):
    """The run that waits for it gets its result."""
    gate.open()
    async with open_host(tmp_path) as (host, heard), open_child(host, gate.target) as child:
        gate.shut()
        os.kill(child.pid, signal.SIGKILL)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: gate.kill_one(host.warden))
            assert await child.run("x") == "through"
        assert heard.kinds() == ["child_started", "child_crashed", "child_crashed", "child_restarted"]


async def test_starts_that_are_killed_each_time_end_by_the_intensity(tmp_path, gate):
    """No loop; every one is named."""
    killed = []
    async with open_host(tmp_path) as (host, _), trio.open_nursery() as nursery:

        async def kill():
            for _ in range(3):
                killed.append(await gate.kill_one(host.warden, last=False))

        nursery.start_soon(kill)
        with pytest.raises(RestartIntensityExceeded) as caught:
            async with open_child(host, gate.target, max_restarts=2):
                raise AssertionError("not reached")
        assert [crash.pid for crash in caught.value.attempts] == killed
        assert len(killed) == 3


async def test_a_process_killed_before_it_is_connected_to_is_replaced(tmp_path, monkeypatch):
    """It had registered already."""
    async with open_host(tmp_path) as (host, heard):
        real, killed = incarnation.open_ws_client, []

        @asynccontextmanager
        async def killing(url, **kwargs):
            if not killed:
                (process,) = host.warden.processes()
                killed.append(process.pid)
                os.kill(process.pid, signal.SIGKILL)
                await process.wait()
            async with real(url, **kwargs) as transport:
                yield transport

        monkeypatch.setattr(incarnation, "open_ws_client", killing)
        async with open_child(host, "echo") as child:
            assert await child.run("x") == "echo: x"
        assert heard.of("child_crashed")[0]["pid"] == killed[0]


async def test_a_target_that_cannot_be_imported_is_not_tried_again(tmp_path):
    """It would only fail again."""
    async with open_host(tmp_path) as (host, heard):
        with pytest.raises(SpawnError, match="ModuleNotFoundError"):
            async with open_child(host, "no.such.module:f"):
                raise AssertionError("not reached")
        assert len(host.warden.report()) == 1
        assert heard == []


@pytest.fixture
def long_backoff(monkeypatch):
    """The second restart in a row waits for an hour."""
    monkeypatch.setattr(Backoff, "delay", lambda self, failures, random=1.0: 3600.0 if failures else 0.0)


async def _crash(child):
    os.kill(child.pid, signal.SIGKILL)
    while child.state != "down":
        await trio.sleep(0.01)


async def test_the_second_restart_waits_and_can_be_cancelled(tmp_path, long_backoff):
    """The first does not; a restart that was waited for in vain is not counted twice."""
    async with open_host(tmp_path) as (host, _), open_child(host, "echo", max_restarts=2) as child:
        await _crash(child)
        assert await child.run("at once") == "echo: at once"
        await _crash(child)
        for _ in range(3):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(child.run, "later")
                await trio.testing.wait_all_tasks_blocked(0.05)
                assert host.warden.processes() == ()
                nursery.cancel_scope.cancel()
        assert child.state == "down"


async def test_leaving_the_block_ends_the_wait_for_a_restart(tmp_path, long_backoff):
    """Whoever waits is told."""

    async def waits(child):
        with pytest.raises(trio.ClosedResourceError):
            await child.run("later")

    async with open_host(tmp_path) as (host, _), trio.open_nursery() as nursery:
        async with open_child(host, f"{HERE}:greet") as child:
            await _crash(child)
            await child.run("at once")
            await _crash(child)
            nursery.start_soon(waits, child)
            await trio.testing.wait_all_tasks_blocked(0.05)


async def test_starts_that_their_caller_gave_up_are_not_crashes(tmp_path, gate):
    """A caller without patience, again and again, does not wear the child out."""
    gate.open()
    async with open_host(tmp_path) as (host, _), open_child(host, gate.target, max_restarts=1) as child:
        await _crash(child)
        gate.shut()
        for _ in range(2):
            with trio.move_on_after(0.05):
                await child.run("too slow")
        gate.open()
        assert await child.run("x") == "through"
