"""What an engine gets to do one run with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import attrs
import trio

__all__ = ["ActorRun"]


class Speaker(Protocol):
    """The connection, as a run sees it."""

    async def emit(self, run: int, event: Mapping[str, Any]) -> None: ...

    async def ask(self, run: int, body: Mapping[str, Any]) -> bool: ...


@attrs.define(eq=False)
class ActorRun:
    """One run of an engine: its assignment, and the ways to speak while it is at work.

    The engine runs in a cancel scope that ends with the parent's ``cancel``, a newer ``run``, the end
    of the connection, or the time that the parent gave (``trio.current_effective_deadline()`` tells
    it). After that it has three seconds to end; then its terminal is sent for it and the process
    gets no more work.

    A plain function as engine runs in a worker thread and calls the methods here with
    ``trio.from_thread.run(run.emit, {...})``. A thread cannot be stopped: such an engine should call
    ``trio.from_thread.check_cancelled()`` now and then; one that does not is ended with its process.
    """

    number: int
    """Counts from 1 within one connection."""
    assignment: str
    """What to do."""
    messages: Sequence[Any] = attrs.field(repr=False)
    """The conversation so far, oldest first, as the parent sent it; empty at a first activation."""
    reasoning_effort: str | None
    """The parent's hint, if it gave one."""
    inbox: trio.MemoryReceiveChannel[str] = attrs.field(repr=False)
    """Steering messages that come while the run is at work; at most 64 wait, more are dropped."""
    _speaker: Speaker = attrs.field(repr=False, alias="speaker")

    async def emit(self, event: Mapping[str, Any]) -> None:
        """Send one event, a JSON object, to the parent; waits while 64 are on their way.

        Raises ``TypeError`` or ``ValueError`` if it has no JSON form, and ``trio.BrokenResourceError``
        when the run is not heard any more. Cancelled: the event was not queued.
        """
        await self._speaker.emit(self.number, event)

    async def request_approval(
        self, tool_name: str, permission: str, resource: str = "", question: str = ""
    ) -> bool:
        """Ask the parent whether a gated tool may act. False is also the answer when none comes.

        It fails closed: False if the parent says nothing within 330 seconds, goes away, or has cancelled
        the run. Cancelled: the request is withdrawn, and a late answer means nothing.
        """
        body = {
            "tool_name": tool_name,
            "permission": permission,
            "permission_type": permission,
            "resource": resource,
            "question": question,
        }
        return await self._speaker.ask(self.number, body)
