"""Child actors: processes that run assignments, ask for approval, and are replaced when they die.

An engine's module needs only `ActorRun`, and only for its annotations; ``trio_swarm._child.actor_run`` has it
without the parent's side.
"""

from __future__ import annotations

from trio_swarm._child.actor_run import ActorRun
from trio_swarm.children.approval import Approval, Decider
from trio_swarm.children.child import Child, ChildState, ChildStatistics
from trio_swarm.children.opening import open_child
from trio_swarm.children.run import ChildRun

__all__ = [
    "ActorRun",
    "Approval",
    "Child",
    "ChildRun",
    "ChildState",
    "ChildStatistics",
    "Decider",
    "open_child",
]
