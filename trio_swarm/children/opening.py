"""How a child is opened: what its caller says, checked, and the block that owns it."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from trio_swarm._io.fabric import Fabric
from trio_swarm._io.files import check_name
from trio_swarm._io.groups import collapse
from trio_swarm._io.host import Host
from trio_swarm._io.target import Target, name_target
from trio_swarm._state.supervise import RestartIntensity
from trio_swarm.children.approval import Decider
from trio_swarm.children.child import Child
from trio_swarm.children.incarnation import Blueprint
from trio_swarm.frames.record import BambooRuntime, CliAdapter, EchoExecutor, Executor, PythonExecutor
from trio_swarm.limits import MAX_ATTEMPTS, MAX_RESTARTS, REGISTER_WAIT, RESTART_WITHIN

__all__ = ["open_child"]


def _executor(target: Target | Executor) -> Executor:
    if isinstance(target, EchoExecutor | BambooRuntime | CliAdapter | PythonExecutor):
        return target
    return EchoExecutor() if target == "echo" else PythonExecutor(target=name_target(target))


@asynccontextmanager
async def open_child(
    host: Host,
    target: Target | Executor,
    *,
    name: str | None = None,
    role: str = "worker",
    fabric_dir: str | Path | None = None,
    on_approval: Decider | None = None,
    max_restarts: int = MAX_RESTARTS,
    within: float = RESTART_WITHIN,
    max_attempts: int = MAX_ATTEMPTS,
    register_wait: float = REGISTER_WAIT,
    provision: Mapping[str, Any] | None = None,
) -> AsyncIterator[Child]:
    """Start a child actor and own it for the length of the block (children contract, A4 to A6).

    Args:
        target: an engine as `ActorRun` describes: ``"module:function"``, or a function of a module's top
            level; ``"echo"``; or an executor of a provision document.
        name: its ``agent_id``; one is made from ``role`` if it is left out. Unique among the
            children that share a fabric.
        fabric_dir: where its record is kept; default ``agents`` in the host's runtime directory.
        on_approval: decides on its approval requests; without it all are denied, and so is what it
            does not decide within 300 seconds or raises on. Runs in a task of its own.
        max_restarts, within: more crashes than that within so many seconds, and the child is given up:
            `RestartIntensityExceeded` from that run and every later one. A process that is killed while
            it starts counts as a crash, the first one too.
        max_attempts: tries of one run that takes its process down.
        register_wait: seconds for a started process to announce itself.
        provision: more fields of the provision document, by name.

    Raises:
        SpawnError: its first process could not be started, or did not come up, and not because it was
            killed: its target cannot be imported, say.
        RestartIntensityExceeded: the processes were killed while they started, more often than allowed.
        ValueError: a name or a target that is none.

    Leaving the block closes the connection, lets the process end, stops it if it does not, and takes its
    record away; bounded, also when cancelled. Runs that other tasks still wait for raise
    ``trio.ClosedResourceError``.
    """
    if max_attempts < 1:
        raise ValueError(f"max_attempts is {max_attempts}: a run needs one try at least")
    child_id = name if name is not None else f"{role}-{secrets.token_hex(4)}"
    fabric = Fabric(host.runtime_dir / "agents" if fabric_dir is None else Path(fabric_dir))
    blueprint = Blueprint(
        child_id=check_name(child_id, "name"),
        role=role,
        executor=_executor(target),
        fabric=fabric,
        register_wait=register_wait,
        extras=provision or {},
    )
    intensity = RestartIntensity(max_restarts=max_restarts, within=within)
    with collapse():
        async with trio.open_nursery() as nursery:
            child = Child(
                host,
                blueprint,
                on_approval=on_approval,
                intensity=intensity,
                max_attempts=max_attempts,
                nursery=nursery,
            )
            try:
                await child.ready()
                yield child
            finally:
                child.close()
                nursery.cancel_scope.cancel()
