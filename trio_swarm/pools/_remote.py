"""A worker's failed job as an exception here: its own type where that is safe.

What a worker sends is data: no name in it is ever imported or called, but that of a
built-in exception, with one string.
"""

from __future__ import annotations

import builtins
from typing import Any, Final

from trio_swarm.errors import RemoteError

__all__ = ["rebuild"]

_MAX_DEPTH: Final = 16
"""Groups within groups; what is deeper arrives as one RemoteError."""


def rebuild(error: str, exception: Any = None) -> Exception:
    """The exception to raise for a job that failed with the contract's *error* text.

    *exception* is our extra key (``type``, ``message``, ``notes``, ``traceback``,
    ``exceptions``), of which nothing is taken on trust; without it, or if it makes no
    sense, the result is a `RemoteError` with the text. The cause of any other exception
    is a `RemoteError` that holds the remote traceback.
    """
    if not isinstance(exception, dict):
        return RemoteError(error)
    return _rebuild(error, exception, 0)


def _rebuild(error: str, told: dict[str, Any], depth: int) -> Exception:
    name = _text(told.get("type"))
    message = told.get("message")
    if not isinstance(message, str):
        message = error
    origin = RemoteError(message, remote_type=name, traceback_text=_text(told.get("traceback")))
    made = _group(name, message, told, depth) or _builtin(name, message)
    if made is None:
        made = origin
    else:
        made.__cause__ = origin
    notes = told.get("notes")
    for note in notes if isinstance(notes, list) else ():
        made.add_note(_text(note))
    return made


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _group(name: str, message: str, told: dict[str, Any], depth: int) -> Exception | None:
    nested = told.get("exceptions")
    if not isinstance(nested, list) or not nested or depth >= _MAX_DEPTH:
        return None
    parts = [_rebuild(name, one, depth + 1) for one in nested if isinstance(one, dict)]
    return ExceptionGroup(message, parts) if parts else None


def _builtin(name: str, message: str) -> Exception | None:
    cls = getattr(builtins, name, None)
    if not isinstance(cls, type) or not issubclass(cls, Exception) or issubclass(cls, BaseExceptionGroup):
        return None
    # StopIteration and its like mean something to the machinery that they pass through.
    if issubclass(cls, (StopIteration, StopAsyncIteration, Warning)):
        return None
    try:
        made = cls(message) if message else cls()
    except Exception:
        # UnicodeDecodeError, for one, takes five arguments: then it stays a RemoteError.
        return None
    return made if isinstance(made, Exception) else None
