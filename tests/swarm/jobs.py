"""Targets that the swarm's tests run in other processes."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

_DAEMON = """
import os, sys, time
if os.fork():
    os._exit(0)
os.setsid()
if os.fork():
    os._exit(0)
print(os.getpid(), flush=True)
os.close(1)
time.sleep(600)
"""


def double(ctx: Any, query: Any) -> Any:
    """Twice the number."""
    return 2 * ctx


def ask_first(ctx: Any, query: Any) -> str:
    """What the answer to a question was."""
    return f"{ctx}: {query('which?')}"


def daemonise(ctx: Any, query: Any) -> int:
    """Leave a double-forked process in a session of its own behind; its pid."""
    done = subprocess.run([sys.executable, "-c", _DAEMON], stdout=subprocess.PIPE, text=True, check=True)
    return int(done.stdout)


def die(ctx: Any, query: Any) -> None:
    """Take the worker down."""
    os.abort()


async def shout(run: Any) -> str:
    """An engine of a child actor."""
    return str(run.assignment).upper()


async def write(turn: Any) -> str:
    """An engine of a pod: writes a file where its input says."""
    await turn.files.write_bytes(turn.input, b"written")
    return "done"
