"""Pods that are killed while they start."""

from __future__ import annotations

import os
import signal
from contextlib import suppress

import pytest
import trio

from tests.pods.test_open_pod import rigged
from tests.starting import Gate
from trio_swarm.errors import ChildCrashed, RestartIntensityExceeded, SpawnError
from trio_swarm.frames.pod import ScopeRule
from trio_swarm.pods import ScopeLock, open_pod


@pytest.fixture
async def rig(tmp_path):
    async with rigged(tmp_path) as made:
        yield made


@pytest.fixture
def gate(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    return Gate(tmp_path)


def opened(rig, gate, **kwargs):
    return open_pod(rig.host, gate.target, name="p", scope=[ScopeRule(str(rig.out), "write")], **kwargs)


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
async def test_a_first_process_killed_while_it_starts_is_replaced(rig, gate, signum, tmp_path):
    """The block is entered all the same, the scope lock's entry is the new one's."""
    lock = ScopeLock(tmp_path / "scope.lock")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: gate.kill_one(rig.host.warden, signum=signum))
        async with opened(rig, gate, scope_lock=lock.path) as pod:
            assert (await pod.run("x")).text == "through"
            (held,) = await lock.allocations()
            assert held.pid == pod.pid
    assert rig.kinds() == ["pod_crashed", "pod_started"]
    assert rig.events[0][1]["how"] == f"killed by {signum.name} while it started"
    assert await lock.allocations() == ()


async def test_a_restart_killed_while_it_starts_is_tried_again(rig, gate):
    """Whoever waits for the pod gets it."""
    gate.open()
    async with opened(rig, gate) as pod:
        gate.shut()
        os.kill(pod.pid, signal.SIGKILL)
        await gate.kill_one(rig.host.warden)
        assert (await pod.run("x")).text == "through"
    assert rig.kinds() == ["pod_started", "pod_crashed", "pod_crashed", "pod_restarted"]


async def test_starts_that_are_killed_each_time_end_by_the_intensity(rig, gate):
    """No loop; every one is named."""
    killed = []

    async def kill():
        for _ in range(2):
            killed.append(await gate.kill_one(rig.host.warden, last=False))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(kill)
        with pytest.raises(RestartIntensityExceeded) as caught:
            async with opened(rig, gate, max_restarts=1):
                raise AssertionError("not reached")
    assert [crash.pid for crash in caught.value.attempts] == killed
    assert rig.left() == []


async def test_a_target_that_cannot_be_had_is_not_tried_again(rig, tmp_path, monkeypatch):
    """Neither at first nor after a crash; who waits is told as well."""
    monkeypatch.syspath_prepend(str(tmp_path))
    module = tmp_path / "changing_engine.py"
    module.write_text("import sys\nsys.exit(0)\n")
    rules = [ScopeRule(str(rig.out), "write")]
    with pytest.raises(SpawnError, match="cannot be had: 0"):
        async with open_pod(rig.host, "changing_engine:engine", name="p", scope=rules):
            raise AssertionError("not reached")
    assert len(rig.host.warden.report()) == 1

    module.write_text("async def engine(turn): return 'x'\n")
    told = []

    async def waits(pod):
        with pytest.raises(SpawnError) as caught:
            while True:
                with suppress(ChildCrashed):  # of a turn that was under way
                    await pod.run("x")
        told.append(str(caught.value))

    async with trio.open_nursery() as nursery:
        with pytest.raises(SpawnError, match="broken meanwhile"):
            async with open_pod(rig.host, "changing_engine:engine", name="p", scope=rules) as pod:
                await pod.run("x")
                nursery.start_soon(waits, pod)
                module.write_text("raise RuntimeError('broken meanwhile')\n")
                os.kill(pod.pid, signal.SIGKILL)
                await trio.sleep_forever()
    assert "broken meanwhile" in told[0]
    assert len(rig.host.warden.report()) == 3
