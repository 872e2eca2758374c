"""What one connection of the HTTP front may take."""

from __future__ import annotations

import attrs

from trio_swarm.limits import HANDSHAKE_DEADLINE, HURRIED_DEADLINE, MAX_BODY, MAX_HEAD, SEND_DEADLINE

__all__ = ["FrontLimits"]


@attrs.frozen
class FrontLimits:
    """What one connection may take. Times in seconds, sizes in bytes."""

    max_head: int = MAX_HEAD
    max_body: int = MAX_BODY
    head_deadline: float = HANDSHAKE_DEADLINE
    """From the first byte of a request, or from connecting, to the end of its head."""
    body_deadline: float = HANDSHAKE_DEADLINE
    """For the whole body; of a streamed one, for each ``min_progress`` bytes."""
    min_progress: int = 4096
    """What a client must have sent of a streamed body before its deadline starts again."""
    idle_deadline: float = HANDSHAKE_DEADLINE
    """Between two requests of one connection."""
    send_deadline: float = SEND_DEADLINE
    """For one answer to be taken by the client's system."""
    hurried_deadline: float = HURRIED_DEADLINE
    """As ``head_deadline``, for who came beyond the share of its place; see `serve_http`."""
