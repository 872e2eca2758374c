"""The warden's end of the stem (``stem.py``): who is being forked; the standard library only."""

from __future__ import annotations

import array
import json
import os
import resource
import select
import signal
import socket
import time

from trio_swarm._child.warden_spawn import spawn

__all__ = ["Pending", "Stem"]

MAX_FDS = 253  # of one message; the kernel's own limit
MAX_ORDER = 2**16  # of one order; the socket takes some three of them
MAX_DEATHS = 3  # a stem that keeps dying is done without
PATIENCE = 10.0  # for one that is stopped, or hangs in an import


class Pending:
    """A process that the stem was asked for."""

    def __init__(self, order: dict[str, object], fds: list[int], go: int) -> None:
        self.order = order
        self.fds = fds
        self.go = go  # the write end: it may begin
        self.late = time.monotonic() + PATIENCE
        self.later: list[dict[str, object]] = []  # orders for it that came meanwhile

    def release(self, *, begin: bool) -> None:
        """Let it begin; or else it ends, if it is there at all."""
        if begin:
            try:
                os.write(self.go, b"g")
            except OSError:  # somebody killed it
                begin = False
        os.close(self.go)


class Stem:
    """At most one at a time; planted by the coordinator's order, and again when it died."""

    def __init__(self, poll: select.poll, lifeline: int) -> None:
        self.pid = 0
        self.fd = -1
        self.names: set[str] = set()  # its own, and of those that it must not let begin
        self.pending: dict[str, Pending] = {}
        self._poll = poll
        self._lifeline = lifeline
        self._socket: socket.socket | None = None
        self._seed: dict[str, object] | None = None
        self._deaths = 0
        self._may_hold = resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4

    def plant(self, order: dict[str, object]) -> None:
        """Start one. If that fails, every process is started the other way."""
        self._seed = order
        self.names.add(str(order["id"]))
        if self._socket is not None or self._deaths >= MAX_DEATHS:
            return
        try:
            ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError:  # no descriptors are left
            return
        try:
            self.pid = spawn(order, [its.fileno()], self._lifeline)
        except (OSError, ValueError):
            self._deaths += 1
            ours.close()
            return
        finally:
            its.close()
        ours.setblocking(False)
        self._socket, self.fd = ours, ours.fileno()
        self._poll.register(ours, select.POLLIN)

    def ask(self, order: dict[str, object], fds: list[int]) -> bool:
        """Have the stem fork it; False where it must be started the other way.

        When True, the descriptors are kept: see `answers`.
        """
        if self._socket is None and self._seed is not None:
            self.plant(self._seed)
        held = sum(len(pending.fds) + 1 for pending in self.pending.values())
        if self._socket is None or len(fds) + 2 > MAX_FDS or held + len(fds) > self._may_hold:
            return False
        keys = ("id", "argv", "cwd", "mark", "targets", "lifeline")
        asked = {"module": order["fork"], **{key: order[key] for key in keys}}
        data = json.dumps(asked).encode()
        if len(data) > MAX_ORDER:
            return False
        try:
            reader, writer = os.pipe()
        except OSError:
            return False
        beside = array.array("i", [*fds, self._lifeline, reader])
        try:
            self._socket.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, beside)])
        except OSError:  # it is dead, or busy with many others
            os.close(writer)
            return False
        finally:
            os.close(reader)
        self.pending[str(order["id"])] = Pending(order, fds, writer)
        return True

    def answers(self) -> list[tuple[Pending, int]]:
        """What it says now: each pending start with its pid, or 0 if it must be started otherwise."""
        found: list[tuple[Pending, int]] = []
        while self._socket is not None:
            try:
                data = self._socket.recv(2**16)
            except BlockingIOError:
                break
            except OSError:
                data = b""
            if not data:
                return found + [(pending, 0) for pending in self._lose()]
            answer = json.loads(data)
            pending = self.pending.pop(answer["id"], None)
            if pending is not None:
                found.append((pending, answer.get("pid", 0)))
        return found

    def due(self) -> float | None:
        """When the oldest start that it owes is overdue."""
        return next((pending.late for pending in self.pending.values()), None)

    def overdue(self) -> list[Pending]:
        """If it owes one for too long, kill it; all that it owes is to be started otherwise."""
        due = self.due()
        if due is None or due > time.monotonic():
            return []
        self._kill()
        return self._lose()

    def end(self) -> list[Pending]:
        """Kill it. What it was asked for will not begin."""
        self._deaths = MAX_DEATHS
        self._kill()
        self.names.update(self.pending)
        return self._lose()

    def _kill(self) -> None:
        if self.pid:
            try:
                os.kill(self.pid, signal.SIGKILL)  # not reaped yet, so nobody else has its number
            except OSError:
                self.pid = 0

    def _lose(self) -> list[Pending]:
        lost, self.pending = list(self.pending.values()), {}
        if self._socket is not None:
            self._deaths += 1
            self._poll.unregister(self._socket)
            self._socket.close()
            self._socket, self.fd = None, -1
        return lost
