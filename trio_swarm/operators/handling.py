"""Requests and notices, each handled in a task of its own."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeAlias

import trio

from trio_swarm._io.groups import collapse
from trio_swarm.frames.operator import HookAfter
from trio_swarm.operators.requests import OperatorItem, ReplyRefused, Withdrawn

__all__ = ["Handle", "handle_each"]

Handle: TypeAlias = Callable[[OperatorItem], Awaitable[object]]


async def handle_each(
    receive: Callable[[], Awaitable[OperatorItem]], handle: Handle, *, at_once: int
) -> None:
    """Until ``receive`` raises ``trio.EndOfChannel``; see `OperatorClient.serve`."""
    limiter = trio.CapacityLimiter(at_once)
    with collapse():
        async with trio.open_nursery() as nursery:
            while True:
                # Its place first: what is withdrawn while it waits for one is never handled.
                place = object()
                await limiter.acquire_on_behalf_of(place)
                try:
                    item = await receive()
                except trio.EndOfChannel:
                    break
                nursery.start_soon(_handled, handle, item, limiter, place)


async def _handled(handle: Handle, item: OperatorItem, limiter: trio.CapacityLimiter, place: object) -> None:
    try:
        if isinstance(item, HookAfter | Withdrawn | ReplyRefused):
            await handle(item)
        else:
            with item.answering():
                await handle(item)
    finally:
        limiter.release_on_behalf_of(place)
