"""The REST resource of operators, and the door to their WebSocket (contract: operators 1.1 to 1.3)."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import attrs
import trio

from trio_swarm._io.http_messages import HttpError, Request, Response, UpgradeRequest
from trio_swarm._io.http_routes import Route, UpgradeRoute
from trio_swarm.errors import BadTokenError, BusyError, StoreError
from trio_swarm.operators.intake import wants_receipts
from trio_swarm.operators.login import (
    MAX_LOGIN_BODY,
    LoginRequest,
    Presented,
    RolesTaken,
    Session,
    UnknownSession,
    bearer_of,
)
from trio_swarm.operators.seat import Seat
from trio_swarm.operators.sessions import Sessions

__all__ = ["FEATURES", "FEATURES_HEADER", "INSTANCE_HEADER", "OperatorApi"]

FEATURES_HEADER: Final = "trio-swarm-features"
FEATURES: Final = "redelivery, withdraw, receipts"
"""Said with every login: what this server does beyond the contract. Originals ignore it."""
INSTANCE_HEADER: Final = "trio-swarm-instance"
"""Said with every WebSocket's answer: which server this is, of all that have had the sessions. What
another one had asked is waited for by nobody. Originals ignore it."""

_log: Final = logging.getLogger("trio_swarm.operators")
_DISK: Final = "the state could not be written; the server's log says why"
"""An error of the disk names paths of this machine: they are nothing for clients."""


@attrs.define(eq=False)
class OperatorApi:
    """The endpoints over the sessions of one server."""

    sessions: Sessions
    joined: Callable[[Session[Seat]], None]
    """Called for each login, before it is answered."""
    socket_options: dict[str, Any] = attrs.field(factory=dict)
    """For `ws.accept_ws`: how often to ping, how much silence to take."""
    instance: str = attrs.field(factory=lambda: secrets.token_hex(16))
    """Drawn for this server alone; it says nothing about it."""
    _under_way: int = 0
    """WebSockets, logins and logouts."""
    _quiet: trio.lowlevel.ParkingLot = attrs.field(factory=trio.lowlevel.ParkingLot, repr=False)

    def routes(self) -> list[Route | UpgradeRoute]:
        """To be put in a `RouteTable`, beside those of others."""
        return [
            Route("GET", "/v1/healthz", self.healthz),
            Route("POST", "/v1/operators", self.join, body="json", max_body=MAX_LOGIN_BODY),
            Route("GET", "/v1/operators/{sid}", self.status),
            Route("DELETE", "/v1/operators/{sid}", self.quit),
            UpgradeRoute("/v1/operators/{sid}/ws", self.connect),
        ]

    async def healthz(self, request: Request) -> Response:
        """It answers: that is the news."""
        return Response.text(200, "ok")

    async def join(self, request: Request) -> Response:
        """Mint a session: its sid, its token (told this once) and its roles.

        If the server leaves meanwhile, it is answered all the same: the session is over here, and there
        for the next server.
        """
        if self.sessions.closed is not None:
            return Response.json(503, {"error": self.sessions.closed})
        try:
            with self._waited_for():
                minted = await self.sessions.mint(LoginRequest.parse(request.json))
        except ValueError as error:
            raise HttpError(422, str(error)) from None
        except RolesTaken as taken:
            return Response.json(409, {"error": "roles conflict", "conflicts": taken.conflicts})
        except BusyError as busy:
            return Response.json(503, {"error": str(busy)})
        except StoreError as error:
            _log.warning("a login could not be written: %s", error)
            return Response.json(500, {"error": f"session persist failed: {_DISK}"})
        session = minted.session
        self.joined(session)
        answer = Response.json(200, {"sid": session.sid, "token": minted.token, "roles": list(session.roles)})
        features = (FEATURES_HEADER.encode(), FEATURES.encode())
        return attrs.evolve(answer, headers=(*answer.headers, features))

    async def status(self, request: Request) -> Response:
        """What is known of a session, for its operator."""
        session = await self._authorised(request)
        known: dict[str, Any] = {
            "sid": session.sid,
            "roles": list(session.roles),
            "connected": session.seat.connected,
            "desc": session.desc,
            **session.observed.about(),
        }
        if session.capability_manifest is not None:
            known["capability_manifest"] = session.capability_manifest
        return Response.json(200, known)

    async def quit(self, request: Request) -> Response:
        """End a session: its waits fail, its socket is closed, its roles are free."""
        session = await self._authorised(request)
        try:
            with self._waited_for():
                ended = await self.sessions.end(session, "the session was deleted")
            if not ended:
                raise HttpError(404, "unknown sid")  # Another request has just ended it.
        except StoreError as error:
            _log.warning("the session %s could not be ended: %s", session.sid, error)
            hint = "the session is as it was; send the same request again"
            return Response.json(500, {"error": _DISK, "sid": session.sid, "hint": hint})
        return Response(204)

    async def connect(self, request: UpgradeRequest) -> None:
        """Seat the operator for as long as this WebSocket lasts."""
        session = await self._authorised(request)
        which = ((INSTANCE_HEADER, self.instance),)
        with self._waited_for():
            # Whoever is connected to it loses it to this one: that takes no seat from anybody else.
            replacing = session.seat.connected
            accepting = request.accept(replacing=replacing, extra_headers=which, **self.socket_options)
            async with accepting as transport:
                await session.seat.serve(transport, receipts=wants_receipts(request))

    def close(self, reason: str) -> None:
        """From now on logins and upgrades, and whatever else needs a session, are answered 503."""
        self.sessions.closed = reason

    async def wait_quiet(self) -> None:
        """Wait until no WebSocket is open, and no login or logout under way: its answer is being written."""
        await trio.lowlevel.checkpoint()
        while self._under_way:
            await self._quiet.park()

    @contextmanager
    def _waited_for(self) -> Iterator[None]:
        self._under_way += 1
        try:
            yield
        finally:
            self._under_way -= 1
            if not self._under_way:
                self._quiet.unpark_all()

    async def _authorised(self, request: Request) -> Session[Seat]:
        """401 without a token, 404 for an unknown sid, 401 for another's token; in this order.

        An expired session is ended, and 404; any other's time begins anew. Once the server is
        leaving 503: nobody is to take that for the end of a session which the next server has. Also 503
        while the session makes room for another, and may yet be put back.
        """
        if self.sessions.closed is not None:
            raise HttpError(503, self.sessions.closed)
        try:
            session = self.sessions.table.open(
                request.params["sid"], Presented.of(bearer_of(request.head.all("authorization")))
            )
        except UnknownSession as unknown:
            raise HttpError(404, str(unknown)) from None
        except BadTokenError as bad:
            challenge = ((b"www-authenticate", b"Bearer"),)
            raise HttpError(401, str(bad), headers=challenge) from None
        except BusyError as busy:
            raise HttpError(503, str(busy), headers=((b"retry-after", b"1"),)) from None
        if await self.sessions.judge(session):
            raise HttpError(404, "unknown sid")
        self.sessions.touch(session)
        return session
