"""The stem: a warmed interpreter that the warden's Python processes branch off from; Linux only.

``python -P -m trio_swarm._child.stem <fd> <padding>``, started by the warden. To execute an interpreter and
import Trio and the frames costs 80 to 250 ms of CPU each time; to fork this process, which has done both, 3.

Each order on the socket (one packet of JSON, descriptors beside it) names a module of this package. It is
imported here, with what it names in ``WARM``, and a *branch* is forked that calls its ``main()``. What is
imported must start no thread and read no state; with a second thread the stem refuses to fork.

* A branch is forked twice, so that its parent is dead and the warden, a child subreaper, adopts it: the
  warden looks after it exactly as after those that it spawned by itself.
* ``/proc`` shows what a process was executed with. A branch writes its own mark and command line over
  the stem's, for the warden finds whom it owns by their marks, and people by their command lines.
* Then it does nothing until the warden has entered it in its books and says so (a byte on the pipe
  ``go``); the end of that pipe is its own.

The end of the socket is the end of the stem. Light on purpose: it imports what it is asked for.
"""

from __future__ import annotations

import array
import gc
import importlib
import json
import os
import socket
import sys
from types import ModuleType
from typing import Any

from trio_swarm._child.lifeline import VARIABLE as LIFELINE
from trio_swarm._child.warden_spawn import out_of_the_way
from trio_swarm._child.warden_stem import MAX_FDS, MAX_ORDER
from trio_swarm._io.procfs import MARK, ROOM

__all__ = ["main"]

_ARGUMENTS, _ENVIRONMENT = 45, 47
"""Where the fields after the name in ``/proc/<pid>/stat`` tell the beginnings of both; the ends follow."""


class Branch:
    """What a new process was forked for."""

    def __init__(self, order: dict[str, Any], module: ModuleType, fds: list[int], there: int) -> None:
        self.order = order
        self.module = module
        self.there = there
        *self.fds, self.go = fds

    def run(self) -> int:
        """Become that process; what its ``main`` returns is the exit status."""
        os.setsid()
        # Before their memory is written over, or what this process executes inherits the rest of them.
        for name in (ROOM, MARK):
            os.environ.pop(name, None)
        rename([wired(each) for each in self.order["argv"]], wired(self.order["mark"]))
        os.write(self.there, b"%d" % os.getpid())
        os.close(self.there)
        if os.read(self.go, 1) != b"g":
            os._exit(0)
        os.close(self.go)
        argv = [os.fsdecode(wired(each)) for each in self.order["argv"]]
        self._place_descriptors()
        mark = os.fsdecode(wired(self.order["mark"]))
        os.environ.update({MARK: mark, LIFELINE: str(self.order["lifeline"])})
        sys.orig_argv[:] = argv
        sys.argv[:] = [str(self.module.__file__), *argv[4:]]
        sys.modules["__main__"] = self.module
        gc.enable()
        importlib.invalidate_caches()  # directories have changed since the stem looked into them
        return int(self.module.main() or 0)

    def _place_descriptors(self) -> None:
        targets = [*self.order["targets"], self.order["lifeline"]]
        sources, spare = out_of_the_way(self.fds, {0, 1, 2, *targets})
        for source, target in zip(sources, targets, strict=True):
            os.dup2(source, target)
        for fd in {*self.fds, *spare} - set(targets):
            os.close(fd)


def wired(text: str) -> bytes:
    """Texts travel as the bytes that the kernel sees."""
    return text.encode("latin-1")


def memory_map() -> tuple[int, int, int, int]:
    """Begin and end of the arguments, begin and end of the environment."""
    with open("/proc/self/stat", "rb", buffering=0) as file:
        fields = file.readall().rpartition(b")")[2].split()
    start, end = (int(each) for each in fields[_ARGUMENTS : _ARGUMENTS + 2])
    return start, end, int(fields[_ENVIRONMENT]), int(fields[_ENVIRONMENT + 1])


def rename(argv: list[bytes], mark: bytes | None = None) -> None:
    """Have ``/proc`` show this command line, cut where there is no room, and this mark.

    Raises:
        OSError: the memory cannot be written.
        ValueError: there is no room for the mark.
    """
    start, end, env_start, env_end = memory_map()
    with open("/proc/self/mem", "r+b", buffering=0) as memory:
        if mark is not None:
            memory.seek(env_start)
            block = memory.read(env_end - env_start)
            at, room = variable(block, ROOM.encode())
            text = b"%s=%s" % (MARK.encode(), mark)
            if len(text) > room:
                raise ValueError(f"no room for a mark of {len(text)} bytes in {room}")
            memory.seek(env_start + at)
            memory.write(text.ljust(room, b"\0"))
            at, room = variable(block, MARK.encode())
            memory.seek(env_start + at)
            memory.write(bytes(room))
        memory.seek(start)
        # The last byte stays 0, or the kernel takes what follows for more of it.
        memory.write(b"\0".join(argv)[: end - start - 1].ljust(end - start, b"\0"))


def variable(block: bytes, name: bytes) -> tuple[int, int]:
    """Where ``name`` stands in an environment as the kernel keeps it, and how long it is."""
    at = (b"\0" + block).find(b"\0" + name + b"=")
    if at < 0:
        raise ValueError(f"{name.decode()} is not in the environment")
    return at, block.index(b"\0", at) - at


def warmed(name: str) -> ModuleType:
    """Import a module of this package, and what it names in ``WARM``; without that it is no program."""
    if not name.startswith("trio_swarm."):
        raise ValueError(f"{name} is none of ours")
    module = importlib.import_module(name)
    for each in module.WARM:
        importlib.import_module(each)
    return module


class Stem:
    """The conversation with the warden."""

    def __init__(self, control: socket.socket) -> None:
        control.set_inheritable(False)
        self.control = control
        self.pid = os.getpid()

    def serve(self) -> Branch | None:
        """Fork whenever that is asked for. Returns in the stem at the end, and in each branch."""
        while True:
            order, fds = self._receive()
            if order is None:
                return None
            try:
                branch, pid = self._fork(order, fds)
            except Exception as error:
                # Whatever it is, the warden knows another way to start that process.
                self._answer(id=order["id"], error=f"{type(error).__name__}: {error}")
                continue
            finally:
                for fd in fds if os.getpid() == self.pid else ():
                    os.close(fd)
            if branch is not None:
                self.control.close()
                return branch
            self._answer(id=order["id"], pid=pid)

    def _receive(self) -> tuple[dict[str, Any] | None, list[int]]:
        room = socket.CMSG_SPACE(MAX_FDS * array.array("i").itemsize)
        try:
            data, beside, _, _ = self.control.recvmsg(MAX_ORDER, room, socket.MSG_CMSG_CLOEXEC)
        except OSError:
            return None, []
        fds = array.array("i")
        for level, kind, packed in beside:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                fds.frombytes(packed[: len(packed) - len(packed) % fds.itemsize])
        return (json.loads(data) if data else None), list(fds)

    def _answer(self, **answer: object) -> None:
        try:
            self.control.send(json.dumps(answer).encode())
        except OSError:
            # The warden is gone: so is the next order.
            return

    def _fork(self, order: dict[str, Any], fds: list[int]) -> tuple[Branch | None, int]:
        """(None, its pid) in the stem; (what to be, 0) in the branch."""
        module = warmed(order["module"])
        if len(fds) != len(order["targets"]) + 2:
            raise ValueError("some descriptors did not arrive")
        if len(os.listdir("/proc/self/task")) != 1:
            raise ValueError("an import started a thread")
        gc.freeze()
        reader, writer = os.pipe()
        try:
            os.chdir(wired(order["cwd"]))
            between = os.fork()
            if between == 0:
                last = -1
                try:
                    last = os.fork()
                finally:
                    if last:  # this is the process between, and there is no other end for it
                        os._exit(0)
                os.close(reader)
                return Branch(order, module, fds, writer), 0
            os.close(writer)
            writer = -1
            os.waitpid(between, 0)
            told = os.read(reader, 20)
        finally:
            if os.getpid() == self.pid:
                os.chdir("/")
                os.close(reader)
                if writer >= 0:
                    os.close(writer)
        if not told:
            raise OSError("the second fork failed")
        return None, int(told)


def main() -> int:
    """Serve; in a branch, be what it was forked for."""
    rename([os.fsencode(each) for each in sys.orig_argv[:5]])
    os.close(int(os.environ[LIFELINE]))  # the socket tells as much, and a branch has its own
    gc.disable()
    branch = Stem(socket.socket(fileno=int(sys.argv[1]))).serve()
    return 0 if branch is None else branch.run()


if __name__ == "__main__":
    sys.exit(main())
