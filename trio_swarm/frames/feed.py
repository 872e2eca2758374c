"""What a pool session did, as it stands in a feed response (pools contract, C2.3).

The shapes are externally tagged: ``{"Paused": {...}}``, ``{"Finished": {"state": ...}}``.
`parse_feed` never raises: a shape that it does not know is `Unknown`, which the contract
has a client report as an error result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import attrs

from trio_swarm.frames._frame import array

__all__ = [
    "Accepted",
    "Cancelled",
    "Completed",
    "Failed",
    "FeedResult",
    "Paused",
    "Query",
    "Unknown",
    "feed_value",
    "parse_feed",
]

_DEFAULT_ID = "q-0"
_DEFAULT_MAX_TOKENS = 1024


@attrs.frozen
class Query:
    """One question of a paused script. Ids repeat from pause to pause."""

    id: str
    prompt: str
    system: str | None = None
    max_tokens: int = _DEFAULT_MAX_TOKENS
    grounded: bool = False
    underspecified: bool = False


@attrs.frozen
class Accepted:
    """An answer is stored, ``remaining`` more are needed."""

    remaining: int


@attrs.frozen
class Paused:
    """The script waits for the answers to these queries."""

    queries: tuple[Query, ...] = attrs.field(converter=array)


@attrs.frozen
class Completed:
    """The script has ended; ``metrics`` is opaque."""

    result: Any
    metrics: Any = None


@attrs.frozen
class Failed:
    """The script has failed.

    ``exception`` is an extension of ours beside ``error``: ``type``, ``message``,
    ``notes``, ``traceback`` and, for a group, ``exceptions`` of the same shape.
    """

    error: str
    metrics: Any = None
    exception: Any = None


@attrs.frozen
class Cancelled:
    """The script was stopped."""

    metrics: Any = None


@attrs.frozen
class Unknown:
    """A shape that this version does not know, as it came."""

    value: Any


FeedResult = Accepted | Paused | Completed | Failed | Cancelled | Unknown


def parse_feed(feed_result: Any) -> FeedResult:
    """The typed form of a feed result; `Unknown` for what is not one. Never raises."""
    if not isinstance(feed_result, dict) or len(feed_result) != 1:
        return Unknown(feed_result)
    ((tag, body),) = feed_result.items()
    read = _READERS.get(tag)
    if read is None or not isinstance(body, dict):
        return Unknown(feed_result)
    return read(body) or Unknown(feed_result)


def feed_value(result: FeedResult) -> Any:
    """The wire form of a feed result: what `parse_feed` reads back."""
    match result:
        case Accepted(remaining):
            return {"Accepted": {"remaining": remaining}}
        case Paused(queries):
            return {"Paused": {"queries": [_query_value(query) for query in queries]}}
        case Completed(value, metrics):
            return _finished({"Completed": {"result": value}}, metrics)
        case Failed(error, metrics, exception):
            body = {"error": error} if exception is None else {"error": error, "exception": exception}
            return _finished({"Failed": body}, metrics)
        case Cancelled(metrics):
            return _finished("Cancelled", metrics)
        case Unknown(value):
            return value


def _finished(state: Any, metrics: Any) -> Any:
    return {"Finished": {"state": state, "metrics": metrics}}


def _query_value(query: Query) -> dict[str, Any]:
    value: dict[str, Any] = {
        "id": query.id,
        "prompt": query.prompt,
        "system": query.system,
        "max_tokens": query.max_tokens,
    }
    if query.grounded:
        value["grounded"] = True
    if query.underspecified:
        value["underspecified"] = True
    return value


def _count(value: Any, limit: int) -> bool:
    return type(value) is int and 0 <= value < limit


def _accepted(body: Mapping[str, Any]) -> Accepted | None:
    remaining = body.get("remaining")
    return Accepted(remaining) if isinstance(remaining, int) and _count(remaining, 2**64) else None


def _paused(body: Mapping[str, Any]) -> Paused | None:
    listed = body.get("queries")
    if not isinstance(listed, list):
        return None
    queries = tuple(query for query in map(_query, listed) if query is not None)
    return Paused(queries) if len(queries) == len(listed) else None


def _query(entry: Any) -> Query | None:
    if not isinstance(entry, dict) or not isinstance(entry.get("prompt"), str):
        return None
    query = Query(
        id=entry.get("id", _DEFAULT_ID),
        prompt=entry["prompt"],
        system=entry.get("system"),
        max_tokens=entry.get("max_tokens", _DEFAULT_MAX_TOKENS),
        grounded=entry.get("grounded", False),
        underspecified=entry.get("underspecified", False),
    )
    sound = (
        isinstance(query.id, str)
        and isinstance(query.system, str | None)
        and _count(query.max_tokens, 2**32)
        and isinstance(query.grounded, bool)
        and isinstance(query.underspecified, bool)
    )
    return query if sound else None


def _ended(body: Mapping[str, Any]) -> Completed | Failed | Cancelled | None:
    metrics = body.get("metrics")
    match body.get("state"):
        case "Cancelled":
            return Cancelled(metrics)
        case {"Completed": {"result": result}}:
            return Completed(result, metrics)
        case {"Failed": {"error": str(error), **rest}}:
            return Failed(error, metrics, rest.get("exception"))
        case _:
            return None


_READERS: dict[str, Callable[[Mapping[str, Any]], FeedResult | None]] = {
    "Accepted": _accepted,
    "Paused": _paused,
    "Finished": _ended,
}
