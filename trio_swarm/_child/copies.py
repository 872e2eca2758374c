"""What becomes of a forked copy of a process that runs Trio: it never goes on as its original.

A copy shares the original's sockets and its epoll: were its event loop to go on, there would be two writers
on each connection, and the original would miss what the copy took from the kernel. So a copy that was made in
a task ends as soon as that task waits or is over, and before any other task runs: it never gets to
the loop. One that ends by itself, as those of multiprocessing do, or becomes another program, is not touched.
"""

from __future__ import annotations

import os
from contextlib import suppress

import trio

from trio_swarm._child.endings import copies_heed_signals

__all__ = ["end_forked_copies"]


class _LastStep(trio.abc.Instrument):
    """In a copy only: the step that it was made in is its last."""

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        os._exit(0)


def _in_the_copy() -> None:
    # Made in a thread, there is no loop that could go on.
    with suppress(RuntimeError):
        trio.lowlevel.add_instrument(_LastStep())


def end_forked_copies() -> None:
    """From now on, and for good, a fork of this process ends rather than enter Trio's loop.

    Nor would it ever come to the signals that Trio notes for the loop: those end it, too.
    """
    copies_heed_signals(lambda handler: getattr(handler, "__module__", "").startswith("trio."))
    os.register_at_fork(after_in_child=_in_the_copy)
