"""Pools: worker processes that run code, pause on a query and go on with the answer.

`open_pool` owns its workers; `connect_worker` speaks to any single worker that keeps the
contract (pools.md).
"""

from __future__ import annotations

from trio_swarm.pools._client import Answer, WorkerClient, WorkerError, connect_worker
from trio_swarm.pools._map import Results
from trio_swarm.pools._pool import OnQuery, Pool, open_pool
from trio_swarm.pools._values import JobQuery, Outcome, PoolStatistics, WorkerInfo

__all__ = [
    "Answer",
    "JobQuery",
    "OnQuery",
    "Outcome",
    "Pool",
    "PoolStatistics",
    "Results",
    "WorkerClient",
    "WorkerError",
    "WorkerInfo",
    "connect_worker",
    "open_pool",
]
