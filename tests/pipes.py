"""Pipes that nobody reads, or late."""

from __future__ import annotations

import os
import select
from collections.abc import Iterator
from contextlib import contextmanager, suppress

__all__ = ["full_pipe", "text_in"]


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
