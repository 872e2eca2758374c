"""The command line: ``trio-swarm`` and ``python -m trio_swarm``."""

from __future__ import annotations

from trio_swarm.cli.command import main

__all__ = ["main"]
