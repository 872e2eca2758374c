"""A server process that is killed, and the next one in its place."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import trio

SCRIPT = str(Path(__file__).with_name("restart_process.py"))
ROOT = str(Path(__file__).parents[2])


@attrs.define(eq=False)
class Line:
    """One address and one state, and whichever process serves them now."""

    state: Path
    port: int = 0
    processes: list[trio.Process] = attrs.field(factory=list)
    _read: bytes = b""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self, *questions: str) -> None:
        """The next process; returns when it listens."""
        process = await trio.lowlevel.open_process(
            [sys.executable, SCRIPT, str(self.state), str(self.port), *questions],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={"PYTHONPATH": ROOT, "PATH": "/usr/bin:/bin"},
        )
        self.processes.append(process)
        self._read = b""
        self.port = int((await self.says()).rpartition(":")[2])

    async def says(self) -> str:
        """The next line of the process that runs now."""
        stdout = self.processes[-1].stdout
        assert stdout is not None
        with trio.fail_after(20):
            while b"\n" not in self._read:
                data = await stdout.receive_some()
                assert data, "the server is gone"
                self._read += data
        line, _, self._read = self._read.partition(b"\n")
        return line.decode()

    def stop(self) -> None:
        """It reads and writes nothing from now on; its sockets still take what comes."""
        self.processes[-1].send_signal(signal.SIGSTOP)

    async def kill(self) -> None:
        self.processes[-1].send_signal(signal.SIGKILL)
        await self.processes[-1].wait()


@asynccontextmanager
async def line_of_servers(state: Path) -> AsyncIterator[Line]:
    line = Line(state)
    try:
        yield line
    finally:
        with trio.CancelScope(shield=True):
            for process in line.processes:
                if process.returncode is None:
                    process.kill()
                await process.wait()
                for stream in (process.stdin, process.stdout):
                    if stream is not None:
                        await stream.aclose()
