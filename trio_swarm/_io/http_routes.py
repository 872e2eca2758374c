"""Which endpoint answers a request: a table of patterns and methods."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Literal, TypeAlias

import attrs

from trio_swarm._io.head import Head
from trio_swarm._io.http_messages import HttpError, Request, Response, UpgradeRequest

__all__ = ["Match", "Route", "RouteTable", "UpgradeRoute"]

Endpoint: TypeAlias = Callable[[Request], Awaitable[Response]]
UpgradeEndpoint: TypeAlias = Callable[[UpgradeRequest], Awaitable[Response | None]]


@attrs.frozen
class Route:
    """One method of one path.

    In ``pattern`` a segment ``{name}`` matches any one segment. ``body`` says what the
    front does with the request's body before the endpoint runs: ``none`` reads it and
    throws it away, ``bytes`` hands it over, ``json`` decodes it (400, 413, 415). With
    ``stream`` the endpoint reads `Request.stream` by itself, or refuses without reading.
    """

    method: str
    pattern: str
    endpoint: Endpoint
    body: Literal["none", "bytes", "json", "stream"] = "none"
    max_body: int | None = None
    """Bytes of a body; the front's own limit if None."""


@attrs.frozen
class UpgradeRoute:
    """A path that becomes a WebSocket.

    The endpoint returns the `Response` that refuses, or enters ``request.accept()`` and
    returns None when the WebSocket is over.
    """

    pattern: str
    endpoint: UpgradeEndpoint
    method: str = attrs.field(default="GET", init=False)


@attrs.frozen
class Match:
    """A route, and what its pattern's names stand for."""

    route: Route | UpgradeRoute
    params: Mapping[str, str]


@attrs.frozen
class _Path:
    segments: tuple[str, ...]
    methods: Mapping[str, Route | UpgradeRoute]

    @property
    def specificity(self) -> tuple[bool, ...]:
        """Sorts ``/data/emit`` before ``/data/{name}``."""
        return tuple(_is_name(segment) for segment in self.segments)

    @property
    def allow(self) -> str:
        """The value of the ``Allow`` header; a GET that is no WebSocket answers HEAD too."""
        allowed = set(self.methods)
        if isinstance(self.methods.get("GET"), Route):
            allowed.add("HEAD")
        return ", ".join(sorted(allowed))

    def route(self, method: str) -> Route | UpgradeRoute:
        found = self.methods.get(method)
        if found is None and method == "HEAD" and isinstance(self.methods.get("GET"), Route):
            found = self.methods["GET"]
        if found is None:
            raise HttpError(405, headers=((b"allow", self.allow.encode()),))
        return found

    def match(self, segments: tuple[str, ...]) -> dict[str, str] | None:
        if len(segments) != len(self.segments):
            return None
        params = {}
        for mine, theirs in zip(self.segments, segments, strict=True):
            if _is_name(mine):
                params[mine[1:-1]] = theirs
            elif mine != theirs:
                return None
        return params if all(params.values()) else None


class RouteTable:
    """All routes of one server. A literal segment wins over a name at the same place."""

    def __init__(self, routes: Iterable[Route | UpgradeRoute]) -> None:
        by_pattern: dict[str, dict[str, Route | UpgradeRoute]] = {}
        for route in routes:
            methods = by_pattern.setdefault(route.pattern, {})
            if route.method in methods:
                raise ValueError(f"{route.method} {route.pattern} is routed twice")
            methods[route.method] = route
        paths = [_Path(_segments(pattern), methods) for pattern, methods in by_pattern.items()]
        self._paths = sorted(paths, key=lambda path: path.specificity)

    def find(self, head: Head) -> Match:
        """The route of a request. Raises `HttpError` 404, 405 (with ``Allow``) or 400.

        Only the origin form of a target is served: one with an authority of its own
        would say a second time, and perhaps differently, which host is meant.
        """
        if not head.target.startswith("/"):
            raise HttpError(400, "the request target must be a path")
        for path in self._paths:
            params = path.match(head.segments)
            if params is not None:
                return Match(path.route(head.method), params)
        raise HttpError(404)


def _segments(path: str) -> tuple[str, ...]:
    return tuple(path.split("/")[1:])


def _is_name(segment: str) -> bool:
    return segment.startswith("{") and segment.endswith("}")
