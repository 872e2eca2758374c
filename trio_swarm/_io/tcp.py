"""TCP to a server, with an error that says why there is none."""

from __future__ import annotations

import socket
from typing import Final

import trio

from trio_swarm._io.groups import leaves
from trio_swarm.errors import HandshakeError

__all__ = ["connect_tcp"]

_MOST: Final = 3
"""Reasons that are named: a host may have many addresses."""


async def connect_tcp(host: str, port: int, authority: str) -> trio.SocketStream:
    """A connection to ``host``; ``authority`` is what it is called in errors.

    Raises `HandshakeError`, with the reason: refused, unreachable, the name unknown. When
    cancelled, nothing is left open.
    """
    try:
        return await trio.open_tcp_stream(host, port)
    except (OSError, UnicodeError) as error:
        raise HandshakeError(f"cannot connect to {authority}: {_reason(error)}") from error


def _reason(error: OSError | UnicodeError) -> str:
    """One for each address that was tried, where they differ."""
    if isinstance(error, UnicodeError):
        return "its name is not one that can be looked up"
    if isinstance(error, socket.gaierror):
        return f"its name cannot be looked up: {error.strerror}"
    tried = leaves(error.__cause__) if error.__cause__ is not None else [error]
    reasons = dict.fromkeys(_words(each) for each in tried)
    return "; ".join([*reasons][:_MOST])


def _words(error: BaseException) -> str:
    """``Error connecting to ('127.0.0.1', 1): Connection refused`` without what is said already."""
    text = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    return text.rpartition("): ")[2]
