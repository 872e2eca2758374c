"""Running the command as its users do, and finding what it left behind."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import trio

MARK = "TRIO_SWARM_TEST_MARK"

BARE = textwrap.dedent(
    """
    def attempt_{n}(x):
        try:
            return {n} / x
        except:
            return None
    """
)


def make_tree(root: Path, files: int = 60, *, padding: int = 40) -> Path:
    """A tree in which each third file has a bare handler, and one does not parse."""
    for n in range(files):
        path = root / f"package_{n % 7}" / f"module_{n}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        body = "\n".join(f"def f_{i}(x):\n    return x * {i}" for i in range(padding))
        path.write_text((BARE.format(n=n + 1) if n % 3 == 0 else "") + body + "\n")
    (root / "broken.py").write_text("def (\n")
    return root


@attrs.frozen
class Workplace:
    """Where one run works: its marked environment and its runtime directory."""

    runtime: Path
    mark: str = attrs.field(factory=lambda: secrets.token_hex(8))

    @property
    def env(self) -> dict[str, str]:
        return {
            **os.environ,
            MARK: self.mark,
            "XDG_RUNTIME_DIR": str(self.runtime),
            "TMPDIR": str(self.runtime),
        }

    def survivors(self) -> list[int]:
        """Processes that carry the mark, zombies not counted."""
        found, wanted = [], f"{MARK}={self.mark}".encode()
        for environ in Path("/proc").glob("[0-9]*/environ"):
            try:
                if wanted in environ.read_bytes().split(b"\0"):
                    state = (environ.parent / "stat").read_text().rpartition(")")[2].split()[0]
                    if state != "Z":
                        found.append(int(environ.parent.name))
            except OSError:
                continue
        return found

    def left(self) -> list[str]:
        """Files and directories left in the runtime directory."""
        return sorted(str(path.relative_to(self.runtime)) for path in self.runtime.rglob("*"))


def workplace(directory: Path) -> Workplace:
    """A fresh runtime directory, short enough for sockets."""
    runtime = directory / secrets.token_hex(3)
    runtime.mkdir(mode=0o700)
    return Workplace(runtime)


def command(*args: str) -> list[str]:
    return [sys.executable, "-m", "trio_swarm", "run", *args]


def run_codemod(place: Workplace, tree: Path, out: Path, *args: str) -> tuple[int, dict[str, Any], str]:
    """One whole run: exit status, report, what it printed."""
    report = out.parent / f"{out.name}.json"
    argv = command("codemod", "--tree", str(tree), "--out", str(out), "--report", str(report), *args)
    done = subprocess.run(argv, env=place.env, capture_output=True, text=True, timeout=300, check=False)
    facts = json.loads(report.read_text()) if report.exists() else {}
    return done.returncode, facts, done.stdout + done.stderr


async def strike(place: Workplace, argv: Sequence[str], signum: int, after: float) -> int:
    """Start a coordinator, send it a signal after so many seconds, and return its exit status.

    The time is the point of the test: the moment is random. Nothing is synchronised by it.
    """
    process = await trio.lowlevel.open_process(
        list(argv),
        env=place.env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        with trio.move_on_after(after):
            await process.wait()
        if process.returncode is None:
            process.send_signal(signum)
        with trio.fail_after(30):
            return await process.wait()
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGKILL)


async def gone_within(place: Workplace, seconds: float) -> list[int]:
    """The survivors when the time is up, or an empty list as soon as there are none."""
    deadline = trio.current_time() + seconds
    while left := place.survivors():
        if trio.current_time() > deadline:
            return left
        # Another process's end is not an event of ours: looking again is all there is.
        await trio.sleep(0.02)
    return []
