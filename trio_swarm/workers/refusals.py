"""What a worker's request was answered, as an exception where that was no success.

Contract: operators 1.6; where the original answers 500 for everything, ours tells the cases
apart, and so does this.
"""

from __future__ import annotations

from typing import Final, NoReturn

from trio_swarm._io.http_client import Reply
from trio_swarm.errors import (
    BadTokenError,
    BusyError,
    FrameError,
    PeerError,
    ProtocolError,
    Refused,
)
from trio_swarm.frames import parse_json

__all__ = ["AttemptOver", "RequestRefused", "raise_for"]

_SHOWN: Final = 200
_READ: Final = 64 * 2**10


class RequestRefused(Refused):
    """The server understood a worker's request and refused it; ``status`` is the HTTP status."""

    def __init__(self, message: str, *, status: int) -> None:
        super().__init__(message)
        self.status = status


class AttemptOver(RequestRefused):
    """The attempt that this worker works for has ended, or a later one has begun: stop.

    409: superseded by a later attempt. 410: the attempt, the task or the credential is gone.
    """


def raise_for(what: str, reply: Reply, *, secrets: tuple[str, ...], note: str = "") -> NoReturn:
    """Raise what the answer to ``what`` means. ``secrets`` are cut out of the server's words.

    Raises:
        BadTokenError: 401 and 403.
        AttemptOver: 409 and 410.
        RequestRefused: another 4xx.
        BusyError: 429, 503 and 507.
        PeerError: another 5xx.
        ProtocolError: a status that this request cannot have.
    """
    status = reply.status
    message = f"{what} was refused: {status} {_words(reply, secrets)}".rstrip() + note
    if status in (401, 403):
        raise BadTokenError(message)
    if status in (409, 410):
        raise AttemptOver(message, status=status)
    if status in (429, 503, 507):
        after = reply.header("retry-after") or ""
        raise BusyError(f"{message}, again after {after} s" if after.isdecimal() else message)
    if 400 <= status < 500:
        raise RequestRefused(message, status=status)
    if status >= 500:
        raise PeerError(f"{what} failed at the server: {status} {_words(reply, secrets)}".rstrip() + note)
    raise ProtocolError(f"{what} was answered {status}, which means nothing there")


def _words(reply: Reply, secrets: tuple[str, ...]) -> str:
    """What the server said, in one printable line: ``{"error": text}``, or a plain text."""
    body = reply.body[:_READ]
    try:
        value = parse_json(body)
    except FrameError:
        value = None
    said = value.get("error") if isinstance(value, dict) else None
    text = said if isinstance(said, str) else body.decode("utf-8", "replace")
    for secret in secrets:
        text = text.replace(secret, "[bearer]")
    return "".join(char if char.isprintable() else " " for char in text[:_SHOWN]).strip()
