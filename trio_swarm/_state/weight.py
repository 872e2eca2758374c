"""How much memory a value holds, near enough to bound it."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import Final

__all__ = ["weight_of"]

_SMALL: Final = 1024
"""Bytes of a text or a number that is not worth telling from an earlier one."""


def weight_of(*values: object) -> int:
    """Bytes of the values and of all that is in their lists, tuples, sets and mappings.

    What is there twice counts once. Of any other object its own size counts, not what it
    refers to.
    """
    seen: set[int] = set()
    waiting: list[object] = list(values)
    size = 0
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        own = sys.getsizeof(value, 64)
        size += own
        if isinstance(value, Mapping):
            inner: Iterable[object] = (each for pair in value.items() for each in pair)
        elif isinstance(value, list | tuple | set | frozenset):
            inner = value
        else:
            inner = ()
        if own > _SMALL or inner != ():
            seen.add(id(value))
        waiting.extend(inner)
    return size
