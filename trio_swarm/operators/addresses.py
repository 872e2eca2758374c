"""Where a server listens, as URLs and as the names that requests may give it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

import trio
import trio.abc

from trio_swarm._state.policy import loopback_hosts

__all__ = ["addresses", "hosts_of", "url_of"]

_WILDCARDS: Final = frozenset({"0.0.0.0", "::"})


def addresses(listeners: Sequence[trio.abc.Listener[Any]]) -> list[tuple[str, str, int | None]]:
    """Scheme, host and port (None for a Unix socket) of each listener."""
    found: list[tuple[str, str, int | None]] = []
    for listener in listeners:
        secure = isinstance(listener, trio.SSLListener)
        inner = listener.transport_listener if isinstance(listener, trio.SSLListener) else listener
        name = inner.socket.getsockname() if isinstance(inner, trio.SocketListener) else None
        scheme = "https" if secure else "http"
        if isinstance(name, tuple):
            found.append((scheme, str(name[0]), int(name[1])))
        else:
            found.append((scheme, "localhost", None))
    return found


def url_of(address: tuple[str, str, int | None]) -> str:
    """The root URL of one of them; of a wildcard address, loopback's."""
    scheme, host, port = address
    if host in _WILDCARDS:
        host = "::1" if ":" in host else "127.0.0.1"
    return f"{scheme}://{_authority(host, port)}"


def hosts_of(listeners: Sequence[trio.abc.Listener[Any]], extra: Iterable[str]) -> frozenset[str]:
    """What requests may name as their ``Host``."""
    named = tuple(extra)
    hosts: set[str] = set()
    for _, host, port in addresses(listeners):
        hosts |= loopback_hosts(port, named)
        if host not in _WILDCARDS:
            hosts.add(_authority(host, port))
    return frozenset(hosts)


def _authority(host: str, port: int | None) -> str:
    bracketed = f"[{host}]" if ":" in host else host
    return bracketed if port is None else f"{bracketed}:{port}"
