"""The pods' framing: JSON lines among which blank ones are nothing (pods contract, B2)."""

from __future__ import annotations

from collections.abc import Sequence

from trio_swarm._io.lines import LineTransport

__all__ = ["PodLines"]


class PodLines(LineTransport):
    """JSON lines; a line of white space alone is skipped."""

    async def receive_batch(self) -> Sequence[str | bytes]:
        """See `Transport`."""
        while batch := await super().receive_batch():
            if lines := [line for line in batch if line.strip()]:
                return lines
        return ()
