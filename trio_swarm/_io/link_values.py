"""What a link gives beside frames: messages that are none, and its counts."""

from __future__ import annotations

import attrs

from trio_swarm.errors import FrameError

__all__ = ["LinkStatistics", "Malformed"]


@attrs.frozen
class Malformed:
    """A message that is not a frame of the link's union; the room decides what that means."""

    error: FrameError
    """What is wrong with it; ``error.unknown_tag`` is set where only the tag is unknown."""
    size: int
    """Its length."""
    data: str | bytes = attrs.field(default="", repr=False)
    """The message, if it is a short one: it may say who is to be told."""


@attrs.frozen
class LinkStatistics:
    """Counts since the link was opened."""

    frames_in: int
    """Messages received, malformed ones included."""
    frames_out: int
    """Frames handed to the operating system."""
    writes: int
    """Writes to the stream; far fewer than frames when they are many."""
    reads: int
    """Reads from the stream."""
    malformed: int
    """Messages that were no frame."""
    ignored: int
    """Messages that the transport dropped (binary ones, over WebSocket)."""
    queued: int
    """Frames that wait for the writer now."""
    waiting: int
    """Frames that wait for `Link.receive` now."""
