"""How a forked copy of one of our processes ends: where the user's code does, or by a signal as it should.

The standard library only.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import Any, Final, NoReturn

__all__ = ["copies_heed_signals", "end_copy", "ends_copies"]

_ENDING: Final = (signal.SIGTERM, signal.SIGINT)


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


def copies_heed_signals(is_ours: Callable[[Any], bool]) -> None:
    """From now on a forked copy ends by SIGTERM and SIGINT, where this process has handlers ``is_ours``.

    They are blocked while it is forked: one that came between the fork and the reset would only be
    noted for a handler that is not there any more, and whoever sent it would wait for ever.
    """
    before = threading.local()

    def block() -> None:
        before.mask = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)

    def restore() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, before.mask)

    def reset() -> None:
        for signum in _ENDING:
            if is_ours(signal.getsignal(signum)):
                signal.signal(signum, signal.SIG_DFL)
        restore()

    os.register_at_fork(before=block, after_in_parent=restore, after_in_child=reset)
