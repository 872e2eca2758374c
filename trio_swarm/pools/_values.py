"""What a pool tells and asks: values only."""

from __future__ import annotations

from typing import Any, Literal

import attrs

__all__ = ["JobQuery", "Outcome", "PoolStatistics", "WorkerInfo"]


@attrs.frozen
class JobQuery:
    """A job waits for this answer."""

    prompt: str
    system: str | None
    max_tokens: int
    query_id: str
    """Its id within the pause (``q-0``, ...); ids repeat from pause to pause."""
    ctx: Any
    """What the job was given."""
    attempt: int
    """1, or more if earlier workers died under the job: then the same was asked before."""


@attrs.frozen
class Outcome:
    """How one item of `Pool.map` ended; every item has exactly one."""

    kind: Literal["ok", "error", "crashed"]
    value: Any = None
    """The job's result, if it is ``ok``."""
    error: Exception | None = None
    """What `Pool.run` would have raised, if it is not. ``crashed``: a `ChildCrashed`."""
    attempts: int = 1
    """Times that the job was handed to a worker."""


@attrs.frozen
class WorkerInfo:
    """One live worker, as it was when asked."""

    pid: int
    sid: str
    state: Literal["idle", "busy", "leaving"]
    job: int | None
    """The number of the job that it runs: 1 for the pool's first."""


@attrs.frozen
class PoolStatistics:
    """Counts of a pool, now and since it was opened."""

    size: int
    """Workers that there should be."""
    idle: int
    busy: int
    waiting: int
    """Jobs that wait for a worker."""
    completed: int
    """Jobs that gave a result."""
    failed: int
    """Jobs that raised."""
    crashed: int
    """Jobs given up because they took down a worker at each of their attempts."""
    retried: int
    """Times that a job was run again."""
    restarts: int
    """Workers started in the place of one that crashed."""
    replaced: int
    """Workers started in the place of one that the pool itself ended (a cancelled job, say)."""
