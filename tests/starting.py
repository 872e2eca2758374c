"""Processes that are caught while they start: a module whose import waits until the test says."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import trio

_MODULE = """\
import os

if not os.path.exists({passage!r}):
    with open({fifo!r}) as gate:
        gate.read()


async def engine(run):
    return "through"
"""


class Gate:
    """``target`` names an engine; who imports it waits while the gate is shut."""

    def __init__(self, directory: Path) -> None:
        self.target = "gated_engine:engine"
        self._fifo, self._passage = directory / "gate", directory / "passage"
        os.mkfifo(self._fifo)
        text = _MODULE.format(fifo=str(self._fifo), passage=str(self._passage))
        (directory / "gated_engine.py").write_text(text)

    def open(self) -> None:
        self._passage.touch()

    def shut(self) -> None:
        self._passage.unlink()

    async def kill_one(self, warden, *, last: bool = True, signum: int = signal.SIGKILL) -> int:
        """Wait for somebody who waits, and kill it; the pid. If it is the ``last``, the next passes."""
        waiting = await trio.to_thread.run_sync(os.open, self._fifo, os.O_WRONLY)
        process = warden.processes()[-1]
        if last:
            self.open()
        # No await in between: whoever comes next finds no other end here.
        os.kill(process.pid, signum)
        os.close(waiting)
        await process.wait()
        return process.pid
