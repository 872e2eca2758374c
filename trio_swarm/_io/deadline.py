"""The caller's time, as it travels: what is left of it, never a point on a clock."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

import trio

__all__ = ["ended_by_deadline", "remaining_ms", "scope_for"]

_FOREVER_MS: Final = 10 * 365 * 86_400 * 1000
"""A remaining time beyond this is none: it only guards the float against huge integers."""


def remaining_ms() -> int | None:
    """Milliseconds until the innermost effective deadline; None if there is none.

    Never negative; rounded up, so that time which is left is never told as none left.
    A task that is cancelled already has 0.
    """
    left = trio.current_effective_deadline() - trio.current_time()
    if left <= 0:
        return 0
    if left * 1000 > _FOREVER_MS:
        return None
    return math.ceil(left * 1000)


def scope_for(deadline_ms: int | None) -> trio.CancelScope:
    """A scope, not yet entered, that ends ``deadline_ms`` from now; None: never by time.

    A negative or zero time gives a scope that is over when it is entered.
    """
    if deadline_ms is None or deadline_ms > _FOREVER_MS:
        return trio.CancelScope()
    return trio.CancelScope(deadline=trio.current_time() + max(deadline_ms, 0) / 1000)


def ended_by_deadline(error: BaseException, until: float) -> bool:
    """Whether it was a deadline that ended what ``error`` comes of: a cancellation, or a group with one.

    Trio says so from 0.31 on, and that is right too where a deadline was moved meanwhile. Before,
    a cancelled scope tells no deadline any more: then it is whether ``until`` has passed, the effective
    deadline at the beginning.
    """
    sources = {getattr(each, "source", "unknown") for each in _leaves(error)} - {"unknown"}
    if sources:
        return "deadline" in sources
    return trio.current_time() >= until > -math.inf  # The latter has who was cancelled already.


def _leaves(error: BaseException) -> Iterator[trio.Cancelled]:
    if isinstance(error, trio.Cancelled):
        yield error
    elif isinstance(error, BaseExceptionGroup):
        for each in error.exceptions:
            yield from _leaves(each)
