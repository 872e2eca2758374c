"""Closing politely on the way out, without losing what is on its way."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import trio

from trio_swarm.limits import CLOSE_DEADLINE

__all__ = ["closing"]


@asynccontextmanager
async def closing(aclose: Callable[[], Awaitable[object]]) -> AsyncIterator[None]:
    """Await ``aclose()`` in every way out of the block.

    An error of the block that meets a cancelled scope goes on: a plain ``finally`` would let the
    ``Cancelled`` of its own await take the error's place, and the scope would then absorb it.
    ``aclose`` must close at once when it is cancelled; it is, where the block was.
    """
    try:
        yield
    except BaseException:
        cancelled = trio.current_effective_deadline() == -math.inf
        with trio.move_on_after(0 if cancelled else 2 * CLOSE_DEADLINE, shield=True):
            await aclose()
        raise
    await aclose()
