"""Sessions of ``POST /v1/sessions``: who said that it is there (operators contract 1.2, 6 and 7).

A session gives no right to anything; by contract it is only made, counted and ended, and no
request uses it. Its id is the nonce of a token, of which the digest alone is kept. Making one
asks for no credential: whoever makes many drives out the oldest, and shuts nobody out.
"""

from __future__ import annotations

from trio_swarm._state.token import fingerprint_of
from trio_swarm.limits import MAX_WORKER_SESSIONS, WORKER_SESSION_LIFE

__all__ = ["AttachedSessions"]


class AttachedSessions:
    """The sessions of one board; ``now`` is in Unix seconds."""

    def __init__(self, *, most: int = MAX_WORKER_SESSIONS) -> None:
        self._most = most
        self._ends: dict[str, float] = {}
        """By digest, the oldest first."""

    def __len__(self) -> int:
        return len(self._ends)

    def attach(self, nonce: str, *, expire_at: float | None, now: float) -> None:
        """A new session; None is for one whose token does not end by time.

        Every session is over ``WORKER_SESSION_LIFE`` seconds after it was made. Where there
        are as many as there may be, those that are over are forgotten, else the oldest.
        """
        if len(self._ends) >= self._most:
            self._ends = {name: end for name, end in self._ends.items() if now < end}
        while len(self._ends) >= self._most:
            del self._ends[next(iter(self._ends))]
        longest = now + WORKER_SESSION_LIFE
        self._ends[fingerprint_of(nonce)] = longest if expire_at is None else min(expire_at, longest)

    def detach(self, nonce: str, *, now: float) -> bool:
        """It is over. False if it was already, or never was."""
        name = fingerprint_of(nonce)
        end = self._ends.pop(name, None)
        return end is not None and now < end
