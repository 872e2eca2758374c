"""Who may knock: the ``Host`` and ``Origin`` of a request, judged before anything else.

A loopback address keeps no browser out. A page of any site can make its visitor's browser
send requests here (cross-site request and WebSocket), and can do so under its own name
once that name resolves to 127.0.0.1 (DNS rebinding). Two headers, which a page cannot
forge, tell both: ``Host`` must name an address that we serve, and ``Origin``, which only
browsers send, must be one that was allowed by name.

Pure: header values in, a verdict out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import attrs

__all__ = ["EdgePolicy", "Verdict", "loopback_hosts"]

_DEFAULT_PORTS = {80, 443}
_TRUSTED_FETCH_SITES = frozenset({"none", "same-origin"})


def _lowered(names: Iterable[str]) -> frozenset[str]:
    return frozenset(name.lower() for name in names)


@attrs.frozen
class Verdict:
    """Why a request is refused."""

    status: int
    """The HTTP status to answer with: 400, 403 or 421."""
    text: str
    """One line for the peer; names nothing that the peer did not send."""


@attrs.frozen
class EdgePolicy:
    """The allow-lists of one server. Both are exact: no wildcards, no suffixes."""

    hosts: frozenset[str] = attrs.field(converter=_lowered)
    """Values of ``Host`` that name this server, with the port where it is not the scheme's."""
    origins: frozenset[str] = attrs.field(default=frozenset(), converter=_lowered)
    """Values of ``Origin`` (``https://app.example``) that browsers may come with."""

    def judge(
        self, *, hosts: Sequence[str], origins: Sequence[str], fetch_sites: Sequence[str] = ()
    ) -> Verdict | None:
        """None if the request may pass, else the reason to refuse it.

        Each argument holds all values of that header in the request. ``null`` is never an
        allowed origin: any page can have it by way of a sandboxed frame. A browser that
        leaves ``Origin`` out (it does so for images and links) still says ``Sec-Fetch-Site``.
        """
        if len(hosts) != 1:
            return Verdict(400, "exactly one Host header is needed")
        if hosts[0].strip().lower() not in self.hosts:
            return Verdict(421, "this server does not answer for that host")
        if origins:
            allowed = len(origins) == 1 and self._allows(origins[0])
            return None if allowed else Verdict(403, "that origin is not allowed")
        if any(site.strip().lower() not in _TRUSTED_FETCH_SITES for site in fetch_sites):
            return Verdict(403, "cross-site requests are not allowed")
        return None

    def _allows(self, origin: str) -> bool:
        origin = origin.strip().lower()
        return origin != "null" and origin in self.origins


def loopback_hosts(port: int | None, extra: Iterable[str] = ()) -> frozenset[str]:
    """The names of this machine's loopback for a server on ``port``, and ``extra`` as given.

    ``port`` is None for a server without one (a Unix socket): the bare names then. A name
    in ``extra`` without a port is meant for any port that the server has, so both forms
    are allowed.
    """
    names = {"localhost", "127.0.0.1", "[::1]"}
    if port is None:
        return frozenset(names | set(extra))
    allowed = {f"{name}:{port}" for name in names}
    if port in _DEFAULT_PORTS:
        allowed |= names
    for name in extra:
        allowed |= {name} if _has_port(name) else {name, f"{name}:{port}"}
    return frozenset(allowed)


def _has_port(name: str) -> bool:
    return ":" in name.rpartition("]")[2]
