"""Operator frames: what a server asks of an operator, and the replies (operators contract, 2).

Flat objects tagged by ``type``. Two extra keys on what a server sends, which the original's
clients ignore: ``deadline_ms`` is the caller's remaining time in milliseconds, ``lineage``
who is being asked above this, outermost first, while the caller waits (``name#sid``).
"""

from __future__ import annotations

from typing import Any, ClassVar

import attrs

from trio_swarm.frames._frame import OMITTED, U32, U64, Envelope, Frame, array

__all__ = [
    "Answer",
    "Ask",
    "ClientMsg",
    "HookAck",
    "HookAfter",
    "HookBefore",
    "Receipt",
    "ServerMsg",
    "Spawn",
    "SpawnAck",
    "SpawnHalt",
    "Withdraw",
    "Worker",
]


class OperatorFrame(Frame):
    """A frame of the operator WebSocket."""

    __slots__ = ()
    envelope: ClassVar[Envelope] = Envelope(("type",))


@attrs.frozen
class Ask(OperatorFrame):
    """Server to operator: decide about a step whose worker failed. Answered by `Answer`."""

    tag: ClassVar[str] = "ask"

    req_id: str
    task_id: str
    question: Any
    """Opaque; ``{"reason": ..., "value": ...}`` as the original sends it."""
    parent_req_id: str | None = attrs.field(default=None, metadata=OMITTED, kw_only=True)
    lineage: tuple[str, ...] = attrs.field(default=(), converter=array, metadata=OMITTED, kw_only=True)
    deadline_ms: U64 | None = attrs.field(default=None, metadata=OMITTED, kw_only=True)


@attrs.frozen
class HookBefore(OperatorFrame):
    """Server to operator: may this attempt start? Answered by `HookAck`."""

    tag: ClassVar[str] = "hook_before"

    req_id: str
    task_id: str
    agent: str
    attempt: U32
    parent_req_id: str | None = attrs.field(default=None, metadata=OMITTED, kw_only=True)
    lineage: tuple[str, ...] = attrs.field(default=(), converter=array, metadata=OMITTED, kw_only=True)
    deadline_ms: U64 | None = attrs.field(default=None, metadata=OMITTED, kw_only=True)


@attrs.frozen
class HookAfter(OperatorFrame):
    """Server to operator: this attempt has ended. Not answered."""

    tag: ClassVar[str] = "hook_after"

    req_id: str
    task_id: str
    agent: str
    attempt: U32
    result: Any
    parent_req_id: str | None = attrs.field(default=None, metadata=OMITTED, kw_only=True)
    lineage: tuple[str, ...] = attrs.field(default=(), converter=array, metadata=OMITTED, kw_only=True)


@attrs.frozen
class Worker(Frame):
    """The worker that a `Spawn` is bound to (later servers send it)."""

    variant: str
    tools: tuple[str, ...] = attrs.field(converter=array)
    request_digest: str | None = attrs.field(default=None, metadata=OMITTED)
    requested_model: str | None = attrs.field(default=None, metadata=OMITTED)


@attrs.frozen
class Spawn(OperatorFrame):
    """Server to operator: start a worker. Answered by `SpawnAck` or `SpawnHalt`."""

    tag: ClassVar[str] = "spawn"

    req_id: str
    task_id: str
    agent: str
    attempt: U32
    capability_token: str = attrs.field(repr=False)
    directive: str
    """Instruction in natural language; never parsed."""
    worker_handle: str | None = attrs.field(default=None, metadata=OMITTED, repr=False)
    worker: Worker | None = attrs.field(default=None, metadata=OMITTED)
    parent_req_id: str | None = attrs.field(default=None, metadata=OMITTED, kw_only=True)
    lineage: tuple[str, ...] = attrs.field(default=(), converter=array, metadata=OMITTED, kw_only=True)
    deadline_ms: U64 | None = attrs.field(default=None, metadata=OMITTED, kw_only=True)


@attrs.frozen
class Withdraw(OperatorFrame):
    """Server to operator: a request needs no reply any more. An extension of ours."""

    tag: ClassVar[str] = "withdraw"

    req_id: str
    reason: str
    """``cancelled``, ``deadline``, ``settled_by`` ..."""


@attrs.frozen
class Receipt(OperatorFrame):
    """Server to operator: what became of a reply. An extension of ours, sent if asked for."""

    tag: ClassVar[str] = "receipt"

    req_id: str
    accepted: bool
    reason: str | None = attrs.field(default=None, metadata=OMITTED)


@attrs.frozen
class Answer(OperatorFrame):
    """Operator to server: the reply to `Ask`. Any value, also ``null``, accepts."""

    tag: ClassVar[str] = "answer"

    req_id: str
    value: Any


@attrs.frozen
class HookAck(OperatorFrame):
    """Operator to server: the reply to `HookBefore`."""

    tag: ClassVar[str] = "hook_ack"

    req_id: str
    ok: bool
    reason: str | None = attrs.field(default=None, metadata=OMITTED)
    """Why not; used only when ``ok`` is false."""


@attrs.frozen
class SpawnAck(OperatorFrame):
    """Operator to server: the worker of a `Spawn` has ended."""

    tag: ClassVar[str] = "spawn_ack"

    req_id: str
    value: Any = None
    ok: bool = True
    error: str | None = attrs.field(default=None, metadata=OMITTED)
    """Any string, even an empty one, means that the worker failed, whatever ``ok`` says."""
    stats: Any = attrs.field(default=None, metadata=OMITTED)
    """Opaque here: undecodable statistics never fail the reply."""


@attrs.frozen
class SpawnHalt(OperatorFrame):
    """Operator to server: the step was stopped on purpose, which counts as success."""

    tag: ClassVar[str] = "spawn_halt"

    req_id: str
    value: Any = None
    reason: str | None = attrs.field(default=None, metadata=OMITTED)


ServerMsg = Ask | HookBefore | HookAfter | Spawn | Withdraw | Receipt
"""What a server sends."""

ClientMsg = Answer | HookAck | SpawnAck | SpawnHalt
"""What an operator sends."""
