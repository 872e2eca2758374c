"""A person's desk: the requests that wait, by number, and the commands that answer them."""

from __future__ import annotations

import json
import re
from typing import Any, Final, Literal, TypeAlias

import attrs
import trio

from trio_swarm.cli.operator_view import full_text, notice_text, plain, request_text, summary, ways
from trio_swarm.errors import FrameError
from trio_swarm.frames.operator import HookAfter
from trio_swarm.operators import (
    AskRequest,
    GateRequest,
    OperatorItem,
    OperatorRequest,
    ReplyRefused,
    SpawnRequest,
    Withdrawn,
)

__all__ = ["HELP", "Act", "Desk", "value_of"]

HELP: Final = """\
  answer VALUE    answer a question; VALUE is JSON, or else a text
  ack             let a gated attempt start; report a step as done
  reject [REASON] do not let it start
  done [VALUE]    the step is done, with this value
  fail TEXT       the step failed
  halt [REASON]   the step was stopped on purpose
  prompt          fetch what the step is about, as a worker would
  edit            write the answer or the value in $VISUAL or $EDITOR
  list            what waits;  show  all of one;  #N before a command says which
  leave           stop being an operator here;  logout  end a kept session too"""

_REPLIES: Final = frozenset({"answer", "ack", "reject", "done", "fail", "halt", "edit"})
_LOOKS: Final = frozenset({"show", "prompt"})
_LINE: Final = re.compile(r"\s*(?:#(\d{1,9})\s+)?(\S+)(?:\s+(.*\S))?\s*", re.DOTALL)
_REMEMBERED: Final = 8192
"""Requests whose number is known: more than can wait, for what is said of them later."""
Next: TypeAlias = Literal["go on", "edit", "prompt", "leave", "logout", "wait"]


@attrs.frozen
class Act:
    """What a command came to."""

    text: str = ""
    next: Next = "go on"
    """``edit``: let ``request`` be edited; ``prompt``: fetch what it is about; ``wait``: there
    is nothing to reply to yet."""
    request: OperatorRequest | None = None


@attrs.define(eq=False)
class Desk:
    """Requests in, texts out; commands in, replies to the requests."""

    _waiting: dict[int, OperatorRequest] = attrs.field(factory=dict)
    _numbers: dict[str, int] = attrs.field(factory=dict)
    _last: int = 0
    _current: int | None = None
    """What a command without a number is about: the oldest."""
    _taken_away: int | None = None
    """What it was about when that was withdrawn: the next such command may have been meant for it."""
    _arrived: trio.lowlevel.ParkingLot = attrs.field(factory=trio.lowlevel.ParkingLot, repr=False)

    def take(self, item: OperatorItem) -> str:
        """Something came; what to tell the person."""
        if isinstance(item, HookAfter):
            return notice_text(item)
        if isinstance(item, Withdrawn):
            number = self._numbers.pop(item.req_id, 0)
            if self._waiting.pop(number, None) is None:
                return ""
            if number == self._current:
                self._current, self._taken_away = None, number
            return f"-- #{number} was withdrawn: {plain(item.reason)}"
        if isinstance(item, ReplyRefused):
            number = self._numbers.pop(item.req_id, 0)
            return f"-- the reply to #{number} did not count: {plain(item.reason)}"
        self._last += 1
        self._waiting[self._last] = item
        self._numbers[item.req_id] = self._last
        self._forget_oldest()
        if self._current is None and self._taken_away is None:
            self._current = self._last
        self._arrived.unpark_all()
        return request_text(self._last, item, trio.current_time())

    async def wait(self) -> None:
        """Wait until something waits."""
        await trio.lowlevel.checkpoint()
        while not self._waiting:
            await self._arrived.park()

    @property
    def waiting(self) -> int:
        """Requests that wait for a reply."""
        return len(self._waiting)

    def command(self, line: str) -> Act:
        """Do what the person typed."""
        match = _LINE.fullmatch(line)
        if match is None:
            return Act()
        number, verb, rest = match[1], match[2], match[3] or ""
        if verb in ("leave", "logout"):
            return Act(next="leave" if verb == "leave" else "logout")
        if verb == "list":
            return Act(self._list())
        if verb == "help":
            return Act(HELP)
        if verb not in _REPLIES and verb not in _LOOKS:
            return Act(f"no such command: {plain(verb)}; `help` lists them")
        if not self._waiting:
            return Act(self._list(), next="wait")
        chosen = self._choose(None if number is None else int(number))
        if isinstance(chosen, str):
            return Act(chosen)
        request = self._waiting[chosen]
        if verb == "show":
            return Act(full_text(chosen, request, trio.current_time()))
        if verb == "prompt":
            if isinstance(request, SpawnRequest):
                return Act(next="prompt", request=request)
            return Act(f"#{chosen} is {request.kind}: it has no prompt")
        if verb == "edit" and not isinstance(request, GateRequest):
            return Act(next="edit", request=request)
        return Act(self._reply(chosen, request, verb, rest))

    def edited(self, request: OperatorRequest, text: str | None) -> str:
        """The editor was left with this in its file."""
        number = self._numbers.get(request.req_id, 0)
        if number not in self._waiting:
            return f"-- #{number} does not wait any more"
        if text is None or not text.strip():
            return f"-- nothing was sent for #{number}"
        return self._reply(
            number, request, "answer" if isinstance(request, AskRequest) else "done", text.rstrip("\n")
        )

    def _choose(self, number: int | None) -> int | str:
        """The number of the request that is meant, or why there is none."""
        if number is not None:
            return number if number in self._waiting else f"#{number} does not wait"
        taken_away, self._taken_away = self._taken_away, None
        if self._current not in self._waiting:
            self._current = min(self._waiting)
        if taken_away is not None:
            return f"nothing was sent: #{taken_away} was withdrawn; #{self._current} is next, say it again"
        return self._current

    def _reply(self, number: int, request: OperatorRequest, verb: str, rest: str) -> str:
        try:
            sent = _replied(request, verb, rest)
        except FrameError as error:
            return f"not sent: {error}"
        if sent is None:
            return f"#{number} is {request.kind}: {ways(request)}"
        del self._waiting[number]
        if number == self._current:
            self._current = min(self._waiting, default=None)
        if not sent:
            return f"-- #{number} was withdrawn meanwhile"
        following = (
            f"; next is {summary(self._current, self._waiting[self._current], trio.current_time())}"
            if self._current is not None
            else ""
        )
        return f"-- replied to #{number}{following}"

    def _forget_oldest(self) -> None:
        for req_id in list(self._numbers)[: max(0, len(self._numbers) - _REMEMBERED)]:
            if self._numbers[req_id] not in self._waiting:
                del self._numbers[req_id]

    def _list(self) -> str:
        if not self._waiting:
            # They know now of what was withdrawn: what they say next cannot be meant for it.
            self._taken_away = None
            return "nothing waits"
        now = trio.current_time()
        lines = [
            f"{'>' if number == self._current else ' '} {summary(number, request, now)}"
            for number, request in self._waiting.items()
        ]
        return "\n".join(lines)


def value_of(text: str) -> Any:
    """JSON if it is that, else the text itself."""
    try:
        return json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return text


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _replied(request: OperatorRequest, verb: str, rest: str) -> bool | None:
    """Send it; None if that is no reply to such a request."""
    if isinstance(request, AskRequest):
        return request.answer(value_of(rest)) if verb == "answer" and rest else None
    if isinstance(request, SpawnRequest):
        return _spawn_replied(request, verb, rest)
    if verb == "ack" and not rest:
        return request.ack()
    return request.reject(rest or None) if verb == "reject" else None


def _spawn_replied(request: SpawnRequest, verb: str, rest: str) -> bool | None:
    if verb == "done" or (verb == "ack" and not rest):
        return request.ack(value_of(rest)) if rest else request.ack()
    if verb == "fail" and rest:
        return request.fail(rest)
    return request.halt(reason=rest or None) if verb == "halt" else None
