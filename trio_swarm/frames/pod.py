"""Pod methods and events, one JSON object per line (pods contract, B2).

Methods are tagged ``method`` with their fields in ``params``, events ``event`` with their
fields in ``data``; those without fields have no contents key. ``deadline_ms`` on a method
stands beside ``method``: within ``params`` the original would refuse it for the methods
that have none, beside the tag it ignores it for all.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import attrs

from trio_swarm.frames._frame import BESIDE, I64, U64, Envelope, Frame, array
from trio_swarm.frames._history import (
    Greeting,
    HistoryItem,
    MessageItem,
    ReasoningItem,
    RefusalPart,
    TextPart,
    ToolCallItem,
    ToolResultItem,
    UnknownItem,
)

__all__ = [
    "Cancel",
    "Error",
    "GetHistory",
    "Greeting",
    "History",
    "HistoryItem",
    "MessageItem",
    "Notification",
    "Notify",
    "PodEvent",
    "PodMethod",
    "ReasoningItem",
    "RefusalPart",
    "Resume",
    "Run",
    "RunEnd",
    "ScopeRule",
    "Shutdown",
    "ShutdownEvent",
    "TextDelta",
    "TextDone",
    "TextPart",
    "ToolCallArgsDelta",
    "ToolCallDone",
    "ToolCallItem",
    "ToolCallStart",
    "ToolResult",
    "ToolResultItem",
    "TurnEnd",
    "TurnStart",
    "UnknownItem",
    "Usage",
]


class MethodFrame(Frame):
    """Client to pod."""

    __slots__ = ()
    envelope: ClassVar[Envelope] = Envelope(("method",), "params")


class EventFrame(Frame):
    """Pod to client."""

    __slots__ = ()
    envelope: ClassVar[Envelope] = Envelope(("event",), "data")


@attrs.frozen
class ScopeRule(Frame):
    """Which paths a pod may read or write (pods contract, B3.3 and B4)."""

    target: str
    permission: Literal["read", "write"]
    recursive: bool = True


@attrs.frozen
class Run(MethodFrame):
    """Append a user message and run a turn."""

    tag: ClassVar[str] = "run"

    input: str
    deadline_ms: U64 | None = attrs.field(default=None, metadata=BESIDE, kw_only=True)
    run_id: str | None = attrs.field(default=None, metadata=BESIDE, kw_only=True)
    """Ours: comes back with the run's ``turn_start``, or with the error that refuses it."""


@attrs.frozen
class Notify(MethodFrame):
    """Queue a notification for the model; starts a turn when the pod is idle."""

    tag: ClassVar[str] = "notify"

    source: str
    message: str
    deadline_ms: U64 | None = attrs.field(default=None, metadata=BESIDE, kw_only=True)


@attrs.frozen
class Resume(MethodFrame):
    """Continue after a pause."""

    tag: ClassVar[str] = "resume"

    deadline_ms: U64 | None = attrs.field(default=None, metadata=BESIDE, kw_only=True)
    run_id: str | None = attrs.field(default=None, metadata=BESIDE, kw_only=True)
    """Ours, as in `Run`."""


@attrs.frozen
class Cancel(MethodFrame):
    """Stop the running turn."""

    tag: ClassVar[str] = "cancel"


@attrs.frozen
class Shutdown(MethodFrame):
    """End the pod."""

    tag: ClassVar[str] = "shutdown"


@attrs.frozen
class GetHistory(MethodFrame):
    """Answered with `History`, on this connection only."""

    tag: ClassVar[str] = "get_history"


@attrs.frozen
class TurnStart(EventFrame):
    """One request to the model begins; ``turn`` counts from 0 over the pod's life."""

    tag: ClassVar[str] = "turn_start"

    turn: U64
    run_id: str | None = attrs.field(default=None, metadata=BESIDE, kw_only=True)
    """Ours: that of the `Run` or `Resume` which it belongs to, if that had one."""


@attrs.frozen
class TurnEnd(EventFrame):
    """The model's stream of one turn has ended; its tools have not run yet."""

    tag: ClassVar[str] = "turn_end"

    turn: U64
    result: Literal["finished", "paused"]


@attrs.frozen
class TextDelta(EventFrame):
    """A piece of the model's text."""

    tag: ClassVar[str] = "text_delta"

    text: str


@attrs.frozen
class TextDone(EventFrame):
    """A whole block of the model's text."""

    tag: ClassVar[str] = "text_done"

    text: str


@attrs.frozen
class ToolCallStart(EventFrame):
    """The model begins to call a tool."""

    tag: ClassVar[str] = "tool_call_start"

    id: str
    name: str


@attrs.frozen
class ToolCallArgsDelta(EventFrame):
    """A piece of a tool call's arguments, as JSON text."""

    tag: ClassVar[str] = "tool_call_args_delta"

    id: str
    json: str


@attrs.frozen
class ToolCallDone(EventFrame):
    """A whole tool call; ``arguments`` is JSON text."""

    tag: ClassVar[str] = "tool_call_done"

    id: str
    name: str
    arguments: str


@attrs.frozen
class ToolResult(EventFrame):
    """A tool's output (defined by the original, never sent by it)."""

    tag: ClassVar[str] = "tool_result"

    id: str
    output: str
    is_error: bool


@attrs.frozen
class Usage(EventFrame):
    """Tokens of one turn, as far as they are known; both keys are always written."""

    tag: ClassVar[str] = "usage"

    input_tokens: U64 | None = None
    output_tokens: U64 | None = None


@attrs.frozen
class RunEnd(EventFrame):
    """A run has ended well, or has stopped at a limit."""

    tag: ClassVar[str] = "run_end"

    result: Literal["finished", "paused", "limit_reached"]


@attrs.frozen
class Error(EventFrame):
    """A method was refused, or a run failed."""

    tag: ClassVar[str] = "error"

    code: Literal["already_running", "not_running", "not_paused", "provider_error", "tool_error", "internal"]
    message: str
    run_id: str | None = attrs.field(default=None, metadata=BESIDE, kw_only=True)
    """Ours: that of the `Run` or `Resume` which it refuses or ends, if that had one."""


@attrs.frozen
class History(EventFrame):
    """The conversation up to the end of the last run."""

    tag: ClassVar[str] = "history"

    items: tuple[HistoryItem, ...] = attrs.field(converter=array)
    greeting: Greeting


@attrs.frozen
class Notification(EventFrame):
    """Something that a person should know; replayed to every new client."""

    tag: ClassVar[str] = "notification"

    level: Literal["warn", "error"]
    source: Literal["pod", "worker", "compactor", "agents_md"]
    message: str
    timestamp_ms: I64


@attrs.frozen
class ShutdownEvent(EventFrame):
    """The pod ends."""

    tag: ClassVar[str] = "shutdown"


PodMethod = Run | Notify | Resume | Cancel | Shutdown | GetHistory
"""What a client sends."""

PodEvent = (
    TurnStart
    | TurnEnd
    | TextDelta
    | TextDone
    | ToolCallStart
    | ToolCallArgsDelta
    | ToolCallDone
    | ToolResult
    | Usage
    | RunEnd
    | Error
    | History
    | Notification
    | ShutdownEvent
)
"""What a pod sends."""
