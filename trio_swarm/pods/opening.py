"""`open_pod`: a pod for a block, and the supervision that keeps it there."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Final

import attrs
import trio

from trio_swarm._child.pod_spec import PodSpec, check_pod_name
from trio_swarm._io.groups import collapse
from trio_swarm._io.host import Host
from trio_swarm._io.paths import resolve
from trio_swarm._io.process import ManagedProcess
from trio_swarm._io.scope_lock import ScopeLock, ScopeRefused, resolve_rules
from trio_swarm._io.starting import StartLost, StartSilent
from trio_swarm._io.target import Target, name_target
from trio_swarm._state.supervise import RestartIntensity
from trio_swarm.errors import ChildCrashed, RestartIntensityExceeded, SpawnError
from trio_swarm.frames.pod import Notification, ScopeRule
from trio_swarm.limits import (
    LOCK_WAIT,
    MAX_ATTEMPTS,
    MAX_RESTARTS,
    RESTART_WITHIN,
    SOCKET_WAIT,
    TERM_GRACE,
)
from trio_swarm.pods.client import PodClient, open_pod_client
from trio_swarm.pods.life import live, make_base
from trio_swarm.pods.pod import Pod

__all__ = ["open_pod"]

_EXIT_WAIT: Final = 2.0
"""Seconds for a process whose connection ended to end as well, before it is made to."""

_REMEMBERED: Final = 16
"""Crashes that `RestartIntensityExceeded` names at most."""


@asynccontextmanager
async def open_pod(
    host: Host,
    target: Target,
    *,
    name: str,
    scope: Sequence[ScopeRule],
    deny: Sequence[ScopeRule] = (),
    cwd: str | None = None,
    scope_lock: str | os.PathLike[str] | None = None,
    socket_wait: float = SOCKET_WAIT,
    grace: float = TERM_GRACE,
    max_restarts: int = MAX_RESTARTS,
    within: float = RESTART_WITHIN,
    max_attempts: int = MAX_ATTEMPTS,
) -> AsyncIterator[Pod]:
    """A pod process for the block: it serves turns, and writes only where its scope allows.

    Args:
        host: what starts and reaps processes.
        target: the engine, ``package.module:function``: ``async def turn(turn: PodTurn) -> None | str``.
        name: a letter or digit, then up to 99 letters, digits, ``.``, ``_``, ``-``; unique on this host.
        scope: what the pod may read and write: at least one rule; targets are absolute, ``..`` and
            symbolic links are resolved now.
        deny: caps on that: ``read`` allows nothing there, ``write`` only reading.
        cwd: where the relative paths of its file tools start; else the first rule's target. It has to be
            readable under the scope.
        scope_lock: the machine-wide table to enter the scope in, so that no two pods may write at one place;
            None: it is not entered.
        socket_wait: seconds for a process to listen.
        grace: seconds for it to end when asked to, and again after SIGTERM.
        max_restarts: crashes within ``within`` seconds that are answered by a new process: the first
            at once, the next ones after 0.1, 0.2, ... 5 seconds. A process that is killed while it starts
            counts as a crash, the first one too.
        within: the window, in seconds.
        max_attempts: tries of one ``run(..., idempotent=True)``.

    Raises:
        ValueError: a name, a rule or a path that cannot be used; says which.
        ScopeRefused: the scope lock said no. ScopeLockError: its file.
        SpawnError: the process did not come up, and not because it was killed; has the end of its
            standard error. After a crash too: then the block is cancelled.
        RestartIntensityExceeded: it crashed too often; the block is cancelled.

    However the block is left, cancellation included: ``shutdown``, SIGTERM, SIGKILL, each bounded; then no
    process, no runtime directory and no entry in the scope lock is left. Pods contract, B3.
    """
    check_pod_name(name)
    if max_attempts < 1:
        raise ValueError(f"max_attempts is {max_attempts}: a run needs one try at least")
    if not scope:
        raise ValueError(f"the pod {name} needs at least one allow rule")
    spec = await trio.to_thread.run_sync(_make_spec, host, target, name, scope, deny, cwd, scope_lock)
    keeper = _Keeper(
        host=host,
        spec=spec,
        pod=Pod(name, spec.scope_allow, max_attempts),
        socket_wait=socket_wait,
        grace=grace,
        intensity=RestartIntensity(max_restarts, within),
    )
    try:
        with collapse():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(keeper.keep)
                await keeper.up.wait()
                try:
                    yield keeper.pod
                finally:
                    nursery.cancel_scope.cancel()
    finally:
        keeper.pod.close()
        with trio.move_on_after(2 * LOCK_WAIT, shield=True):
            await keeper.leave_scope()


def _make_spec(
    host: Host,
    target: Target,
    name: str,
    scope: Sequence[ScopeRule],
    deny: Sequence[ScopeRule],
    cwd: str | None,
    scope_lock: str | os.PathLike[str] | None,
) -> PodSpec:
    allow = resolve_rules(scope)
    return PodSpec(
        pod_name=name,
        base_dir=str(make_base(host)),
        target=name_target(target),
        scope_allow=allow,
        scope_deny=resolve_rules(deny),
        cwd=resolve(cwd) if cwd is not None else allow[0].target,
        scope_lock=os.path.abspath(scope_lock) if scope_lock is not None else None,
    ).check()


@attrs.define(eq=False)
class _Keeper:
    """Keeps one pod's process alive."""

    host: Host
    spec: PodSpec
    pod: Pod
    socket_wait: float
    grace: float
    intensity: RestartIntensity
    up: trio.Event = attrs.field(factory=trio.Event)
    """The first process listens."""
    _lives: int = 0
    _crashes: deque[ChildCrashed] = attrs.field(factory=lambda: deque(maxlen=_REMEMBERED))
    _entered: bool = False

    async def keep(self) -> None:
        """Start the process, and again after each crash, until cancelled.

        Raises `SpawnError` where one does not come up and would not the next time either,
        `RestartIntensityExceeded` where there were too many crashes.
        """
        while True:
            try:
                crash = await self._live_once()
            except StartLost as lost:
                crash = lost.crash
            except SpawnError as error:
                if not (self._lives and isinstance(error, StartSilent)):
                    self.pod.close(partial(SpawnError, str(error)))
                    raise
                crash = ChildCrashed(f"pod {self.spec.pod_name}", f"did not come up again: {error}")
            self._crashes.append(crash)
            self._emit("pod_crashed", pid=crash.pid, how=crash.how)
            delay = self.intensity.restart(trio.current_time())
            if delay is None:
                self.pod.close(self._given_up)
                raise self._given_up() from crash
            await trio.sleep(delay)

    def _given_up(self) -> RestartIntensityExceeded:
        return RestartIntensityExceeded(
            f"pod {self.spec.pod_name}",
            max_restarts=self.intensity.max_restarts,
            within=self.intensity.within,
            attempts=self._crashes,
        )

    async def leave_scope(self) -> None:
        """Take the entry out of the scope lock, if there is one."""
        if self.spec.scope_lock is None or not self._entered:
            return
        # Refused: the pod was quicker, as it should be.
        with suppress(ScopeRefused):
            await ScopeLock(Path(self.spec.scope_lock)).release(self.spec.pod_name)

    async def _live_once(self) -> ChildCrashed:
        """One process from its start to its crash."""
        await self._enter_scope()
        async with live(self.host, self.spec, socket_wait=self.socket_wait, grace=self.grace) as (
            process,
            stream,
        ):
            try:
                async with open_pod_client(
                    stream, name=process.name, on_notification=self._notification
                ) as client:
                    self.pod.connect(process, client)
                    self._announce(process)
                    await client.ended.wait()
                    return await self._judge(process, client)
            finally:
                self.pod.disconnect()

    def _announce(self, process: ManagedProcess) -> None:
        self._lives += 1
        if self._lives == 1:
            self._emit("pod_started", pid=process.pid)
            self.up.set()
        else:
            self._emit("pod_restarted", pid=process.pid, restarts=self.pod.count_restart())

    async def _judge(self, process: ManagedProcess, client: PodClient) -> ChildCrashed:
        """The connection is over: find out why, and tell those who relied on it."""
        with trio.move_on_after(_EXIT_WAIT):
            await process.wait()
        how = str(process.exit) if process.exit is not None else f"hung up ({client.fault or 'clean end'})"

        def fate() -> ChildCrashed:
            return ChildCrashed(process.name, how, pid=process.pid, stderr_tail=process.stderr_tail)

        client.fail(fate)
        return fate()

    async def _enter_scope(self) -> None:
        """Reserve the scope for the process that is about to start: it puts its own pid there."""
        if self.spec.scope_lock is None:
            return
        lock, name = ScopeLock(Path(self.spec.scope_lock)), self.spec.pod_name
        if self._entered:
            try:
                await lock.adopt(name, pid=os.getpid())
            except ScopeRefused:
                # Its process was dead and somebody reclaimed it: then it is entered anew, or not at all.
                self._entered = False
        if not self._entered:
            await lock.register(name, self.spec.scope_allow, pid=os.getpid(), socket=str(self.spec.socket))
            self._entered = True

    def _notification(self, notification: Notification) -> None:
        self._emit(
            "pod_notification",
            level=notification.level,
            source=notification.source,
            message=notification.message,
        )

    def _emit(self, kind: str, **data: object) -> None:
        self.host.emit(kind, {"name": self.spec.pod_name, **data})
