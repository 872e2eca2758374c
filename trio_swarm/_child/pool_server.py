"""The worker's conversation: accept, read a request, let the machine decide, answer.

One connection at a time, one answer for each request, in order (pools.md C2, C3.2).
``next_effect`` returns only what the job has to act on; everything else is answered here.
It is called both between jobs and from inside a job that waits for answers, which is
why the worker needs neither a thread nor an event loop.

A job may fork. The copy is not the worker: it has neither the connection nor the socket, and ends
where the job's function ends.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from types import FrameType
from typing import NoReturn

import attrs

from trio_swarm._child.endings import copies_heed_signals
from trio_swarm._child.pool_socket import Bound, Lines, LineTooLong
from trio_swarm._state.pool_worker import Begin, Exit, PoolWorker, Reply, Resume
from trio_swarm.errors import FrameError
from trio_swarm.frames import PoolRequest, PoolResponse, decode, encode
from trio_swarm.limits import MAX_POOL_LINE

__all__ = ["PoolServer", "now_ms", "session_id"]


def now_ms() -> int:
    """Wall time in milliseconds, as the history tells it."""
    return time.time_ns() // 1_000_000


def session_id() -> str:
    """An engine session's id: ``s-<hex nanoseconds>-<16 hex>`` (C4)."""
    return f"s-{time.time_ns():x}-{os.urandom(8).hex()}"


def _log(text: str) -> None:
    print(f"pool worker {os.getpid()}: {text}", file=sys.stderr, flush=True)


@attrs.define(eq=False)
class PoolServer:
    """Owns the listening socket, the one connection and the machine."""

    bound: Bound
    machine: PoolWorker
    idle: float
    """Seconds without a client after which the worker ends; 0: never."""

    stopping: bool = attrs.field(default=False, init=False)
    """Set once the process is on its way out: a SystemExit seen now is ours, not the job's."""

    _pid: int = attrs.field(factory=os.getpid, init=False)
    _lines: Lines | None = attrs.field(default=None, init=False)
    _last_seen: float = attrs.field(factory=time.monotonic, init=False)

    def install_signals(self) -> None:
        """SIGTERM and SIGINT end the process wherever it is, its clean-up included."""
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, self._on_signal)

    @property
    def is_copy(self) -> bool:
        """Whether a job forked this process from the worker; asked of the system, as C code forks too."""
        return os.getpid() != self._pid

    def part_from_copies(self) -> None:
        """From now on a forked process starts without what is the worker's: connection, socket, signals."""
        copies_heed_signals(lambda handler: handler == self._on_signal)
        os.register_at_fork(after_in_child=self._let_go)

    def _let_go(self) -> None:
        self._hang_up()
        self.bound.listener.close()

    def next_effect(self) -> Begin | Resume:
        """Serve until the job has something to do.

        Raises:
            SystemExit: the worker is to end: asked, idle for too long, or left alone.
        """
        while True:
            try:
                line = self._next_line()
            except LineTooLong:
                self.answer(self.machine.malformed(f"longer than {MAX_POOL_LINE} bytes").response)
                continue
            try:
                request = decode(line.strip(), PoolRequest)
            except FrameError as error:
                self.answer(self.machine.malformed(str(error)).response)
                continue
            effect = self.machine.receive(request, now_ms())
            match effect:
                case Reply():
                    self.answer(effect.response)
                case Exit():
                    self.answer(effect.response)
                    self.stop()
                case _:
                    return effect

    def answer(self, response: PoolResponse) -> None:
        """Write one answer; a client that is gone costs the connection and nothing else."""
        self.write(self.line_of(response))

    @staticmethod
    def line_of(response: PoolResponse) -> bytes:
        """The answer as it travels.

        Raises:
            ValueError: it holds something that is not JSON, or it is too long.
            TypeError, RecursionError: likewise.
        """
        line = encode(response).encode()
        if len(line) > MAX_POOL_LINE:
            raise ValueError(f"{len(line)} bytes are more than a line may have ({MAX_POOL_LINE})")
        return line + b"\n"

    def write(self, line: bytes) -> None:
        if self._lines is None or self.is_copy:
            return
        try:
            self._lines.connection.sendall(line)
        except OSError as error:
            _log(f"the answer could not be written: {error}")
            # The state is kept, whatever the phase: _next_line waits for the next client
            # (defect 2 of C3.4).
            self._hang_up()

    def stop(self) -> NoReturn:
        """End the process from here, through every ``finally`` of the job."""
        self.stopping = True
        raise SystemExit(0)

    def close(self) -> None:
        self._hang_up()
        if not self.is_copy:
            self.bound.close()

    def _next_line(self) -> bytes:
        while True:
            if self._lines is None:
                self._lines = Lines(self._accept())
            line = self._read(self._lines)
            self._last_seen = time.monotonic()
            if line is not None:
                return line
            self._hang_up()
            if not self.machine.disconnected():
                self.stop()

    def _read(self, lines: Lines) -> bytes | None:
        try:
            return lines.next()
        except OSError as error:
            _log(f"the connection failed: {error}")
            return None

    def _accept(self) -> socket.socket:
        listener = self.bound.listener
        if self.idle > 0:
            listener.settimeout(max(0.001, self._last_seen + self.idle - time.monotonic()))
        try:
            connection, _ = listener.accept()
        except TimeoutError:
            _log(f"idle for {self.idle:g} s")
            self.stop()
        self._last_seen = time.monotonic()
        connection.settimeout(None)
        return connection

    def _hang_up(self) -> None:
        if self._lines is not None:
            self._lines.connection.close()
            self._lines = None

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        # Once: the ladder's next step is SIGKILL, and a second exception in the middle of
        # the clean-up that the first one started would only leave it half done.
        signal.signal(signum, signal.SIG_IGN)
        self.stop()
