"""The warden's loop: who was started, who was adopted, who must end; see ``warden.py``.

The standard library only.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import time

from trio_swarm._child.warden_control import Control
from trio_swarm._child.warden_spawn import spawn
from trio_swarm._child.warden_stem import Pending, Stem
from trio_swarm._io import procfs

__all__ = ["Watch"]

WARDEN_MARK = b"TRIO_SWARM_WARDEN="
SPARE = 0.4  # for a warden below to end by itself
RESCAN = 0.05  # an orphan arrives without a signal
KILLED = 0.0  # in `spared`: its time is over, and it was counted


def try_kill(pid: int, signum: int, *, group: bool = False) -> None:
    """Signal one of our children; what may not be signalled is found again at the end."""
    try:
        if group:
            os.killpg(pid, signum)
        else:
            os.kill(pid, signum)
    except OSError:
        return


class Started:
    """A process that the coordinator asked for. Signalled only before it is reaped."""

    def __init__(self, name: str, pid: int) -> None:
        self.name = name
        self.pid = pid
        self.sent = 0  # the hardest of SIGTERM and SIGKILL that it got from here
        self.kill_at: float | None = None

    def signal(self, signum: int, *, group: bool = True) -> None:
        if signum == signal.SIGKILL or (signum == signal.SIGTERM and not self.sent):
            self.sent = signum
        try_kill(self.pid, signum, group=group)

    def stop(self, grace: float) -> None:
        """SIGTERM to its group now (and SIGCONT, or a stopped one never sees it), SIGKILL later."""
        kill_at = time.monotonic() + grace
        if self.kill_at is None and grace > 0:
            self.signal(signal.SIGTERM)
            self.signal(signal.SIGCONT)
        self.kill_at = kill_at if self.kill_at is None else min(kill_at, self.kill_at)

    def escalate(self) -> None:
        if self.kill_at is not None and self.kill_at <= time.monotonic():
            self.kill_at = None
            self.signal(signal.SIGKILL)


class Watch:
    """Everything that the warden knows; one `turn` deals with whatever is there."""

    def __init__(self, control: int, coordinator: int, patience: float) -> None:
        self.patience = patience
        self.started: dict[int, Started] = {}
        self.leaders: dict[str, int] = {}  # started, or ended with strays left
        self.strays: dict[str, int] = {}  # of those in `leaders`: killed so far
        self.ended: set[str] = set()
        self.orphans: dict[int, str | None] = {}  # adopted -> whose it is
        self.spared: dict[int, float] = {}
        self.unowned: list[tuple[int, str]] = []
        self.grace: float | None = None  # set: asked to end
        self.deadline: float | None = None
        self.abandoned = False
        self.childless = True
        self.lifeline, self._only_writer = os.pipe()
        self.poll = select.poll()
        self.control = Control(socket.socket(fileno=control), self.poll)
        self.stem = Stem(self.poll, self.lifeline)
        self.coordinator = self._watch_coordinator(coordinator)
        self.wakeup = self._take_signals()

    def _watch_coordinator(self, pid: int) -> int | None:
        if sys.platform != "linux":
            return None
        self.abandoned = os.getppid() != pid
        try:
            handle = os.pidfd_open(pid)
        except OSError:  # an old kernel: there is still the socket's end
            return None
        self.poll.register(handle, select.POLLIN)
        return handle

    def _take_signals(self) -> int:
        """No signal is left ignored: that would be inherited by everything started here."""
        reader, writer = os.pipe()
        os.set_blocking(reader, False)
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        for signum in (signal.SIGCHLD, signal.SIGINT, signal.SIGHUP):
            signal.signal(signum, lambda *_: None)
        signal.signal(signal.SIGTERM, lambda *_: setattr(self, "abandoned", True))
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        self.poll.register(reader, select.POLLIN)
        return reader

    # -- the loop ----------------------------------------------------------------------

    def run(self) -> list[int]:
        """Serve until there is nobody to serve, then end everything. Returns who is left."""
        self.control.send({"event": "ready"})
        while not self.abandoned and self.grace is None:
            self.turn()
        if self.grace is not None:
            self.deadline = time.monotonic() + self.grace + self.patience
            for started in reversed(self.started.values()):
                started.stop(self.grace)
            while self.started and not self.abandoned and time.monotonic() < self.deadline:
                self.turn(self.patience)
        return self.finish()

    def turn(self, limit: float | None = None) -> None:
        """Wait for the next thing, at most ``limit`` seconds, and deal with it."""
        for fd, mask in self.poll.poll(self.patience_until(limit)):
            if fd == self.wakeup:
                os.read(fd, 4096)
            elif fd == self.coordinator:
                self.abandoned = True
                self.poll.unregister(fd)
            elif fd == self.stem.fd:
                for pending, pid in self.stem.answers():
                    self.forked(pending, pid)
            else:
                self.control.flush()
                if mask & ~select.POLLOUT:
                    for order, fds in self.control.receive():
                        self.obey(order, fds)
                    self.abandoned = self.abandoned or self.control.ended
        for pending in self.stem.overdue():
            self.forked(pending, 0)
        self.reap()
        for started in self.started.values():
            started.escalate()
        self.hunt()

    def patience_until(self, limit: float | None) -> int | None:
        """Milliseconds to the next thing that is due by itself; None if nothing is."""
        now = time.monotonic()
        due = [started.kill_at for started in self.started.values() if started.kill_at is not None]
        if (late := self.stem.due()) is not None:
            due.append(late)
        if self.ended:
            due.append(now + RESCAN)
        if limit is not None:
            due.append(now + limit)
        return max(0, int((min(due) - now) * 1000) + 1) if due else None

    def finish(self) -> list[int]:
        """SIGKILL and reap until nobody is left: new orphans keep arriving while parents die."""
        deadline, pause = self.deadline or time.monotonic() + self.patience, 0.002
        for pending in self.stem.end():
            self.forked(pending, 0)
        for started in self.started.values():
            started.signal(signal.SIGKILL)
        self.reap()
        while not self.childless and time.monotonic() < deadline:
            for pid in self.below():
                self.kill_below(pid)
            self.turn(pause)
            pause = min(2 * pause, 0.1)
        self.hunt()
        return [] if self.childless else self.below()

    # -- orders ------------------------------------------------------------------------

    def obey(self, order: dict[str, object], fds: list[int]) -> None:
        op, name = order["op"], str(order.get("id", ""))
        if op == "start":
            if not ("fork" in order and self.grace is None and self.stem.ask(order, fds)):
                self.start(order, name, fds)
        elif op == "stem":
            self.stem.plant(order)
        elif name in self.stem.pending:
            self.stem.pending[name].later.append(order)
        elif op == "shutdown":
            self.grace = float(str(order["grace"]))
        elif name in self.leaders and (started := self.started.get(self.leaders[name])):
            if op == "stop":
                started.stop(float(str(order["grace"])))
                started.escalate()
            elif op == "signal":
                started.signal(int(str(order["signum"])), group=False)

    def start(self, order: dict[str, object], name: str, fds: list[int]) -> None:
        reply: dict[str, object] = {"event": "started", "id": name}
        try:
            if self.grace is not None or self.abandoned:
                raise OSError("the warden is ending")
            pid = spawn(order, fds, self.lifeline)
        except (OSError, ValueError) as error:
            where = getattr(error, "filename", None)
            place = f": {os.fsdecode(where)}" if where else ""
            reply["error"] = (getattr(error, "strerror", None) or str(error)) + place
        else:
            reply.update(self.enter(name, pid))
        finally:
            for fd in fds:
                os.close(fd)
        self.control.send(reply)

    def enter(self, name: str, pid: int) -> dict[str, object]:
        """Enter a process in the books; what the coordinator is to know of it."""
        self.started[pid] = Started(name, pid)
        self.leaders[name] = pid
        self.strays[name] = 0
        self.orphans.pop(pid, None)
        self.childless = False
        return {"pid": pid, "born": (procfs.stat(pid)[procfs.BORN :] or [b"0"])[0].decode()}

    def forked(self, pending: Pending, pid: int) -> None:
        """The stem forked it, or could not: then it is started like any other."""
        name = str(pending.order["id"])
        # Somebody may have killed it before it was entered, and its number be another's by now.
        ours = pid > 0 and procfs.stat(pid)[procfs.PARENT : procfs.GROUP] == [b"%d" % os.getpid()]
        if not ours or self.grace is not None or self.abandoned:
            pending.release(begin=False)
            self.start(pending.order, name, pending.fds)
        else:
            about = self.enter(name, pid)
            pending.release(begin=True)
            for fd in pending.fds:
                os.close(fd)
            self.control.send({"event": "started", "id": name, **about})
        for order in pending.later:
            self.obey(order, [])

    # -- the dead ----------------------------------------------------------------------

    def reap(self) -> None:
        """Bury who ended, its group first: while the zombie is there, its number is not given away."""
        while (dead := self.next_dead()) is not None:
            pid, status = dead
            started = self.started.pop(pid, None)
            sent = started.sent if started else 0
            if started is not None:
                started.signal(signal.SIGKILL)
            if status is None:
                _, status = os.waitpid(pid, 0)
            self.orphans.pop(pid, None)
            self.spared.pop(pid, None)
            if pid == self.stem.pid:
                self.stem.pid = 0
            if started is not None:
                self.ended.add(started.name)
                code = os.waitstatus_to_exitcode(status)
                self.control.send({"event": "exit", "id": started.name, "code": code, "sent": sent})

    def next_dead(self) -> tuple[int, int | None] | None:
        """A child that ended, with its status where looking was reaping."""
        status: int | None = None
        try:
            if sys.platform == "linux":
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                pid = found.si_pid if found else 0
            else:
                pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            self.childless = True
            return None
        self.childless = False
        return (pid, status) if pid else None

    # -- orphans -----------------------------------------------------------------------

    def hunt(self) -> None:
        """SIGKILL the orphans of those that ended; tell who has none left."""
        haunted: set[str] = set()
        if sys.platform == "linux" and (self.ended or self.started):
            try:
                mine = procfs.children_of_mine()
            except OSError:  # no descriptor is left to look with: soon
                return
            for pid in mine:
                owner = None if pid in self.started else self.owner(pid)
                if owner is not None and owner in self.ended:
                    haunted.add(owner)
                    if not self.is_spared(pid):
                        self.kill_orphan(pid)
        for name in self.ended - haunted:
            self.ended.remove(name)
            del self.leaders[name]
            self.control.send({"event": "gone", "id": name, "strays": self.strays.pop(name)})

    def owner(self, pid: int) -> str | None:
        """Whose orphan it is; found out once, since exec may change the environment."""
        if pid not in self.orphans:
            named = procfs.marks(pid)
            session = int((procfs.stat(pid)[procfs.SESSION :] or [b"0"])[0])
            whose = (n for n, leader in self.leaders.items() if n in named or leader == session)
            self.orphans[pid] = next(whose, None)
        return self.orphans[pid]

    def kill_orphan(self, pid: int) -> None:
        """Only the warden reaps it, so the number is its own. A zombie is as good as gone."""
        fields = procfs.stat(pid)
        if fields[:1] in ([b"Z"], []) or self.spared.get(pid) == KILLED:
            return
        self.spared[pid] = KILLED
        owner = self.owner(pid)
        if owner in self.leaders:  # its group was signalled with it: late, but not astray
            self.strays[owner] += int(fields[procfs.GROUP]) != self.leaders[owner]
        elif pid != self.stem.pid and procfs.marks(pid).isdisjoint(self.stem.names):
            # Who has no command line is on its way out by itself.
            command = procfs.read(pid, "cmdline").replace(b"\0", b" ").decode(errors="replace")
            if command.strip():
                self.unowned.append((pid, command[:200].strip()))
        try_kill(pid, signal.SIGKILL)

    def kill_below(self, pid: int) -> None:
        """SIGKILL one descendant at any depth."""
        fields = procfs.stat(pid)
        if pid in self.started or not fields:
            try_kill(pid, signal.SIGKILL)
        elif int(fields[procfs.PARENT]) == os.getpid():
            self.kill_orphan(pid)
        else:
            procfs.kill_checked(pid, fields[procfs.BORN])

    def below(self) -> list[int]:
        """All descendants by the chain of parents, but not what a spared warden looks after."""
        family: dict[int, list[int]] = {}
        for pid, parent in procfs.parents().items():
            family.setdefault(parent, []).append(pid)
        found, left = [], list(family.get(os.getpid(), self.started))
        while left:
            pid = left.pop()
            if not self.is_spared(pid):
                found.append(pid)
                left += family.get(pid, [])
        return found

    def is_spared(self, pid: int) -> bool:
        """Whether it is a warden below that still has its moment."""
        if pid in self.started:
            return False
        if pid not in self.spared:
            if not any(v.startswith(WARDEN_MARK) for v in procfs.read(pid, "environ").split(b"\0")):
                return False
            self.spared[pid] = time.monotonic() + SPARE
        return time.monotonic() < self.spared[pid]
