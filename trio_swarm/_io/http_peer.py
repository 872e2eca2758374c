"""Where an HTTP server is, and what it answered."""

from __future__ import annotations

import json
import os
import re
from typing import Any, Final
from urllib.parse import urlsplit

import attrs

from trio_swarm._io.unix import check_socket_path
from trio_swarm.errors import ProtocolError

__all__ = ["Address", "Reply", "socket_path"]

_PORTS: Final = {"http": 80, "https": 443}
_READ: Final = 4096
_SHOWN: Final = 120
"""Characters of an answer that are looked at for a message, and that are shown in it."""
_MARKUP: Final = re.compile(r"(?is)<(script|style)\b.*?(?:</\1>|\Z)|<!--.*?(?:-->|\Z)|<[^>]*(?:>|\Z)")


def socket_path(uds: str | os.PathLike[str]) -> str:
    """``uds`` as text. Raises ``ValueError`` for what no Unix socket can be at."""
    path = os.fspath(uds)
    if not isinstance(path, str) or not path:
        raise ValueError(f"{path!r} is not the path of a socket")
    return check_socket_path(path)


@attrs.frozen
class Address:
    """Where a server is: an ``http://`` or ``https://`` URL, taken apart, and perhaps a Unix socket."""

    scheme: str
    host: str
    port: int
    path: str
    """Prefix of every path there, without a slash at its end."""
    uds: str | None = None
    """The path of the Unix socket that leads there, whatever host and port say; None: TCP."""

    @classmethod
    def parse(cls, url: str, uds: str | os.PathLike[str] | None = None) -> Address:
        """The server at ``url``, reached by way of the Unix socket ``uds`` if there is one.

        Raises ``ValueError`` for anything but an HTTP URL with a host and without credentials,
        and for a path that no socket can be at.
        """
        parts = urlsplit(url)
        if parts.scheme not in _PORTS or not parts.hostname:
            raise ValueError("expected a URL like http://127.0.0.1:7777")
        if parts.username is not None or parts.query or parts.fragment:
            raise ValueError("the URL of a server holds no credentials, query or fragment")
        if not url.isascii() or any(char.isspace() or not char.isprintable() for char in url):
            raise ValueError("the URL of a server is ASCII without blanks")
        port = parts.port or _PORTS[parts.scheme]
        path = None if uds is None else socket_path(uds)
        return cls(parts.scheme, parts.hostname, port, parts.path.rstrip("/"), path)

    @property
    def secure(self) -> bool:
        """It speaks TLS."""
        return self.scheme == "https"

    @property
    def authority(self) -> str:
        """The value of ``Host``."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def name(self) -> str:
        """What it is called in errors: the socket's path, or ``authority``."""
        return self.authority if self.uds is None else self.uds

    def ws_url(self, path: str) -> str:
        """The WebSocket URL of ``path`` there: http becomes ws, https becomes wss."""
        return f"{self.scheme.replace('http', 'ws', 1)}://{self.authority}{self.path}{path}"


@attrs.frozen
class Reply:
    """What the server answered."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes = attrs.field(repr=False)

    def header(self, name: str) -> str | None:
        """The first value of a header; ``name`` in lower case."""
        return next((value for key, value in self.headers if key == name), None)

    def json(self) -> Any:
        """The body decoded. Raises `ProtocolError`."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            raise ProtocolError(f"the server's answer ({self.status}) is not JSON") from None

    @property
    def retry_after(self) -> int | None:
        """Seconds, if this is the answer of a server with too much to do just now: it did nothing."""
        after = self.header("retry-after") or ""
        if self.status != 429 or not after.isascii() or not after.isdecimal() or len(after) > 4:
            return None
        return int(after)

    @property
    def words(self) -> str:
        """What it says, for a message: one printable line, not long; of a page, its text.

        Whoever answers may be another server than was meant, or something in front of it.
        """
        text = self.body[:_READ].decode("utf-8", "replace")
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            value = None
        said = value.get("error") if isinstance(value, dict) else None
        if isinstance(said, str):
            text = said
        elif "html" in (self.header("content-type") or "") or text.lstrip()[:1] == "<":
            text = _MARKUP.sub(" ", text)
        shown = " ".join("".join(char if char.isprintable() else " " for char in text).split())
        return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}..."
