"""``python -m trio_swarm._child.actor``: a child actor's process (children contract, A4.2).

Reads one provision document on standard input, builds its engine, and serves. What can fail
before that fails with one line on standard error: status 1 for a document that is none, 2 for an
executor that this program does not have or cannot load. Trio and the WebSocket server are
imported only once the document is good.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, BinaryIO

from trio_swarm._child import lifeline
from trio_swarm.errors import FrameError
from trio_swarm.limits import MAX_PROVISION

if TYPE_CHECKING:
    from trio_swarm import frames

__all__ = ["WARM", "main", "read_spec"]

WARM = ("trio_swarm._child.actor_engines", "trio_swarm._child.actor_process")
"""What every actor imports; see ``stem.py``."""


def read_spec(stream: BinaryIO) -> frames.ProvisionSpec:
    """The provision document on ``stream``: 8 MiB at most, lossy UTF-8, trimmed.

    Raises `FrameError` with the key at fault; never with the document's content, which holds secrets.
    """
    from trio_swarm import frames

    raw = stream.read(MAX_PROVISION + 1)
    if len(raw) > MAX_PROVISION:
        raise FrameError(f"more than {MAX_PROVISION} bytes")
    return frames.decode(raw.decode("utf-8", "replace").strip(), frames.ProvisionSpec)


def main() -> int:
    """Be the actor; the exit status."""
    lifeline.watch()
    try:
        spec = read_spec(sys.stdin.buffer)
    except FrameError as error:
        print(f"actor: not a provision document: {error}", file=sys.stderr)
        return 1
    from trio_swarm._child.actor_engines import Unsupported, build_engine

    try:
        engine = build_engine(spec.executor)
    except Unsupported as error:
        print(f"provision error: {error}", file=sys.stderr)
        return 2
    from trio_swarm._child.actor_process import ActorProcess

    try:
        return ActorProcess(spec, engine).run()
    except (OSError, ValueError) as error:  # a fabric that cannot be written, an id that may not be
        print(f"actor: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
