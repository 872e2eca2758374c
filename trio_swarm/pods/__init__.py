"""Pods: long-lived processes with a conversation, a Unix socket and a file scope (pods contract).

`open_pod` starts one for a block. Its engine is ``async def turn(turn: PodTurn) -> None | str`` in a module
of yours; the files it may touch are those of its scope, through ``turn.files``.
"""

from __future__ import annotations

from trio_swarm._child.pod_files import ScopedFiles
from trio_swarm._child.pod_tools import ToolFailed
from trio_swarm._child.pod_turn import Engine, PodTurn
from trio_swarm._io.scope_lock import ScopeLock, ScopeLockError, ScopeRefused
from trio_swarm._state.scope import Allocation, Grant
from trio_swarm.frames.pod import ScopeRule
from trio_swarm.pods.opening import open_pod
from trio_swarm.pods.pod import Pod, PodStatistics
from trio_swarm.pods.turn import ToolOutcome, TurnEvents, TurnResult

__all__ = [
    "Allocation",
    "Engine",
    "Grant",
    "Pod",
    "PodStatistics",
    "PodTurn",
    "ScopeLock",
    "ScopeLockError",
    "ScopeRefused",
    "ScopeRule",
    "ScopedFiles",
    "ToolFailed",
    "ToolOutcome",
    "TurnEvents",
    "TurnResult",
    "open_pod",
]
