"""One process of a child and the one connection to it: started, registered, connected, ended."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final
from urllib.parse import urlsplit

import attrs
import trio

from trio_swarm import frames
from trio_swarm._io.fabric import Fabric
from trio_swarm._io.host import Host
from trio_swarm._io.link import Link, open_link
from trio_swarm._io.process import ManagedProcess, python_argv, python_env
from trio_swarm._io.starting import not_up
from trio_swarm._io.transport import Transport
from trio_swarm._io.ws import open_ws_client
from trio_swarm.errors import HandshakeError, SpawnError
from trio_swarm.frames.record import Identity
from trio_swarm.limits import REAP_DEADLINE, REGISTER_POLL, REGISTER_WAIT, TERM_GRACE

__all__ = ["Blueprint", "Embodied", "embodied"]

END_LIMIT: Final = 3 * TERM_GRACE + 2 * REAP_DEADLINE
"""Seconds for a process to end when asked to, and then to be stopped."""

_END_SEEN: Final = 1.0
"""Seconds for the news of a process's end to follow a connection that it did not take."""

_ACTOR: Final = "trio_swarm._child.actor"


@attrs.frozen
class Blueprint:
    """All that is the same for every process of one child."""

    child_id: str
    role: str
    executor: Any
    fabric: Fabric
    register_wait: float = REGISTER_WAIT
    """Seconds from the start of the process to its record."""
    extras: Mapping[str, Any] = attrs.field(factory=dict, repr=False)
    """More fields of the provision document, by name."""

    def provision(self, token: str) -> frames.ProvisionSpec:
        """The document for one process; ``token`` is what its parent will show."""
        spec = frames.ProvisionSpec(
            version=1,
            identity=Identity(child_id=self.child_id, role=self.role),
            executor=self.executor,
            fabric_dir=str(self.fabric.directory),
        )
        spec = attrs.evolve(spec, **self.extras)
        return attrs.evolve(spec, secrets=attrs.evolve(spec.secrets, worker_auth_token=token))


@attrs.frozen(eq=False)
class Embodied:
    """A process that registered, and the open link to it."""

    process: ManagedProcess
    record: frames.AgentRecord
    link: Link[frames.ChildFrame]


@asynccontextmanager
async def embodied(host: Host, blueprint: Blueprint) -> AsyncIterator[Embodied]:
    """Start a process from ``blueprint`` and connect to it (A4.1); end it when the block is left.

    Leaving closes the socket, which ends an actor by itself, gives it the usual grace, stops it, and takes
    its record away; bounded, and done also when cancelled.

    Raises:
        SpawnError: it could not be started, ended or stayed silent before its record was there,
            or refused the connection. The process is gone by then.
        StartLost: of these, that it was killed, or ended after its record was there.
    """
    token = secrets.token_hex(16)
    document = frames.encode(blueprint.provision(token)).encode()
    process = await host.warden.start(
        python_argv(_ACTOR), name=blueprint.child_id, stdin=document, env=python_env()
    )
    connected = False
    try:
        record = await _registered(process, blueprint)
        async with (
            _connected(process, record, token) as transport,
            open_link(transport, frames.ChildFrame, name=blueprint.child_id) as link,
        ):
            connected = True
            yield Embodied(process, record, link)
    finally:
        # The limit is never reached: `stop` bounds itself, and raises what it cannot end.
        with trio.move_on_after(END_LIMIT, shield=True):
            await _end(process, asked=connected)
        with trio.move_on_after(TERM_GRACE, shield=True):
            await _forget(blueprint, process)


async def _end(process: ManagedProcess, *, asked: bool) -> None:
    """An actor whose socket was closed ends by itself; one that does not is stopped."""
    if asked and process.exit is None:
        process.mark("asked")
        with trio.move_on_after(TERM_GRACE):
            await process.wait()
    await process.stop()


async def _registered(process: ManagedProcess, blueprint: Blueprint) -> frames.AgentRecord:
    with trio.move_on_after(blueprint.register_wait) as scope:
        while process.exit is None:
            record = await blueprint.fabric.read(blueprint.child_id)
            # Our own process is alive, so its lease is not asked; but the pid is, since an
            # earlier process of this id may have left a record that is not even stale.
            if record is not None and record.pid == process.pid:
                return record
            await trio.sleep(REGISTER_POLL)
    if scope.cancelled_caught:
        await process.kill()
        raise SpawnError(
            f"worker {blueprint.child_id!r} did not register within {blueprint.register_wait:g} s"
            f"{_tail(process)}"
        )
    await process.wait()  # for the end of what it wrote; bounded by itself
    raise not_up(process, f"worker exited before registering: {process.exit}{_tail(process)}")


def _tail(process: ManagedProcess) -> str:
    return f"; it wrote: {process.stderr_tail.strip()}" if process.stderr_tail.strip() else ""


@asynccontextmanager
async def _connected(
    process: ManagedProcess, record: frames.AgentRecord, token: str
) -> AsyncIterator[Transport]:
    endpoint = urlsplit(record.endpoint)
    if endpoint.scheme != "ws" or endpoint.hostname not in ("127.0.0.1", "::1", "localhost"):
        raise SpawnError(f"a child of this machine does not listen on {record.endpoint!r:.200}")
    connecting = open_ws_client(record.endpoint, headers=[("authorization", f"Bearer {token}")])
    fault: Exception | None = None
    async with AsyncExitStack() as stack:
        try:
            transport = await stack.enter_async_context(connecting)
        except (HandshakeError, ValueError) as error:
            fault = error
        else:
            yield transport
    if fault is not None:
        with trio.move_on_after(_END_SEEN):
            await process.wait()
        # It had come up: whatever ended it since, it was not how it is made.
        why = f"worker {record.agent_id!r} registered and did not answer: {fault}"
        raise not_up(process, why, lost=True) from fault


async def _forget(blueprint: Blueprint, process: ManagedProcess) -> None:
    try:
        await blueprint.fabric.withdraw(blueprint.child_id, pid=process.pid)
    except OSError:
        return  # its lease ends, and anybody's gc takes it
