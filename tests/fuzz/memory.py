"""Every route behind a listener in memory: for one input at a time, without sockets or processes.

A clock that jumps makes deadlines pass at once, so that an input that merely stops is not waited
for. What a fuzzer wants of it is an exception where the server has made a mistake.
"""

from __future__ import annotations

import itertools
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import trio
import trio.testing

from tests.operators.support import Events, a_host
from trio_swarm.swarm.dispatch import Dispatcher
from trio_swarm.swarm.serving import Serving, serve
from trio_swarm.workers import Attempt, TaskBoard

ADMIN = "admin-token-in-memory"
SECRET = b"secret of the board in memory"
NOW = 1_700_000_000.0


def a_board(events: Events, directory: Path) -> tuple[TaskBoard, Attempt]:
    """One task with a worker at it: by the same names and credentials each time."""
    numbers = itertools.count(1)
    board = TaskBoard(
        emit=events,
        secret=SECRET,
        spool=lambda: directory,
        clock=lambda: NOW,
        new_hex=lambda size: f"{next(numbers):0{2 * size}x}",
    )
    return board, board.create("coder", "do it", system="persona").begin()


def known() -> dict[str, str]:
    """What of it a request may name."""
    _, attempt = a_board(Events(), Path())
    worker = {"capability": attempt.capability_token, "handle": attempt.worker_handle}
    return {"admin": ADMIN, "task": attempt.task_id, **worker}


class MemoryListener(trio.abc.Listener[trio.StapledStream]):
    """Accepts the other ends of the streams that `connect` gives out."""

    def __init__(self) -> None:
        self._send, self._receive = trio.open_memory_channel[trio.StapledStream](16)

    async def connect(self) -> trio.StapledStream:
        near, far = trio.testing.memory_stream_pair()
        await self._send.send(far)
        return near

    async def accept(self) -> trio.StapledStream:
        return await self._receive.receive()

    async def aclose(self) -> None:
        self._receive.close()
        await trio.lowlevel.checkpoint()


def run_one(converse: Any) -> bytes:
    """Serve, let ``converse(stream, server)`` say what it has to say, return all that was answered.

    Raises ``AssertionError`` if the server reports an error, answers 5xx or leaves a task.
    """

    async def main() -> bytes:
        events, listener = Events(), MemoryListener()
        living = trio.lowlevel.current_statistics().tasks_living
        with tempfile.TemporaryDirectory() as directory:
            async with AsyncExitStack() as stack:
                serving = Serving(tuple)
                board, _ = a_board(events, Path(directory))
                dispatcher = Dispatcher(board, serving, events)
                server = await stack.enter_async_context(
                    serve(a_host(events), serving, dispatcher, admin_token=ADMIN, listeners=[listener])
                )
                stream = await listener.connect()
                got = bytearray()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_collect, stream, got)
                    await converse(stream, server, board)
                await stream.aclose()
        assert events.of("connection_error") == []
        assert trio.lowlevel.current_statistics().tasks_living == living
        return bytes(got)

    return trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


async def _collect(stream: trio.abc.ReceiveStream, got: bytearray) -> None:
    try:
        async for data in stream:
            got += data
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass


async def pour(stream: trio.StapledStream, data: bytes) -> None:
    """Send it, then the end; a server that has had enough is no fault."""
    try:
        await stream.send_all(data)
        await stream.send_eof()
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass


__all__ = ["ADMIN", "SECRET", "known", "pour", "run_one"]
