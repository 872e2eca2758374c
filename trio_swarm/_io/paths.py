"""Where a path really leads, before anything is decided about it."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from typing import Final

__all__ = ["resolve"]

_TRIES: Final = 32


def resolve(path: str, *, cwd: str | None = None) -> str:
    """``path`` with ``..`` and symbolic links resolved, through its nearest existing ancestor.

    What does not exist yet keeps its name below that. A relative path starts at ``cwd``; without
    one it is refused. The answer is true at this moment only: what is then opened must be opened in
    a way that follows no link (`trio_swarm._io.beneath`). Blocks: use a worker thread.

    Raises:
        ValueError: it is empty or relative, holds a NUL, cannot be encoded, or runs in circles.
        OSError: ``EAGAIN`` where somebody keeps changing its links.
    """
    if not path or "\0" in path:
        raise ValueError(f"{path!r} is no path")
    if cwd is not None:
        path = os.path.join(cwd, path)
    if not os.path.isabs(path):
        raise ValueError(f"{path!r} is not an absolute path")
    try:
        found = _real(path)
    except UnicodeEncodeError:
        raise ValueError(f"{path!r} cannot be a file name") from None
    if _is_circular(found):
        raise ValueError(f"{path!r} has a symbolic link that leads to itself")
    # POSIX leaves '//' at the front to the implementation; here it is the root like any other.
    return "/" + found.lstrip("/")


def _real(path: str) -> str:
    for _ in range(_TRIES):
        # It looks whether a name is a link, then reads that; in between it may have become a directory.
        with suppress(OSError):
            return os.path.realpath(path)
    raise OSError(errno.EAGAIN, "its links change too fast to be followed", path)


def _is_circular(path: str) -> bool:
    """What ``realpath`` gives up on without a word."""
    try:
        os.stat(path)
    except OSError as error:
        return error.errno == errno.ELOOP
    return False
