"""The coordinator itself is killed, interrupted or terminated, at any moment: nobody survives it."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from functools import partial

import pytest
import trio

from tests.io.processes import DAEMON, STUBBORN, python, survivors, token_env, until_gone

COORDINATOR = f"""
import os, sys, trio
from trio_swarm._io.process import open_warden
from trio_swarm._io.runtime import private_dir
DAEMON, STUBBORN = {python(DAEMON)!r}, {python(STUBBORN)!r}
async def main(up):
    async with private_dir() as runtime, open_warden(grace=0.2, remove=[runtime]) as warden:
        (runtime / "file").touch()
        os.write(1, b"up")
        for n in range(3):
            await warden.start([*DAEMON, up + "d" + str(n)], name="daemon")
            await warden.start([*STUBBORN, up + "s" + str(n)], name="stubborn")
            await warden.start(["sh", "-c", "sleep 100 & sleep 100"], name="group")
        await trio.sleep_forever()
try:
    trio.run(main, sys.argv[1])
except KeyboardInterrupt:
    sys.exit(42)
"""


async def one_round(signum: int, delay: float, tmp_path, round_: int) -> float:
    """Start a coordinator, send it the signal ``delay`` seconds after it is up, find who is left."""
    env, token = token_env()
    runtime = tmp_path / "run"
    runtime.mkdir(mode=0o700, exist_ok=True)
    env = {**os.environ, **env, "XDG_RUNTIME_DIR": str(runtime), "PYTHONPATH": os.getcwd()}
    run = partial(
        trio.lowlevel.open_process,
        [sys.executable, "-c", COORDINATOR, str(tmp_path / f"{round_}-")],
        stdout=subprocess.PIPE,
        env=env,
    )
    process = await run()
    try:
        assert await process.stdout.receive_some() == b"up"
        await trio.sleep(delay)
        process.send_signal(signum)
        begun = time.monotonic()
        if signum == signal.SIGINT:
            assert await process.wait() == 42
            assert survivors(token) == []
        else:
            assert await process.wait() == -signum
            await until_gone(token, 1.0)
        took = time.monotonic() - begun
        assert list(runtime.iterdir()) == []
    finally:
        process.kill()
        await process.wait()
        await process.stdout.aclose()
    return took


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
async def test_nobody_survives_the_coordinator(signum, tmp_path):
    """Five random moments each; after SIGKILL and SIGTERM all are gone within a second."""
    rng = random.Random(int(signum))
    for n in range(5):
        await one_round(signum, rng.uniform(0, 0.25), tmp_path, n)


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
async def test_nobody_ever_survives_the_coordinator(signum, tmp_path):
    """Fifty random moments each, new ones in every run."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    for n in range(50):
        await one_round(signum, rng.uniform(0, 0.25), tmp_path, n)


async def test_a_fork_that_holds_the_socket_does_not_keep_it_alive(tmp_path):
    """A process forked from the coordinator has a copy of the control socket: its death shows anyway."""
    env, token = token_env()
    code = """
import os, signal, time, trio
from trio_swarm._io.process import open_warden
async def main():
    async with open_warden() as warden:
        await warden.start(["sleep", "100"], name="it", env={"TRIO_SWARM_TEST": os.environ["TOKEN"]})
        if os.fork() == 0:
            signal.pause()
        os.kill(os.getpid(), signal.SIGKILL)
trio.run(main)
"""
    env = {**os.environ, "TOKEN": token, "PYTHONPATH": os.getcwd(), "HOLDER": token[::-1]}
    process = await trio.lowlevel.open_process([sys.executable, "-c", code], env=env)
    await process.wait()
    try:
        await until_gone(f"TRIO_SWARM_TEST={token}", 1.0)
    finally:
        for pid in survivors(token[::-1]):
            os.kill(pid, signal.SIGKILL)
