"""Hypothesis strategies for every frame class, built from its attrs fields."""

from __future__ import annotations

import functools
import types
from datetime import UTC, datetime, timedelta, timezone
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import attrs
from hypothesis import strategies as st

from trio_swarm import frames
from trio_swarm.frames import _history, child, operator, pod, pool, record
from trio_swarm.frames._frame import Frame

UNIONS = {
    name: getattr(frames, name)
    for name in (
        "ServerMsg",
        "ClientMsg",
        "ParentFrame",
        "ChildFrame",
        "PodMethod",
        "PodEvent",
        "PoolRequest",
        "PoolResponse",
        "AgentRecord",
        "ProvisionSpec",
    )
}
CLASSES = sorted(
    {
        cls
        for module in (operator, child, pod, pool, record, _history)
        for cls in vars(module).values()
        if isinstance(cls, type) and issubclass(cls, Frame) and "__attrs_attrs__" in vars(cls)
    },
    key=lambda cls: (cls.__module__, cls.__name__),
)
KNOWN_ITEMS = {"message", "tool_call", "tool_result", "reasoning"}

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=12)
)
opaque = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)
instants = st.datetimes(
    datetime(1000, 1, 2),
    datetime(9998, 12, 31),
    timezones=st.just(UTC) | st.integers(-1439, 1439).map(lambda m: timezone(timedelta(minutes=m))),
)
unknown_items = opaque.filter(lambda v: not (isinstance(v, dict) and v.get("type") in KNOWN_ITEMS))


def of_type(annotation: Any) -> st.SearchStrategy[Any]:
    """Values of a field with this annotation."""
    plain = {Any: opaque, str: st.text(max_size=12), bool: st.booleans(), datetime: instants}
    plain |= {types.NoneType: st.none()}
    if annotation in plain:
        return plain[annotation]
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        bounds = annotation.__metadata__[0]
        return st.integers(bounds.low, bounds.high)
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin is tuple:
        return st.lists(of_type(arguments[0]), max_size=3).map(tuple)
    if origin in (types.UnionType, Union):
        return st.one_of(*map(of_type, arguments))
    return of_class(annotation)


@functools.cache
def of_class(cls: type[Frame]) -> st.SearchStrategy[Any]:
    """Instances of a frame class, its optional fields given or not."""
    if cls is _history.UnknownItem:
        return st.builds(cls, unknown_items)
    hints = get_type_hints(cls, include_extras=True)
    required, optional = {}, {}
    for field in attrs.fields(cls):
        where = required if field.default is attrs.NOTHING else optional
        where[field.alias] = of_type(hints[field.name])
    return st.fixed_dictionaries(required, optional=optional).map(lambda given: cls(**given))


def of_union(union: Any) -> st.SearchStrategy[Any]:
    """Frames of a union."""
    return st.one_of(*map(of_class, get_args(union) or (union,)))
