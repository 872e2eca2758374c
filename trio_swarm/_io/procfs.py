"""Who is whose child, read from ``/proc``; the standard library only, for the warden imports it.

Where there is no ``/proc``, nobody is found.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys

__all__ = ["MARK", "ROOM", "children_of_mine", "kill_checked", "marks", "parents", "read", "stat"]

MARK = "TRIO_SWARM_PROCESS"
"""The environment variable that names the started process which a process belongs to.

A path: a swarm within a swarm appends, so that the outer warden knows its own as well.
"""

ROOM = "TRIO_SWARM_ROOM"
"""A variable with nothing but room, over which a process that was forked writes its own mark."""

PARENT, GROUP, SESSION, BORN = 1, 2, 3, 19
"""Where `stat` holds them."""


def read(pid: int, name: str) -> bytes:
    """What ``/proc/<pid>/<name>`` holds; nothing where that cannot be read."""
    try:
        with open(f"/proc/{pid}/{name}", "rb", buffering=0) as file:
            return file.readall()
    except OSError:
        return b""


def stat(pid: int) -> list[bytes]:
    """The fields after the name: state, parent, group, session, ...; empty if it is gone."""
    return read(pid, "stat").rpartition(b")")[2].split()


def parents() -> dict[int, int]:
    """Every process and its parent."""
    if not os.path.isdir("/proc/self"):
        return {}
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and (fields := stat(int(name))):
            found[int(name)] = int(fields[PARENT])
    return found


def children_of_mine() -> list[int]:
    """The children of this process, which has one thread; zombies included.

    The kernel's own list may skip entries while children are being reaped; the only reaper
    is the caller, who is here. Where the kernel was built without it, all of ``/proc`` is read.
    """
    me = os.getpid()
    path = f"/proc/{me}/task/{me}/children"
    try:
        with open(path, "rb", buffering=0) as file:
            return [int(pid) for pid in file.readall().split()]
    except OSError:
        return [pid for pid, parent in parents().items() if parent == me]


def marks(pid: int) -> set[str]:
    """The ids in the process's `MARK`."""
    prefix, found = MARK.encode() + b"=", set()
    for variable in read(pid, "environ").split(b"\0"):
        if variable.startswith(prefix):
            found.update(variable[len(prefix) :].decode(errors="replace").split("/"))
    return found


def kill_checked(pid: int, born: bytes) -> None:
    """SIGKILL a process that is no child of ours, unless its number belongs to another by now."""
    if sys.platform != "linux":
        return
    with contextlib.suppress(OSError):
        handle = os.pidfd_open(pid)
        try:
            if stat(pid)[BORN : BORN + 1] == [born]:
                signal.pidfd_send_signal(handle, signal.SIGKILL)
        finally:
            os.close(handle)
