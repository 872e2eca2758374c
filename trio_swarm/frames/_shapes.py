"""From the annotation of a frame's field to the checks of its JSON value."""

from __future__ import annotations

import functools
import operator
import types
from collections.abc import Callable
from datetime import datetime
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

import attrs
from cattrs import Converter

from trio_swarm.errors import FrameError
from trio_swarm.frames._faults import under, wrong
from trio_swarm.frames._frame import Frame, Range
from trio_swarm.frames._instants import read_instant, write_instant

Convert = Callable[[Any], Any]


@attrs.frozen
class Shape:
    """How one value is checked, and converted where its wire form is another.

    ``reading`` and ``writing`` are conditions over ``{v}``, true for a wrong value; they
    go into the generated hooks as they are. ``read`` and ``write`` convert, and raise
    `FrameError` with the path within the value. An opaque payload has none of the four.
    """

    wanted: str = ""
    reading: str = ""
    writing: str = ""
    read: Convert | None = None
    write: Convert | None = None


OPAQUE: Final = Shape()
_PLAIN: Final = {
    str: Shape("a string", "type({v}) is not str", "type({v}) is not str"),
    bool: Shape("a boolean", "type({v}) is not bool", "type({v}) is not bool"),
    datetime: Shape(read=read_instant, write=write_instant),
}


def shape_of(annotation: Any, converter: Converter) -> Shape:
    """The shape of an annotation without its ``| None``."""
    plain = OPAQUE if annotation is Any else _PLAIN.get(annotation)
    if plain is not None:
        return plain
    origin = get_origin(annotation)
    if origin is Annotated:
        return _integer(annotation.__metadata__[0])
    if origin is Literal:
        return _choice(get_args(annotation))
    if origin is tuple:
        return _array(shape_of(get_args(annotation)[0], converter))
    if is_frames(annotation):
        return _nested(annotation, converter)
    raise TypeError(f"a frame cannot have a field of type {annotation!r}")


def without_none(annotation: Any) -> tuple[Any, bool]:
    """The annotation without ``| None``, and whether it had that."""
    if not is_union(annotation):
        return annotation, False
    members = get_args(annotation)
    rest = [member for member in members if member is not types.NoneType]
    return functools.reduce(operator.or_, rest), len(rest) != len(members)


def is_union(annotation: Any) -> bool:
    """Both spellings of a union."""
    return get_origin(annotation) in (types.UnionType, Union)


def is_frames(annotation: Any) -> bool:
    """A frame class or a union of frame classes."""
    members = get_args(annotation) if is_union(annotation) else (annotation,)
    return all(isinstance(member, type) and issubclass(member, Frame) for member in members)


def _integer(bounds: Range) -> Shape:
    test = f"type({{v}}) is not int or not {bounds.low} <= {{v}} <= {bounds.high}"
    return Shape(f"an integer within {bounds.name}", test, test)


def _choice(choices: tuple[str, ...]) -> Shape:
    test = f"type({{v}}) is not str or {{v}} not in {choices!r}"
    return Shape(f"one of {', '.join(choices)}", test, test)


def _nested(annotation: Any, converter: Converter) -> Shape:
    read = converter.get_structure_hook(annotation)
    return Shape(
        wanted="a frame",
        read=lambda value: read(value, annotation),
        write=_write_nested(annotation, converter),
    )


def _write_nested(annotation: Any, converter: Converter) -> Convert:
    members = get_args(annotation) if is_union(annotation) else (annotation,)
    writers = {member: converter.get_unstructure_hook(member) for member in members}

    def write(value: Any) -> Any:
        writer = writers.get(type(value))
        if writer is None:
            raise wrong("", " or ".join(member.__name__ for member in members), value)
        return writer(value)

    return write


def _array(element: Shape) -> Shape:
    if element is OPAQUE:
        return Shape("an array", reading="type({v}) is not list", write=_listed)
    return Shape(
        read=_each(list, element.read or _checker(element.reading, element.wanted)),
        write=_each(tuple, element.write or _checker(element.writing, element.wanted)),
    )


def _listed(value: Any) -> list[Any]:
    if type(value) is not tuple:
        raise wrong("", "a tuple", value)
    return list(value)


def _checker(test: str, wanted: str) -> Convert:
    is_wrong = eval(f"lambda v: {test.format(v='v')}")

    def check(value: Any) -> Any:
        if is_wrong(value):
            raise wrong("", wanted, value)
        return value

    return check


def _each(array_type: type[list[Any]] | type[tuple[Any, ...]], convert: Convert) -> Convert:
    def convert_array(value: Any) -> list[Any]:
        if type(value) is not array_type:
            raise wrong("", "an array", value)
        done: list[Any] = []
        try:
            for element in value:
                done.append(convert(element))
        except FrameError as error:
            raise under(f"[{len(done)}]", error) from None
        return done

    return convert_array
