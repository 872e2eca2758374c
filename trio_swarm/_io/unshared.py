"""A terminal that one can write to without waiting, and without changing it for anybody else.

A terminal that has room has it for a single byte perhaps: ``poll`` says so, and a write of more waits
until somebody reads. ``O_NONBLOCK`` belongs to the open file, which the shell and all its programs share;
so the terminal is opened once more. Imports next to nothing.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

__all__ = ["unshared"]


@contextlib.contextmanager
def unshared(fd: int) -> Iterator[int]:
    """In the block, a descriptor for what ``fd`` writes to: a write to a terminal never waits.

    It takes what there is room for, or raises ``BlockingIOError``. What is no terminal, and a terminal that
    cannot be opened (another person's, after ``su``), is ``fd`` itself, as it is.
    """
    own = _opened(fd)
    try:
        yield fd if own is None else own
    finally:
        if own is not None:
            os.close(own)


def _opened(fd: int) -> int | None:
    try:
        name = os.ttyname(fd)
        if os.path.basename(name) == "ptmx":
            return None  # The other end of a terminal: to open it makes a new one.
        return os.open(name, os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
