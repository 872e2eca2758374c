"""Pipes and terminals that nobody reads, or late."""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import attrs

__all__ = ["UnreadTerminal", "full_pipe", "text_in", "unread_terminal"]


@contextmanager
def full_pipe() -> Iterator[tuple[int, int]]:
    """One with no room for a single byte, and whose writer blocks; its two ends."""
    reader, writer = os.pipe()
    try:
        os.set_blocking(writer, False)
        for size in (4096, 1):
            with suppress(BlockingIOError):
                while True:
                    os.write(writer, b"x" * size)
        os.set_blocking(writer, True)
        yield reader, writer
    finally:
        os.close(reader)
        os.close(writer)


def text_in(reader: int) -> str:
    """What is in the pipe by now."""
    text = b""
    while select.select([reader], [], [], 0)[0]:
        text += os.read(reader, 2**16)
    return text.decode()


@attrs.define
class UnreadTerminal:
    """A pseudoterminal, whose writer blocks."""

    reader: int
    writer: int
    rescued: bool = False
    """Somebody waited for a reader, who had to come in the end."""


@contextmanager
def unread_terminal() -> Iterator[UnreadTerminal]:
    """One with a little room, which nobody reads; but whoever waits for that is rescued after a while."""
    reader, writer = os.openpty()
    terminal, over = UnreadTerminal(reader, writer), threading.Event()

    def rescue() -> None:
        while not over.wait(10):
            terminal.rescued = True
            while not over.is_set() and select.select([reader], [], [], 0.1)[0]:
                os.read(reader, 2**16)

    rescuer = threading.Thread(target=rescue)
    rescuer.start()
    try:
        yield terminal
    finally:
        over.set()
        rescuer.join()
        os.close(reader)
        os.close(writer)
