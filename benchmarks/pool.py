"""Calling a function in another process: a pool beside concurrent.futures, in the same run.

    python -m benchmarks.pool [--jobs 3000] [--rounds 3]

Prints medians: microseconds of one call at a time, calls per second with two workers, and
milliseconds from nothing to the first result.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import trio

from trio_swarm._io.host import Host
from trio_swarm._io.process import open_warden
from trio_swarm.pools import open_pool

WORKERS = 2


def double(ctx, query):
    return ctx * 2


def double_plain(ctx):
    return ctx * 2


async def ours(jobs):
    with tempfile.TemporaryDirectory(prefix="ts-") as directory:
        async with open_warden() as warden:
            begun = time.perf_counter()
            async with open_pool(
                Host(warden, Path(directory)), "benchmarks.pool:double", size=WORKERS
            ) as pool:
                await pool.run(1)
                first = time.perf_counter() - begun
                while len(pool.workers()) < WORKERS:
                    await trio.sleep(0.01)
                # Both have imported the target and compiled the job once.
                async with pool.map(range(50)) as results:
                    async for _ in results:
                        pass
                begun = time.perf_counter()
                for i in range(jobs // 4):
                    await pool.run(i)
                each = (time.perf_counter() - begun) / (jobs // 4)
                begun = time.perf_counter()
                async with pool.map(range(jobs)) as results:
                    async for _, outcome in results:
                        assert outcome.kind == "ok"
                rate = jobs / (time.perf_counter() - begun)
    return each * 1e6, rate, first * 1e3


def theirs(jobs):
    begun = time.perf_counter()
    with ProcessPoolExecutor(WORKERS, mp_context=get_context("forkserver")) as pool:
        pool.submit(double_plain, 1).result()
        first = time.perf_counter() - begun
        list(pool.map(double_plain, range(50)))
        begun = time.perf_counter()
        for i in range(jobs // 4):
            pool.submit(double_plain, i).result()
        each = (time.perf_counter() - begun) / (jobs // 4)
        begun = time.perf_counter()
        assert len(list(pool.map(double_plain, range(jobs)))) == jobs
        rate = jobs / (time.perf_counter() - begun)
    return each * 1e6, rate, first * 1e3


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--jobs", type=int, default=3000)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    rounds = [(trio.run(ours, args.jobs), theirs(args.jobs)) for _ in range(args.rounds)]
    names = ("us per call", f"calls/s, {WORKERS} workers", "ms to first result")
    print(f"{'':24}{'pool':>10}{'executor':>10}{'ratio':>8}")
    for index, name in enumerate(names):
        mine = statistics.median(one[0][index] for one in rounds)
        other = statistics.median(one[1][index] for one in rounds)
        print(f"{name:24}{mine:10.0f}{other:10.0f}{mine / other:8.2f}")


if __name__ == "__main__":
    main()
