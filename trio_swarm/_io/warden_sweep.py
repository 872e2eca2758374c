"""When the warden itself was killed: find what it looked after and end it, as well as one can.

Nobody is the parent of those processes any more, so numbers may be used again while we look.
Each is recognised by its mark, or by number and time of birth, and killed through a pidfd.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Mapping

from trio_swarm._io import procfs

__all__ = ["living", "sweep"]

_AGAIN = 0.01


def living(token: str) -> list[int]:
    """Pids of all that carry ``token`` in their mark and are not dead, as the system tells.

    But for the stem (number 0), which is the warden's own as the warden is the coordinator's.
    """
    found = (pid for pid in procfs.parents() if _ours(pid, token, {}))
    return sorted(pid for pid in found if f"{token}.0" not in procfs.marks(pid))


def sweep(token: str, leaders: Mapping[int, bytes], patience: float) -> list[int]:
    """SIGKILL all that carry ``token`` in their mark or stem from ``leaders``. Blocks; for a thread.

    Args:
        token: what the ids of the warden's processes begin with.
        leaders: pids and times of birth of those that ran when the warden was last heard of.
        patience: seconds; it ends when nobody is found any more or after that.

    Returns:
        Who is still there.
    """
    if sys.platform != "linux":
        return _sweep_groups(leaders)
    deadline = time.monotonic() + patience
    while True:
        found = {pid: born for pid in procfs.parents() if (born := _ours(pid, token, leaders))}
        if not found or time.monotonic() > deadline:
            return sorted(found)
        for pid, born in found.items():
            procfs.kill_checked(pid, born)
        time.sleep(_AGAIN)


def _ours(pid: int, token: str, leaders: Mapping[int, bytes]) -> bytes:
    """The time of birth of a living process that is one of ours, else nothing."""
    fields = procfs.stat(pid)
    if not fields or fields[0] in b"ZX":
        return b""
    born, session = fields[procfs.BORN], int(fields[procfs.SESSION])
    # A session's number is not given away while it has members, who are younger than it.
    related = leaders.get(pid) == born or (session in leaders and int(born) >= int(leaders[session]))
    return born if related or any(mark.startswith(f"{token}.") for mark in procfs.marks(pid)) else b""


def _sweep_groups(leaders: Mapping[int, bytes]) -> list[int]:
    left = []
    for pid in leaders:
        try:
            os.killpg(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
        except PermissionError:
            left.append(pid)
    return left
