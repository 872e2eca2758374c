"""Is this a request to become a WebSocket? Judged before anybody asks who sends it."""

from __future__ import annotations

from typing import Final

from trio_swarm._io.head import Head, HeadError
from trio_swarm._io.http_messages import HttpError
from trio_swarm._io.wsopening import check_upgrade

__all__ = ["require_upgrade"]

_VERSION: Final = ((b"sec-websocket-version", b"13"),)


def require_upgrade(head: Head) -> None:
    """Return if ``head`` is a valid opening handshake (RFC 6455, 4.2.1), else raise `HttpError`.

    400 for a missing or broken header or another version than 13, 426 where the connection
    cannot be upgraded at all: HTTP/1.0 (contract 1.1).
    """
    if head.http_version == "1.0":
        raise HttpError(426, "a WebSocket needs HTTP/1.1", headers=((b"upgrade", b"websocket"),))
    if "upgrade" not in _tokens(head, "connection"):
        raise HttpError(400, "`Connection` header did not include `upgrade`")
    if "websocket" not in _tokens(head, "upgrade"):
        raise HttpError(400, "`Upgrade` header did not include `websocket`")
    versions = head.all("sec-websocket-version")
    if [version.strip() for version in versions] != ["13"]:
        raise HttpError(400, "`Sec-WebSocket-Version` must be `13`", headers=_VERSION)
    try:
        check_upgrade(head)  # The rest of what the WebSocket library would stumble over.
    except HeadError as error:
        raise HttpError(400, error.text) from None


def _tokens(head: Head, name: str) -> set[str]:
    return {token.strip().lower() for value in head.all(name) for token in value.split(",")}
