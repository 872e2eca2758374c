"""What an engine works with during one run: its input, the conversation so far, events, tools, files.

An engine is ``async def turn(turn: PodTurn) -> None | str``, named by the pod's target. The text that it
sends with `PodTurn.text`, or returns, is the assistant's answer; what it raises ends the run with
an ``error`` event, and the pod goes on.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, Literal, Protocol

import attrs

from trio_swarm._child.pod_files import ScopedFiles
from trio_swarm._child.pod_history import PodHistory, call_items, message
from trio_swarm._child.pod_tools import Tool, ToolFailed, failure
from trio_swarm._state.pod_controller import RunResult, StartTurn, notification_text
from trio_swarm.frames import pod as frames
from trio_swarm.frames.pod import HistoryItem

__all__ = ["Engine", "PodTurn", "TurnHost", "printable"]

MAX_MESSAGE: Final = 16 * 2**10
"""Characters of an error's text that clients are sent."""


MAX_ITEMS: Final = 4096
"""Items of one run that the history gets; the last ones, where there are more."""


def printable(text: str, limit: int | None = None) -> str:
    """``text`` as it can go over the wire: lone surrogates replaced, at most ``limit`` characters."""
    return text[:limit].encode("utf-8", "replace").decode()


class TurnHost(Protocol):
    """What a run needs of its pod."""

    tools: Mapping[str, Tool]
    """The pod's own tools, by name."""

    def broadcast(self, event: object) -> None:
        """Send an event to every client. Raises `FrameError` where it cannot be sent at all."""

    def begin_request(self) -> None:
        """A request to the model begins, unless one is open."""

    def end_request(self) -> None:
        """It has been answered, if one was open."""

    def take_notifications(self) -> tuple[frames.Notify, ...]:
        """What came for the model meanwhile."""

    def alert(self, level: Literal["warn", "error"], text: str) -> None:
        """Tell people something, those too who connect later."""

    async def pace(self) -> None:
        """Wait, for a moment at most, for clients that fall behind. Always a checkpoint."""


@attrs.define(eq=False)
class PodTurn:
    """One run of the engine."""

    input: str | None
    """The user's message; None where a notification started the run, or it was resumed."""
    notifications: tuple[str, ...] = attrs.field(repr=False)
    """What the model is to be told before it answers; not part of the history."""
    resumed: bool
    """Whether this goes on after a pause."""
    files: ScopedFiles = attrs.field(repr=False)
    """Reading and writing within the pod's scope."""
    _history: PodHistory = attrs.field(repr=False)
    _host: TurnHost = attrs.field(repr=False)
    _result: RunResult = attrs.field(default="finished", init=False)
    _items: deque[HistoryItem] = attrs.field(factory=lambda: deque(maxlen=MAX_ITEMS), init=False, repr=False)
    _text: list[str] = attrs.field(factory=list, init=False, repr=False)
    _calls: int = attrs.field(default=0, init=False)

    @classmethod
    def begin(cls, start: StartTurn, history: PodHistory, files: ScopedFiles, host: TurnHost) -> PodTurn:
        """The turn that the controller asked for."""
        told = tuple(notification_text(each) for each in start.notifications)
        turn = cls(start.input, told, start.resumed, files, history, host)
        if start.input is not None:
            turn._items.append(message("user", start.input))
        return turn

    @property
    def history(self) -> tuple[HistoryItem, ...]:
        """The conversation up to the end of the last run, oldest first, within bounds."""
        return self._history.items

    async def text(self, delta: str) -> None:
        """Send a piece of the answer; waits for a moment where clients are slow.

        Raises `FrameError` for text that has no UTF-8 form. When cancelled, it was sent.
        """
        if delta:
            self._host.begin_request()
            self._host.broadcast(frames.TextDelta(delta))
            self._text.append(delta)
        await self._host.pace()

    async def tool(self, name: str, arguments: Mapping[str, Any], run: Tool | None = None) -> str:
        """Call a tool, telling the clients; returns its output.

        Args:
            name: one of the pod's own tools (``Read``, ``Write``), or any with ``run``.
            arguments: JSON values.
            run: an async function of the arguments, in place of the pod's own tool.

        Raises:
            ToolFailed: it raised; the clients and the history know already.
        """
        text = json.dumps(arguments)
        tool = run if run is not None else self._host.tools.get(name)
        self._calls += 1
        call = f"call_{self._calls}"
        self._close_text()
        self._host.begin_request()
        self._host.broadcast(frames.ToolCallStart(call, name))
        self._host.broadcast(frames.ToolCallDone(call, name, text))
        # The model's request is over before its tools run (B2.5).
        self._host.end_request()
        try:
            if tool is None:
                raise ToolFailed(f"Invalid argument: there is no tool named {name!r}")
            output = printable(await tool(arguments))
        except Exception as error:
            failed = failure(error)
            self._told(call, name, text, printable(str(failed), MAX_MESSAGE), is_error=True)
            raise failed from error
        self._told(call, name, text, output, is_error=False)
        await self._host.pace()
        return output

    async def usage(self, input_tokens: int | None = None, output_tokens: int | None = None) -> None:
        """Tell what the request to the model cost; None where that is not known."""
        self._host.begin_request()
        self._host.broadcast(frames.Usage(input_tokens, output_tokens))
        await self._host.pace()

    async def alert(self, level: Literal["warn", "error"], text: str) -> None:
        """Tell the people who watch something, also those who connect later (a ``notification`` event)."""
        self._host.alert(level, text)
        await self._host.pace()

    def take_notifications(self) -> tuple[str, ...]:
        """What came for the model since the run began, or since this was called last."""
        return tuple(notification_text(each) for each in self._host.take_notifications())

    def pause(self) -> None:
        """Let the run end as paused when the engine returns: ``resume`` calls it again."""
        self._result = "paused"

    def limit_reached(self) -> None:
        """Let the run end as one that stopped at a limit when the engine returns."""
        self._result = "limit_reached"

    # -- for the pod ---------------------------------------------------------------------

    @property
    def result(self) -> RunResult:
        """How the run ends if the engine returns now."""
        return self._result

    def close(self, *, complete: bool) -> list[HistoryItem]:
        """The run is over: tell the last text, and return what the history gets."""
        self._close_text(complete=complete)
        return list(self._items)

    def _close_text(self, *, complete: bool = True) -> None:
        if not self._text:
            return
        whole = "".join(self._text)
        self._text.clear()
        self._items.append(message("assistant", whole, complete=complete))
        if complete:
            self._host.broadcast(frames.TextDone(whole))

    def _told(self, call: str, name: str, arguments: str, output: str, *, is_error: bool) -> None:
        self._items.extend(call_items(call, name, arguments, output))
        self._host.broadcast(frames.ToolResult(call, output, is_error))


Engine = Callable[[PodTurn], Awaitable[str | None]]
"""What a pod's target names."""
