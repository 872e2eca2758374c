"""What one connection of the HTTP front may take."""

from __future__ import annotations

from typing import Any

import attrs

from trio_swarm.limits import HANDSHAKE_DEADLINE, HURRIED_DEADLINE, MAX_BODY, MAX_HEAD, SEND_DEADLINE

__all__ = ["FrontLimits"]


def _above_zero(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    """Which NaN is not, either; infinity is."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
        raise ValueError(f"{attribute.name}: expected a number above 0, not {value!r}")


@attrs.frozen
class FrontLimits:
    """What one connection may take. Times in seconds, sizes in bytes.

    Raises ``ValueError``, which names the limit, for what is no number above 0.
    """

    max_head: int = attrs.field(default=MAX_HEAD, validator=_above_zero)
    max_body: int = attrs.field(default=MAX_BODY, validator=_above_zero)
    head_deadline: float = attrs.field(default=HANDSHAKE_DEADLINE, validator=_above_zero)
    """From the first byte of a request, or from connecting, to the end of its head."""
    body_deadline: float = attrs.field(default=HANDSHAKE_DEADLINE, validator=_above_zero)
    """For the whole body; of a streamed one, for each ``min_progress`` bytes."""
    min_progress: int = attrs.field(default=4096, validator=_above_zero)
    """What a client must have sent of a streamed body before its deadline starts again."""
    idle_deadline: float = attrs.field(default=HANDSHAKE_DEADLINE, validator=_above_zero)
    """Between two requests of one connection."""
    send_deadline: float = attrs.field(default=SEND_DEADLINE, validator=_above_zero)
    """For one answer to be taken by the client's system."""
    hurried_deadline: float = attrs.field(default=HURRIED_DEADLINE, validator=_above_zero)
    """As ``head_deadline``, for who came beyond the share of its place; see `serve_http`."""
