"""What an operator was given to do lately: the log in its own record (contract: operators 7.3).

Bounded in every direction: so many entries, each text and the metadata of each so large.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any, Final

import attrs

__all__ = ["MAX_LOGGED", "MAX_LOGGED_METADATA", "Observed", "cut", "observation"]

MAX_LOGGED: Final = 32
MAX_LOGGED_TEXT: Final = 1024
MAX_LOGGED_METADATA: Final = 4096
"""Bytes. All three are the original's (contract: operators 8.9)."""


def observation(
    run_id: str,
    slot: str,
    goal: str,
    *,
    at: float,
    project_root: str | None = None,
    work_dir: str | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """One entry: a step that addressed the operator.

    Args:
        run_id: the id of the task.
        slot: the agent. Each text is cut at 1 KiB, which ``text_truncated`` says.
        goal: what is to be done.
        at: seconds since 1970.
        project_root: of the step, as `work_dir`, if they were told.
        work_dir: see there.
        metadata: of the task; left out above 4 KiB, which ``task_metadata_omitted`` says.
    """
    texts = {"slot": slot, "goal": goal, "project_root": project_root, "work_dir": work_dir}
    short = {key: None if text is None else cut(text) for key, text in texts.items()}
    text = json.dumps(dict(metadata or {}))
    omitted = len(text.encode()) > MAX_LOGGED_METADATA
    # It is written to disk later: by then the task's own may be something else.
    known = None if omitted or not metadata else json.loads(text)
    return {
        "run_id": run_id,
        **short,
        "task_metadata": known,
        "task_metadata_omitted": omitted,
        "text_truncated": short != texts,
        "at_secs": int(at),
    }


@attrs.define(eq=False)
class Observed:
    """The log of one session."""

    _entries: deque[Mapping[str, Any]] = attrs.field(factory=lambda: deque(maxlen=MAX_LOGGED), repr=False)
    total: int = 0
    """Entries in all; it only grows."""
    _stored: int = 0
    """So many of these are on disk, or were."""

    @classmethod
    def restored(cls, numbered: Iterable[tuple[int, Mapping[str, Any]]]) -> Observed:
        """A log from disk: entries with their numbers, which count from 1, the latest last."""
        log = cls()
        for number, entry in numbered:
            log._entries.append(entry)
            log.total = log._stored = number
        return log

    def add(self, entry: Mapping[str, Any]) -> None:
        """Note an entry; the oldest of more than 32 is forgotten."""
        self._entries.append(entry)
        self.total += 1

    def unstored(self) -> list[tuple[int, Mapping[str, Any]]]:
        """The entries that are not on disk yet, with their numbers."""
        new = min(self.total - self._stored, len(self._entries))
        latest = list(self._entries)[len(self._entries) - new :]
        return list(enumerate(latest, self.total - new + 1))

    def stored(self, number: int) -> None:
        """The entries up to that number are on disk."""
        self._stored = max(self._stored, number)

    def about(self) -> dict[str, Any]:
        """For the record of the session, the latest entry last."""
        return {"observed": list(self._entries), "observed_total": self.total}


def cut(text: str) -> str:
    """The text, or its beginning of 1 KiB at most."""
    content = text.encode()
    if len(content) <= MAX_LOGGED_TEXT:
        return text
    return content[: MAX_LOGGED_TEXT - len("…".encode())].decode(errors="ignore") + "…"
