"""What the warden costs: spawn to exit, and spawn to first byte, beside those who promise less.

One run measures all of them in turn, round by round, and prints medians and their ratios::

    python benchmarks/spawn.py [rounds]
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time

import trio

from trio_swarm._io.process import Warden, open_warden, python_argv, python_env

EXIT, BYTE = ["true"], ["echo", "x"]
PEERS = ("trio", "Popen")


async def warden_exit(warden: Warden) -> None:
    await (await warden.start(EXIT, name="true", stderr="null")).wait()


async def warden_byte(warden: Warden) -> None:
    process = await warden.start(BYTE, name="echo", stdout="pipe", stderr="null")
    await process.stdout.receive_some()
    await process.stdout.aclose()


async def trio_exit(_: Warden) -> None:
    await trio.run_process(EXIT)


async def trio_byte(_: Warden) -> None:
    process = await trio.lowlevel.open_process(BYTE, stdout=subprocess.PIPE)
    await process.stdout.receive_some()
    await process.stdout.aclose()
    await process.wait()


async def popen_exit(_: Warden) -> None:
    subprocess.Popen(EXIT).wait()  # blocks the loop: the floor, not an alternative


async def popen_byte(_: Warden) -> None:
    with subprocess.Popen(BYTE, stdout=subprocess.PIPE) as process:
        process.stdout.read(1)


WORKER = "import trio_swarm._child.pool_worker"
"""What a worker's process imports before it can listen; actors and pods import more than twice as much."""


async def branch(warden: Warden, sock: str) -> float:
    """Seconds until a pool worker listens: its standard output ends then."""
    begun = time.perf_counter()
    argv = python_argv("trio_swarm._child.pool_worker", "--sid", "p-1", "--sock", sock, "--version", "1")
    worker = await warden.start(argv, name="worker", stdout="pipe")
    while await worker.stdout.receive_some():
        continue
    taken = time.perf_counter() - begun
    await worker.stop()
    return taken


async def executed() -> float:
    """Seconds for a fresh interpreter to come as far."""
    begun = time.perf_counter()
    await trio.run_process([sys.executable, "-P", "-c", WORKER], env={**os.environ, **python_env()})
    return time.perf_counter() - begun


async def workers(rounds: int) -> None:
    """The first branch waits for the stem; the others do not."""
    branches, fresh = [], []
    with tempfile.TemporaryDirectory() as directory:
        async with open_warden() as warden:
            first = await branch(warden, f"{directory}/first")
            for each in range(rounds):
                branches.append(await branch(warden, f"{directory}/{each}"))
                fresh.append(await executed())
    ours, theirs = statistics.median(branches) * 1e3, statistics.median(fresh) * 1e3
    print(
        f"a pool worker      : {ours:.1f} ms (the first {first * 1e3:.0f})"
        f" = {ours / theirs:.2f} x an interpreter ({theirs:.0f})"
    )


async def opened() -> float:
    begun = time.perf_counter()
    async with open_warden():
        return time.perf_counter() - begun


async def main(rounds: int) -> None:
    ways = {
        "exit": (warden_exit, trio_exit, popen_exit),
        "first byte": (warden_byte, trio_byte, popen_byte),
    }
    taken: dict[object, list[float]] = {way: [] for group in ways.values() for way in group}
    async with open_warden() as warden:
        for each in range(rounds + 5):
            for way, times in taken.items():
                begun = time.perf_counter()
                await way(warden)
                if each >= 5:  # the first ones warm up
                    times.append(time.perf_counter() - begun)
    for what, group in ways.items():
        ours, *others = (statistics.median(taken[way]) * 1e3 for way in group)
        told = [f"{ours / each:.2f} x {name} ({each:.2f})" for name, each in zip(PEERS, others, strict=True)]
        print(f"spawn to {what:10}: warden {ours:.2f} ms = {' = '.join(told)}")
    starts = [await opened() for _ in range(10)]
    print(f"opening a warden   : {statistics.median(starts) * 1e3:.0f} ms")
    await workers(max(5, rounds // 10))


if __name__ == "__main__":
    trio.run(main, int(sys.argv[1]) if len(sys.argv) > 1 else 200)
