"""Bodies of the worker and data routes (operators contract 1.2, 1.5).

They travel over HTTP, one to a body, and are as strict as the frames of the sockets: `decode`
or `structure` reads them, `encode` or `unstructure` writes them. Events are tagged by ``type``,
contents by ``kind``. ``public`` is an extra key that the originals do not know.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import attrs

from trio_swarm.frames._frame import OMITTED, U32, U64, Envelope, Frame, array

__all__ = [
    "Artifact",
    "Content",
    "EmitBody",
    "FileRef",
    "FinalEvent",
    "Inline",
    "NamedEmitBody",
    "OutputEvent",
    "OutputRecord",
    "Partial",
    "Progress",
    "ResultBody",
    "SessionBody",
    "SystemRef",
    "WorkerPayload",
]


class ContentFrame(Frame):
    """What an output consists of."""

    __slots__ = ()
    envelope: ClassVar[Envelope] = Envelope(("kind",))


@attrs.frozen
class Inline(ContentFrame):
    """The value itself."""

    tag: ClassVar[str] = "inline"

    value: Any


@attrs.frozen
class FileRef(ContentFrame):
    """A file that producer and reader both reach. The server never opens it."""

    tag: ClassVar[str] = "file_ref"

    path: str
    mime: str | None = None
    size_hint: U64 | None = None


Content = Inline | FileRef
"""The content union."""


class EventFrame(Frame):
    """Something that a worker emits."""

    __slots__ = ()
    envelope: ClassVar[Envelope] = Envelope(("type",))


@attrs.frozen
class Progress(EventFrame):
    """How far it is."""

    tag: ClassVar[str] = "progress"

    stage: str
    note: str | None = None


@attrs.frozen
class Partial(EventFrame):
    """A piece of what is being made."""

    tag: ClassVar[str] = "partial"

    chunk: Inline | FileRef


@attrs.frozen
class Artifact(EventFrame):
    """A named thing that was made on the way."""

    tag: ClassVar[str] = "artifact"

    name: str
    content: Inline | FileRef


@attrs.frozen
class FinalEvent(EventFrame):
    """The result; of several, the last one of an attempt counts."""

    tag: ClassVar[str] = "final"

    content: Inline | FileRef
    ok: bool


OutputEvent = Progress | Partial | Artifact | FinalEvent
"""The event union."""


@attrs.frozen
class SystemRef(Frame):
    """Where a system prompt is that is too large to come along."""

    uri: str
    sha256: str
    size_bytes: U64
    mode: Literal["http", "file"]


@attrs.frozen
class WorkerPayload(Frame):
    """The answer to ``GET /v1/worker/prompt``. At most one of system and system_ref is there."""

    task_id: str
    attempt: U32
    agent: str
    prompt: str = attrs.field(repr=False)
    system: str | None = attrs.field(default=None, metadata=OMITTED, repr=False)
    system_ref: SystemRef | None = attrs.field(default=None, metadata=OMITTED)
    context: Any = attrs.field(default=None, metadata=OMITTED, repr=False)


@attrs.frozen
class ResultBody(Frame):
    """The body of ``POST /v1/worker/result``."""

    task_id: str
    value: Any = attrs.field(repr=False)
    ok: bool = True
    attempt: U32 | None = attrs.field(default=None, metadata=OMITTED)


@attrs.frozen
class EmitBody(Frame):
    """The body of ``POST /v1/data/emit``."""

    task_id: str
    attempt: U32
    producer_agent: str
    event: Progress | Partial | Artifact | FinalEvent
    parent_refs: tuple[str, ...] = attrs.field(default=(), converter=array)
    public: bool = attrs.field(default=False, metadata=OMITTED)
    """Anybody may read it, without a credential."""


@attrs.frozen
class NamedEmitBody(Frame):
    """The body of ``POST /v1/data/{name}``: the path names the producer."""

    task_id: str
    attempt: U32
    event: Progress | Partial | Artifact | FinalEvent
    parent_refs: tuple[str, ...] = attrs.field(default=(), converter=array)
    public: bool = attrs.field(default=False, metadata=OMITTED)


@attrs.frozen
class OutputRecord(Frame):
    """The answer to ``GET /v1/data/{key}``."""

    id: str
    task_id: str
    attempt: U32
    producer_agent: str
    event: Progress | Partial | Artifact | FinalEvent
    parent_refs: tuple[str, ...] = attrs.field(default=(), converter=array)


@attrs.frozen
class SessionBody(Frame):
    """The body of ``POST /v1/sessions``."""

    agent_id: str
    role: str
    ttl_secs: U64
