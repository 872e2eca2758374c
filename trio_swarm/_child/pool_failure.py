"""An exception as JSON: what a failed job tells of itself beside the contract's one string."""

from __future__ import annotations

import traceback
from types import TracebackType
from typing import Any, Final

__all__ = ["describe", "one_line", "printable", "type_name"]

MAX_TEXT: Final = 64 * 2**10
"""Characters of one message, note or traceback; of a traceback the end is kept."""

MAX_NOTES: Final = 16
"""Notes of one exception."""

MAX_NESTED: Final = 64
"""Exceptions of one group."""

MAX_GROUP_DEPTH: Final = 8
"""Groups within groups: far below the depth that one JSON document may have."""


def printable(text: str) -> str:
    """*text* as valid UTF-8 (file names may hold lone surrogates), and not too much of it."""
    return text[:MAX_TEXT].encode("utf-8", "backslashreplace").decode()


def type_name(error: BaseException) -> str:
    """The qualified name; of a built-in only the name."""
    cls = type(error)
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"


def _message(error: BaseException) -> str:
    """What the exception was made from, so that it can be made again; else its text.

    ``str(KeyError('x'))`` is ``"'x'"``, which would gain quotes on every hop.
    """
    if isinstance(error, BaseExceptionGroup):
        return printable(error.message)
    if len(error.args) == 1 and isinstance(error.args[0], str):
        return printable(error.args[0])
    try:
        return printable(str(error))
    except Exception as broken:
        return f"<its text could not be made: {type(broken).__name__}>"


def one_line(error: BaseException) -> str:
    """The contract's ``error`` string: type and text."""
    message = _message(error)
    return f"{type_name(error)}: {message}" if message else type_name(error)


def describe(error: BaseException, *, code_file: str = "", depth: int = 0) -> dict[str, Any]:
    """The whole of *error*; frames above the first one in *code_file* are the worker's, and left out."""
    notes = getattr(error, "__notes__", None)
    nested: list[dict[str, Any]] = []
    if isinstance(error, BaseExceptionGroup) and depth < MAX_GROUP_DEPTH:
        nested = [
            describe(one, code_file=code_file, depth=depth + 1) for one in error.exceptions[:MAX_NESTED]
        ]
    return {
        "type": type_name(error),
        "message": _message(error),
        "notes": [printable(str(note)) for note in notes[:MAX_NOTES]] if isinstance(notes, list) else [],
        "traceback": _traceback(error, code_file) if depth == 0 else "",
        "exceptions": nested,
    }


def _traceback(error: BaseException, code_file: str) -> str:
    try:
        lines = traceback.format_exception(
            type(error), error, _from_code(error.__traceback__, code_file), limit=-64
        )
    except Exception as broken:
        # A user's __str__ or a source line can fail; the failure itself must still travel.
        return f"<no traceback: {type(broken).__name__}>"
    text = "".join(lines)
    return printable(text[-MAX_TEXT:])


def _from_code(tb: TracebackType | None, code_file: str) -> TracebackType | None:
    first = tb
    while first is not None and first.tb_frame.f_code.co_filename != code_file:
        first = first.tb_next
    return first or tb
