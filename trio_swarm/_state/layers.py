"""The layers around a step, and the calls that their order comes to (operators contract, 6.3).

A list of layers is written from the inside out: each one is wrapped around those before it, the last
is outermost. The original skips what it does not know and takes any order, so that a typing mistake
removes a gate without a word. Here each mistake is an error that says what the right order is.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Literal, TypeAlias, cast, get_args

import attrs

__all__ = ["DEFAULT_LAYERS", "Call", "Layer", "LayerPlan", "plan_layers"]

Layer: TypeAlias = Literal["operator_delegate", "senior_escalation", "main_ai"]
Call: TypeAlias = Literal["before", "execute", "ask", "after"]

DEFAULT_LAYERS: Final[tuple[Layer, ...]] = ("operator_delegate", "senior_escalation", "main_ai")
"""Before, execute, ask, after: who is told afterwards sees what the senior made of it."""

_KNOWN: Final = frozenset(get_args(Layer))
_RIGHT: Final = ", ".join(DEFAULT_LAYERS)


@attrs.frozen
class LayerPlan:
    """What an order of layers comes to."""

    layers: tuple[Layer, ...]
    """From the inside out."""
    calls: tuple[Call, ...]
    """In the order in which they are made."""

    @property
    def before(self) -> bool:
        """The attempt needs leave to start."""
        return "before" in self.calls

    @property
    def delegated(self) -> bool:
        """The operator executes; whatever else could execute is not called."""
        return "operator_delegate" in self.layers

    @property
    def ask(self) -> bool:
        """A result that is not ok goes to the senior."""
        return "ask" in self.calls

    @property
    def sees_override(self) -> bool:
        """``after`` is told the value that the senior's answer made, not the one before it."""
        return "ask" in self.calls and self.calls[-1] == "after"


def plan_layers(layers: Iterable[str]) -> LayerPlan:
    """Check an order of layers and say which calls it makes.

    Raises ``ValueError``, with the rule and a right order, for a layer that is unknown or there twice,
    and for ``operator_delegate`` anywhere but first: it calls nothing inside of it, so that a
    layer written before it would never run.
    """
    if isinstance(layers, str) or not isinstance(layers, Iterable):
        raise ValueError(f"layers: expected a list of names, such as {_RIGHT}")
    order = tuple(layers)
    for layer in order:
        if not isinstance(layer, str) or layer not in _KNOWN:
            raise ValueError(f"layers: {layer!r} is no layer; there are {_RIGHT}")
        if order.count(layer) > 1:
            raise ValueError(f"layers: {layer} is there more than once; each layer wraps the step once")
    if "operator_delegate" in order[1:]:
        right = ", ".join(("operator_delegate", *(layer for layer in order if layer != "operator_delegate")))
        raise ValueError(
            f"layers: operator_delegate must be first, the innermost, because it calls nothing inside of "
            f"it: {order[0]} would never run; write {right}"
        )
    calls: list[Call] = ["before"] if "main_ai" in order else []
    calls.append("execute")
    for layer in order:
        if layer == "main_ai":
            calls.append("after")
        elif layer == "senior_escalation":
            calls.append("ask")
    return LayerPlan(cast(tuple[Layer, ...], order), tuple(calls))
