"""How a frame class is declared: its family's envelope, its tag, its fields' wire rules.

A frame is a frozen attrs class below a family's base class. What the wire needs to know
stands in the class and nowhere else:

* the annotation gives the JSON type (`str`, `bool`, the integers below, ``Literal``,
  ``datetime``, another frame, a union of frames, ``tuple[...]`` for an array, ``Any`` for
  an opaque payload); ``| None`` says that ``null`` is allowed;
* a default says that the key may be absent on read;
* `OMITTED` says that the key is left out on write while the value is the default,
  `BESIDE` that it stands beside the tag and not among the contents, `NULL_IS_DEFAULT`
  that ``null`` is read as the default, `REQUIRED` that the key must be there on read
  although the class has a default for its writer.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, ClassVar, Final

import attrs

OMITTED: Final = {"omitted": True}
BESIDE: Final = {"omitted": True, "beside": True}
NULL_IS_DEFAULT: Final = {"null_is_default": True}
REQUIRED: Final = {"required": True}


@attrs.frozen
class Range:
    """The integers that a field may hold, both ends included."""

    low: int
    high: int
    name: str


U32 = Annotated[int, Range(0, 2**32 - 1, "u32")]
U64 = Annotated[int, Range(0, 2**64 - 1, "u64")]
I64 = Annotated[int, Range(-(2**63), 2**63 - 1, "i64")]


@attrs.frozen
class Envelope:
    """Where the frames of one family keep their tag and their fields.

    ``tag_path`` leads to the tag; it is empty for a value without one. ``content`` is the
    key that holds the fields where they do not stand beside the tag. ``answers`` marks
    the pool's responses, whose outer object says ``ok`` and ``error``.
    """

    tag_path: tuple[str, ...] = ()
    content: str | None = None
    answers: bool = False


class Frame:
    """The root of everything that `trio_swarm.frames.decode` can return."""

    __slots__ = ()

    envelope: ClassVar[Envelope] = Envelope()
    tag: ClassVar[str] = ""
    """The tag on the wire; empty for values that have none."""
    keeps_unknown: ClassVar[bool] = False
    """Stands, in a union, for every value that is none of the others; one opaque field."""


def array(values: Iterable[Any]) -> tuple[Any, ...]:
    """Any iterable but a string, as the tuple that a frozen frame keeps."""
    if isinstance(values, str | bytes):
        raise TypeError(f"an array is needed, not {type(values).__name__}")
    return tuple(values)


def fields_of(frame_class: type[Frame]) -> tuple[attrs.Attribute[Any], ...]:
    """The attrs fields of a frame class, for the hooks that are generated from them."""
    if not attrs.has(frame_class):
        raise TypeError(f"{frame_class.__name__} is not an attrs class")
    fields: tuple[attrs.Attribute[Any], ...] = attrs.fields(frame_class)
    return fields
