"""Discovery records and provision documents of child actors (children contract, A3 and A4.3).

Neither has a tag. A provision document carries secrets: none of them shows in a ``repr``.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, ClassVar

import attrs

from trio_swarm.frames._frame import OMITTED, REQUIRED, U32, U64, Envelope, Frame, array

__all__ = [
    "AgentRecord",
    "BambooRuntime",
    "Capabilities",
    "CliAdapter",
    "EchoExecutor",
    "Executor",
    "Identity",
    "Limits",
    "LocalPlacement",
    "McpProxy",
    "ModelRef",
    "Placement",
    "ProviderCredential",
    "ProvisionSpec",
    "PythonExecutor",
    "RemotePlacement",
    "SchedulablePlacement",
    "Secrets",
]


class KindFrame(Frame):
    """A choice within a provision document."""

    __slots__ = ()
    envelope: ClassVar[Envelope] = Envelope(("kind",))


@attrs.frozen(kw_only=True)
class AgentRecord(Frame):
    """Where an actor listens, and until when that may be believed (A3).

    The instants are aware; anything that RFC 3339 allows is read, finer than a
    microsecond is cut, and UTC is written with ``Z`` and 0, 3 or 6 digits.
    """

    agent_id: str
    role: str
    labels: tuple[str, ...] = attrs.field(default=(), converter=array)
    endpoint: str
    """``ws://127.0.0.1:<port>``"""
    pid: U32
    version: str = ""
    started_at: datetime
    lease_expires_at: datetime


@attrs.frozen
class EchoExecutor(KindFrame):
    """Repeats the assignment; for tests."""

    tag: ClassVar[str] = "echo"


@attrs.frozen
class BambooRuntime(KindFrame):
    """The original's own agent loop."""

    tag: ClassVar[str] = "bamboo_runtime"


@attrs.frozen
class CliAdapter(KindFrame):
    """A command line program."""

    tag: ClassVar[str] = "cli_adapter"

    command: str
    args: tuple[str, ...] = attrs.field(default=(), converter=array)


@attrs.frozen
class PythonExecutor(KindFrame):
    """A Python callable, named ``module:function``. An extension of ours."""

    tag: ClassVar[str] = "python"

    target: str


Executor = EchoExecutor | BambooRuntime | CliAdapter | PythonExecutor


@attrs.frozen
class LocalPlacement(KindFrame):
    """A process of this machine."""

    tag: ClassVar[str] = "local"


@attrs.frozen
class RemotePlacement(KindFrame):
    """A resident worker elsewhere."""

    tag: ClassVar[str] = "remote"

    endpoint: str


@attrs.frozen
class SchedulablePlacement(KindFrame):
    """Any worker of a named pool."""

    tag: ClassVar[str] = "schedulable"

    pool: str


Placement = LocalPlacement | RemotePlacement | SchedulablePlacement


@attrs.frozen(kw_only=True)
class Identity(Frame):
    """Who the child is."""

    child_id: str
    parent_id: str | None = attrs.field(default=None, metadata=OMITTED)
    project_key: str | None = attrs.field(default=None, metadata=OMITTED)
    role: str = ""
    depth: U32 = 0
    """The root's is 0."""


@attrs.frozen
class ModelRef(Frame):
    """Which model to use."""

    provider: str
    model: str


@attrs.frozen(kw_only=True)
class Limits(Frame):
    """Advice to the worker, times in seconds."""

    run_timeout_secs: U64 | None = attrs.field(default=None, metadata=OMITTED)
    idle_timeout_secs: U64 | None = attrs.field(default=None, metadata=OMITTED)
    max_rounds: U32 | None = attrs.field(default=None, metadata=OMITTED)


@attrs.frozen(kw_only=True)
class ProviderCredential(Frame):
    """The key of one model provider."""

    provider: str
    api_key: str = attrs.field(repr=False)
    base_url: str | None = attrs.field(default=None, metadata=OMITTED)
    provider_type: str | None = attrs.field(default=None, metadata=OMITTED)


@attrs.frozen(kw_only=True)
class Secrets(Frame):
    """What must not be seen in arguments or the environment."""

    provider_credentials: tuple[ProviderCredential, ...] = attrs.field(default=(), converter=array)
    worker_auth_token: str | None = attrs.field(default=None, metadata=OMITTED, repr=False)


@attrs.frozen
class McpProxy(Frame):
    """A tool proxy that the parent runs."""

    orchestrator: str
    endpoint: str
    token: str = attrs.field(repr=False)


@attrs.frozen(kw_only=True)
class Capabilities(Frame):
    """What the child may do beyond its tools."""

    mcp: Any = attrs.field(default=None, metadata=OMITTED)
    skills_dir: str | None = attrs.field(default=None, metadata=OMITTED)
    mcp_proxy: McpProxy | None = attrs.field(default=None, metadata=OMITTED)
    enforce_permissions: bool = False
    nested_spawn: bool = False
    max_spawn_depth: U32 | None = attrs.field(default=None, metadata=OMITTED)
    bypass: bool = False
    no_human_approver: bool = False
    guardian_read_only: bool = False


@attrs.frozen(kw_only=True)
class ProvisionSpec(Frame):
    """The document that a worker reads from its standard input (A4.3)."""

    version: U32 = attrs.field(default=1, metadata=REQUIRED)
    """Readers do not check it."""
    identity: Identity
    executor: Executor
    fabric_dir: str
    storage_dir: str | None = attrs.field(default=None, metadata=OMITTED)
    workspace: str | None = attrs.field(default=None, metadata=OMITTED)
    model: ModelRef | None = attrs.field(default=None, metadata=OMITTED)
    disabled_tools: tuple[str, ...] | None = attrs.field(
        default=None, converter=attrs.converters.optional(array), metadata=OMITTED
    )
    limits: Limits = Limits()
    secrets: Secrets = Secrets()
    reusable: bool = False
    placement: Placement = LocalPlacement()
    capabilities: Capabilities = Capabilities()
