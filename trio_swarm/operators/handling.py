"""Requests and notices, each handled in a task of its own."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, TypeAlias

import trio

from trio_swarm._io.groups import collapse
from trio_swarm.frames.operator import HookAfter
from trio_swarm.operators.requests import OperatorItem, ReplyRefused, Withdrawn

__all__ = ["NOTICES_AT_ONCE", "Handle", "Take", "handle_each", "is_notice"]

Handle: TypeAlias = Callable[[OperatorItem], Awaitable[object]]
Take: TypeAlias = Callable[[Callable[[bool], bool]], Awaitable[OperatorItem]]

NOTICES_AT_ONCE: Final = 64
"""Notices of one client that are handled at a time, beside the requests."""


def is_notice(item: OperatorItem) -> bool:
    """Nothing answers it."""
    return isinstance(item, HookAfter | Withdrawn | ReplyRefused)


async def handle_each(take: Take, look_again: Callable[[], None], handle: Handle, *, at_once: int) -> None:
    """Until ``take`` raises ``trio.EndOfChannel``; see `OperatorClient.serve`.

    A request stays where it is until there is a place for it, so that what is withdrawn
    meanwhile is never handled; notices, and the end, come past it.
    """
    places = {False: trio.CapacityLimiter(at_once), True: trio.CapacityLimiter(NOTICES_AT_ONCE)}

    async def handled(item: OperatorItem, place: object) -> None:
        try:
            if isinstance(item, HookAfter | Withdrawn | ReplyRefused):
                await handle(item)
            else:
                with item.answering():
                    await handle(item)
        finally:
            places[is_notice(item)].release_on_behalf_of(place)
            look_again()

    with collapse():
        async with trio.open_nursery() as nursery:
            while True:
                try:
                    item = await take(lambda notice: places[notice].available_tokens > 0)
                except trio.EndOfChannel:
                    break
                place = object()
                places[is_notice(item)].acquire_on_behalf_of_nowait(place)
                nursery.start_soon(handled, item, place)
