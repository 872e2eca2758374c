"""The nursery that owns it all: `open_swarm`."""

from __future__ import annotations

from trio_swarm._io.runtime import check_place
from trio_swarm.swarm.core import Swarm, SwarmReport, open_swarm
from trio_swarm.swarm.events import Event, Subscription

__all__ = ["Event", "Subscription", "Swarm", "SwarmReport", "check_place", "open_swarm"]
