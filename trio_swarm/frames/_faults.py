"""The sentences of `FrameError`. None of them quotes a value but an unknown tag."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from trio_swarm.errors import FrameError
from trio_swarm.frames._json import Doubled

_SHOWN: Final = 100
_NAMES: Final = {
    dict: "an object",
    list: "an array",
    str: "a string",
    bool: "a boolean",
    int: "an integer",
    float: "a number with a fraction or exponent",
    type(None): "null",
}


class DoubledKey(FrameError):
    """A key that the frame knows stands twice: not to be tolerated even in an item."""


def missing(key: str) -> FrameError:
    """A required key is not there."""
    return FrameError("required, and missing", key=key)


def wrong(key: str, wanted: str, value: Any) -> FrameError:
    """The value is of another type, or out of range."""
    kind = _NAMES.get(type(value), type(value).__name__)
    if wanted.startswith((kind, "one of ")):
        kind = "another value"
    return FrameError(f"must be {wanted}, not {kind}", key=key)


def unknown(key: str, tag: str) -> FrameError:
    """No frame of the union has this tag."""
    shown = tag if len(tag) <= _SHOWN else tag[:_SHOWN] + "..."
    return FrameError(f"unknown {shown!r}", key=key, unknown_tag=shown)


def joined(outer: str, inner: str) -> str:
    """The path of *inner*, seen from one object further out."""
    return outer + inner if not inner or inner.startswith("[") else f"{outer}.{inner}"


def under(outer: str, error: FrameError) -> FrameError:
    """The same fault, seen from one object further out.

    An unknown tag that far inside is a malformed frame, not a frame from the future.
    """
    return type(error)(error.reason, key=joined(outer, error.key))


def own_object(value: Any, keys: Iterable[str], key: str) -> dict[str, Any]:
    """*value* if it is an object in which none of *keys* stands twice."""
    if type(value) is dict:
        return value
    if not isinstance(value, Doubled):
        raise wrong(key, "an object", value)
    twice = sorted(value.twice.intersection(keys))
    if twice:
        raise DoubledKey("stands twice", key=joined(key, twice[0]) if key else twice[0])
    return value
