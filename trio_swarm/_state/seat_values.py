"""What the machine of a seat says and is told: see `trio_swarm._state.seat`."""

from __future__ import annotations

from enum import Enum
from typing import Protocol

import attrs

__all__ = ["Attached", "Due", "Frame", "GivenUp", "Phase", "SeatGone", "SeatStatistics"]


class Phase(Enum):
    """Where a seat is."""

    AWAY = "away"
    CONNECTED = "connected"
    GONE = "gone"


class Frame(Protocol):
    """What the machine needs to know of a frame."""

    @property
    def req_id(self) -> str: ...


class SeatGone(Exception):
    """The seat was closed for good; ``reason`` says why."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@attrs.frozen
class Due:
    """A frame to write now."""

    frame: object
    """With ``deadline_ms`` as of now, if it is a request that has a deadline to come."""
    order: int
    """Its place in the seat's history; grows with every request and notice."""
    again: bool = False
    """It was offered on an earlier socket already."""
    notice: bool = False
    """Nothing answers it: call `SeatMachine.written` when the socket has taken it."""


@attrs.frozen
class Attached:
    """What attaching a socket did."""

    replaced: int | None
    """The older socket, still open, that must be closed now."""
    again: tuple[str, ...]
    """Request ids that are delivered again, in order."""


@attrs.frozen
class GivenUp:
    """What giving a request up did."""

    dropped: Frame | None = None
    """The oldest word of an earlier withdrawal, lost because their queue was full."""


@attrs.frozen
class SeatStatistics:
    """Counts since the seat was made."""

    outstanding: int
    """Requests that wait for an answer now."""
    offered: int
    """Those of them that were taken for writing on a socket, this one or an earlier: delivered
    again on the next."""
    notices: int
    """Notices, of withdrawals too, that wait to be written now."""
    requests: int
    """Requests made."""
    settled: int
    """Requests answered."""
    withdrawn: int
    """Requests given up by their askers."""
    redelivered: int
    """Requests offered again on a newer socket, each time counted."""
    notices_dropped: int
    """Notices lost because their queue was full."""
    sockets: int
    """Sockets attached."""
