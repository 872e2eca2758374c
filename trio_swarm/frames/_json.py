"""JSON text and values: what the standard parser lets through is refused here.

``json`` alone accepts ``NaN`` and ``1e999``, UTF-16, duplicate keys, surrogates that
cannot be encoded again and nesting up to the interpreter's limit, and it writes integer
keys as strings. Everything here raises ``ValueError`` (or an exception below it) for bad
data and nothing else.
"""

from __future__ import annotations

import gc
import json
import re
from collections import Counter
from collections.abc import Callable
from itertools import accumulate, islice
from typing import Any, Final

from trio_swarm.limits import MAX_DEPTH

Pairs = list[tuple[str, Any]]
Scan = Callable[[str], tuple[Any, int]]

_LEAVES: Final = frozenset({str, int, float, bool, type(None)})
_CONTAINERS: Final = (dict, list, tuple)
_WHITESPACE: Final = " \t\n\r"
_STRINGS: Final = re.compile(rb'"[^"]*"')
_STEPS: Final = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")
_PASSES: Final = 3
_COUNTED: Final = 8192
_FEW: Final = MAX_DEPTH // 2
_LARGE: Final = 256 * 2**10
_NO_BRACKETS: Final = bytes(sorted(set(range(256)) - set(b'[]{}"')))
# A reader that splits text with str.splitlines() would cut a line at these.
_LINE_BREAKS: Final = (("\u2028", "\\u2028"), ("\u2029", "\\u2029"), ("\x85", "\\u0085"))


class DuplicateKeyError(ValueError):
    """Some object of the document has a key twice."""


class Doubled(dict[str, Any]):
    """An object that had keys more than once: ``twice`` names them, the last values hold."""

    twice: frozenset[str] = frozenset()


def check_object(pairs: Pairs) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise DuplicateKeyError
    return result


def _object_with_doubles(pairs: Pairs) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) == len(pairs):
        return result
    doubled = Doubled(result)
    doubled.twice = frozenset(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
    return doubled


def _finite(digits: str) -> float:
    value = float(digits)
    if value - value != 0.0:
        raise ValueError(f"a number out of range: {digits[:20]}")
    return value


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _decoder(pairs_hook: Any) -> json.JSONDecoder:
    return json.JSONDecoder(object_pairs_hook=pairs_hook, parse_float=_finite, parse_constant=_constant)


_STRICT: Final = _decoder(check_object)
_MARKING: Final = _decoder(_object_with_doubles)
LENIENT: Final = _decoder(None)
_ENCODER: Final = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, check_circular=False, separators=(",", ":")
)


def to_text(data: str | bytes | bytearray) -> str:
    """The document as text that can be encoded as UTF-8."""
    if isinstance(data, str):
        if not data.isascii():
            data.encode()  # a surrogate in the text itself
        return data
    if isinstance(data, bytes | bytearray):
        return str(data, "utf-8")
    raise TypeError(f"a frame is decoded from str or bytes, not {type(data).__name__}")


def parse(text: str, scan: Scan = _STRICT.raw_decode) -> Any:
    """The value of a whole JSON text, scanned by *scan*.

    Raises:
        DuplicateKeyError: an object has a key twice (with the default scanner).
        ValueError: it is not JSON, or is one of the things named above.
    """
    if not text.startswith("{"):
        text = text.strip(_WHITESPACE)
    try:
        value, end = scan(text) if len(text) < _LARGE else _scan_large(text, scan)
    except RecursionError:
        raise ValueError("nested too deep") from None
    if end != len(text) and text[end:].strip(_WHITESPACE):
        raise ValueError(f"something after the end of the document: char {end}")
    if len(text) > 2 * MAX_DEPTH:
        _check_depth(text, value)
    if "\\" in text and ("\\ud" in text or "\\uD" in text):
        _ENCODER.encode(value).encode()
    return value


def _scan_large(text: str, scan: Scan) -> tuple[Any, int]:
    """Without the cyclic garbage collector, which goes through all that was made so far over and over.

    What is parsed has no cycles. A frame of 16 MiB that is nothing but empty arrays takes a third of the time
    so, in which nothing else of the event loop runs.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        return scan(text)
    finally:
        if collecting:
            gc.enable()


def parse_marking_doubles(text: str) -> Any:
    """Like `parse`, with a `Doubled` for every object that has a key twice."""
    return parse(text, _MARKING.raw_decode)


def parse_last_wins(text: str) -> Any:
    """Like `parse`; of a key that stands twice the last value holds."""
    return parse(text, LENIENT.raw_decode)


def _check_depth(text: str, value: Any) -> None:
    """Refuse a document nested deeper than `MAX_DEPTH`.

    A walk over all values would cost half as much as the parse, so it is the last resort
    but one: few brackets are not deep, few containers are quickly walked, and what
    remains is measured in the text.
    """
    if len(text) < _COUNTED and text.count("[") + text.count("{") <= MAX_DEPTH:
        return
    if not _has_few_containers(value) and _depth_of_text(text) > MAX_DEPTH:
        raise ValueError(f"nested deeper than {MAX_DEPTH}")


def _has_few_containers(value: Any) -> bool:
    """Whether *value* is built of no more objects and arrays than may be nested."""
    level, seen = [value] if isinstance(value, dict | list) else [], 0
    while level:
        seen += len(level)
        if seen > _FEW:
            return False
        inners = (
            inner
            for container in level
            for inner in (container.values() if isinstance(container, dict) else container)
            if isinstance(inner, dict | list)
        )
        level = list(islice(inners, _FEW))  # With those above them one too many: enough to know.
    return True


def _depth_of_text(text: str) -> int:
    """The depth of JSON text, at the speed of ``bytes``; it is no less than `_PASSES`.

    What is left of the text are its brackets outside strings, as signed bytes of 1 and -1.
    A few passes take the innermost pairs away, which is nearly everything in an ordinary
    document; the rest is summed up.
    """
    rest = text.encode()
    if b"\\" in rest:
        rest = rest.replace(b"\\\\", b"").replace(b'\\"', b"")
    rest = _STRINGS.sub(b"", rest.translate(_STEPS, _NO_BRACKETS).replace(b'""', b""))
    for _ in range(_PASSES):
        rest = rest.replace(b"\x01\xff", b"")
    return _PASSES + (max(accumulate(memoryview(rest).cast("b"))) if rest else 0)


def _check_containers(value: Any, room: int) -> None:
    """Refuse keys that are no strings, which json would turn into some, and deep nesting.

    Depth first, so that a cycle is found at the bottom and not by memory running out.
    """
    if room <= 0:
        raise ValueError(f"nested deeper than {MAX_DEPTH}")
    if isinstance(value, dict):
        "".join(value)  # a TypeError for the first key that is no string, at C speed
        value = value.values()
    for inner in value:
        if type(inner) not in _LEAVES and isinstance(inner, _CONTAINERS):
            _check_containers(inner, room - 1)


def dump(value: Any) -> str:
    """One compact line for a JSON value.

    Raises whatever the value's own methods raise beside ``ValueError`` and ``TypeError``:
    the caller turns it into its error.
    """
    if isinstance(value, _CONTAINERS):
        _check_containers(value, MAX_DEPTH)
    text = _ENCODER.encode(value)
    if not text.isascii():
        text.encode()  # a lone surrogate
        for char, escape in _LINE_BREAKS:
            text = text.replace(char, escape)
    return text
