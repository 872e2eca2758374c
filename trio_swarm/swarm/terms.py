"""The arguments of a dispatch, checked before anything is done: each error names its argument."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

import attrs

from trio_swarm._state.copies import compact
from trio_swarm.errors import FrameError
from trio_swarm.frames import dump_json, encode
from trio_swarm.frames.operator import Spawn, Worker
from trio_swarm.limits import MAX_STEP_ATTEMPTS
from trio_swarm.operators.approvals import ApprovalPolicy
from trio_swarm.operators.directive import DirectiveContext, check_line
from trio_swarm.swarm.steps import RetryPolicy

__all__ = ["Terms", "check_text", "json_text", "told_metadata"]

Validator: TypeAlias = Callable[[object, "attrs.Attribute[Any]", Any], None]


def _none_or(kind: type) -> Validator:
    def check(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
        if value is not None and not isinstance(value, kind):
            raise ValueError(f"{attribute.name}: expected {kind.__name__}, not {type(value).__name__}")

    return check


def _count(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_STEP_ATTEMPTS:
        raise ValueError(f"{attribute.name}: expected 1 to {MAX_STEP_ATTEMPTS}, not {value!r}")


def _seconds(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool) or not value >= 0:
        raise ValueError(f"{attribute.name}: expected seconds, not {value!r}")


def _called(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if value is not None and not callable(value):
        raise ValueError(f"{attribute.name}: expected an async function, not {type(value).__name__}")


def _several(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    """A text has several characters, but they are no names."""
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        raise ValueError(f"{attribute.name}: expected a list, not {value!r}")


def _sendable(instance: object, attribute: attrs.Attribute[Any], value: Worker | None) -> None:
    if value is None:
        return
    check_line(f"{attribute.name}.variant", value.variant, quoted=True)
    try:
        encode(Spawn("", "", "", 1, "", "", worker=value))
    except FrameError as error:
        raise ValueError(f"{attribute.name}: {error.reason}") from None


@attrs.frozen(kw_only=True)
class Terms:
    """What can be said to be wrong without a look at who is there. Raises ``ValueError``."""

    attempts: Any = attrs.field(validator=_count)
    retry: Any = attrs.field(validator=_none_or(RetryPolicy))
    approval: Any = attrs.field(validator=_none_or(ApprovalPolicy))
    approvers: Any = attrs.field(validator=_several)
    execute: Any = attrs.field(validator=_called)
    grace: Any = attrs.field(validator=_seconds)
    worker: Any = attrs.field(validator=[_none_or(Worker), _sendable])
    context: Any = attrs.field(validator=_none_or(DirectiveContext))


def check_text(key: str, text: str) -> str:
    """It can be sent: a lone surrogate, which JSON lets through, has no UTF-8."""
    if not isinstance(text, str):
        raise ValueError(f"{key}: expected a text")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{key}: expected a text of Unicode characters") from None
    return text


def json_text(key: str, value: Any) -> str:
    """``value`` as compact JSON."""
    try:
        return compact(value)
    except ValueError as error:
        raise ValueError(f"{key}: expected a text or other JSON: {error}") from None


def told_metadata(value: Mapping[str, Any] | None) -> dict[str, Any]:
    """A copy of it: its caller may go on to change what is in it.

    Of no more depth than leaves room for what is around it in the answer that workers fetch.
    """
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ValueError("metadata: expected an object")
    text = json_text("metadata", dict(value))
    check_text("metadata", text)
    try:
        known: dict[str, Any] = json.loads(text)
        dump_json({"context": {"task_metadata": known}})
    except (FrameError, RecursionError):
        raise ValueError("metadata: nested too deep to be told") from None
    return known
