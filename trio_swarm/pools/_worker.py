"""One owned worker: from its process's start to its end.

Between the two, a worker belongs to whoever runs a job on it; the keeper's task waits for
it to be handed back or to die.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final, Literal

import attrs
import trio

from trio_swarm._io.process import python_argv
from trio_swarm._io.unix import check_socket_path
from trio_swarm.errors import ChildCrashed, PeerError, PeerGoneError, SpawnError
from trio_swarm.limits import REAP_DEADLINE, SOCKET_WAIT, TERM_GRACE
from trio_swarm.pools._client import WorkerClient, connect_worker

if TYPE_CHECKING:
    from trio_swarm._io.host import Host
    from trio_swarm._io.process import ManagedProcess

__all__ = ["Verdict", "Worker", "WorkerLost", "pool_sid", "start_worker"]

_ABANDONED: Final = 60
"""Seconds that a worker waits for its first connection; then it was forgotten."""

_ASK: Final = 1.0
"""Seconds for a worker to answer a shutdown request and exit, before the kill ladder."""

Verdict = Literal["lost", "cancelled", "late", "dismissed"]
"""Why a worker is handed back unfit for a next job: its connection is lost; its job was
cancelled half-way; its job's deadline passed, and its own answer is due; its job waits for
an answer that will not come."""


class WorkerLost(Exception):
    """Inside the pool only: the worker went down under a job.

    ``crash`` is made once for a worker; ``begun`` tells whether any of the job had been sent, so
    that its death is charged to the job.
    """

    def __init__(self, crash: ChildCrashed, *, begun: bool) -> None:
        super().__init__(str(crash))
        self.crash = crash
        self.begun = begun


@attrs.define(eq=False)
class Worker:
    """A started process with its one connection, kept open for its life."""

    sid: str
    process: ManagedProcess
    client: WorkerClient
    job: int | None = None
    """The number of the job that it runs, or that it died of."""
    completed: int = 0
    """Jobs that it answered."""
    session: str | None = None
    """The session of the last job that it answered for; no two jobs share one."""
    leaving: bool = False
    """Gets no next job."""
    verdict: Verdict | None = None
    crashed: bool = False
    """Whether it went down against the pool's will."""
    how: str = ""
    """How it crashed, where its exit status would not tell."""
    returned: trio.Event = attrs.field(factory=trio.Event)
    """Set when whoever had it hands it back unfit, or idle after it was doomed."""
    gone: trio.Event = attrs.field(factory=trio.Event)
    """Set when the process is reaped; ``crash`` is final then."""
    crash: ChildCrashed | None = None

    @property
    def pid(self) -> int:
        return self.process.pid

    def hand_back(self, verdict: Verdict) -> None:
        """Not fit for another job as it is; never blocks."""
        self.leaving = True
        self.verdict = verdict
        self.returned.set()

    async def end(self, *, ask: bool) -> None:
        """End the process: over its protocol if *ask*, then by the kill ladder. Bounded."""
        if ask:
            self.process.mark("asked")
            with trio.move_on_after(_ASK, shield=True):
                try:
                    await self.client.shutdown()
                except (PeerError, trio.BusyResourceError, trio.ClosedResourceError):
                    # It is on its way out already, or cannot be asked: the ladder follows.
                    await self.process.stop()
                await self.process.wait()
        with trio.move_on_after(TERM_GRACE + REAP_DEADLINE, shield=True):
            await self.process.stop()


def pool_sid() -> str:
    """A worker's id: ``p-<hex nanoseconds>-<16 hex>`` (C4)."""
    return f"p-{time.time_ns():x}-{secrets.token_hex(8)}"


@asynccontextmanager
async def start_worker(host: Host, *, name: str, version: str) -> AsyncIterator[Worker]:
    """Start a worker process, connect and agree on *version*; at the end it is gone.

    Raises:
        SpawnError: it did not come up.
        PeerError: it did not keep the contract on the way.
    """
    sid = pool_sid()
    try:
        path = check_socket_path(host.runtime_dir / f"{sid}.sock")
    except ValueError as error:
        raise SpawnError(str(error)) from error
    argv = python_argv(
        "trio_swarm._child.pool_worker",
        *("--sid", sid, "--sock", path, "--version", version),
        *("--reusable", "--idle", str(_ABANDONED)),
    )
    worker, gone = None, None
    process = await host.warden.start(argv, name=f"{name}/{sid}", stdout="pipe")
    try:
        await _listening(process)
        async with connect_worker(path, version, gone=lambda: _ended(process)) as client:
            worker = Worker(sid, process, client)
            yield worker
    except PeerGoneError as error:
        if worker is not None:
            raise
        gone = error
    finally:
        with trio.move_on_after(TERM_GRACE + REAP_DEADLINE, shield=True):
            await process.stop()
        # A worker that was killed could not do it.
        with contextlib.suppress(OSError):
            os.unlink(path)
    if gone is not None:
        raise SpawnError(f"the worker {_ended(process)} at its first request") from gone


async def _listening(process: ManagedProcess) -> None:
    """Wait until the worker listens or is gone: in both cases its standard output ends.

    No polling, so no time lost; what a ``sitecustomize`` may print there is dropped.
    """
    assert process.stdout is not None
    with trio.move_on_after(SOCKET_WAIT):
        try:
            while await process.stdout.receive_some():
                pass
        except trio.BrokenResourceError:
            # As good as its end: connecting tells the rest.
            return
        finally:
            with trio.move_on_after(1, shield=True):
                await process.stdout.aclose()


def _ended(process: ManagedProcess) -> str | None:
    if process.exit is None:
        return None
    tail = process.stderr_tail.strip()
    return f"{process.exit}" + (f", saying: {tail[-1000:]}" if tail else "")
