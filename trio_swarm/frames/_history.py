"""The items of a pod's conversation and its greeting (pods contract, B2.2 and B2.3).

Flat objects tagged by ``type``. An item that this version cannot decode is kept as an
`UnknownItem`, since a reader has to skip it (B6) and not to lose the whole history.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import attrs

from trio_swarm.frames._frame import OMITTED, Envelope, Frame, array

Status = Literal["inprogress", "completed", "incomplete"]


class ItemFrame(Frame):
    """An entry of a conversation, or a part of one."""

    __slots__ = ()
    envelope: ClassVar[Envelope] = Envelope(("type",))


@attrs.frozen
class TextPart(ItemFrame):
    """Text in a message."""

    tag: ClassVar[str] = "text"

    text: str


@attrs.frozen
class RefusalPart(ItemFrame):
    """The model's refusal in a message."""

    tag: ClassVar[str] = "refusal"

    refusal: str


@attrs.frozen
class MessageItem(ItemFrame):
    """A message of the user, the assistant or the system."""

    tag: ClassVar[str] = "message"

    role: Literal["user", "assistant", "system"]
    content: tuple[TextPart | RefusalPart, ...] = attrs.field(converter=array)
    id: str | None = attrs.field(default=None, metadata=OMITTED, kw_only=True)
    status: Status | None = attrs.field(default=None, metadata=OMITTED, kw_only=True)


@attrs.frozen
class ToolCallItem(ItemFrame):
    """A tool call; ``arguments`` is JSON text."""

    tag: ClassVar[str] = "tool_call"

    call_id: str
    name: str
    arguments: str
    id: str | None = attrs.field(default=None, metadata=OMITTED, kw_only=True)
    status: Status | None = attrs.field(default=None, metadata=OMITTED, kw_only=True)


@attrs.frozen
class ToolResultItem(ItemFrame):
    """What a tool call gave: always a summary, the whole only where it was kept."""

    tag: ClassVar[str] = "tool_result"

    call_id: str
    summary: str
    content: str | None = attrs.field(default=None, metadata=OMITTED)
    id: str | None = attrs.field(default=None, metadata=OMITTED, kw_only=True)
    status: Status | None = attrs.field(default=None, metadata=OMITTED, kw_only=True)


@attrs.frozen
class ReasoningItem(ItemFrame):
    """The model's reasoning."""

    tag: ClassVar[str] = "reasoning"

    text: str
    id: str | None = attrs.field(default=None, metadata=OMITTED, kw_only=True)
    status: Status | None = attrs.field(default=None, metadata=OMITTED, kw_only=True)


@attrs.frozen
class UnknownItem(Frame):
    """An item that this version does not know, kept and written back as it came."""

    keeps_unknown: ClassVar[bool] = True

    value: Any


HistoryItem = MessageItem | ToolCallItem | ToolResultItem | ReasoningItem | UnknownItem


@attrs.frozen
class Greeting(Frame):
    """What a pod tells about itself beside its history."""

    pod_name: str
    cwd: str
    provider: str
    """``anthropic``, ``openai``, ``gemini`` or ``ollama`` where an original reads it."""
    model: str
    scope_summary: str
    tools: tuple[str, ...] = attrs.field(converter=array)
