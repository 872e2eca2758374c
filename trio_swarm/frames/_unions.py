"""Which frame of a union a wire object is: the tag tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, get_args

from trio_swarm.errors import FrameError
from trio_swarm.frames._faults import DoubledKey, missing, unknown, wrong
from trio_swarm.frames._frame import Envelope, Frame
from trio_swarm.frames._shapes import is_union

Reader = Callable[..., Any]
Table = Mapping[str, Reader]


def union_reader(annotation: Any, reader_of: Callable[[type[Frame]], Reader]) -> Reader:
    """A function from a wire object to the frame of *annotation* that it is.

    *annotation* is a frame class or a union of frame classes of one family; ``reader_of``
    gives the reader of a class whose tag is known already.
    """
    members: tuple[type[Frame], ...] = get_args(annotation) if is_union(annotation) else (annotation,)
    catch_all = [member for member in members if member.keeps_unknown]
    tagged = [member for member in members if not member.keeps_unknown]
    if catch_all:
        known = _tagged_reader(tagged, reader_of) if tagged else None
        return _tolerant_reader(known, catch_all[0])
    return _tagged_reader(tagged, reader_of)


def _tagged_reader(members: list[type[Frame]], reader_of: Callable[[type[Frame]], Reader]) -> Reader:
    envelope = members[0].envelope
    if not envelope.tag_path:
        if len(members) > 1:
            raise TypeError(f"frames without a tag cannot be told apart: {members}")
        return reader_of(members[0])
    table = {member.tag: reader_of(member) for member in members}
    if len(table) != len(members):
        raise TypeError(f"two frames of one union have the same tag: {members}")
    return _answer_reader(table) if envelope.answers else _flat_reader(envelope, table)


def _flat_reader(envelope: Envelope, table: Table) -> Reader:
    (key,) = envelope.tag_path

    def read(value: Any, _: Any = None) -> Any:
        try:
            reader = table[value[key]]
        except (KeyError, TypeError, IndexError):
            raise _tag_fault(value, key, "") from None
        return reader(value)

    return read


def _answer_reader(table: Table) -> Reader:
    """The pool's responses: ``ok`` decides between ``data`` with its kind and ``error``."""

    def read(value: Any, _: Any = None) -> Any:
        if not isinstance(value, dict):
            raise wrong("", "an object", value)
        if "ok" not in value:
            raise missing("ok")
        ok, data, error = value["ok"], value.get("data"), value.get("error")
        if type(ok) is not bool:
            raise wrong("ok", "a boolean", ok)
        if error is not None and type(error) is not str:
            raise wrong("error", "a string or null", error)
        if not ok:
            if "failure" not in table:
                raise unknown("ok", "failure")
            return table["failure"](value)
        if data is None:
            raise missing("data")
        kind = data.get("kind") if isinstance(data, dict) else None
        if type(kind) is not str or kind not in table or kind == "failure":
            raise _tag_fault(data, "kind", "data")
        return table[kind](value)

    return read


def _tolerant_reader(known: Reader | None, catch_all: type[Frame]) -> Reader:
    make: Callable[[Any], Any] = catch_all

    def read(value: Any, _: Any = None) -> Any:
        if known is None:
            return make(value)
        try:
            return known(value)
        except DoubledKey:
            raise
        except FrameError:
            return make(value)

    return read


def _tag_fault(value: Any, key: str, outer: str) -> FrameError:
    path = f"{outer}.{key}" if outer else key
    if not isinstance(value, dict):
        return wrong(outer, "an object", value)
    if key not in value:
        return missing(path)
    if type(value[key]) is not str:
        return wrong(path, "a string", value[key])
    return unknown(path, value[key])
