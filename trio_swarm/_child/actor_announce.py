"""An actor's own discovery record: published, renewed, withdrawn."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import attrs
import trio

from trio_swarm import frames
from trio_swarm._io.fabric import Fabric
from trio_swarm._io.groups import collapse
from trio_swarm._state.lease import Lease

__all__ = ["WITHDRAW_LIMIT", "Announcement", "announced"]

WITHDRAW_LIMIT: Final = 2.0
"""Seconds for the last look at a disk that may hang; the lease ends anyway."""


@attrs.define(eq=False)
class Announcement:
    """A published record; made by `announced`."""

    fabric: Fabric
    record: frames.AgentRecord
    """As last written."""
    lease: Lease
    _renewing: trio.CancelScope = attrs.field(factory=trio.CancelScope, init=False, repr=False)
    _stopped: trio.Event = attrs.field(factory=trio.Event, init=False, repr=False)

    async def withdraw(self) -> None:
        """Stop renewing and unlink the record; bounded, idempotent, done also when cancelled."""
        self._renewing.cancel()
        with trio.move_on_after(WITHDRAW_LIMIT, shield=True):
            # A renewal that is being written would put the record back.
            await self._stopped.wait()
            try:
                await self.fabric.withdraw(self.record.agent_id, pid=self.record.pid)
            except OSError:
                return  # it stays until its lease ends, as after a SIGKILL

    async def _publish(self) -> None:
        expires = self.lease.expiry(self.fabric.clock())
        self.record = attrs.evolve(self.record, lease_expires_at=expires)
        await self.fabric.publish(self.record)
        self.lease.renewed(trio.current_time())

    async def _renew(self) -> None:
        try:
            with self._renewing:
                while (due := self.lease.deadline()) is not None:
                    await trio.sleep_until(due)
                    try:
                        await self._publish()
                    except OSError:
                        self.lease.failed(trio.current_time())
        finally:
            self.lease.released()
            self._stopped.set()


@asynccontextmanager
async def announced(
    fabric: Fabric, record: frames.AgentRecord, *, lease: Lease | None = None
) -> AsyncIterator[Announcement]:
    """Publish ``record``, renew it for the length of the block, withdraw it in every way out.

    A renewal that fails is tried again; only the first publication may raise ``OSError``.
    """
    announcement = Announcement(fabric, record, Lease() if lease is None else lease)
    with collapse():
        async with trio.open_nursery() as nursery:
            try:
                await announcement._publish()
                nursery.start_soon(announcement._renew)
                yield announcement
            finally:
                if announcement.lease.deadline() is None:
                    announcement._stopped.set()
                with trio.move_on_after(WITHDRAW_LIMIT, shield=True):
                    await announcement.withdraw()
