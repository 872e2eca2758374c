"""`serve_operators`: a server that operators log in to, and the seats that they take."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from functools import partial
from typing import Any, Final

import attrs
import trio
import trio.abc

from trio_swarm._io.groups import collapse
from trio_swarm._io.host import Host
from trio_swarm._io.http import FrontLimits, serve_http
from trio_swarm._io.http_answers import Answers
from trio_swarm._io.http_routes import Route, RouteTable, UpgradeRoute
from trio_swarm._io.session_db import SessionDB, open_session_db
from trio_swarm._state.policy import EdgePolicy
from trio_swarm.errors import PeerGoneError, StoreError
from trio_swarm.limits import (
    CLOSE_DEADLINE,
    EVENTS_BUFFERED,
    MALFORMED_PER_MINUTE,
    MAX_CONNECTIONS,
    MAX_FRAME,
    MAX_PENDING,
    MAX_UNPROVEN,
    PEER_SILENCE,
    PING_EVERY,
)
from trio_swarm.operators.addresses import addresses, hosts_of, url_of
from trio_swarm.operators.api import OperatorApi
from trio_swarm.operators.expiry import SWEEP_EVERY, Expiry
from trio_swarm.operators.listing import ListingApi
from trio_swarm.operators.login import LoginRequest, Presented, Session
from trio_swarm.operators.seat import OperatorStatistics, Seat
from trio_swarm.operators.sessions import IDLE_WITHIN, JOIN_WITHIN, Sessions
from trio_swarm.operators.settings import above_zero, check_limits, from_zero, texts
from trio_swarm.operators.table import MAX_SESSIONS, SessionTable

__all__ = ["OperatorServer", "ServerStatistics", "closed_on_error", "serve_operators"]

_log: Final = logging.getLogger("trio_swarm.operators")

_NORMAL, _GOING_AWAY = 1000, 1001
_LEAVING: Final = "the server is going away"
_NEW_DEADLINE: Final = frozenset({"operator_joined", "operator_away"})
_SOCKETS: Final = frozenset({"operator_connected", "operator_back", "operator_away"})


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
    """Where it listens, as ``http://127.0.0.1:7777``; on a Unix socket ``http://localhost``."""
    tcp_url: str | None
    """The same, but None where it listens on Unix sockets only: no URL leads to those."""
    _tell: Callable[[str, Mapping[str, object]], None] = attrs.field(repr=False)
    """The host's sink for events."""
    _table: SessionTable[Seat] = attrs.field(init=False, repr=False)
    _sessions: Sessions = attrs.field(init=False, repr=False)
    _expiry: Expiry = attrs.field(init=False, repr=False)
    _changed: trio.lowlevel.ParkingLot = attrs.field(factory=trio.lowlevel.ParkingLot, repr=False)
    _redelivered_before: int = attrs.field(default=0, repr=False)
    _leaving: bool = attrs.field(default=False, repr=False)

    def seats(self) -> tuple[Seat, ...]:
        """All seats, connected or not, in the order of their logins."""
        return tuple(session.seat for session in self._table)

    def seat(self, name: str) -> Seat:
        """The seat with that sid, or else of that role. ``KeyError`` where there is none."""
        session = self._table.find(name)
        if session is None:
            raise KeyError(name)
        return session.seat

    async def wait_seat(self, name: str | None = None) -> Seat:
        """Wait until an operator is connected: that one (a sid or a role), or just any.

        Raises `PeerGoneError` once the server is leaving: nobody can come any more.
        """
        await trio.lowlevel.checkpoint()
        while not self._leaving:
            for session in self._table:
                wanted = name is None or name == session.sid or name in session.roles
                if wanted and session.seat.connected:
                    return session.seat
            await self._changed.park()
        raise PeerGoneError(_LEAVING)

    async def disconnect(self, name: str) -> None:
        """Cut that operator's socket without a word, as a failing network does.

        Nothing is lost by it: the session stays, and what waits is delivered again.
        """
        await self.seat(name).disconnect()

    async def remove(self, name: str, reason: str = "the session was ended by the server") -> bool:
        """End a session. Its waits fail, its socket is closed. False if there is none.

        Raises `StoreError` where its row cannot be deleted: the session is as it was then. When
        cancelled it is as it was, or ended.
        """
        session = self._table.find(name)
        if session is None:
            await trio.lowlevel.checkpoint()
            return False
        return await self._sessions.end(session, reason)

    async def admits(self, token: str) -> bool:
        """That is the token of an operator whose session lives; its idle time begins anew then."""
        return await self._sessions.admits(Presented.of(token))

    def observe(self, sid: str, entry: Mapping[str, Any]) -> None:
        """Note in the session of that sid, if there is one here, what was given to it to do."""
        session = self._table.find(sid)
        if session is not None and session.sid == sid:
            session.observed.add(entry)
            self._expiry.write_soon()

    def statistics(self) -> ServerStatistics:
        """Counts so far."""
        seats = tuple(seat.statistics() for seat in self.seats())
        return ServerStatistics(
            sessions=len(seats),
            connected=sum(seat.connected for seat in seats),
            redelivered=self._redelivered_before + sum(seat.redelivered for seat in seats),
            seats=seats,
        )

    def _emit(self, kind: str, data: Mapping[str, object]) -> None:
        """What happens to the seats comes by here."""
        self._changed.unpark_all()
        if kind in _SOCKETS:
            self._sessions.seated(str(data["sid"]))
        if kind == "operator_connected":
            self._expiry.write_soon()
        if kind in _NEW_DEADLINE:
            self._expiry.check()
        self._tell(kind, data)

    def _joined(self, session: Session[Seat]) -> None:
        self._emit("operator_joined", {**_about(session), "roles": list(session.roles)})
        if self._leaving:  # Its login was being written when the others were told to go.
            self._sessions.forget(session, _LEAVING)

    def _ended(self, session: Session[Seat], reason: str) -> None:
        """A session left the table: in the same step, so that no connect can come between."""
        self._redelivered_before += session.seat.statistics().redelivered
        failed = session.seat._close(reason, code=_GOING_AWAY if self._leaving else _NORMAL)
        self._emit("operator_left", {**_about(session), "reason": reason, "failed": failed})

    async def _note_accesses(self) -> None:
        try:
            await self._sessions.write_accesses()
            await self._sessions.write_observed()
            await self._sessions.delete_overdue()
        except StoreError as error:
            _log.warning("when the sessions were last accessed could not be noted: %s", error)
        except Exception:  # A fault of ours: as in `PeriodicJob`, no reason to cut anybody off.
            _log.exception("when the sessions were last accessed could not be noted")

    def _leave(self) -> None:
        """End every session here; those that are stored are there again for the next server.

        From now on there is none, and who waits for one is told so.
        """
        self._leaving = True
        for session in self._table:
            self._sessions.forget(session, _LEAVING)
        self._changed.unpark_all()


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
    state: str | os.PathLike[str] | None = None,
    running_runs: Callable[[], int] | None = None,
    max_sessions: int = MAX_SESSIONS,
    max_pending: int = MAX_PENDING,
    max_notices: int = EVENTS_BUFFERED,
    max_malformed: int = MALFORMED_PER_MINUTE,
    max_connections: int = MAX_CONNECTIONS,
    max_unproven: int = MAX_UNPROVEN,
    max_frame: int = MAX_FRAME,
    ping_every: float = PING_EVERY,
    silence: float = PEER_SILENCE,
    join_within: float = JOIN_WITHIN,
    idle_within: float = IDLE_WITHIN,
    sweep_every: float = SWEEP_EVERY,
    limits: FrontLimits | None = None,
    knows: Callable[[str], bool] | None = None,
) -> AsyncIterator[OperatorServer]:
    """Let operators log in over HTTP and take their seats over WebSocket (contract: operators 1, 2, 3).

    Args:
        host: the swarm that it is part of; `Swarm.serve_operators` gives it.
        bind: the address to listen on.
        listeners: serve these instead of ``bind`` and ``port``; they are closed at the end.
        port: 0 lets the system choose; see `OperatorServer.url`.
        allowed_origins: requests that carry one of these (``https://app.example``) are not refused, as others
            with an ``Origin`` are; there is no CORS, so that they come from a page of this same host.
        allowed_hosts: names beside loopback's and ``bind`` under which the server is reached.
        routes: endpoints of others on the same port.
        state: a directory that keeps the sessions, so that the next server has them again: the same
            sids and tokens, disconnected. Requests that wait are not kept: who made them is gone too.
            A client of ours withdraws them at its end when it comes back and finds another server.
        running_runs: how many tasks are running now, for ``GET /v1/status``.
        max_sessions: logged in at a time; beyond, a session makes room that is not connected and was never
            given anything (first such as never had a socket, then the one accessed the longest ago), and
            a login is answered 503 only where there is none.
        max_pending: requests that wait for one operator; more raise `BusyError`.
        max_notices: ``hook_after`` notices kept for one operator that is away or slow.
        max_malformed: messages of one operator within a minute that are no frames; beyond, its
            socket is closed with code 1008, and its session stays.
        max_connections: open at a time; never more than the soft ``RLIMIT_NOFILE`` less 64 (but 16 in any
            case), which is logged. A further one lets another go that has shown no credential: see
            `trio_swarm._io.http.serve_http`; it is hung up on only if there is none. WebSockets are half
            of them at most, and three quarters of that from one address (503 beyond); an eighth more are
            for operators that take over a session whose socket is there still.
        max_unproven: of these, from one address (an IPv6 /64; this machine; the user, on a Unix socket),
            such as neither are WebSockets nor have shown a worker's credential or the admin's token. A
            further one has one request, head and body due within 2 s each, and goes first when it is full.
        max_frame: bytes of one message of an operator; a larger one closes its socket.
        ping_every: seconds between two pings to each operator.
        silence: seconds of total silence after which a socket counts as dead.
        join_within: a session ends by itself when no socket came for so many seconds after
            its login, or its last request over HTTP; ``math.inf`` for never.
        idle_within: the same for seconds since its last socket was lost.
        sweep_every: seconds between two looks for such sessions beside their own deadlines; 0 for
            never: a session is judged only when it is asked for then.
        limits: deadlines and sizes of the HTTP front, `FrontLimits`.
        knows: says of a bearer at once that it is a credential of ``routes`` which nobody can guess.

    ``routes``, ``knows`` and ``running_runs`` are for the other rooms of this package: what they take
    is not public.

    Leaving ends every session, but for the rows in ``state``: what still waits raises `PeerGoneError`,
    sockets are closed with code 1001 within ``CLOSE_DEADLINE``; a cancelled block closes them at once.
    Whatever needs a session is answered 503 from then on; logins and logouts that are under way then are
    carried out, and answers that are being written are let out, within the same time.
    Raises ``OSError`` if it cannot listen, ``ValueError`` for a route that is there already or a setting
    that cannot work, and `StoreError` if it cannot use ``state``; the listeners are closed then too.
    """
    given = tuple(listeners or ())
    async with closed_on_error(given):
        above_zero(
            max_sessions=max_sessions,
            max_pending=max_pending,
            max_connections=max_connections,
            max_unproven=max_unproven,
            max_frame=max_frame,
            ping_every=ping_every,
            silence=silence,
            join_within=join_within,
            idle_within=idle_within,
        )
        from_zero(max_notices=max_notices, max_malformed=max_malformed, sweep_every=sweep_every)
        hosts, origins = texts("allowed_hosts", allowed_hosts), texts("allowed_origins", allowed_origins)
        check_limits(limits)
    async with closed_on_error(given), _store_of(state) as store:
        bound = given or tuple(await trio.open_tcp_listeners(port, host=bind))
        async with closed_on_error(bound):
            tcp = [at for at in addresses(bound) if at[2] is not None]
            tcp_url = url_of(tcp[0]) if tcp else None
            server = OperatorServer(url_of(addresses(bound)[0]), tcp_url, host.emit)
            make_seat = partial(_make_seat, server._emit, max_pending, max_notices, max_malformed)
            server._table = SessionTable(make_seat, max_sessions=max_sessions)
            server._sessions = Sessions(
                server._table, store, server._ended, server._emit, join_within, idle_within
            )
            server._expiry = Expiry(server._sessions, sweep_every)
            socket_options = {"ping_every": ping_every, "silence": silence, "max_message": max_frame}
            api = OperatorApi(server._sessions, server._joined, socket_options)
            listing = ListingApi(server._sessions, server._expiry, running_runs)
            answers = Answers()
            serve = partial(
                serve_http,
                bound,
                RouteTable([*api.routes(), *listing.routes(), *routes]),
                policy=EdgePolicy(hosts_of(bound, hosts), frozenset(origins)),
                limits=limits,
                max_connections=max_connections,
                max_unproven=max_unproven,
                knows=knows,
                name="operators",
                on_error=partial(_connection_error, server._emit),
                answers=answers,
            )
            await server._sessions.restore()
        with collapse():
            async with trio.open_nursery() as nursery:
                await nursery.start(serve)
                nursery.start_soon(server._expiry.run_sweeps)
                nursery.start_soon(server._expiry.run_writes)
                try:
                    yield server
                finally:
                    try:
                        with trio.move_on_after(CLOSE_DEADLINE, shield=True):
                            await server._note_accesses()
                    finally:
                        api.close(_LEAVING)
                        server._leave()
                with trio.move_on_after(CLOSE_DEADLINE):
                    await api.wait_quiet()
                    await answers.wait_written()
                nursery.cancel_scope.cancel()


def _make_seat(
    emit: Callable[[str, Mapping[str, object]], None],
    max_pending: int,
    max_notices: int,
    max_malformed: int,
    sid: str,
    request: LoginRequest,
) -> Seat:
    return Seat(
        sid,
        roles=request.roles,
        desc=request.desc,
        emit=emit,
        max_pending=max_pending,
        max_notices=max_notices,
        max_malformed=max_malformed,
    )


def _connection_error(emit: Callable[[str, Mapping[str, object]], None], name: str, error: Exception) -> None:
    emit("connection_error", {"name": name, "error": type(error).__name__})


def _store_of(state: str | os.PathLike[str] | None) -> AbstractAsyncContextManager[SessionDB | None]:
    return nullcontext() if state is None else open_session_db(state)


@asynccontextmanager
async def closed_on_error(listeners: Sequence[trio.abc.Listener[Any]]) -> AsyncIterator[None]:
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
