"""`serve_operators`: a server that operators log in to, and the seats that they take."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final

import attrs
import trio
import trio.abc

from trio_swarm._io.groups import collapse
from trio_swarm._io.host import Host
from trio_swarm._io.http import FrontLimits, serve_http
from trio_swarm._io.http_routes import Route, RouteTable, UpgradeRoute
from trio_swarm._state.policy import EdgePolicy, loopback_hosts
from trio_swarm.limits import (
    CLOSE_DEADLINE,
    EVENTS_BUFFERED,
    MAX_CONNECTIONS,
    MAX_FRAME,
    MAX_PENDING,
    PEER_SILENCE,
    PING_EVERY,
)
from trio_swarm.operators.api import OperatorApi
from trio_swarm.operators.expiry import IDLE_WITHIN, JOIN_WITHIN, Expiry
from trio_swarm.operators.login import LoginRequest, Session, SessionTable
from trio_swarm.operators.seat import OperatorStatistics, Seat

__all__ = ["OperatorServer", "ServerStatistics", "serve_operators"]

_GOING_AWAY: Final = 1001
_NEW_DEADLINE: Final = frozenset({"operator_joined", "operator_away"})
_WILDCARDS: Final = frozenset({"0.0.0.0", "::"})


@attrs.frozen
class ServerStatistics:
    """What passed through one server, sessions that have ended included."""

    sessions: int
    """Sessions now."""
    connected: int
    """Of these, with a socket."""
    redelivered: int
    """Requests that were delivered again after a reconnect."""
    seats: tuple[OperatorStatistics, ...]
    """Of the sessions now."""


@attrs.define(eq=False)
class OperatorServer:
    """The seats of the operators that are logged in; made by `serve_operators`."""

    url: str
    """Where it listens, as ``http://127.0.0.1:7777``."""
    _sessions: SessionTable[Seat] = attrs.field(repr=False)
    _emit: Callable[[str, Mapping[str, object]], None] = attrs.field(repr=False)
    _changed: trio.lowlevel.ParkingLot = attrs.field(repr=False)
    _redelivered_before: int = attrs.field(default=0, repr=False)

    def seats(self) -> tuple[Seat, ...]:
        """All seats, connected or not, in the order of their logins."""
        return tuple(session.seat for session in self._sessions)

    def seat(self, name: str) -> Seat:
        """The seat with that sid, or else of that role. ``KeyError`` where there is none."""
        session = self._sessions.find(name)
        if session is None:
            raise KeyError(name)
        return session.seat

    async def wait_seat(self, name: str | None = None) -> Seat:
        """Wait until an operator is connected: that one (a sid or a role), or just any."""
        await trio.lowlevel.checkpoint()
        while True:
            for session in self._sessions:
                wanted = name is None or name == session.sid or name in session.roles
                if wanted and session.seat.connected:
                    return session.seat
            await self._changed.park()

    async def disconnect(self, name: str) -> None:
        """Cut that operator's socket without a word, as a failing network does.

        Nothing is lost by it: the session stays, and what waits is delivered again.
        """
        await self.seat(name).disconnect()

    def remove(self, name: str, reason: str = "the session was ended by the server") -> bool:
        """End a session. Its waits fail, its socket is closed. False if there is none."""
        session = self._sessions.find(name)
        if session is None:
            return False
        self._end(session, reason)
        return True

    def statistics(self) -> ServerStatistics:
        """Counts so far."""
        seats = tuple(seat.statistics() for seat in self.seats())
        return ServerStatistics(
            sessions=len(seats),
            connected=sum(seat.connected for seat in seats),
            redelivered=self._redelivered_before + sum(seat.redelivered for seat in seats),
            seats=seats,
        )

    def _joined(self, session: Session[Seat]) -> None:
        self._emit("operator_joined", {**_about(session), "roles": list(session.roles)})

    def _end(self, session: Session[Seat], reason: str, *, code: int = 1000) -> None:
        """Log a session out: in one step, so that no connect can come between."""
        if self._sessions.remove(session.sid) is None:
            return
        self._redelivered_before += session.seat.statistics().redelivered
        failed = session.seat.close(reason, code=code)
        self._emit("operator_left", {**_about(session), "reason": reason, "failed": failed})

    def _end_all(self, reason: str) -> None:
        for session in self._sessions:
            self._end(session, reason, code=_GOING_AWAY)


@asynccontextmanager
async def serve_operators(
    host: Host,
    *,
    listeners: Sequence[trio.abc.Listener[Any]] | None = None,
    bind: str = "127.0.0.1",
    port: int = 0,
    allowed_origins: Iterable[str] = (),
    allowed_hosts: Iterable[str] = (),
    routes: Iterable[Route | UpgradeRoute] = (),
    max_pending: int = MAX_PENDING,
    max_notices: int = EVENTS_BUFFERED,
    max_connections: int = MAX_CONNECTIONS,
    max_frame: int = MAX_FRAME,
    ping_every: float = PING_EVERY,
    silence: float = PEER_SILENCE,
    join_within: float = JOIN_WITHIN,
    idle_within: float = IDLE_WITHIN,
    limits: FrontLimits | None = None,
) -> AsyncIterator[OperatorServer]:
    """Let operators log in over HTTP and take their seats over WebSocket (contract 1, 2, 3).

    Args:
        listeners: serve these instead of ``bind`` and ``port``; they are closed at the end.
        port: 0 lets the system choose; see `OperatorServer.url`.
        allowed_origins: browsers may come from these (``https://app.example``); else from nowhere.
        allowed_hosts: names beside loopback's and ``bind`` under which the server is reached.
        routes: endpoints of others on the same port.
        max_pending: requests that wait for one operator; more raise `BusyError`.
        max_notices: ``hook_after`` notices kept for one operator that is away or slow.
        ping_every: seconds between two pings to each operator.
        silence: seconds of total silence after which a socket counts as dead.
        join_within: a session ends by itself when no socket came for so many seconds after
            its login; ``math.inf`` for never.
        idle_within: the same for seconds since its last socket was lost.

    Leaving ends every session: what still waits raises `PeerGoneError`, sockets are closed
    with code 1001 within ``CLOSE_DEADLINE``; a cancelled block closes them at once. Raises
    ``OSError`` if it cannot listen, and ``ValueError`` for a route that is there already; the
    listeners are closed then too.
    """
    changed = trio.lowlevel.ParkingLot()

    def emit(kind: str, data: Mapping[str, object]) -> None:
        changed.unpark_all()
        if kind in _NEW_DEADLINE:
            expiry.check()
        host.emit(kind, data)

    def make_seat(sid: str, request: LoginRequest) -> Seat:
        return Seat(
            sid,
            roles=request.roles,
            desc=request.desc,
            emit=emit,
            max_pending=max_pending,
            max_notices=max_notices,
        )

    if listeners is None:
        listeners = await trio.open_tcp_listeners(port, host=bind)
    async with _closed_on_error(listeners):
        sessions = SessionTable(make_seat)
        server = OperatorServer(_url_of(listeners), sessions, emit, changed)
        expiry = Expiry(sessions, server._end, join_within, idle_within)
        api = OperatorApi(
            sessions,
            joined=server._joined,
            leave=server._end,
            socket_options={"ping_every": ping_every, "silence": silence, "max_message": max_frame},
        )
        serve = partial(
            serve_http,
            listeners,
            RouteTable([*api.routes(), *routes]),
            policy=EdgePolicy(_hosts_of(listeners, allowed_hosts), frozenset(allowed_origins)),
            limits=limits,
            max_connections=max_connections,
            name="operators",
            on_error=lambda name, error: emit(
                "connection_error", {"name": name, "error": type(error).__name__}
            ),
        )
    with collapse():
        async with trio.open_nursery() as nursery:
            await nursery.start(serve)
            nursery.start_soon(expiry.run)
            try:
                yield server
            finally:
                server._end_all("the server is going away")
            with trio.move_on_after(CLOSE_DEADLINE):
                await api.wait_no_sockets()
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def _closed_on_error(listeners: Sequence[trio.abc.Listener[Any]]) -> AsyncIterator[None]:
    """Close them if the block raises: nobody serves them then, and nobody else would."""
    try:
        yield
    except BaseException:
        with trio.move_on_after(CLOSE_DEADLINE, shield=True):
            for listener in listeners:
                await listener.aclose()
        raise


def _about(session: Session[Seat]) -> dict[str, object]:
    return {"sid": session.sid, "name": session.seat.name}


def _addresses(listeners: Sequence[trio.abc.Listener[Any]]) -> list[tuple[str, str, int | None]]:
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


def _url_of(listeners: Sequence[trio.abc.Listener[Any]]) -> str:
    scheme, host, port = _addresses(listeners)[0]
    if host in _WILDCARDS:
        host = "::1" if ":" in host else "127.0.0.1"
    return f"{scheme}://{_authority(host, port)}"


def _hosts_of(listeners: Sequence[trio.abc.Listener[Any]], extra: Iterable[str]) -> frozenset[str]:
    named = tuple(extra)
    hosts: set[str] = set()
    for _, host, port in _addresses(listeners):
        hosts |= loopback_hosts(port, named)
        if host not in _WILDCARDS:
            hosts.add(_authority(host, port))
    return frozenset(hosts)


def _authority(host: str, port: int | None) -> str:
    bracketed = f"[{host}]" if ":" in host else host
    return bracketed if port is None else f"{bracketed}:{port}"
