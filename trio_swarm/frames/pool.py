"""Pool worker requests and responses, one JSON object per line (pools contract, C2).

Requests are flat objects tagged by ``op``; responses are ``{"ok", "data", "error"}`` with
``data`` tagged by ``kind``. Optional keys are written as ``null``. What a script did
stands in `Feed.feed_result`, opaque here; `trio_swarm.frames.feed` reads and writes it.
"""

from __future__ import annotations

from typing import Any, ClassVar

import attrs

from trio_swarm.frames._frame import NULL_IS_DEFAULT, OMITTED, U64, Envelope, Frame, array
from trio_swarm.frames.feed import (
    Accepted,
    Cancelled,
    Completed,
    Failed,
    FeedResult,
    Paused,
    Query,
    Unknown,
    feed_value,
    parse_feed,
)

__all__ = [
    "Accepted",
    "Cancelled",
    "Completed",
    "Continue",
    "Failed",
    "Failure",
    "Feed",
    "FeedResult",
    "Handshake",
    "HandshakeOk",
    "Paused",
    "PoolRequest",
    "PoolResponse",
    "Query",
    "Run",
    "Shutdown",
    "ShutdownOk",
    "Status",
    "StatusReport",
    "Unknown",
    "Usage",
    "feed_value",
    "parse_feed",
]


class RequestFrame(Frame):
    """Client to worker."""

    __slots__ = ()
    envelope: ClassVar[Envelope] = Envelope(("op",))


class ResponseFrame(Frame):
    """Worker to client: exactly one per request, in order."""

    __slots__ = ()
    envelope: ClassVar[Envelope] = Envelope(("data", "kind"), "data", answers=True)


@attrs.frozen
class Handshake(RequestFrame):
    """The first request by convention; the versions must be equal strings."""

    tag: ClassVar[str] = "handshake"

    version: str


@attrs.frozen
class Run(RequestFrame):
    """Start the worker's one session. Answered by `Feed`."""

    tag: ClassVar[str] = "run"

    code: str
    lib_paths: tuple[str, ...] = attrs.field(converter=array)
    ctx: Any = None
    deadline_ms: U64 | None = attrs.field(default=None, metadata=OMITTED, kw_only=True)
    """The caller's remaining time; an extension of ours."""


@attrs.frozen
class Usage(Frame):
    """Tokens that answering one query took, as far as they are known."""

    prompt_tokens: U64 | None = None
    completion_tokens: U64 | None = None


@attrs.frozen
class Continue(RequestFrame):
    """Answer one query of a paused session. Answered by `Feed`."""

    tag: ClassVar[str] = "continue"

    sid: str
    response: str
    query_id: str | None = None
    """A missing one means ``q-0``."""
    usage: Usage | None = None
    deadline_ms: U64 | None = attrs.field(default=None, metadata=OMITTED, kw_only=True)
    """The caller's remaining time; an extension of ours."""


@attrs.frozen
class Status(RequestFrame):
    """Ask whether there is a paused session. Answered by `StatusReport`."""

    tag: ClassVar[str] = "status"

    include_history: bool = False


@attrs.frozen
class Shutdown(RequestFrame):
    """End the worker; answered by `ShutdownOk` first."""

    tag: ClassVar[str] = "shutdown"


@attrs.frozen
class HandshakeOk(ResponseFrame):
    """The versions agree; ``version`` is the worker's."""

    tag: ClassVar[str] = "handshake"

    version: str


@attrs.frozen
class Feed(ResponseFrame):
    """The session's next pause or its end."""

    tag: ClassVar[str] = "feed"

    session_id: str
    feed_result: Any


@attrs.frozen
class StatusReport(ResponseFrame):
    """Whether a session waits, and its last exchanges where they were asked for."""

    tag: ClassVar[str] = "status"

    has_session: bool
    session_id: str | None = None
    conversation_history: Any = attrs.field(default=None, metadata=OMITTED)


@attrs.frozen
class ShutdownOk(ResponseFrame):
    """The worker ends now."""

    tag: ClassVar[str] = "shutdown"


@attrs.frozen
class Failure(ResponseFrame):
    """``ok`` is false: a request was malformed or came at the wrong time."""

    envelope: ClassVar[Envelope] = Envelope(("ok",), answers=True)
    tag: ClassVar[str] = "failure"

    error: str = attrs.field(default="", metadata=NULL_IS_DEFAULT)
    """Empty where the worker gave no text."""


PoolRequest = Handshake | Run | Continue | Status | Shutdown
"""What a client sends."""

PoolResponse = HandshakeOk | Feed | StatusReport | ShutdownOk | Failure
"""What a worker sends."""
