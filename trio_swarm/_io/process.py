"""Processes with an owner: the public face of the warden.

``open_warden()`` gives a `Warden` for a block; `Warden.start` gives a `ManagedProcess`. Leaving
the block ends every descendant of every process, however it was left, and `Warden.report` says how.

* On Linux that holds for daemons as well (double fork, a session of their own), and if the
  coordinator is killed with SIGKILL: the warden process adopts every orphan and outlives the coordinator.
* On other POSIX systems it holds for the process group of each started process. What leaves its
  group is out of reach there; ``trio_swarm._child.lifeline`` lets well-behaved programs end by themselves.
* If the warden itself is killed while the coordinator lives, the coordinator kills what it can find
  and raises. If both are killed at the same instant, only the lifeline is left.
"""

from __future__ import annotations

from trio_swarm._io.interpreter import python_argv, python_env
from trio_swarm._io.warden import open_warden
from trio_swarm._io.warden_client import Warden
from trio_swarm._io.warden_process import Exit, How, ManagedProcess, ProcessReport

__all__ = [
    "Exit",
    "How",
    "ManagedProcess",
    "ProcessReport",
    "Warden",
    "open_warden",
    "python_argv",
    "python_env",
]
