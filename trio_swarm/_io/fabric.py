"""The directory in which actors announce themselves (children contract, A3).

One JSON file per actor, replaced whole on every renewal. A record is live while its lease runs;
all readers compare it with their own wall clock. Blocking calls run in worker threads, and a
cancelled call is waited for: file operations are short, and an abandoned write could land after
the withdrawal that followed it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TypeVar

import attrs
import trio

from trio_swarm import frames
from trio_swarm._io import files
from trio_swarm._state.lease import is_live
from trio_swarm.errors import FrameError

__all__ = ["MAX_RECORD", "Fabric", "now_utc"]

T = TypeVar("T")

MAX_RECORD = 2**18
"""Bytes of one record that are read; a larger file is no record."""


def now_utc() -> datetime:
    """The wall clock, with its offset."""
    return datetime.now(UTC)


@attrs.frozen(eq=False)
class Fabric:
    """One discovery directory.

    Errors of the operating system come out as ``OSError``, except where the contract says that a
    missing thing is no error. An ``agent_id`` that could leave the directory is a ``ValueError``.
    """

    directory: Path = attrs.field(converter=Path)
    """Made (mode 0700) by the first `publish`."""
    clock: Callable[[], datetime] = now_utc
    """The wall clock."""

    def path(self, agent_id: str) -> Path:
        """The file of one actor."""
        return self.directory / f"{files.check_name(agent_id, 'agent_id')}.json"

    async def publish(self, record: frames.AgentRecord) -> None:
        """Write ``record``, over an older one of the same id. Renewing is the same call."""
        await _in_thread(self._publish, record)

    async def withdraw(self, agent_id: str, *, pid: int | None = None) -> bool:
        """Unlink a record; False if there was none.

        With ``pid`` only that process's record is taken away: a successor of the same id may
        have written its own already.
        """
        return await _in_thread(self._withdraw, agent_id, pid)

    async def read(self, agent_id: str) -> frames.AgentRecord | None:
        """The record of one actor whether or not its lease runs; None if missing or no record."""
        return await _in_thread(self._read, agent_id)

    async def resolve(self, agent_id: str) -> frames.AgentRecord | None:
        """The live record of one actor, or None (missing, unparseable and stale are the same)."""
        record = await self.read(agent_id)
        return record if record is not None and is_live(record.lease_expires_at, self.clock()) else None

    async def discover(self) -> list[frames.AgentRecord]:
        """All live records, by ``agent_id``. A missing directory holds none."""
        return await _in_thread(self._discover)

    async def gc(self) -> int:
        """Delete stale and unparseable records; says how many went."""
        return await _in_thread(self._gc)

    # -- in a worker thread ------------------------------------------------------------

    def _publish(self, record: frames.AgentRecord) -> None:
        target = self.path(record.agent_id)
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        pretty = json.dumps(json.loads(frames.encode(record)), indent=2)
        files.replace(target, pretty.encode())

    def _withdraw(self, agent_id: str, pid: int | None) -> bool:
        if pid is not None:
            record = self._read(agent_id)
            if record is None or record.pid != pid:
                return False
        return files.remove(self.path(agent_id))

    def _read(self, agent_id: str) -> frames.AgentRecord | None:
        try:
            record = _parse(self.path(agent_id))[0]
        except FileNotFoundError:
            return None
        # A record that speaks for another actor is no record of this one.
        return record if record is not None and record.agent_id == agent_id else None

    def _discover(self) -> list[frames.AgentRecord]:
        now = self.clock()
        found = (record for _, record, _ in self._listing() if record is not None)
        live = [record for record in found if is_live(record.lease_expires_at, now)]
        return sorted(live, key=lambda record: record.agent_id)

    def _gc(self) -> int:
        now, removed = self.clock(), 0
        for path, record, seen in self._listing():
            if record is not None and is_live(record.lease_expires_at, now):
                continue
            # Its owner may have renewed it since it was read: delete only what was read.
            if _same_file(path, seen) and files.remove(path):
                removed += 1
        return removed

    def _listing(self) -> Iterator[tuple[Path, frames.AgentRecord | None, os.stat_result | None]]:
        try:
            names = sorted(os.listdir(self.directory))
        except FileNotFoundError:
            return
        for name in names:
            if name.startswith(".") or not name.endswith(".json"):
                continue
            path = self.directory / name
            try:
                record, seen = _parse(path)
            except OSError:
                continue
            yield path, record, seen


def _parse(path: Path) -> tuple[frames.AgentRecord | None, os.stat_result | None]:
    try:
        data, seen = files.read_small(path, limit=MAX_RECORD)
    except ValueError:
        return None, None
    try:
        return frames.decode(data, frames.AgentRecord), seen
    except FrameError:
        return None, seen


def _same_file(path: Path, seen: os.stat_result | None) -> bool:
    """Whether ``path`` still is the file that was read; what was never readable is left alone."""
    if seen is None:
        return False
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return False
    return (found.st_dev, found.st_ino, found.st_mtime_ns) == (seen.st_dev, seen.st_ino, seen.st_mtime_ns)


async def _in_thread(call: Callable[..., T], *args: object) -> T:
    return await trio.to_thread.run_sync(partial(call, *args), abandon_on_cancel=False)
