"""The directories of a swarm and the warden that removes them, also when this process is killed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import attrs

from trio_swarm._io.process import open_warden
from trio_swarm._io.runtime import make_private, private_dir
from trio_swarm._io.warden_client import Warden

__all__ = ["Places", "open_places"]


@attrs.frozen
class Places:
    """Both directories have mode 0700."""

    warden: Warden
    runtime: Path
    """For sockets; where the system keeps such things, which may be in memory."""
    spool: Path
    """For large outputs; where temporary files go."""


@asynccontextmanager
async def open_places(*, grace: float) -> AsyncIterator[Places]:
    """The warden is told of the directories before they are made: at no moment is one nobody's.

    Raises as `open_warden` and `private_dir` do.
    """
    async with (
        private_dir("trio-swarm-", make=False) as runtime,
        private_dir("trio-swarm-spool-", make=False, sockets=False) as spool,
        open_warden(grace=grace, remove=[runtime, spool]) as warden,
    ):
        make_private(runtime)
        make_private(spool)
        yield Places(warden, runtime, spool)
