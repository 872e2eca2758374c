"""The nursery that owns it all: `open_swarm`."""

from __future__ import annotations

from trio_swarm.swarm.core import Swarm, SwarmReport, open_swarm
from trio_swarm.swarm.events import Event, Subscription

__all__ = ["Event", "Subscription", "Swarm", "SwarmReport", "open_swarm"]
