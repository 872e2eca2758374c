"""The nursery that owns it all: `open_swarm`; steps that operators and workers do: `Swarm.dispatch`."""

from __future__ import annotations

from trio_swarm._io.runtime import check_place
from trio_swarm.operators.directive import DirectiveContext
from trio_swarm.swarm.core import Swarm, SwarmReport, open_swarm
from trio_swarm.swarm.events import Event, Subscription
from trio_swarm.swarm.serving import check_base_url
from trio_swarm.swarm.steps import OperatorBinding, RetryPolicy, Step

__all__ = [
    "DirectiveContext",
    "Event",
    "OperatorBinding",
    "RetryPolicy",
    "Step",
    "Subscription",
    "Swarm",
    "SwarmReport",
    "check_base_url",
    "check_place",
    "open_swarm",
]
