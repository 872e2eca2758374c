"""One try of a task, as the board's machine keeps it, and how a request of its worker is refused."""

from __future__ import annotations

import hmac
from typing import Any

import attrs

from trio_swarm._state.grants import UseCounts
from trio_swarm.errors import Refused
from trio_swarm.limits import IDEMPOTENCY_KEYS, KEY_LIFE

__all__ = ["AttemptRecord", "Denied", "FinalValue", "Remembered"]


class Denied(Refused):
    """A worker's request is refused: the HTTP ``status``, a text, and when to come again."""

    def __init__(self, status: int, text: str, *, retry_after: float | None = None) -> None:
        super().__init__(text)
        self.status = status
        self.text = text
        self.retry_after = retry_after


@attrs.frozen
class FinalValue:
    """A terminal output of an attempt."""

    value: Any = attrs.field(repr=False)
    ok: bool
    by: str
    """Who gave it: ``worker``, or what the dispatcher calls the others."""


@attrs.frozen
class Remembered:
    """What a request with an idempotency key was, and what it was answered."""

    digest: bytes = attrs.field(repr=False)
    """Of the request; another one with the same key is a fault of the client."""
    answer: Any
    at: float


@attrs.define(eq=False)
class AttemptRecord:
    """One try of a task."""

    task_id: str
    number: int
    expire_at: float
    handle_digest: bytes = attrs.field(repr=False)
    fingerprints: list[str] = attrs.field(repr=False)
    """Of its tokens, the one it began with first."""
    ended: bool = False
    fetched: bool = False
    uses: UseCounts = attrs.field(factory=UseCounts, repr=False)
    final: FinalValue | None = None
    """The last one: it decides (contract 4.8)."""
    finals: int = 0
    keys: dict[str, Remembered] = attrs.field(factory=dict, repr=False)

    @property
    def overhead(self) -> int:
        """Bytes, about, of what is remembered for its requests."""
        return 1024 + 1024 * len(self.keys) + 1024 * len(self.uses)

    def give(self, final: FinalValue) -> None:
        """One more Final; it replaces those before."""
        self.final = final
        self.finals += 1

    def recall(self, key: str, digest: bytes) -> Remembered | None:
        """The answer to the same request before; `Denied` 422 if that was another request."""
        known = self.keys.get(key)
        if known is not None and not hmac.compare_digest(known.digest, digest):
            raise Denied(422, "this Idempotency-Key came with another request before")
        return known

    def make_room(self, now: float) -> None:
        """For one more answer; `Denied` 503 where all are too young to be forgotten for it."""
        while len(self.keys) >= IDEMPOTENCY_KEYS:
            oldest = next(iter(self.keys))
            left = self.keys[oldest].at + KEY_LIFE - now
            if left > 0:
                raise Denied(503, "too many answers of this attempt are remembered", retry_after=left)
            del self.keys[oldest]

    def remember(self, key: str, digest: bytes, answer: Any, *, now: float) -> None:
        """Keep an answer for the request's repetition."""
        self.keys[key] = Remembered(digest, answer, now)
