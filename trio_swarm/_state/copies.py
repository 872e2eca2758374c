"""JSON values that belong to one alone: what others do with theirs does not change them."""

from __future__ import annotations

import json
from typing import Any

__all__ = ["compact", "json_copy"]


def compact(value: Any) -> str:
    """``value`` as JSON without spaces. Raises ``ValueError`` for what is no JSON."""
    try:
        return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    except (TypeError, RecursionError) as error:
        raise ValueError(str(error)) from None


def json_copy(value: Any) -> Any:
    """``value`` as it comes out of JSON, so nothing of it is shared. Raises as `compact`."""
    if type(value) is str:  # The large ones are texts, most of the time: these cannot be changed.
        return value
    text = compact(value)
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError(str(error)) from None
