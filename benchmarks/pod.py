"""What one turn of a pod costs that writes one small file: ``python benchmarks/pod.py [turns]``.

Prints the time per round trip (run, write in the pod, run_end) and the processor time of both ends.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path

import trio

from trio_swarm._io.host import Host
from trio_swarm._io.process import open_warden
from trio_swarm._io.runtime import private_dir
from trio_swarm.frames.pod import ScopeRule
from trio_swarm.pods import open_pod


async def engine(turn):
    """Write what the input says where it says."""
    job = json.loads(turn.input)
    await turn.files.write_bytes(job["path"], job["content"].encode())
    return "done"


def cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def main(turns: int) -> None:
    sys.path.insert(0, str(Path(__file__).parent))
    with tempfile.TemporaryDirectory() as out:
        async with private_dir() as runtime, open_warden(remove=[runtime]) as warden:
            begun = time.perf_counter()
            scope = [ScopeRule(out, "write")]
            async with open_pod(Host(warden, runtime), "pod:engine", name="bench", scope=scope) as pod:
                print(f"up after {time.perf_counter() - begun:.2f} s")
                child, own = cpu(pod.pid), resource.getrusage(resource.RUSAGE_SELF).ru_utime
                times = []
                for n in range(turns):
                    text = json.dumps({"path": f"dir{n % 20}/file{n}", "content": "x" * 2000})
                    begun = time.perf_counter()
                    await pod.run(text)
                    times.append((time.perf_counter() - begun) * 1e3)
                child = cpu(pod.pid) - child
                own = resource.getrusage(resource.RUSAGE_SELF).ru_utime - own
    times.sort()
    print(
        f"{turns} turns: p50 {statistics.median(times):.2f} ms, p99 {times[int(turns * 0.99)]:.2f} ms; "
        f"processor per turn: pod {child / turns * 1e3:.2f} ms, client {own / turns * 1e3:.2f} ms"
    )


if __name__ == "__main__":
    trio.run(main, int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
