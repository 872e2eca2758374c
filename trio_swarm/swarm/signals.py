"""A signal that ends a block."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

import trio

from trio_swarm.errors import Terminated

__all__ = ["stopped_by"]


@asynccontextmanager
async def stopped_by(signals: Iterable[int]) -> AsyncIterator[None]:
    """The first of these signals cancels the block, and `Terminated` leaves it.

    Later ones are taken too, until the block has been left: its end is under way and bounded, and neither
    a second Ctrl-C nor a second SIGTERM may cut it short.
    """
    numbers = [signal.Signals(number) for number in signals]
    if not numbers:
        yield
        return
    first: list[int] = []

    async def watch(*, task_status: trio.TaskStatus[None]) -> None:
        with trio.open_signal_receiver(*numbers) as received:
            task_status.started()
            async for number in received:
                first.append(number)
                scope.cancel()

    async with trio.open_nursery() as nursery:
        scope = trio.CancelScope()
        await nursery.start(watch)
        try:
            with scope:
                yield
        except Exception as error:
            if not first:
                raise
            raise ExceptionGroup("stopped by a signal", [Terminated(first[0]), error]) from None
        finally:
            nursery.cancel_scope.cancel()
    if first:
        raise Terminated(first[0])
