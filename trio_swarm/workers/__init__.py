"""Workers: the board of tasks, the HTTP routes over it, and a worker's own end (`connect_worker`)."""

from __future__ import annotations

from trio_swarm._state.token import CapabilityToken, attenuate
from trio_swarm.workers.api import WorkerApi
from trio_swarm.workers.board import Attempt, Final, Outcome, Task, TaskBoard
from trio_swarm.workers.client import (
    AttemptOver,
    RequestRefused,
    Retry,
    WorkerBrief,
    WorkerSession,
    connect_worker,
)
from trio_swarm.workers.outputs import Output, OutputStore

__all__ = [
    "Attempt",
    "AttemptOver",
    "CapabilityToken",
    "Final",
    "Outcome",
    "Output",
    "OutputStore",
    "RequestRefused",
    "Retry",
    "Task",
    "TaskBoard",
    "WorkerApi",
    "WorkerBrief",
    "WorkerSession",
    "attenuate",
    "connect_worker",
]
