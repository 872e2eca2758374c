"""What comes before a WebSocket: the URL, the check of a handshake."""

from __future__ import annotations

import base64
import binascii
import logging
from typing import Final
from urllib.parse import urlsplit

import attrs
import trio

from trio_swarm._io.head import Head, HeadError
from trio_swarm.limits import CLOSE_DEADLINE

__all__ = ["Address", "check_upgrade", "parse_url", "refuse"]

_log: Final = logging.getLogger("trio_swarm.ws")


@attrs.frozen
class Address:
    """Where a WebSocket URL points."""

    host: str
    port: int
    authority: str
    resource: str
    secure: bool
    uds: str | None = None
    """The path of the Unix socket that leads there, whatever host and port say; None: TCP."""

    @property
    def name(self) -> str:
        """What it is called in errors: the socket's path, or ``authority``."""
        return self.authority if self.uds is None else self.uds


def parse_url(url: str, uds: str | None = None) -> Address:
    """``url`` in parts, with the path of a Unix socket that leads there. Raises ``ValueError``."""
    parts = urlsplit(url)
    if parts.scheme not in ("ws", "wss") or not parts.hostname:
        raise ValueError("a WebSocket URL begins with ws:// or wss:// and names a host")
    if parts.username is not None or parts.password is not None or parts.fragment:
        raise ValueError("a WebSocket URL has no user, password or fragment here")
    if not url.isascii() or any(char.isspace() or not char.isprintable() for char in url):
        raise ValueError("a WebSocket URL is ASCII without blanks")
    secure = parts.scheme == "wss"
    default = 443 if secure else 80
    port = default if parts.port is None else parts.port
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    query = f"?{parts.query}" if parts.query else ""
    return Address(
        host=parts.hostname,
        port=port,
        authority=host if port == default else f"{host}:{port}",
        resource=(parts.path or "/") + query,
        secure=secure,
        uds=uds,
    )


def check_upgrade(head: Head) -> None:
    """That trio-websocket will take it: for all else it answers, and never returns.

    RFC 6455, section 4.2.1. Raises `HeadError`: 426 for a connection that cannot be upgraded,
    HTTP/1.0, and 400 for all else that is wrong with it (contract: operators 1.1).
    """
    tokens = [token.strip().lower() for token in (head.all("connection") or ("",))[-1].split(",")]
    if head.http_version != "1.1":
        raise HeadError(426, "a WebSocket needs HTTP/1.1")
    if head.method != "GET":
        raise HeadError(400, "a WebSocket handshake is a GET")
    if (head.get("upgrade") or "").lower() != "websocket" or "upgrade" not in tokens:
        raise HeadError(400, "this is a WebSocket endpoint")
    if head.get("sec-websocket-version") != "13":
        raise HeadError(400, "only WebSocket version 13 is spoken here")
    try:
        nonce = base64.b64decode(head.get("sec-websocket-key") or "", validate=True)
        (head.get("host") or "").encode("ascii").decode("idna")
    except (binascii.Error, UnicodeError):
        nonce = b""
    if len(nonce) != 16 or not head.get("host"):
        raise HeadError(400, "the handshake's key or host is not one")
    if head.all("transfer-encoding") or head.all("content-length") not in ((), ("0",)):
        raise HeadError(400, "a WebSocket handshake has no body")


async def refuse(stream: trio.abc.Stream, error: HeadError) -> None:
    """Answer ``error`` on ``stream``; bounded, and never raises for what the peer does."""
    body = f"{error.text}\n".encode("ascii", "replace")
    # Which upgrade and which version would do: RFC 9110, 15.5.22; RFC 6455, 4.4.
    version = "Upgrade: websocket\r\n" if error.status == 426 else ""
    version += "Sec-WebSocket-Version: 13\r\n"
    answer = (
        f"HTTP/1.1 {error.status} Refused\r\n{version}Connection: close\r\n"
        f"Content-Type: text/plain\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with trio.move_on_after(CLOSE_DEADLINE):
        try:
            await stream.send_all(answer.encode("ascii") + body)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            _log.debug("gone before it was refused")
