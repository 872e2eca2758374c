"""What a swarm tells of its processes."""

from __future__ import annotations

import attrs

from trio_swarm._io.process import ProcessReport

__all__ = ["SwarmReport"]


@attrs.frozen
class SwarmReport:
    """What became of the swarm's processes."""

    name: str
    seconds: float
    """Since the block was entered."""
    processes: tuple[ProcessReport, ...]
    """A receipt for each process that has ended, strays included, in the order of their ends."""
    survivors: tuple[int, ...]
    """Pids of processes of the swarm that are there now, as the system tells, not as we remember:
    those at work while the block is open, none after it."""
