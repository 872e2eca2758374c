"""Programs that are hard to end, and how to find who outlived them."""

from __future__ import annotations

import os
import secrets
import sys
from pathlib import Path

import trio

STUBBORN = (
    "import signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    "open(sys.argv[1], 'x').close(); time.sleep(100)"
)
"""Ignores SIGTERM; writes the file that it is given once it does."""

DAEMON = """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        with open(sys.argv[1] + "~", "w") as file:
            file.write(str(os.getpid()))
        os.rename(sys.argv[1] + "~", sys.argv[1])
        time.sleep(100)
    os._exit(0)
os.wait()
time.sleep(100)
"""
"""Forks twice, the grandchild in a session of its own; writes its pid to the file that it is given."""


def python(code: str) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", code]


def token_env() -> tuple[dict[str, str], str]:
    """A variable to find a process and all its descendants by."""
    token = secrets.token_hex(12)
    return {"TRIO_SWARM_TEST": token}, token


def survivors(token: str) -> list[int]:
    """Who has the token in the environment; zombies have none."""
    found = []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        try:
            if token.encode() in environ.read_bytes():
                found.append(int(environ.parent.name))
        except OSError:
            continue
    return [pid for pid in found if pid != os.getpid()]


async def until_gone(token: str, seconds: float = 5.0) -> float:
    """Wait until nobody has the token; fails with who still does. Returns how long it took."""
    begun = trio.current_time()
    with trio.move_on_after(seconds):
        while survivors(token):
            await trio.sleep(0.005)
        return trio.current_time() - begun
    lines = [f"{pid}: {Path(f'/proc/{pid}/cmdline').read_bytes()!r}" for pid in survivors(token)]
    raise AssertionError("survivors: " + "; ".join(lines))


async def wait_for_file(path: Path) -> None:
    with trio.fail_after(20):
        while not path.exists():
            await trio.sleep(0.005)
