"""Leaving the block, in whatever way, leaves nobody; and what happens when the warden goes first."""

from __future__ import annotations

import os
import signal
from contextlib import suppress

import pytest
import trio

from tests.io.processes import DAEMON, STUBBORN, python, survivors, token_env, until_gone, wait_for_file
from trio_swarm._io import warden as warden_module
from trio_swarm._io import warden_client
from trio_swarm._io.process import Exit, open_warden, python_argv, python_env
from trio_swarm.errors import SpawnError, Unreaped


class BodyError(Exception):
    """Ours."""


async def leave_by_return():
    pass


async def leave_by_error():
    raise BodyError


async def leave_by_interrupt():
    raise KeyboardInterrupt


async def leave_by_cancel():
    await trio.sleep_forever()


@pytest.mark.parametrize("leave", [leave_by_return, leave_by_error, leave_by_interrupt, leave_by_cancel])
async def test_leaving_leaves_nobody(leave, tmp_path):
    """One that obeys, one that does not, a daemon, a group; the exception comes out as itself."""
    env, token = token_env()
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").touch()
    error = None
    with trio.CancelScope() as scope:
        try:
            async with open_warden(grace=0.2, remove=[kept]) as warden:
                await warden.start(["sleep", "100"], name="obeys", env=env)
                await warden.start([*python(STUBBORN), str(tmp_path / "1")], name="stubborn", env=env)
                await warden.start([*python(DAEMON), str(tmp_path / "2")], name="daemon", env=env)
                await warden.start(["sh", "-c", "sleep 100 & sleep 100"], name="group", env=env)
                await wait_for_file(tmp_path / "1")
                await wait_for_file(tmp_path / "2")
                assert len(survivors(token)) >= 5
                if leave is leave_by_cancel:
                    scope.cancel()
                await leave()
        except (BodyError, KeyboardInterrupt) as left:
            error = left

    assert survivors(token) == []
    assert not kept.exists()
    assert type(error) is {leave_by_error: BodyError, leave_by_interrupt: KeyboardInterrupt}.get(
        leave, type(None)
    )
    assert scope.cancelled_caught is (leave is leave_by_cancel)
    how = {r.name: (r.how, r.strays) for r in warden.report()}
    assert how == {
        "obeys": ("terminated", 0),
        "stubborn": ("killed", 0),
        "daemon": ("terminated", 1),
        "group": ("terminated", 0),
    }


async def test_nothing_is_started_after_the_block():
    """The handle says so; reports stay."""
    async with open_warden() as warden:
        process = await warden.start(["true"], name="it")
    with pytest.raises(SpawnError, match="ended"):
        await warden.start(["true"], name="late")
    assert await process.wait() == process.exit
    assert await process.stop() == process.exit
    await process.signal(signal.SIGTERM)
    assert [r.name for r in warden.report()] == ["it"]


async def test_tasks_of_the_body_may_wait_and_stop_together():
    """Any number of tasks wait; the earliest end of the grace counts."""
    async with open_warden() as warden:
        process = await warden.start(["sh", "-c", "trap '' TERM; while :; do sleep 1; done"], name="it")
        ends = []

        async def stop(grace):
            ends.append(await process.stop(grace=grace))

        async def wait():
            ends.append(await process.wait())

        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                for grace in (30, 0.1, 20):
                    nursery.start_soon(stop, grace)
                    nursery.start_soon(wait)
    assert len(set(map(str, ends))) == 1
    assert len(ends) == 6


async def test_cancelled_before_it_opened():
    """Nothing is left of a warden that was hardly begun."""
    for after in (0, 0.001, 0.01, 0.03, 0.05):
        with trio.move_on_after(after):
            async with open_warden():
                await trio.sleep_forever()


async def test_warden_killed(tmp_path):
    """Its processes are found and killed in the dark, daemons too; the block is told at once."""
    env, token = token_env()
    one = warden = None

    async def use():
        nonlocal one, warden
        async with open_warden() as warden:
            one = await warden.start([*python(DAEMON), str(tmp_path / "up")], name="one", env=env)
            await warden.start([*python(STUBBORN), str(tmp_path / "up2")], name="two", env=env)
            await wait_for_file(tmp_path / "up")
            await wait_for_file(tmp_path / "up2")
            os.kill(warden.pid, signal.SIGKILL)
            await trio.sleep_forever()

    with pytest.raises(SpawnError, match="killed by SIGKILL; its 2 processes were killed"):
        await use()
    await until_gone(token, 0.5)
    assert {r.name: r.how for r in warden.report()} == {"one": "lost", "two": "lost"}
    assert str(await one.wait()) == "lost"


async def test_warden_killed_while_a_start_waits():
    """The start fails, it does not hang, even under a shield."""

    async def use():
        async with open_warden() as warden:
            os.kill(warden.pid, signal.SIGSTOP)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_kill_soon, warden.pid)
                with trio.CancelScope(shield=True):
                    await warden.start(["sleep", "100"], name="it")

    with pytest.raises((SpawnError, ExceptionGroup)) as caught:
        await use()
    assert caught.type is SpawnError or caught.group_contains(SpawnError)


async def _kill_soon(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    await trio.lowlevel.checkpoint()


async def test_warden_terminated():
    """SIGTERM to it ends everything in order, and is an error all the same."""
    env, token = token_env()
    warden = None

    async def use():
        nonlocal warden
        async with open_warden() as warden:
            await warden.start(["sleep", "100"], name="it", env=env)
            os.kill(warden.pid, signal.SIGTERM)
            await trio.sleep_forever()

    with pytest.raises(SpawnError, match="told to end"):
        await use()
    assert survivors(token) == []
    assert [r.how for r in warden.report()] == ["killed"]


async def test_warden_that_hangs_is_replaced_by_force(monkeypatch):
    """It does not answer when the block ends: it is killed, and its processes are found without it."""
    for module in (warden_client, warden_module):
        monkeypatch.setattr(module, "REAP_DEADLINE", 0.5)
    monkeypatch.setattr(warden_client, "SLACK", 0.0)
    env, token = token_env()

    async def use():
        async with open_warden(grace=0.1) as warden:
            await warden.start(["sleep", "100"], name="it", env=env)
            os.kill(warden.pid, signal.SIGSTOP)

    with pytest.raises(SpawnError, match="killed by SIGKILL; its 1 processes"):
        await use()
    assert survivors(token) == []


@pytest.mark.parametrize(
    ("does", "error", "match"),
    [
        ("", SpawnError, "exited 0"),
        ("sys.exit(3)", SpawnError, "exited 3"),
        ("say(event='ready'); its.recv(999); say(event='final', strays=[], left=[7, 8])", Unreaped, "7, 8"),
    ],
)
async def test_what_the_warden_cannot_do_is_raised(monkeypatch, tmp_path, does, error, match):
    """It ends before its first word, or it tells who is left after SIGKILL."""
    script = tmp_path / "warden.py"
    script.write_text(
        "import json, socket, sys\nits = socket.socket(fileno=int(sys.argv[1]))\n"
        f"def say(**word): its.sendall(json.dumps(word).encode() + b'\\n')\n{does}\n"
    )
    monkeypatch.setattr(warden_module, "_SCRIPT", script)

    async def use():
        async with open_warden():
            pass

    with pytest.raises(error, match=match):
        await use()


async def test_what_is_left_comes_beside_the_bodys_error(monkeypatch, tmp_path):
    """Neither hides the other."""
    script = tmp_path / "warden.py"
    script.write_text(
        "import socket, sys\nits = socket.socket(fileno=int(sys.argv[1]))\n"
        'its.sendall(b\'{"event":"ready"}\\n\'); its.recv(999)\n'
        'its.sendall(b\'{"event":"final","strays":[],"left":[7]}\\n\')\n'
    )
    monkeypatch.setattr(warden_module, "_SCRIPT", script)

    async def use():
        async with open_warden():
            raise BodyError

    with pytest.raises(BaseExceptionGroup) as caught:
        await use()
    assert caught.group_contains(BodyError)
    assert caught.group_contains(Unreaped)


async def test_lifeline_ends_with_the_warden(tmp_path):
    """Where nobody sweeps, a well-behaved process ends by itself, and takes its group."""
    env, token = token_env()
    code = "import subprocess, time; from trio_swarm._child import lifeline; assert lifeline.watch()\n"
    code += f"subprocess.Popen(['sleep', '100']); open({str(tmp_path / 'up')!r}, 'x'); time.sleep(100)"
    argv = [*python_argv("x")[:2], "-c", code]

    async def use():
        async with open_warden() as warden:
            await warden.start(argv, name="it", env={**env, **python_env()})
            await wait_for_file(tmp_path / "up")
            os.kill(warden.pid, signal.SIGKILL)
            await trio.sleep_forever()

    with pytest.raises(SpawnError):
        await use()
    await until_gone(token)


async def test_two_wardens_at_a_time():
    """They know nothing of each other."""
    async with open_warden() as one:
        async with open_warden() as two:
            left = await one.start(["sleep", "100"], name="left")
            await two.start(["sleep", "100"], name="right")
        assert left.exit is None
    assert left.exit == Exit(None, signal.SIGTERM)
    assert [r.name for r in two.report()] == ["right"]


async def test_swarm_in_a_swarm_cleans_up(tmp_path):
    """A coordinator below is killed: its own warden has the time to end its processes and its files."""
    env, token = token_env()
    kept = tmp_path / "kept"
    kept.mkdir()
    code = f"""
import trio
from pathlib import Path
from trio_swarm._io.process import open_warden
async def main():
    async with open_warden(remove=[Path({str(kept)!r})]) as warden:
        await warden.start({[*python(DAEMON), str(tmp_path / "up")]!r}, name="inner")
        await trio.sleep_forever()
trio.run(main)
"""
    async with open_warden() as warden:
        argv = [*python_argv("x")[:2], "-c", code]
        process = await warden.start(argv, name="outer", env={**env, **python_env()})
        await wait_for_file(tmp_path / "up")
        await process.kill()
        assert survivors(token) == []
        assert not kept.exists()


async def test_strangers_are_not_killed():
    """Processes of the coordinator that the warden did not start are none of its business."""
    async with open_warden() as warden, trio.open_nursery() as nursery:
        stranger = await nursery.start(trio.run_process, ["sleep", "100"])
        with suppress(SpawnError):
            async with open_warden() as other:
                await other.start(["true"], name="it")
                os.kill(other.pid, signal.SIGKILL)
                await trio.sleep_forever()
        assert stranger.poll() is None
        nursery.cancel_scope.cancel()
    assert warden.report() == ()
