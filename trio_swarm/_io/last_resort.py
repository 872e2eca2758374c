"""Log records on standard error, and nobody's event loop held up because nobody reads them.

Where no handler is configured, `logging` writes to standard error by itself (``logging.lastResort``), and
waits there for as long as it takes: behind a pipe that is full, the whole server would stand still. Here
that last resort is another one, which prints the same and never waits. It stands in exactly where the
other would, so whoever configures handlers, before or after, finds every record in theirs and nowhere else.
"""

from __future__ import annotations

import logging
import threading
import traceback
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Final, TextIO

import trio

from trio_swarm._io.groups import collapse
from trio_swarm._io.terminal import TextOutput
from trio_swarm.limits import CLOSE_DEADLINE

__all__ = ["descriptor_of", "open_last_resort"]

_MAX_ELSEWHERE: Final = 1000
"""Texts of other threads that wait for the event loop; the oldest go first."""


class _LastResort(logging.Handler):
    """Writes records, as their bare message and traceback: at once if there is room, else `run` does it.

    The thread that made it is that of the event loop; records may come from any.
    """

    def __init__(self, out: TextOutput) -> None:
        super().__init__(logging.WARNING)
        self._out = out
        self._thread = threading.get_ident()
        self._token: trio.lowlevel.TrioToken | None = None
        self._elsewhere: deque[str] = deque()
        self._lost = 0

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler`."""
        try:
            text = self.format(record)
        except Exception:
            # `handleError` would write to standard error, and wait.
            why = traceback.format_exc().rstrip()
            text = f"a record of {record.name} cannot be shown: {record.msg!r}\n{why}"
        self.write(text)

    def write(self, text: str) -> None:
        """Write a line, or queue it; from any thread, and never waits."""
        if threading.get_ident() == self._thread:
            self._take_over()
            self._out.write(text)
            self._out.write_now()
            return
        self.acquire()
        try:
            self._elsewhere.append(text)
            if len(self._elsewhere) > _MAX_ELSEWHERE:
                self._elsewhere.popleft()
                self._lost += 1
            token = self._token
        finally:
            self.release()
        if token is not None:
            with suppress(trio.RunFinishedError):
                token.run_sync_soon(self._write_elsewhere, idempotent=True)

    async def run(self, scope: trio.CancelScope) -> None:
        """Write what there was no room for, until ``scope`` is cancelled."""
        self._token = trio.lowlevel.current_trio_token()
        try:
            with scope:
                self._write_elsewhere()
                await self._out.run()
        finally:
            self._token = None

    async def drain(self) -> None:
        """Wait until all of it is written."""
        self._write_elsewhere()
        await self._out.drain()

    def close(self) -> None:
        """Write what there is room for."""
        self._write_elsewhere()
        super().close()

    def _write_elsewhere(self) -> None:
        self._take_over()
        self._out.write_now()

    def _take_over(self) -> None:
        self.acquire()
        try:
            texts, self._elsewhere = self._elsewhere, deque()
            lost, self._lost = self._lost, 0
        finally:
            self.release()
        if lost:
            self._out.write(f"({lost} texts were lost here)")
        for text in texts:
            self._out.write(text)


@asynccontextmanager
async def open_last_resort(fd: int | None) -> AsyncIterator[Callable[[str], None]]:
    """In the block, what nobody else handles of the records is written to ``fd``, and none of them waits.

    Gives the function that writes another line in its turn; any thread may call it. What there is no room
    for waits, up to 4 MiB; what is lost beyond that is told. On leaving, it gets ``CLOSE_DEADLINE`` to be
    written, also when cancelled. No other task may wait for ``fd`` to be writable. None: there is no
    standard error; records are lost as they would be without this.
    """
    if fd is None:
        yield _to_nowhere
        return
    with collapse(), _standing_in(fd) as handler:
        async with trio.open_nursery() as nursery:
            # Who cancels the block does not cancel the writer: it is waited for below.
            writing = trio.CancelScope(shield=True)
            try:
                nursery.start_soon(handler.run, writing)
                yield handler.write
            finally:
                try:
                    with trio.move_on_after(CLOSE_DEADLINE, shield=True):
                        await handler.drain()
                finally:
                    writing.cancel()


@contextmanager
def _standing_in(fd: int) -> Iterator[_LastResort]:
    with TextOutput(fd, lasting=True) as out:
        handler, before = _LastResort(out), logging.lastResort
        logging.lastResort = handler
        try:
            yield handler
        finally:
            if logging.lastResort is handler:
                logging.lastResort = before
            handler.close()


def descriptor_of(stream: TextIO | None) -> int | None:
    """None for one that is closed, or that has none."""
    try:
        return None if stream is None else stream.fileno()
    except (OSError, ValueError):
        return None


def _to_nowhere(text: str) -> None:
    """There is nothing to write to."""
