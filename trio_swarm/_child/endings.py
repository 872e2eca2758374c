"""How a forked copy of one of our processes ends: where the user's code does; the standard library only."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Iterator
from typing import NoReturn

__all__ = ["end_copy", "ends_copies"]


def end_copy(error: BaseException | None) -> NoReturn:
    """End this process: status 0, a SystemExit's own, or 1 with the traceback told."""
    status = 0
    if isinstance(error, SystemExit):
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    elif error is not None:
        status = 1
    with contextlib.suppress(Exception):
        if status and not isinstance(error, SystemExit):
            traceback.print_exception(error)
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status & 0xFF)


@contextlib.contextmanager
def ends_copies() -> Iterator[None]:
    """A process that was forked within the block, and leaves it, ends there."""
    pid = os.getpid()
    try:
        yield
    except BaseException as error:
        if os.getpid() != pid:
            end_copy(error)
        raise
    if os.getpid() != pid:
        end_copy(None)
