"""Child actor frames: parent and child over one WebSocket (children contract, A2 and A9).

Flat objects tagged by ``kind``. Messages, events, transcripts and bodies are opaque and
come back as they went in. The optional keys that later parents add to ``run`` are unknown
keys here and so ignored.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import attrs

from trio_swarm.frames._frame import OMITTED, U64, Envelope, Frame, array

__all__ = [
    "ApprovalReply",
    "ApprovalRequest",
    "Batch",
    "Cancel",
    "ChildFrame",
    "Event",
    "EventBatch",
    "Message",
    "ParentFrame",
    "Run",
    "SubagentCall",
    "SubagentReply",
    "SubagentRequest",
    "SubagentResult",
    "Terminal",
]


class ActorFrame(Frame):
    """A frame between a parent and its child actor."""

    __slots__ = ()
    envelope: ClassVar[Envelope] = Envelope(("kind",))


@attrs.frozen
class Run(ActorFrame):
    """Parent to child: start a run."""

    tag: ClassVar[str] = "run"

    assignment: str
    reasoning_effort: str | None = attrs.field(default=None, metadata=OMITTED)
    messages: tuple[Any, ...] = attrs.field(default=(), converter=array, metadata=OMITTED)
    """The whole conversation before, oldest first, with the message of this assignment."""
    deadline_ms: U64 | None = attrs.field(default=None, metadata=OMITTED, kw_only=True)
    """The caller's remaining time; an extension of ours."""


@attrs.frozen
class Cancel(ActorFrame):
    """Parent to child: stop the active run."""

    tag: ClassVar[str] = "cancel"


@attrs.frozen
class Message(ActorFrame):
    """Parent to child: steer the active run."""

    tag: ClassVar[str] = "message"

    text: str


@attrs.frozen
class ApprovalReply(ActorFrame):
    """Parent to child: the decision on the `ApprovalRequest` with the same id."""

    tag: ClassVar[str] = "approval_reply"

    id: str
    approved: bool


@attrs.frozen
class SubagentReply(ActorFrame):
    """Parent to child: answers `SubagentRequest` (before the seed; A9)."""

    tag: ClassVar[str] = "subagent_reply"

    id: str
    body: Any


@attrs.frozen
class SubagentResult(ActorFrame):
    """Parent to child: answers `SubagentCall` (later children; A9)."""

    tag: ClassVar[str] = "sub_agent_reply"

    id: str
    result: Any


@attrs.frozen
class Event(ActorFrame):
    """Child to parent: one agent event, passed through untouched."""

    tag: ClassVar[str] = "event"

    event: Any


@attrs.frozen
class Batch(Frame):
    """What an `EventBatch` carries: 1 to 64 events with their sequence numbers (A9)."""

    execution_epoch: U64
    first_seq: U64
    last_seq: U64
    qos: Literal["durable", "snapshot", "ephemeral"]
    events: tuple[Any, ...] = attrs.field(converter=array)
    logical_session: Any = attrs.field(default=None, metadata=OMITTED)
    activation_id: str | None = attrs.field(default=None, metadata=OMITTED)
    source_node_id: str | None = attrs.field(default=None, metadata=OMITTED)
    source_actor_id: str | None = attrs.field(default=None, metadata=OMITTED)


@attrs.frozen
class EventBatch(ActorFrame):
    """Child to parent: several events at once (later children; A9)."""

    tag: ClassVar[str] = "event_batch"

    batch: Batch


@attrs.frozen
class ApprovalRequest(ActorFrame):
    """Child to parent: a gated tool waits for an `ApprovalReply`."""

    tag: ClassVar[str] = "approval_request"

    id: str
    body: Any


@attrs.frozen
class Terminal(ActorFrame):
    """Child to parent: the end of a run."""

    tag: ClassVar[str] = "terminal"

    status: Literal["completed", "error", "cancelled", "suspended"]
    result: str | None = attrs.field(default=None, metadata=OMITTED)
    error: str | None = attrs.field(default=None, metadata=OMITTED)
    transcript: tuple[Any, ...] = attrs.field(default=(), converter=array, metadata=OMITTED)


@attrs.frozen
class SubagentRequest(ActorFrame):
    """Child to parent: asks for a sub-agent (before the seed; A9)."""

    tag: ClassVar[str] = "subagent_request"

    id: str
    body: Any


@attrs.frozen
class SubagentCall(ActorFrame):
    """Child to parent: asks for a sub-agent on behalf of a tool call (later children; A9)."""

    tag: ClassVar[str] = "sub_agent_request"

    id: str
    tool_call_id: str
    args: Any


ParentFrame = Run | Cancel | Message | ApprovalReply | SubagentReply | SubagentResult
"""What a parent sends."""

ChildFrame = Event | EventBatch | ApprovalRequest | Terminal | SubagentRequest | SubagentCall
"""What a child sends."""
