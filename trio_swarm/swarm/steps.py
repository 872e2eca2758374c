"""What a dispatch is told: who does the step, who is asked about it, what is tried again.

Values alone; `trio_swarm.swarm.dispatch` acts on them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any, Final, Literal, TypeAlias, get_args

import attrs

from trio_swarm._state.layers import LayerPlan
from trio_swarm.frames.operator import Worker
from trio_swarm.operators import AnySeat
from trio_swarm.operators.approvals import ApprovalPolicy
from trio_swarm.operators.directive import DirectiveContext

__all__ = [
    "KINDS",
    "Execute",
    "Kind",
    "OperatorBinding",
    "RetryPolicy",
    "Step",
    "StepOrder",
    "check_kind",
    "collapse_kind",
]

Kind: TypeAlias = Literal["main_ai", "automate", "composite"]
KINDS: Final = frozenset(get_args(Kind))
Retried: TypeAlias = Literal["failed", "blocked", "rejected"]
_RETRIED: Final = frozenset(get_args(Retried))


def collapse_kind(*tiers: Kind | None) -> Kind:
    """The first kind that is said, from the narrowest tier to the widest; else ``automate``.

    An ``automate`` that is said outranks what wider tiers say (contract: operators 6.1).
    """
    return next((kind for kind in tiers if kind is not None), "automate")


def check_kind(key: str, kind: object) -> None:
    """Raises ``ValueError``, which names ``key``, for what is neither a kind nor None."""
    if kind is not None and (not isinstance(kind, str) or kind not in KINDS):
        raise ValueError(f"{key}: {kind!r} is none of main_ai, automate, composite")


def _known_kinds(instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
    for kind in value.values() if isinstance(value, Mapping) else (value,):
        check_kind(attribute.name, kind)


@attrs.frozen
class OperatorBinding:
    """Which operators a step has, each for its part; a seat, or a sid, a role or an attached name.

    A part that is None has nobody. Contract: operators 1.4.
    """

    backend: AnySeat | str | None = None
    """Executes the step (layer ``operator_delegate``)."""
    hook: AnySeat | str | None = None
    """Gives leave before, is told after (layer ``main_ai``, for the kinds main_ai and composite)."""
    senior: AnySeat | str | None = None
    """Is asked about a result that is not ok (layer ``senior_escalation``)."""
    kind: Kind | None = attrs.field(default=None, validator=_known_kinds)
    """None: not said, so that a wider tier may say it."""
    per_agent_kinds: Mapping[str, Kind] = attrs.field(factory=dict, validator=_known_kinds)
    """Kinds of single agents; they outrank ``kind``."""

    @classmethod
    def whole(cls, operator: AnySeat | str) -> OperatorBinding:
        """One operator for all parts."""
        return cls(operator, operator, operator, kind="main_ai")

    def kind_of(self, agent: str, *wider: Kind | None) -> Kind:
        """The kind for that agent."""
        return collapse_kind(self.per_agent_kinds.get(agent), self.kind, *wider)


def _known_outcomes(instance: object, attribute: attrs.Attribute[Any], value: Collection[str]) -> None:
    if isinstance(value, str) or not _RETRIED.issuperset(value):
        raise ValueError(f"on: expected some of failed, blocked, rejected, not {value!r}")


@attrs.frozen
class RetryPolicy:
    """Which outcomes of an attempt lead to another one, and after how many seconds.

    The wait after attempt n is ``first * factor**(n - 1)``, ``longest`` at most.
    """

    on: Collection[Retried] = attrs.field(default=frozenset({"failed"}), validator=_known_outcomes)
    """``failed``: no result; ``blocked``: one that is not ok; ``rejected``: a gate said no."""
    first: float = attrs.field(default=0.0, validator=attrs.validators.ge(0))
    factor: float = attrs.field(default=2.0, validator=attrs.validators.ge(1))
    longest: float = attrs.field(default=60.0, validator=attrs.validators.ge(0))

    def delay(self, attempt: int) -> float:
        """Seconds between that attempt and the next."""
        try:
            return min(self.longest, self.first * self.factor ** (attempt - 1))
        except OverflowError:  # Larger than any float: so is the wait, unless it is none at all.
            return self.longest if self.first else 0.0


@attrs.frozen
class Step:
    """What a given ``execute`` is told of the attempt that it is to carry out."""

    task_id: str
    agent: str
    attempt: int
    """From 1."""
    prompt: str = attrs.field(repr=False)
    system: str | None = attrs.field(default=None, repr=False)
    metadata: Mapping[str, Any] = attrs.field(factory=dict)
    """A copy of its own: what is done with it changes nothing elsewhere."""
    base_url: str | None = None
    """Where the server for workers is, if there is one."""
    capability_token: str = attrs.field(default="", repr=False)
    worker_handle: str = attrs.field(default="", repr=False)
    """Either lets a worker fetch the prompt and post the result; both die with the attempt."""


Execute: TypeAlias = Callable[[Step], Awaitable[Any]]
"""Does a step: returns its value, or a `WorkerResult`; what it raises fails the attempt."""


@attrs.frozen(kw_only=True)
class StepOrder:
    """One dispatch, checked, its operators found."""

    agent: str
    prompt: str = attrs.field(repr=False)
    system: str | None = attrs.field(repr=False)
    plan: LayerPlan
    hook: AnySeat | None
    senior: AnySeat | None
    backend: AnySeat | None
    execute: Execute | None
    approval: ApprovalPolicy | None
    approvers: tuple[AnySeat, ...]
    attempts: int
    retry: RetryPolicy
    grace: float
    metadata: Mapping[str, Any]
    worker: Worker | None
    context: DirectiveContext

    def seats(self) -> tuple[AnySeat, ...]:
        """The operators that it addresses, each once."""
        named = (self.hook, self.senior, self.backend, *self.approvers)
        return tuple({id(seat): seat for seat in named if seat is not None}.values())
