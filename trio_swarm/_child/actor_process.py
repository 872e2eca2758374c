"""The life of one actor process, from a provision document to its exit (contract, A4.2)."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Final, NoReturn

import attrs
import trio

from trio_swarm import frames
from trio_swarm._child.actor_announce import Announcement, announced
from trio_swarm._child.actor_engines import Engine
from trio_swarm._child.actor_serve import ACCEPT_WAIT, IDLE_WAIT, ActorServer, Ending
from trio_swarm._child.copies import end_forked_copies
from trio_swarm._io.fabric import Fabric
from trio_swarm._io.files import check_name
from trio_swarm._io.groups import collapse

__all__ = ["EXIT_RUNAWAY", "ActorProcess"]

EXIT_RUNAWAY: Final = 70
"""Exit status when an engine had to be ended with its process (sysexits: internal error)."""

STOP_LIMIT: Final = 1.5
"""Seconds from a signal to the process's end, engine obeying or not; below the SIGKILL after 2 s."""


@attrs.define(eq=False)
class ActorProcess:
    """What `run` needs; one per process."""

    spec: frames.ProvisionSpec = attrs.field(repr=False)
    engine: Engine
    _announcement: Announcement | None = attrs.field(default=None, init=False)
    _signum: int = attrs.field(default=0, init=False)

    def run(self) -> int:
        """Serve until it is over; the exit status. A signal that ended it is raised again."""
        end_forked_copies()
        ending = trio.run(self._main)
        if self._signum:
            signal.signal(self._signum, signal.SIG_DFL)
            os.kill(os.getpid(), self._signum)
        if not ending.ok:
            print(f"actor: {ending.reason}", file=sys.stderr)
        return 0 if ending.ok else EXIT_RUNAWAY if "did not end" in ending.reason else 1

    async def _main(self) -> Ending:
        check_name(self.spec.identity.child_id, "child_id")
        ending = Ending("stopped", ok=True)
        with collapse(), trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async with trio.open_nursery() as watchers:
                serving = trio.CancelScope()
                watchers.start_soon(self._on_signal, signals, serving)
                with serving:
                    ending = await self._serve(watchers)
                watchers.cancel_scope.cancel()
        return ending

    async def _serve(self, background: trio.Nursery) -> Ending:
        fabric = Fabric(Path(self.spec.fabric_dir))
        background.start_soon(_tidy, fabric)
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        try:
            port: int = listeners[0].socket.getsockname()[1]
            async with announced(fabric, self._record(fabric, port)) as self._announcement:
                return await self._server().serve(listeners)
        finally:
            for listener in listeners:
                listener.socket.close()

    def _record(self, fabric: Fabric, port: int) -> frames.AgentRecord:
        now = fabric.clock()
        return frames.AgentRecord(
            agent_id=self.spec.identity.child_id,
            role=self.spec.identity.role,
            endpoint=f"ws://127.0.0.1:{port}",
            pid=os.getpid(),
            started_at=now,
            lease_expires_at=now,
        )

    def _server(self) -> ActorServer:
        idle = self.spec.limits.idle_timeout_secs
        return ActorServer(
            engine=self.engine,
            reusable=self.spec.reusable,
            token=self.spec.secrets.worker_auth_token,
            wait=(IDLE_WAIT if idle is None else float(idle)) if self.spec.reusable else ACCEPT_WAIT,
            on_runaway=self._end_around_runaway,
        )

    # -- the ends that nobody asked for over the protocol --------------------------------

    async def _on_signal(self, signals: AsyncIterator[int], serving: trio.CancelScope) -> None:
        async for self._signum in signals:
            await self._stop(serving)

    async def _stop(self, serving: trio.CancelScope) -> None:
        """End within `STOP_LIMIT`: the record first, because the engine may not obey."""
        begun = trio.current_time()
        if self._announcement is not None:
            await self._announcement.withdraw()
        serving.cancel()
        # Cancelled as soon as the serving has ended, which is the usual way out.
        await trio.sleep_until(begun + STOP_LIMIT)
        self._exit(128 + self._signum if self._signum else EXIT_RUNAWAY)

    async def _end_around_runaway(self) -> None:
        if self._announcement is not None:
            await self._announcement.withdraw()
        print("actor: a cancelled run did not end", file=sys.stderr, flush=True)
        self._exit(EXIT_RUNAWAY)

    def _exit(self, status: int) -> NoReturn:
        """Leave at once: a thread or a task that does not end cannot be left in any other way."""
        with suppress(OSError):
            sys.stdout.flush()
        os._exit(status)


async def _tidy(fabric: Fabric) -> None:
    """Take away what dead actors left; nobody depends on it."""
    with suppress(OSError):
        await fabric.gc()
