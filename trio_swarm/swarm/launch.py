"""The request that starts a step over HTTP, read and checked (operators contract 1.4)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import attrs

from trio_swarm.operators.directive import DirectiveContext
from trio_swarm.swarm.dispatch import Dispatcher
from trio_swarm.swarm.steps import KINDS, Kind, OperatorBinding, StepOrder

__all__ = ["Launch", "LaunchError"]

_IDS: Final = ("id", "spawn_hook_id", "senior_bridge_id", "operator_backend_id")
_U64: Final = 2**64


class LaunchError(ValueError):
    """The request will not do: ``status`` 422 for its shape, 400 for what it asks."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


@attrs.frozen(kw_only=True)
class Launch:
    """What a client wants done. Unknown keys are ignored."""

    agent: str
    prompt: Any = attrs.field(repr=False)
    system: str | None = attrs.field(repr=False)
    operator: Mapping[str, Any]
    operator_sid: str | None
    layers: tuple[str, ...] | None
    timeout: float | None
    """Seconds."""
    detach: bool
    metadata: dict[str, Any]
    attempts: int
    parent: str | None
    context: DirectiveContext

    @classmethod
    def parse(cls, body: Any) -> Launch:
        """Read a request's body. Raises `LaunchError`."""
        if not isinstance(body, dict):
            raise LaunchError(422, "expected an object")
        if "agent" not in body or "prompt" not in body:
            raise LaunchError(422, "expected agent and prompt; a blueprint is Python code on the library")
        layers = _field(body, "layers", list)
        if layers is not None and not all(isinstance(layer, str) for layer in layers):
            raise LaunchError(422, "layers: expected a list of names")
        timeout, detach = _number(body, "timeout_secs"), bool(_field(body, "detach", bool))
        if timeout == 0:
            raise LaunchError(400, "timeout_secs: expected at least 1")
        if timeout is not None and detach:
            raise LaunchError(400, "timeout_secs and detach exclude each other")
        attempts = _number(body, "attempts")
        return cls(
            agent=_field(body, "agent", str) or "",
            prompt=body["prompt"],
            system=_field(body, "system", str),
            operator=_operator(body),
            operator_sid=_field(body, "operator_sid", str),
            layers=tuple(layers) if layers is not None else None,
            timeout=timeout,
            detach=detach,
            metadata=_field(body, "task_metadata", dict) or {},
            attempts=1 if attempts is None else attempts,
            parent=_field(body, "parent_task_id", str),
            context=_context(body),
        )

    def order(self, dispatcher: Dispatcher, default_kind: Kind | None) -> StepOrder:
        """The order for it. Raises ``ValueError``: an operator that is not there, a wrong layer ..."""
        return dispatcher.order(
            self.agent,
            self.prompt,
            system=self.system,
            operator=self._binding(dispatcher),
            layers=self.layers,
            attempts=self.attempts,
            metadata=self.metadata,
            context=self.context,
            default_kind=default_kind,
        )

    def _binding(self, dispatcher: Dispatcher) -> OperatorBinding:
        """``operator_sid`` outranks ``operator.operator_backend_id``, and fills that part alone."""
        about = self.operator
        if self.operator_sid is not None:
            dispatcher.require_seat("operator_sid", self.operator_sid)
        for key in _IDS[1:]:
            if about.get(key) is not None:
                dispatcher.require_seat(f"operator.{key}", about[key])
        backend = self.operator_sid if self.operator_sid is not None else about.get("operator_backend_id")
        return OperatorBinding(
            backend=backend,
            hook=about.get("spawn_hook_id"),
            senior=about.get("senior_bridge_id"),
            kind=about.get("kind"),
            per_agent_kinds=about.get("per_agent_kinds") or {},
        )


def _operator(body: dict[str, Any]) -> dict[str, Any]:
    about: dict[str, Any] = _field(body, "operator", dict) or {}
    for key in _IDS:
        if about.get(key) is not None and not isinstance(about[key], str):
            raise LaunchError(422, f"operator.{key}: expected a string")
    kinds = about.get("per_agent_kinds")
    if not isinstance(kinds, dict | None):
        raise LaunchError(422, "operator.per_agent_kinds: expected an object")
    said = {"kind": about.get("kind")}
    said |= {f"per_agent_kinds.{agent}": kind for agent, kind in (kinds or {}).items()}
    for key, kind in said.items():
        if kind is not None and (not isinstance(kind, str) or kind not in KINDS):
            raise LaunchError(400, f"operator.{key}: expected one of main_ai, automate, composite")
    return about


def _context(body: dict[str, Any]) -> DirectiveContext:
    known = {key: _field(body, key, str) for key in ("project_name_alias", "project_root", "work_dir")}
    try:
        return DirectiveContext(**known)
    except ValueError as error:
        raise LaunchError(400, str(error)) from None


def _field(body: dict[str, Any], key: str, kind: type) -> Any:
    """The value of an optional key; null is as good as absent."""
    value = body.get(key)
    if value is not None and not isinstance(value, kind):
        wanted = {str: "a string", list: "a list", dict: "an object", bool: "true or false"}[kind]
        raise LaunchError(422, f"{key}: expected {wanted}")
    return value


def _number(body: dict[str, Any], key: str) -> int | None:
    value = body.get(key)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < _U64:
        raise LaunchError(422, f"{key}: expected a whole number from 0")
    return value
