"""What an operator was given to do lately: the log in its own record (contract: operators 7.3).

Bounded in every direction: so many entries, each text and the metadata of each so large.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping
from typing import Any, Final

import attrs

__all__ = ["Observed", "observation"]

_ENTRIES: Final = 32
_MAX_TEXT: Final = 1024
_MAX_METADATA: Final = 4096
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
    short = {key: None if text is None else _cut(text) for key, text in texts.items()}
    known = dict(metadata or {})
    omitted = len(json.dumps(known).encode()) > _MAX_METADATA
    return {
        "run_id": run_id,
        **short,
        "task_metadata": None if omitted or not known else known,
        "task_metadata_omitted": omitted,
        "text_truncated": short != texts,
        "at_secs": int(at),
    }


@attrs.define(eq=False)
class Observed:
    """The log of one session."""

    _entries: deque[Mapping[str, Any]] = attrs.field(factory=lambda: deque(maxlen=_ENTRIES), repr=False)
    total: int = 0
    """Entries in all; it only grows."""

    def add(self, entry: Mapping[str, Any]) -> None:
        """Note an entry; the oldest of more than 32 is forgotten."""
        self._entries.append(entry)
        self.total += 1

    def about(self) -> dict[str, Any]:
        """For the record of the session, the latest entry last."""
        return {"observed": list(self._entries), "observed_total": self.total}


def _cut(text: str) -> str:
    content = text.encode()
    if len(content) <= _MAX_TEXT:
        return text
    return content[: _MAX_TEXT - len("…".encode())].decode(errors="ignore") + "…"
