"""Large documents: look for doubled keys where a frame would, and nowhere else.

To see every key the parser has to call Python once per object, which doubles the time of
a large payload with many small objects. Only the frame's own objects matter, and they are
few: their keys are scanned here, and each value between them is the C scanner's work.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final, get_args, get_type_hints

from trio_swarm.frames._frame import Frame, fields_of
from trio_swarm.frames._json import LENIENT, check_object, parse
from trio_swarm.frames._shapes import is_frames, is_union, without_none

Outline = Mapping[str, Any]
"""The keys that hold objects of the frame's own, each with the outline of that object."""

SPARSE_FROM: Final = 1024
"""Characters. A smaller document is parsed with a look at every key sooner than this starts."""

_MAX_KEYS: Final = 64
_Match = Callable[[str, int], "re.Match[str] | None"]
_KEY: Final[_Match] = re.compile(r'[ \t\n\r]*"([^"\\\x00-\x1f]*)"[ \t\n\r]*:[ \t\n\r]*').match
_NEXT: Final[_Match] = re.compile(r"[ \t\n\r]*([,}])").match


class _Irregular(Exception):
    """Not an object of a few plain keys: a look at every key decides what it is."""


def outline_of(annotation: Any) -> Outline | None:
    """The outline of a frame class or union; None if it has arrays of objects of its own."""
    outline: dict[str, Any] = {}
    for member in get_args(annotation) if is_union(annotation) else (annotation,):
        own = _outline_of_class(member)
        if own is None or member.keeps_unknown:
            return None
        outline |= own
    return outline


def _outline_of_class(frame_class: type[Frame]) -> Outline | None:
    hints = get_type_hints(frame_class, include_extras=True)
    own: dict[str, Any] = {}
    for field in fields_of(frame_class):
        annotation, _ = without_none(hints[field.name])
        if any(is_frames(argument) for argument in get_args(annotation)) and not is_union(annotation):
            return None
        if is_frames(annotation):
            own[field.name] = outline_of(annotation)
            if own[field.name] is None:
                return None
    content = frame_class.envelope.content
    return own if content is None else {content: own}


def parser_for(annotation: Any) -> Callable[[str], Any]:
    """What parses the documents of a frame class or union."""
    outline = outline_of(annotation)
    if outline is None:
        return parse
    return lambda text: parse(text) if len(text) < SPARSE_FROM else parse_sparse(text, outline)


def parse_sparse(text: str, outline: Outline) -> Any:
    """Like `trio_swarm.frames._json.parse`, but a doubled key is seen within *outline* only."""
    try:
        return parse(text, lambda document: _scan_object(document, 0, outline))
    except _Irregular:
        return parse(text)


def _scan_object(text: str, at: int, outline: Outline) -> tuple[dict[str, Any], int]:
    """The object at *at*, and where it ends."""
    if not text.startswith("{", at):
        raise _Irregular
    at += 1
    pairs: list[tuple[str, Any]] = []
    while len(pairs) < _MAX_KEYS:
        key = _KEY(text, at)
        if key is None:
            raise _Irregular
        name, at = key[1], key.end()
        inner = outline.get(name)
        if inner is not None and text.startswith("{", at):
            value, at = _scan_object(text, at, inner)
        else:
            value, at = LENIENT.raw_decode(text, at)
        pairs.append((name, value))
        after = _NEXT(text, at)
        if after is None:
            raise _Irregular
        at = after.end()
        if after[1] == "}":
            return check_object(pairs), at
    raise _Irregular
