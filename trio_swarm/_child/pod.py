"""A pod process: ``python -m trio_swarm._child.pod``, told what to be on standard input (`PodSpec`).

In this order (pods contract, B3.2): the specification, the working directory's readability, the scope
lock, then whatever is costly; the runtime directory, the engine, the socket. What goes wrong until then
is one line ``error: ...`` on standard error and exit status 1.

It ends with status 0 on ``shutdown``, SIGTERM or SIGINT, and removes its directory and its entry in the
scope lock; at once, and removing nothing, when the lifeline ends. After a crash everything stays.
"""

from __future__ import annotations

import os
import shutil
import sys
import traceback
from pathlib import Path
from typing import Final, cast

import trio

from trio_swarm._child import lifeline
from trio_swarm._child.copies import end_forked_copies
from trio_swarm._child.pod_runtime import PodRuntime
from trio_swarm._child.pod_spec import MAX_SPEC, PodSpec
from trio_swarm._child.pod_turn import Engine
from trio_swarm._child.target import load_target
from trio_swarm._io.groups import collapse
from trio_swarm._io.scope_lock import ScopeLock, ScopeRefused
from trio_swarm._io.unix import locked_directory, open_unix_listener
from trio_swarm.errors import SwarmError
from trio_swarm.frames import decode

__all__ = ["WARM", "main", "run_pod"]

WARM: Final = ()
"""That it may be forked off the stem, and what is to be imported there besides; see ``stem.py``."""


def load_engine(target: str) -> Engine:
    """The async function that the target names. Raises ``ValueError``."""
    try:
        return cast(Engine, load_target(target))
    except (ImportError, ValueError, SystemExit) as error:
        # Status 0 would say that somebody had told it to end.
        raise ValueError(f"the engine {target!r} cannot be had: {error}") from error


async def run_pod(spec: PodSpec) -> None:
    """Be that pod until it is told to end."""
    if not spec.grant().allows(spec.cwd, "read"):
        raise ValueError(f"the working directory {spec.cwd} is not readable under the scope: {spec.grant()}")
    if spec.scope_lock is not None:
        await _lock(spec.scope_lock).adopt(spec.pod_name, pid=os.getpid())
    with locked_directory(spec.directory):
        (spec.directory / "pid").write_text(str(os.getpid()))
        runtime = PodRuntime(spec, load_engine(spec.target))
        runtime.save()
        async with open_unix_listener(spec.socket) as listener:
            print(f'pod: {spec.pod_name} listening on "{spec.socket}"', file=sys.stderr, flush=True)
            with collapse():
                await runtime.run(listener)
        shutil.rmtree(spec.directory)
    if spec.scope_lock is not None:
        await _release(spec, spec.scope_lock)


def _lock(path: str) -> ScopeLock:
    return ScopeLock(Path(path))


async def _release(spec: PodSpec, path: str) -> None:
    try:
        await _lock(path).release(spec.pod_name)
    except ScopeRefused:
        # Whoever entered it was quicker.
        return


def read_spec() -> PodSpec:
    """The specification on standard input. Raises ``ValueError``."""
    data = sys.stdin.buffer.read(MAX_SPEC + 1)
    if len(data) > MAX_SPEC:
        raise ValueError(f"the specification has more than {MAX_SPEC} bytes")
    return decode(data, PodSpec).check()


def main() -> int:
    """The process's exit status."""
    lifeline.watch()
    end_forked_copies()
    try:
        trio.run(run_pod, read_spec())
    except (SwarmError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 1
    except Exception:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
