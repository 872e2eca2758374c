"""The hooks of one frame class, generated as cattrs and attrs generate theirs.

cattrs coerces by default (``"no"`` becomes ``True``) and walks opaque payloads. These
hooks check the exact type of every field in the generated source itself, which is
faster than not checking through cattrs' own, and leave an opaque payload alone. They
read and write the whole wire object of the class, its tag and envelope included.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final, get_type_hints

import attrs
from cattrs import Converter

from trio_swarm.errors import FrameError
from trio_swarm.frames._faults import missing, own_object, under, wrong
from trio_swarm.frames._frame import Frame, fields_of
from trio_swarm.frames._shapes import Shape, shape_of, without_none

Reader = Callable[..., Any]
Writer = Callable[[Any], Any]

_ABSENT: Final = object()


@attrs.frozen
class Slot:
    """One field, as the generated source needs to know it."""

    var: str
    key: str
    path: str
    argument: str
    """How it is passed to the class."""
    shape: Shape
    nullable: bool
    required: bool
    default: Any
    omitted: bool
    null_is_default: bool
    outer: bool
    """It stands beside the tag."""


def slots_of(cls: type[Frame], converter: Converter) -> list[Slot]:
    """What the class' annotations and metadata say."""
    hints = get_type_hints(cls, include_extras=True)
    content = cls.envelope.content
    slots = []
    for index, field in enumerate(fields_of(cls)):
        annotation, nullable = without_none(hints[field.name])
        outer = content is None or bool(field.metadata.get("beside"))
        slots.append(
            Slot(
                var=f"v{index}",
                key=field.name,
                path=field.name if outer else f"{content}.{field.name}",
                argument=f"{field.alias}=v{index}" if field.kw_only else f"v{index}",
                shape=shape_of(annotation, converter),
                nullable=nullable,
                required=field.default is attrs.NOTHING or bool(field.metadata.get("required")),
                default=field.default,
                omitted=bool(field.metadata.get("omitted")),
                null_is_default=bool(field.metadata.get("null_is_default")),
                outer=outer,
            )
        )
    return slots


def generate_reader(cls: type[Frame], converter: Converter) -> Reader:
    """A function from the wire object of *cls* to an instance; its tag is known already."""
    slots = slots_of(cls, converter)
    content, path = cls.envelope.content, cls.envelope.tag_path
    inner = [slot.key for slot in slots if not slot.outer]
    outer = [slot.key for slot in slots if slot.outer]
    if content is None:
        outer += path
    else:
        outer += [path[0], content]
        inner += path[1:]
    if cls.envelope.answers:
        outer += ["ok", "error", "data"]
    lines = [
        "def read(o, _=None):",
        "  if type(o) is not dict: o = own_object(o, OUTER, '')",
    ]
    if inner:
        lines += [
            f"  try: b = o[{content!r}]",
            f"  except KeyError: raise missing({content!r}) from None",
            f"  if type(b) is not dict: b = own_object(b, INNER, {content!r})",
        ]
    for slot in slots:
        lines += _reading(slot)
    # Keyword-only arguments come last in a call, wherever they stand in the class.
    arguments = sorted((slot.argument for slot in slots), key=lambda text: "=" in text)
    lines.append(f"  return cls({', '.join(arguments)})")
    names = _names(slots, "read")
    names |= {"cls": cls, "OUTER": frozenset(outer), "INNER": frozenset(inner)}
    reader: Reader = _compiled(f"read {cls.__qualname__}", lines, names, "read")
    return reader


def generate_writer(cls: type[Frame], converter: Converter) -> Writer:
    """A function from an instance of *cls* to its wire object."""
    slots = slots_of(cls, converter)
    lines = ["def write(f):"]
    if cls.keeps_unknown:
        lines.append(f"  return f.{slots[0].key}")
    else:
        for slot in slots:
            lines += _checking(slot)
        lines += _assembling(cls, slots)
    writer: Writer = _compiled(f"write {cls.__qualname__}", lines, _names(slots, "write"), "write")
    return writer


def _reading(slot: Slot) -> Iterator[str]:
    v, source = slot.var, "o" if slot.outer else "b"
    checks = _check(slot, slot.shape.reading, "read" if slot.shape.read else "")
    if slot.required:
        yield f"  try: {v} = {source}[{slot.key!r}]"
        yield f"  except KeyError: raise missing({slot.path!r}) from None"
        guard = f"if {v} is not None:" if slot.nullable else "if True:"
    else:
        yield f"  {v} = {source}.get({slot.key!r}, ABSENT)"
        null = f" or {v} is None" if slot.null_is_default else ""
        yield f"  if {v} is ABSENT{null}: {v} = d{v}"
        guard = f"elif {v} is not None:" if slot.nullable else "else:"
    if checks:
        yield f"  {guard}"
        yield from checks


def _checking(slot: Slot) -> Iterator[str]:
    yield f"  {slot.var} = f.{slot.key}"
    checks = _check(slot, slot.shape.writing, "write" if slot.shape.write else "")
    if checks:
        yield f"  if {slot.var} is not None:" if slot.nullable else "  if True:"
        yield from checks


def _check(slot: Slot, test: str, converts: str) -> list[str]:
    v = slot.var
    if test:
        return [
            f"    if {test.format(v=v)}:",
            f"      raise wrong({slot.path!r}, {slot.shape.wanted!r}, {v})",
        ]
    if converts:
        return [
            f"    try: {v} = c{v}({v})",
            f"    except FrameError as error: raise under({slot.path!r}, error) from None",
        ]
    return []


def _assembling(cls: type[Frame], slots: list[Slot]) -> Iterator[str]:
    envelope = cls.envelope
    outer, inner = _constants(cls)
    for name, constants, part in (
        ("b", inner, [slot for slot in slots if not slot.outer]),
        ("o", outer, [slot for slot in slots if slot.outer]),
    ):
        if name == "o" and envelope.content and (inner or any(not slot.outer for slot in slots)):
            constants.append(f"{envelope.content!r}: b")
        always = [f"{slot.key!r}: {slot.var}" for slot in part if not slot.omitted]
        yield f"  {name} = {{{', '.join(constants + always)}}}"
        for slot in part:
            if slot.omitted:
                given = f"{slot.var} is not None" if slot.default is None else f"f.{slot.key} != d{slot.var}"
                yield f"  if {given}: {name}[{slot.key!r}] = {slot.var}"
    yield "  return o"


def _constants(cls: type[Frame]) -> tuple[list[str], list[str]]:
    """What the outer and the inner object hold beside the fields."""
    path, tag = cls.envelope.tag_path, f"{cls.tag!r}"
    if cls.envelope.answers:
        if cls.envelope.content is None:
            return ["'ok': False", "'data': None"], []
        return ["'ok': True", "'error': None"], [f"{path[-1]!r}: {tag}"]
    return [f"{key!r}: {tag}" for key in path], []


def _names(slots: list[Slot], direction: str) -> dict[str, Any]:
    names: dict[str, Any] = {"ABSENT": _ABSENT, "FrameError": FrameError}
    names |= {"missing": missing, "own_object": own_object, "under": under, "wrong": wrong}
    for slot in slots:
        names[f"d{slot.var}"] = slot.default
        names[f"c{slot.var}"] = getattr(slot.shape, direction)
    return names


def _compiled(title: str, lines: list[str], names: dict[str, Any], function: str) -> Any:
    exec(compile("\n".join(lines), f"<trio_swarm frame: {title}>", "exec"), names)
    return names[function]
