"""A patch as it travels: where one text is inserted, and not the whole file once more.

Provers import this module: it knows nothing of the rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

__all__ = ["insert"]


def insert(data: bytes, at: Sequence[int], text: bytes) -> bytes:
    """*data* with *text* inserted before each of its bytes *at* (offsets from 0, ascending).

    Raises ValueError for offsets that are not integers in ascending order within *data*.
    """
    if any(type(offset) is not int for offset in at):
        raise ValueError("an offset is not an integer")
    ends = [0, *at, len(data)]
    if any(a > b for a, b in pairwise(ends)) or any(a == b for a, b in pairwise(at)):
        raise ValueError(f"the offsets do not ascend from 0 to {len(data)}")
    return text.join(data[a:b] for a, b in pairwise(ends))
