"""The warden: the one process between a coordinator and everything that it starts.

Run by file path as ``python -I -S warden.py <control fd> <coordinator pid> <seconds> [directory ...]``:
the standard library only, one thread, a session of its own. Its only link is the control socket,
JSON lines with descriptors beside them; each line says how many are its own.

Why a process of its own: only the parent of a process is told how it ended, only the reaper can
signal it without ever hitting a stranger that got its number, and what kills the coordinator
must not kill who cleans up after it. On Linux the warden is a *child subreaper*: an orphan, double
forked and in a session of its own or not, becomes the warden's child and not init's.

It ends everything when the control socket reaches its end, when the coordinator is gone (a process
forked from the coordinator may still hold the socket open), on SIGTERM, or when asked to. Then it
deletes the directories that it was given.

A process belongs to the one that was started with the same ``TRIO_SWARM_PROCESS`` in its
environment, or else to the leader of its session. One that left both behind is adopted all the same
and lives until the warden ends. A warden below (a swarm in a swarm) gets a moment to clean up itself.

Elsewhere than on Linux there is no subreaper and no ``/proc``: a process that left the group of the
one that was started is out of reach, and the lifeline (``lifeline.py``) is all that ends it.
"""

from __future__ import annotations

import os
import sys

PR_SET_NAME, PR_SET_CHILD_SUBREAPER = 15, 36
LAST_WORDS = 1.0


def adopt_orphans() -> None:
    """Become the parent of every descendant that loses its own."""
    if sys.platform == "linux":
        import ctypes

        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "PR_SET_CHILD_SUBREAPER")
        libc.prctl(PR_SET_NAME, b"swarm-warden", 0, 0, 0)


def remove(directories: list[str]) -> None:
    """Delete what is still there; what cannot be deleted must not keep the rest."""
    left = [directory for directory in directories if os.path.lexists(directory)]
    if left:
        import shutil

        for directory in left:
            shutil.rmtree(directory, ignore_errors=True)


def main(arguments: list[str]) -> int:
    """Keep watch until it is over. Returns the exit code: 1 if somebody could not be killed."""
    control, coordinator, patience, *directories = arguments
    os.chdir("/")
    adopt_orphans()
    from trio_swarm._child.warden_loop import Watch

    watch = Watch(int(control), int(coordinator), float(patience))
    left = watch.run()
    remove(directories)
    watch.control.send({"event": "final", "strays": watch.unowned, "left": left})
    watch.control.flush_at_last(LAST_WORDS)
    return 1 if left else 0


if __name__ == "__main__":
    # At the end of the path, for -I left it out: nothing there may shadow the standard library.
    sys.path.append(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
    sys.exit(main(sys.argv[1:]))
