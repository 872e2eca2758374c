"""What was started: each thing's context manager, held open in a task of its own."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import TypeVar, cast

import attrs
import trio

from trio_swarm._io.groups import collapse

__all__ = ["Holdings"]

T = TypeVar("T")


@attrs.define(eq=False)
class _Hold:
    """One started thing: told to end by one event, has ended by the other."""

    leave: trio.Event = attrs.field(factory=trio.Event)
    gone: trio.Event = attrs.field(factory=trio.Event)

    async def end(self) -> None:
        self.leave.set()
        await self.gone.wait()


@attrs.define(eq=False)
class Holdings:
    """The started things of one nursery. Their errors reach the nursery."""

    _nursery: trio.Nursery = attrs.field(repr=False)
    _held: dict[int, _Hold] = attrs.field(factory=dict, repr=False)

    async def start(self, opener: Callable[[], AbstractAsyncContextManager[T]]) -> T:
        """Open it and keep it; what its opening raises comes out here."""
        return cast(T, await self._nursery.start(self._keep, opener))

    async def end(self, handle: object) -> None:
        """Leave the block of what `start` returned and wait until that is done."""
        await trio.lowlevel.checkpoint()
        if (hold := self._held.get(id(handle))) is not None:
            await hold.end()

    async def end_all(self) -> None:
        """End what was started, the last first: what came later may use what was there."""
        while self._held:
            await self._held[next(reversed(self._held))].end()

    async def _keep(
        self,
        opener: Callable[[], AbstractAsyncContextManager[T]],
        *,
        task_status: trio.TaskStatus[T],
    ) -> None:
        hold = _Hold()
        key: int | None = None
        try:
            with collapse():
                async with opener() as handle:
                    key = id(handle)
                    self._held[key] = hold
                    task_status.started(handle)
                    await hold.leave.wait()
        finally:
            if key is not None:
                del self._held[key]
            hold.gone.set()
