"""One turn as its client sees it: what belongs to it, when it is over, what it came to.

The original's wire has no request ids and every client sees everything. Our pods send an id of ours
back with ``turn_start`` and with a refusal. With an original's a turn is recognised by its place: after
a run of ours was sent and while no other run is known to go on, the next ``turn_start`` is ours. Where
that may have been wrong (a refusal comes after all) the turn is *contested*, and its owner asks the
history whose input it was.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final, Literal, Self

import attrs
import trio

from trio_swarm.errors import BusyError, ProtocolError, RemoteError, SlowPeerError
from trio_swarm.frames import pod as frames
from trio_swarm.frames.pod import PodEvent

__all__ = ["MAX_TURN_TEXT", "REFUSALS", "ToolOutcome", "Turn", "TurnEvents", "TurnResult"]

MAX_TURN_TEXT: Final = 64 * 2**20
"""Characters of one turn's text and tool outputs that a client keeps."""

REFUSALS: Final = frozenset({"already_running", "not_running", "not_paused"})
"""Errors that answer a method and end no run."""


@attrs.frozen
class ToolOutcome:
    """One tool call of a turn."""

    id: str
    """Unique within the turn; the pod's choice."""
    name: str
    """The tool."""
    arguments: str
    """JSON text."""
    output: str | None = None
    """What it gave; None where the pod did not say (the original never does)."""
    is_error: bool = False
    """Whether it failed."""


@attrs.frozen
class TurnResult:
    """What a run came to."""

    text: str
    """The assistant's blocks of text, with a blank line between them."""
    tool_results: tuple[ToolOutcome, ...]
    """The tools that it called, in order."""
    result: Literal["finished", "paused", "limit_reached"]
    """How it ended."""
    requests: int
    """Requests to the model (``turn_start`` events)."""
    input_tokens: int | None = None
    """As far as the pod told; summed up."""
    output_tokens: int | None = None
    """As far as the pod told; summed up."""
    attempt: int = 1
    """Which try it was; more than 1 only for a run that may be repeated."""


@attrs.define(eq=False)
class Turn:
    """A run of ours, from the moment when it is sent."""

    input: str | None
    """What was sent; None for a resumed run."""
    run_id: str
    """Sent along."""
    sent: bool = False
    """It is on its way, or further."""
    accepted: bool = False
    """Its ``turn_start`` has come."""
    refused: str | None = None
    """The code of the refusal."""
    contested: bool = False
    """A refusal came although it had begun: see the module."""
    error: Exception | None = None
    """What ends it in place of a result."""
    answered: trio.Event = attrs.field(factory=trio.Event)
    """It was accepted or refused, or cannot be any more."""
    ended: trio.Event = attrs.field(factory=trio.Event)
    """What it came to is known."""
    over: trio.Event = attrs.field(factory=trio.Event)
    """The pod does not run it, or not any more: later than ``ended`` where we gave it up first."""
    watcher: trio.MemorySendChannel[PodEvent] | None = None
    """Gets each event of it, if somebody watches."""
    lagged: bool = False
    """The watcher fell behind and lost events."""
    _result: Literal["finished", "paused", "limit_reached"] = "finished"
    _blocks: list[str] = attrs.field(factory=list)
    _deltas: list[str] = attrs.field(factory=list)
    _calls: dict[str, ToolOutcome] = attrs.field(factory=dict)
    _requests: int = 0
    _size: int = 0
    _tokens: tuple[int | None, int | None] = (None, None)

    def take(self, event: PodEvent) -> None:
        """An event that belongs to it, ``turn_start`` first."""
        self.accepted = True
        self.answered.set()
        if not self.ended.is_set():
            self._collect(event)
            self._show(event)
        if self._size > MAX_TURN_TEXT:
            # The engine goes on until it is told: see `over`.
            self._give_up(ProtocolError(f"a turn of more than {MAX_TURN_TEXT} characters"))
        if isinstance(event, frames.RunEnd):
            self._result = event.result
            self._end()
            self.over.set()
        elif isinstance(event, frames.Error):
            self.fail(RemoteError(event.message, remote_type=event.code))

    def refuse(self, code: str) -> None:
        """The pod would not take it."""
        self.refused = code
        self.fail(BusyError(f"the pod did not take the run: {code}"))

    def fail(self, error: Exception) -> None:
        """It ends so, unless it has ended; the pod does not run it any more."""
        self._give_up(error)
        self.over.set()

    def _give_up(self, error: Exception) -> None:
        if not self.ended.is_set():
            self.error = error
            self._end()

    def result(self, attempt: int = 1) -> TurnResult:
        """What it came to. Raises the error that ended it."""
        if self.error is not None:
            raise self.error
        blocks = [*self._blocks, "".join(self._deltas)] if self._deltas else self._blocks
        return TurnResult(
            "\n\n".join(blocks),
            tuple(self._calls.values()),
            self._result,
            self._requests,
            *self._tokens,
            attempt,
        )

    def _end(self) -> None:
        self.answered.set()
        self.ended.set()
        if self.watcher is not None:
            self.watcher.close()

    def _show(self, event: PodEvent) -> None:
        if self.watcher is None or self.lagged or self.ended.is_set():
            return
        try:
            self.watcher.send_nowait(event)
        except trio.WouldBlock:
            # Reading never waits for who watches: else the pod would cut us off.
            self.lagged = True
            self.watcher.close()
        except trio.BrokenResourceError:
            self.watcher = None

    def _collect(self, event: PodEvent) -> None:
        match event:
            case frames.TurnStart():
                self._requests += 1
            case frames.TextDelta(text=text):
                self._size += len(text)
                self._deltas.append(text)
            case frames.TextDone(text=text):
                self._size += len(text) - sum(map(len, self._deltas))
                self._blocks.append(text)
                self._deltas.clear()
            case frames.ToolCallDone(id=call, name=name, arguments=arguments):
                self._size += len(arguments)
                self._calls[call] = ToolOutcome(call, name, arguments)
            case frames.ToolResult(id=call, output=output, is_error=is_error):
                self._size += len(output)
                known = self._calls.get(call, ToolOutcome(call, "", "{}"))
                self._calls[call] = attrs.evolve(known, output=output, is_error=is_error)
            case frames.Usage(input_tokens=put, output_tokens=got):
                self._tokens = (_sum(self._tokens[0], put), _sum(self._tokens[1], got))


def _sum(a: int | None, b: int | None) -> int | None:
    return a if b is None else b if a is None else a + b


@attrs.define(eq=False)
class TurnEvents:
    """The events of one turn, in order; made by `Pod.open_turn`.

    ``async for event in events`` ends when the turn has. It raises what ended the turn otherwise,
    and `SlowPeerError` where the loop fell so far behind that events were lost; the turn itself goes on
    then and `result` is complete.
    """

    _turn: Turn
    _events: trio.MemoryReceiveChannel[PodEvent]
    _finish: Callable[[Turn], Awaitable[TurnResult]]

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> PodEvent:
        with suppress(trio.EndOfChannel):
            return await self._events.receive()
        if self._turn.lagged:
            raise SlowPeerError("this loop fell behind the pod's events and lost some")
        await self.result()
        raise StopAsyncIteration

    async def result(self) -> TurnResult:
        """Wait for the end of the turn, and return what it came to. Raises what ended it otherwise."""
        return await self._finish(self._turn)
