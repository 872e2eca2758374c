"""What a pod remembers of its conversation, within bounds, and what it tells of it.

Clients are told the history as of the end of the last run (pods contract, B2.4 rule 3): a run collects
its items by itself and they join at its end. Each item is encoded once, so that writing
``history.json`` at the end of each run does not cost more with every run.
"""

from __future__ import annotations

import json
from collections import deque
from typing import Final, Literal

import attrs

from trio_swarm.frames import encode
from trio_swarm.frames.pod import HistoryItem, MessageItem, TextPart, ToolCallItem, ToolResultItem

__all__ = ["MAX_HISTORY", "MAX_ITEM_TEXT", "PodHistory", "call_items", "clip", "message"]

MAX_HISTORY: Final = 2 * 2**20
"""Characters of all items as JSON; beyond it the oldest go. It has to fit in one line of 16 MiB."""

MAX_ITEM_TEXT: Final = 128 * 2**10
"""Characters of one text in an item; the rest is left out and said so."""

_SUMMARY: Final = 200


def clip(text: str) -> str:
    """``text``, shortened to `MAX_ITEM_TEXT` where it is longer."""
    if len(text) <= MAX_ITEM_TEXT:
        return text
    return f"{text[:MAX_ITEM_TEXT]}\n[{len(text) - MAX_ITEM_TEXT} more characters left out]"


def message(role: Literal["user", "assistant"], text: str, *, complete: bool = True) -> MessageItem:
    """A message; one of the assistant says whether it is all of it."""
    if role == "user":
        return MessageItem(role, (TextPart(clip(text)),))
    return MessageItem(role, (TextPart(clip(text)),), status="completed" if complete else "incomplete")


def call_items(call_id: str, name: str, arguments: str, output: str) -> list[HistoryItem]:
    """The two items of one tool call; ``arguments`` is JSON text and stays that."""
    if len(arguments) > MAX_ITEM_TEXT:
        arguments = json.dumps({"omitted_characters": len(arguments)})
    summary = output.partition("\n")[0][:_SUMMARY]
    content = None if output == summary else clip(output)
    return [ToolCallItem(call_id, name, arguments), ToolResultItem(call_id, summary, content)]


@attrs.define(eq=False)
class PodHistory:
    """The items of all runs that have ended."""

    max_size: int = MAX_HISTORY
    """See `MAX_HISTORY`."""
    _items: deque[tuple[HistoryItem, str]] = attrs.field(factory=deque, init=False)
    _size: int = attrs.field(default=0, init=False)

    def extend(self, items: list[HistoryItem]) -> None:
        """Add one run's items; the oldest of all go where there are too many."""
        for item in items:
            text = encode(item)
            self._items.append((item, text))
            self._size += len(text) + 1
        while self._size > self.max_size:
            self._size -= len(self._items.popleft()[1]) + 1

    @property
    def items(self) -> tuple[HistoryItem, ...]:
        """All items, oldest first."""
        return tuple(item for item, _ in self._items)

    def document(self) -> bytes:
        """``history.json``: a compact JSON list."""
        return f"[{','.join(text for _, text in self._items)}]".encode()
