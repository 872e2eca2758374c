"""Why a process did not come up: of its own doing, or because it was taken down or held up."""

from __future__ import annotations

from trio_swarm._io.process import ManagedProcess
from trio_swarm.errors import ChildCrashed, SpawnError

__all__ = ["StartLost", "StartSilent", "not_up"]


class StartLost(SpawnError):
    """The process was killed, or its connection broke, while it came up: the next start may fare better.

    A supervisor tries again, within its restart intensity. Most other reasons only come again: a target
    that cannot be imported, a program that is not there.
    """

    def __init__(self, message: str, crash: ChildCrashed) -> None:
        super().__init__(message)
        self.crash = crash


class StartSilent(SpawnError):
    """The process lives and did not show itself in time."""


def not_up(process: ManagedProcess, message: str, *, lost: bool = False) -> SpawnError:
    """The error for a process that ended before it was ready: `StartLost` if a signal ended it.

    ``lost`` says that it is that in any case. Where the warden died nobody can try again.
    """
    end = process.exit
    if end is None or not (lost or end.signal is not None):
        return SpawnError(message)
    how = f"{end} while it started"
    crash = ChildCrashed(process.name, how, pid=process.pid, stderr_tail=process.stderr_tail)
    return StartLost(message, crash)
