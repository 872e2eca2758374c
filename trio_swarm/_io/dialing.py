"""A connection to a server: over TCP or to a Unix socket, with TLS or without."""

from __future__ import annotations

import errno
import os
import ssl
import stat
from contextlib import suppress
from typing import Final, Protocol

import trio
import trio.abc

from trio_swarm._io.tcp import connect_tcp
from trio_swarm._io.tls import secure
from trio_swarm._io.unix import connect_unix
from trio_swarm.errors import HandshakeError

__all__ = ["Destination", "connect", "connect_uds"]

_FULL: Final = 0.02
"""Seconds until a socket whose queue was full is tried again."""


class Destination(Protocol):
    """Where a server is: the part of a URL that leads to it, or the path of a Unix socket."""

    @property
    def host(self) -> str: ...
    @property
    def port(self) -> int: ...
    @property
    def secure(self) -> bool: ...
    @property
    def uds(self) -> str | None:
        """The path of the Unix socket; None: TCP to ``host`` and ``port``."""

    @property
    def name(self) -> str:
        """What it is called in errors."""


async def connect(to: Destination, ssl_context: ssl.SSLContext | None) -> trio.abc.Stream:
    """A stream to ``to``, whose TLS handshake is done where it is ``secure``.

    Raises `HandshakeError`, with the reason, where there is none. Not bounded by itself. When
    cancelled, nothing is left open.
    """
    stream = await (connect_tcp(to.host, to.port, to.name) if to.uds is None else connect_uds(to.uds))
    return await secure(stream, to.host, ssl_context) if to.secure else stream


async def connect_uds(path: str) -> trio.SocketStream:
    """A connection to the Unix socket at ``path``.

    While the queue of who listens there is full it is waited for room, as TCP does. Raises
    `HandshakeError`, with the reason: no such file, refused, no socket, no permission. When
    cancelled, nothing is left open.
    """
    try:
        while True:
            with suppress(BlockingIOError):
                return await connect_unix(path)
            await trio.sleep(_FULL)  # Nothing tells when there is room.
    except OSError as error:
        raise HandshakeError(f"cannot connect to {path}: {_reason(path, error)}") from error


def _reason(path: str, error: OSError) -> str:
    text = error.strerror or str(error)
    if error.errno == errno.ECONNREFUSED and not _is_socket(path):
        return f"{text}: it is not a socket"
    return text


def _is_socket(path: str) -> bool:
    try:
        return stat.S_ISSOCK(os.stat(path).st_mode)
    except OSError:
        return True  # Nobody can say any more.
