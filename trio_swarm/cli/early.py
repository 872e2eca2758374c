"""Signals that come before the job can heed them: while modules are imported and flags are checked.

Nothing has been started by then, so the end is short: the line that a later signal ends with, and its exit
status. Raising something instead would not do, for whoever imports may catch it. Imports next to nothing.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys

from trio_swarm._io.unshared import unshared

__all__ = ["EarlySignals", "end_at_once", "say"]

_HEEDED = ("SIGINT", "SIGTERM", "SIGHUP")
_PIECE = 512
"""Bytes of one write: a pipe that has room has room for so much. A terminal takes what fits."""
_PATIENCE = 1.0
"""Seconds to wait for room, for each piece."""


def say(text: str) -> None:
    """Write to standard error, and let it be if nobody takes it: a process must come to its end."""
    if sys.__stderr__ is None:
        return  # Closed when we were started: the descriptor may be anything by now.
    left = text.encode("utf-8", "backslashreplace")
    with contextlib.suppress(OSError), unshared(2) as own:
        while left and select.select([], [own], [], _PATIENCE)[1]:
            left = left[os.write(own, left[:_PIECE]) :]


def end_at_once(signum: int, frame: object) -> None:
    """A handler: say so and be gone."""
    name = next((each for each in _HEEDED if getattr(signal, each, None) == signum), str(signum))
    say(f"stopped by {name}; nothing of it is running\n")
    os._exit(128 + signum)


class EarlySignals:
    """A block in which a signal that nobody heeds yet ends the process in order.

    What was ignored when we were started stays ignored, and what somebody handles already stays theirs.
    Outside of the main thread it does nothing.
    """

    def __init__(self) -> None:
        self._before: dict[int, object] = {}

    def __enter__(self) -> EarlySignals:
        for name in _HEEDED:
            number = getattr(signal, name, None)
            if number is None or signal.getsignal(number) not in (signal.SIG_DFL, signal.default_int_handler):
                continue
            try:
                self._before[number] = signal.signal(number, end_at_once)
            except ValueError:
                break
        return self

    def __exit__(self, *exc_info: object) -> None:
        for number in list(self._before):
            self._restore(number)

    def loaded(self) -> None:
        """From here on Ctrl-C is an exception again: Trio takes care of it, and a job may clean up."""
        if signal.SIGINT in self._before:
            self._restore(signal.SIGINT)

    def _restore(self, number: int) -> None:
        before = self._before.pop(number)
        if signal.getsignal(number) is end_at_once:
            signal.signal(number, before)  # type: ignore[arg-type]  # as it was given to us
