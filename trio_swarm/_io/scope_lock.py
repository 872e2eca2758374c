"""The machine-wide table of who may write where: ``scope.lock`` (pods contract, B4.1 and B4.3).

Every operation opens the file, takes an exclusive ``flock`` on it, reads, acts, writes and unlocks.
The file is rewritten *in place*: the lock belongs to the inode, so renaming over it would leave two
processes each with a lock of their own. A write that fails, on a full disk say, leaves the old table. An
empty file, as a writer of the original leaves that dies in the middle, is an empty table; any other that
does not parse stops everybody until somebody looks.

The lock is polled (``LOCK_NB``), never waited for without a limit, and all of it happens in one
worker-thread call that a cancellation does not abandon: no lock is ever held across an ``await``.

Targets are resolved, ``..`` and links, before they are compared or stored, also those that another
program stored unresolved: there ``/srv/repo/../other`` counted as inside ``/srv/repo``.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Literal, TypeVar

import attrs
import trio

from trio_swarm._io import procfs
from trio_swarm._io.paths import resolve
from trio_swarm._state.scope import Allocation, AllocationTable, conflict_owner, within
from trio_swarm.errors import FrameError, Refused, SwarmError
from trio_swarm.frames import decode, encode
from trio_swarm.frames.pod import ScopeRule
from trio_swarm.limits import LOCK_POLL, LOCK_WAIT

__all__ = ["ScopeLock", "ScopeLockError", "ScopeRefused", "pid_is_dead", "resolve_rules"]

T = TypeVar("T")

MAX_TABLE: Final = 16 * 2**20
"""Bytes of the file; some hundred thousand rules."""

Reason = Literal["duplicate", "conflict", "not_within", "unknown"]

Table = list[Allocation]


class ScopeRefused(Refused):
    """The scope lock said no; ``reason`` is the rule that did, the text the contract's own."""

    def __init__(self, message: str, reason: Reason) -> None:
        super().__init__(message)
        self.reason = reason


class ScopeLockError(SwarmError):
    """The scope lock's file could not be locked, read or written; nothing was changed by us."""


def pid_is_dead(pid: int) -> bool:
    """Whether no process has that number (B4.3). One of another user is alive, a zombie is not."""
    if pid <= 0:
        return True
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:
        return False
    # A crashed pod whose parent has not looked yet still answers; it writes nothing any more.
    return procfs.stat(pid)[:1] in ([b"Z"], [b"X"])


def resolve_rules(rules: Sequence[ScopeRule], *, cwd: str | None = None) -> tuple[ScopeRule, ...]:
    """The rules with their targets resolved. Blocks: use a worker thread.

    Raises:
        ValueError: a target is relative (without a ``cwd``) or cannot be a path.
    """
    return tuple(attrs.evolve(rule, target=resolve(rule.target, cwd=cwd)) for rule in rules)


@attrs.frozen
class ScopeLock:
    """One scope lock; holds nothing open between two operations, so any number may share a file."""

    path: Path
    """The file. Missing parents are made with mode 0700, the file itself with 0600."""
    wait: float = LOCK_WAIT
    """Seconds to wait for other processes' operations."""
    poll: float = LOCK_POLL
    """Seconds between two tries."""
    is_dead: Callable[[int], bool] = pid_is_dead
    """Tells whether a pid is of no process any more."""

    async def register(self, name: str, scope: Sequence[ScopeRule], *, pid: int, socket: str) -> Allocation:
        """Enter a pod that nobody delegated to.

        Raises:
            ScopeRefused: the name is taken (``duplicate``), or another pod may write where this one
                would (``conflict``).
            ScopeLockError: the file. ValueError: a target.
        """
        return await self._run(lambda table: _register(table, name, resolve_rules(scope), pid, socket))

    async def delegate(
        self, name: str, scope: Sequence[ScopeRule], *, spawner: str, pid: int, socket: str
    ) -> Allocation:
        """Enter a pod with a part of the scope of ``spawner``; ``pid`` is that one's until `adopt`.

        Raises:
            ScopeRefused: ``duplicate``; the spawner is ``unknown``; a rule is ``not_within`` what the
                spawner still has, or in ``conflict`` with a third pod.
            ScopeLockError: the file. ValueError: a target.
        """
        return await self._run(
            lambda table: _delegate(table, name, resolve_rules(scope), spawner, pid, socket)
        )

    async def adopt(self, name: str, *, pid: int) -> Allocation:
        """Put a pod's own pid where its spawner's was.

        Raises:
            ScopeRefused: ``unknown``. ScopeLockError: the file.
        """
        return await self._run(lambda table: _adopt(table, name, pid), reclaim=False)

    async def release(self, name: str) -> None:
        """Take a pod out; what it delegated belongs to whoever delegated to it from now on.

        Raises:
            ScopeRefused: ``unknown``. ScopeLockError: the file.
        """
        await self._run(lambda table: _release(table, name), reclaim=False)

    async def reclaim_stale(self) -> tuple[str, ...]:
        """Release every pod whose process is dead; returns their names.

        There is no reaper in the background: this happens here, and in `register` and `delegate`.
        Raises `ScopeLockError` where the file cannot be read; that it cannot be written is
        ignored, as the next operation finds the same.
        """
        return await trio.to_thread.run_sync(self._reclaim)

    async def allocations(self) -> tuple[Allocation, ...]:
        """The table as it stands, stale entries included. Raises `ScopeLockError`."""
        return await self._run(lambda table: tuple(table), reclaim=False)

    # -- in a worker thread --------------------------------------------------------------

    async def _run(self, act: Callable[[Table], T], *, reclaim: bool = True) -> T:
        return await trio.to_thread.run_sync(self._transact, act, reclaim)

    def _transact(self, act: Callable[[Table], T], reclaim: bool) -> T:
        with _told(), self._locked() as fd:
            old = _read(fd)
            table = _load(old)
            before = list(table)
            if reclaim:
                _drop_dead(table, self.is_dead)
            try:
                return act(table)
            finally:
                if table != before:
                    _write(fd, _dump(table), old)

    def _reclaim(self) -> tuple[str, ...]:
        with _told(), self._locked() as fd:
            old = _read(fd)
            table = _load(old)
            if dropped := _drop_dead(table, self.is_dead):
                with contextlib.suppress(OSError):
                    _write(fd, _dump(table), old)
            return dropped

    @contextmanager
    def _locked(self) -> Iterator[int]:
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            self._lock(fd)
            yield fd
        finally:
            os.close(fd)

    def _lock(self, fd: int) -> None:
        until = time.monotonic() + self.wait
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= until:
                    raise TimeoutError(errno.ETIMEDOUT, f"not to be had within {self.wait:g} s") from None
                time.sleep(self.poll)
            else:
                return


@contextmanager
def _told() -> Iterator[None]:
    """What the operating system or a cut file says, as the contract's one kind of error."""
    try:
        yield
    except OSError as error:
        raise ScopeLockError(f"I/O error on scope.lock: {error}") from error
    except FrameError as error:
        raise ScopeLockError(f"scope.lock parse error: {error}") from error


def _read(fd: int) -> bytes:
    size = os.fstat(fd).st_size
    if size > MAX_TABLE:
        raise OSError(errno.EFBIG, f"{size} bytes are more than {MAX_TABLE}")
    return os.pread(fd, MAX_TABLE + 1, 0)


def _write(fd: int, data: bytes, old: bytes) -> None:
    """Replace the file's content, ``old`` so far; where that fails, ``old`` is there again."""
    try:
        # Blanks take the room that will be needed, and mean nothing if this is as far as we get.
        _put(fd, b" " * (len(data) - len(old)), len(old))
        _put(fd, data.ljust(len(old)), 0)
        os.ftruncate(fd, len(data))
        getattr(os, "fdatasync", os.fsync)(fd)
    except OSError:
        # What was there fits there: this needs no room that the file does not have.
        os.ftruncate(fd, len(old))
        _put(fd, old, 0)
        raise


def _put(fd: int, data: bytes, at: int) -> None:
    left = memoryview(data)
    while left:
        written = os.pwrite(fd, left, at)
        left, at = left[written:], at + written


def _load(data: bytes) -> Table:
    """The table that the file holds; an empty or blank one is what a crash in mid-write left (B4.1)."""
    if not data.strip():
        return []
    table = decode(data, AllocationTable).allocations
    return [attrs.evolve(each, scope_allow=_resolve_foreign(each.scope_allow)) for each in table]


def _dump(table: Table) -> bytes:
    return (json.dumps(json.loads(encode(AllocationTable(tuple(table)))), indent=2) + "\n").encode()


def _resolve_foreign(rules: Sequence[ScopeRule]) -> tuple[ScopeRule, ...]:
    """Somebody else's rules as they count: one that names no path at all keeps its text."""
    found = []
    for rule in rules:
        with contextlib.suppress(ValueError):
            rule = attrs.evolve(rule, target=resolve(rule.target))
        found.append(rule)
    return tuple(found)


# -- the operations on a table -------------------------------------------------------------


def _find(table: Table, name: str) -> int:
    for index, each in enumerate(table):
        if each.pod_name == name:
            return index
    raise ScopeRefused(f"pod `{name}` is not registered", "unknown")


def _refuse_duplicate(table: Table, name: str) -> None:
    if any(each.pod_name == name for each in table):
        raise ScopeRefused(f"pod name `{name}` is already registered", "duplicate")


def _refuse_conflict(table: Table, rule: ScopeRule, exempt: str | None = None) -> None:
    owner = conflict_owner(table, rule, exempt)
    if owner is not None:
        raise ScopeRefused(f"requested scope `{rule.target}` conflicts with pod `{owner}`", "conflict")


def _register(table: Table, name: str, scope: tuple[ScopeRule, ...], pid: int, socket: str) -> Allocation:
    _refuse_duplicate(table, name)
    for rule in scope:
        _refuse_conflict(table, rule)
    table.append(Allocation(name, pid, socket, scope, None))
    return table[-1]


def _delegate(
    table: Table, name: str, scope: tuple[ScopeRule, ...], spawner: str, pid: int, socket: str
) -> Allocation:
    _refuse_duplicate(table, name)
    holder = table[_find(table, spawner)]
    for rule in scope:
        # In this order (B4.3): outside the spawner is told before any conflict is looked at.
        if not within(table, holder, rule):
            raise ScopeRefused(
                f"requested scope `{rule.target}` is not within spawner `{spawner}`'s effective scope",
                "not_within",
            )
        _refuse_conflict(table, rule, spawner)
    table.append(Allocation(name, pid, socket, scope, spawner))
    return table[-1]


def _adopt(table: Table, name: str, pid: int) -> Allocation:
    index = _find(table, name)
    table[index] = attrs.evolve(table[index], pid=pid)
    return table[index]


def _release(table: Table, name: str) -> None:
    gone = table.pop(_find(table, name))
    for index, each in enumerate(table):
        if each.delegated_from == name:
            table[index] = attrs.evolve(each, delegated_from=gone.delegated_from)


def _drop_dead(table: Table, is_dead: Callable[[int], bool]) -> tuple[str, ...]:
    dead = tuple(each.pod_name for each in table if is_dead(each.pid))
    for name in dead:
        _release(table, name)
    return dead
