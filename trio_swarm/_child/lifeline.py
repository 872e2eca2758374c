"""The lifeline: how a well-behaved process notices that nobody looks after it any more.

The warden alone holds the write end of a pipe; each process that it starts inherits the read end,
under the number in ``TRIO_SWARM_LIFELINE``. The end of the pipe is the end of the warden. This
is the second net: while the warden lives, it ends everything by itself.

Light on purpose: a process that needs only this pays for the standard library alone.
"""

from __future__ import annotations

import os
import signal
import threading

__all__ = ["EXIT_ABANDONED", "VARIABLE", "watch"]

VARIABLE = "TRIO_SWARM_LIFELINE"

EXIT_ABANDONED = 113
"""The exit code of a process whose warden is gone, unless SIGKILL to its group is quicker."""


def watch(fd: int | None = None) -> bool:
    """End this process when the lifeline does. Returns False where there is none.

    A daemon thread waits for it, so a busy or blocked main thread changes nothing. A process that
    leads its group, as all do that the warden started, takes the group with it.

    Args:
        fd: the pipe's read end; else the number in ``TRIO_SWARM_LIFELINE``. It belongs to
            this function from now on, and is not passed on to processes started here.
    """
    number = os.environ.get(VARIABLE, "") if fd is None else str(fd)
    if not number.isdecimal():
        return False
    try:
        os.set_inheritable(int(number), False)
    except OSError:  # somebody closed it on the way
        return False
    threading.Thread(target=_wait, args=(int(number),), name="lifeline", daemon=True).start()
    return True


def _wait(fd: int) -> None:
    try:
        while os.read(fd, 1):
            continue  # nobody writes; a byte by mistake says nothing
    except OSError:
        return  # closed under us: then nothing can be concluded from it
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(EXIT_ABANDONED)
