"""The command line: ``trio-swarm`` and ``python -m trio_swarm``; it heeds signals, then imports the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trio_swarm.cli.early import EarlySignals

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit status.

    *argv* is what follows the program's name, ``sys.argv[1:]`` by default. Errors are one line
    on standard error: ``trio-swarm: error: ...``. Ctrl-C ends it with status 130, SIGTERM with 143,
    SIGHUP with 129.
    """
    with EarlySignals() as early:
        from trio_swarm.cli.command import run

        return run(argv, early.loaded)
