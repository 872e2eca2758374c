"""What the warden costs: spawn to exit, and spawn to first byte, beside those who promise less.

One run measures all of them in turn, round by round, and prints medians and their ratios::

    python benchmarks/spawn.py [rounds]
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

import trio

from trio_swarm._io.process import Warden, open_warden

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


if __name__ == "__main__":
    trio.run(main, int(sys.argv[1]) if len(sys.argv) > 1 else 200)
