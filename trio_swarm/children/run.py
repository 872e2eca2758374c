"""A run while it is at work, as its user sees it."""

from __future__ import annotations

from typing import Any

import attrs
import trio

from trio_swarm.errors import RemoteError
from trio_swarm.frames.child import Terminal

__all__ = ["ChildRun", "result_of"]


def result_of(terminal: Terminal) -> str:
    """A completed run's result; every other terminal raises `RemoteError` (A6)."""
    match terminal.status:
        case "completed":
            return terminal.result or ""
        case "error":
            raise _remote(terminal.error or "actor child errored")
        case "cancelled":
            raise RemoteError("the child cancelled its run")
        case _:
            raise RemoteError("the child suspended its run, and resuming is not wired")


def _remote(text: str) -> RemoteError:
    """Our own engines say ``Type: message``; everybody else says what they like."""
    kind, colon, message = text.partition(": ")
    if colon and kind.isidentifier() and kind[0].isupper():
        return RemoteError(message, remote_type=kind)
    return RemoteError(text)


@attrs.define(eq=False)
class ChildRun:
    """Iterate it for the run's events; made by `Child.open_run`.

    The iteration ends with the run, and raises what `result` would. At most 64 events wait: while nobody
    reads them the child is not read either, and in the end waits itself.
    """

    assignment: str
    attempt: int = attrs.field(default=0, init=False)
    """Which try is at work. After a crash the run is sent again and its events begin anew."""
    _events: trio.MemoryReceiveChannel[Any] = attrs.field(repr=False, alias="events")
    _outcome: str | Exception | None = attrs.field(default=None, init=False)

    def __aiter__(self) -> ChildRun:
        return self

    async def __anext__(self) -> Any:
        """The next event, as the child's engine made it. Cancelled: none is lost."""
        try:
            return await self._events.receive()
        except trio.EndOfChannel:
            pass
        if isinstance(self._outcome, Exception):
            raise self._outcome
        raise StopAsyncIteration

    async def wait(self) -> str:
        """Read what events are left, and return the result."""
        async for _ in self:
            continue
        return self.result

    @property
    def result(self) -> str:
        """What the run returned.

        Raises:
            RemoteError: the engine raised, or the child did not complete the run.
            ChildCrashed: the process ended before its terminal, in the last of its attempts.
            RestartIntensityExceeded: it did so too often.
            RuntimeError: the run is not over.
        """
        if self._outcome is None:
            raise RuntimeError("the run is not over")
        if isinstance(self._outcome, Exception):
            raise self._outcome
        return self._outcome
