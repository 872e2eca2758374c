"""One JSON document to one frame, and back.

`decode` raises `FrameError` for bad data and nothing else; a `TypeError` is the caller's
own mistake. `encode` gives one line that `decode` reads as an equal frame.

Duplicate keys: a key that the frame knows, twice in one of the frame's own objects, is a
fault. In an opaque payload, and among keys that nobody knows, the last one holds: that is
what the originals do, and refusing it would leave a peer without its answer.

The hooks of a class are generated when it is first decoded or encoded, and cattrs is
imported then: importing this package stays cheap for a process that starts often.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from trio_swarm.errors import FrameError
from trio_swarm.frames import _json
from trio_swarm.frames._frame import Frame

if TYPE_CHECKING:
    from cattrs import Converter
    from typing_extensions import TypeForm

__all__ = ["converter", "decode", "dump_json", "encode", "parse_json", "structure", "unstructure"]

T = TypeVar("T")
_Reading = tuple[Callable[..., Any], Callable[[str], Any]]
"""How one union is read: its structure hook, and the parser of its documents."""


class _Hooks:
    """Hooks by union and by class, fetched from the converter once.

    A union is looked up by identity, since hashing one costs as much as decoding a small
    frame; that is sound for the first of equal unions, which is kept. The entries are
    bounded by the unions that the program's source names.
    """

    def __init__(self) -> None:
        self.readers: dict[int, _Reading] = {}
        self.writers: dict[type, Callable[[Any], Any]] = {}
        self._unions: dict[Any, _Reading] = {}

    def reader(self, union: Any) -> _Reading:
        known = self._unions.get(union)
        if known is None:
            from trio_swarm.frames._sparse import parser_for

            known = self._unions[union] = converter().get_structure_hook(union), parser_for(union)
            self.readers[id(union)] = known
        return known

    def writer(self, frame_class: type) -> Callable[[Any], Any]:
        if not issubclass(frame_class, Frame):
            raise TypeError(f"{frame_class.__name__} is not a frame class")
        writer = self.writers[frame_class] = converter().get_unstructure_hook(frame_class)
        return writer


_HOOKS = _Hooks()


@functools.cache
def converter() -> Converter:
    """The cattrs converter whose hooks structure and unstructure every frame class."""
    from cattrs import Converter

    from trio_swarm.frames._hooks import generate_reader, generate_writer
    from trio_swarm.frames._shapes import is_frames
    from trio_swarm.frames._unions import union_reader

    made = Converter()

    readers: dict[type[Frame], Callable[..., Any]] = {}

    def reader_of(frame_class: type[Frame]) -> Callable[..., Any]:
        if frame_class not in readers:
            readers[frame_class] = generate_reader(frame_class, made)
        return readers[frame_class]

    def read_hook(annotation: Any) -> Callable[..., Any]:
        return union_reader(annotation, reader_of)

    def write_hook(frame_class: Any) -> Callable[[Any], Any]:
        return generate_writer(frame_class, made)

    made.register_structure_hook_factory(is_frames, read_hook)
    made.register_unstructure_hook_factory(
        lambda annotation: isinstance(annotation, type) and issubclass(annotation, Frame), write_hook
    )
    return made


def decode(data: str | bytes, union: TypeForm[T]) -> T:
    """The frame of *union* that the JSON document *data* is.

    *union* is one of the unions of this package, a union of some of their members, or one
    frame class. Unknown keys are ignored, opaque payloads kept as they are.

    Raises:
        FrameError: it is not one; ``key`` names where, ``unknown_tag`` is set when only the
            tag is unknown. Anything else that *data* makes it raise is a bug.
        TypeError: *data* is neither text nor bytes, *union* has no frames.
    """
    reader, parse = _HOOKS.readers.get(id(union)) or _HOOKS.reader(union)
    frame: T
    try:
        text = _json.to_text(data)
        document = parse(text)
    except _json.DuplicateKeyError:
        reader(_parsed(_json.parse_marking_doubles, text))
        frame = reader(_parsed(_json.parse_last_wins, text))
    except ValueError as error:
        raise _not_json(error) from None
    else:
        frame = reader(document)
    return frame


def encode(frame: object) -> str:
    """The frame as one line of compact JSON, without a newline.

    Raises:
        FrameError: a field holds what its frame does not allow, or an opaque payload is
            not JSON (a number that is not finite, a set, a key that is no string, a lone
            surrogate, nesting deeper than `trio_swarm.limits.MAX_DEPTH`).
        TypeError: *frame* is not a frame.
    """
    cls = type(frame)
    writer = _HOOKS.writers.get(cls) or _HOOKS.writer(cls)
    return dump_json(writer(frame))


def structure(value: Any, union: TypeForm[T]) -> T:
    """The frame of *union* that the parsed JSON *value* is; raises like `decode`."""
    reader, _ = _HOOKS.reader(union)
    frame: T = reader(value)
    return frame


def unstructure(frame: object) -> Any:
    """The frame as a JSON value; opaque payloads are not copied. Raises like `encode`."""
    cls = type(frame)
    writer = _HOOKS.writers.get(cls) or _HOOKS.writer(cls)
    return writer(frame)


def parse_json(data: str | bytes) -> Any:
    """Any JSON document, as strictly as a frame; of a key that stands twice the last holds.

    Raises:
        FrameError: it is not JSON.
    """
    try:
        return _json.parse_last_wins(_json.to_text(data))
    except ValueError as error:
        raise _not_json(error) from None


def dump_json(value: Any) -> str:
    """A JSON value as one compact line.

    Raises:
        FrameError: it is not a JSON value.
    """
    try:
        return _json.dump(value)
    except Exception as error:
        raise FrameError(f"cannot be written as JSON: {error}") from error


def _parsed(parse: Callable[[str], Any], text: str) -> Any:
    try:
        return parse(text)
    except ValueError as error:
        raise _not_json(error) from None


def _not_json(error: ValueError) -> FrameError:
    if isinstance(error, UnicodeDecodeError):
        return FrameError(f"not UTF-8: {error.reason} at byte {error.start}")
    if isinstance(error, UnicodeEncodeError):
        return FrameError("text with a lone surrogate")
    return FrameError(f"not JSON: {error}")
