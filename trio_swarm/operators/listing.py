"""Reading who is there: the list of operators and the server's status (contract: operators 1.7)."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final

import attrs
import trio

from trio_swarm._io.http_messages import HttpError, Request, Response
from trio_swarm._io.http_routes import Route, UpgradeRoute
from trio_swarm.errors import BadTokenError
from trio_swarm.operators.expiry import Expiry
from trio_swarm.operators.login import ExpiredToken, Presented, Session, bearer_of
from trio_swarm.operators.observed import cut
from trio_swarm.operators.seat import Seat
from trio_swarm.operators.sessions import Sessions

__all__ = ["ListingApi"]

_LIMIT, _MAX_LIMIT = 50, 200
_NUMBER: Final = re.compile(r"[0-9]{1,20}")
_HINTS: Final = {
    BadTokenError: "log in with POST /v1/operators and send its token as Authorization: Bearer",
    ExpiredToken: "the session was idle for too long and is gone: log in again",
}


@attrs.define(eq=False)
class ListingApi:
    """The endpoints over the sessions of one server."""

    sessions: Sessions
    expiry: Expiry
    running_runs: Callable[[], int] | None = None
    """How many tasks are running now, told by whoever runs them."""

    def routes(self) -> list[Route | UpgradeRoute]:
        """To be put in a `RouteTable`, beside those of others."""
        return [
            Route("GET", "/v1/operators", self.list),
            Route("GET", "/v1/status", self.status),
        ]

    async def list(self, request: Request) -> Response:
        """Who is logged in, the latest access first; for any operator that is itself.

        A limit that is none is told before anything about the bearer (contract: operators 1.1). Once
        the server is leaving 503: who is not known here any more is known to the next server.
        """
        limit = _limit_of(request)
        if self.sessions.closed is not None:
            return Response.json(503, {"error": self.sessions.closed})
        try:
            reader = self.sessions.table.identify(Presented.of(bearer_of(request.head.all("authorization"))))
            if await self.sessions.judge(reader):
                raise ExpiredToken("your session expired")
        except BadTokenError as bad:
            return _unauthorised(bad)
        await self.sessions.sweep()
        self.sessions.touch(reader)
        found = sorted(self.sessions.table, key=lambda each: (-each.last_access.wall, each.sid))
        return Response.json(
            200,
            {
                "operators": [_about(session) for session in found[:limit]],
                "total": len(found),
                "limit": limit,
            },
        )

    async def status(self, request: Request) -> Response:
        """How much there is to do, for anybody: numbers only."""
        await trio.lowlevel.checkpoint()
        return Response.json(
            200,
            {
                "running_runs": self.running_runs() if self.running_runs is not None else 0,
                "attached_operators": sum(each.seat.connected for each in self.sessions.table),
                "periodic_jobs": [job.about() for job in self.expiry.jobs],
            },
        )


def _limit_of(request: Request) -> int:
    """More than there may be is as many as there may be."""
    text = request.query.get("limit", str(_LIMIT))
    if not _NUMBER.fullmatch(text) or not int(text):
        raise HttpError(400, "limit: expected a number from 1")
    return min(int(text), _MAX_LIMIT)


def _about(session: Session[Seat]) -> dict[str, Any]:
    """What its own record says in full: anybody may log in with 64 KiB of description."""
    return {
        "sid": session.sid,
        "joined_at_secs": int(session.joined_at),
        "connected": session.seat.connected,
        "desc": None if session.desc is None else cut(session.desc),
        **session.observed.about(),
        "last_activity_secs": int(session.last_access.wall),
    }


def _unauthorised(bad: BadTokenError) -> Response:
    answer = Response.json(401, {"error": str(bad), "hint": _HINTS[type(bad)]})
    return attrs.evolve(answer, headers=(*answer.headers, (b"www-authenticate", b"Bearer")))
