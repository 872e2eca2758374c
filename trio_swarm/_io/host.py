"""What a room needs of the world, handed to it by whoever owns it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from trio_swarm._io.process import Warden


def _ignore(kind: str, data: Mapping[str, object]) -> None:
    """Nobody listens."""


@attrs.frozen(eq=False)
class Host:
    """The process warden, a private directory for sockets, and a sink for events.

    ``emit(kind, data)`` never blocks and never raises; ``data`` holds JSON values only and
    no secrets.
    """

    warden: Warden
    runtime_dir: Path
    emit: Callable[[str, Mapping[str, object]], None] = _ignore
