"""Who is logged in: sessions, their tokens' digests and their exclusive roles.

Every decision is made in one synchronous step: of two logins that want the same role,
exactly one gets it (contract: operators 1.3). What must reach a disk first is done between two
such steps, while the sid and the roles are reserved.

A token is kept as its SHA-256 digest only. Whether it is a certain session's is compared in
constant time. Whose it is, is looked up by digest in a dict: how long that takes depends on the
digests alone, which nobody can steer who does not know tokens of 128 random bits.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, Generic

import attrs

from trio_swarm.errors import BadTokenError, BusyError
from trio_swarm.operators.login import (
    ExpiredToken,
    LoginRequest,
    Moment,
    Presented,
    RolesTaken,
    SeatT,
    Session,
    UnknownSession,
)

__all__ = ["MAX_SESSIONS", "Claim", "Minted", "SessionTable"]

MAX_SESSIONS: Final = 1024
"""Sessions of one server. A login needs no token by contract, so that something must bound it; at this
bound such make room as are not connected and were never given anything."""

_EXPIRED_REMEMBERED: Final = 1024
"""Tokens of expired sessions that are told so, rather than that nobody knows them."""


@attrs.frozen
class Claim:
    """A sid, a token and roles that are reserved for a login which is under way."""

    sid: str
    request: LoginRequest
    moment: Moment
    token: str = attrs.field(repr=False)

    @property
    def digest(self) -> bytes:
        """What is kept of the token."""
        return Presented.of(self.token).digest


@attrs.frozen
class Minted(Generic[SeatT]):
    """A new session, and its token: the only time that it is seen."""

    session: Session[SeatT]
    token: str = attrs.field(repr=False)


class SessionTable(Generic[SeatT]):
    """The sessions of one server; ``make_seat(sid, request)`` makes what each holds."""

    def __init__(
        self,
        make_seat: Callable[[str, LoginRequest], SeatT],
        *,
        max_sessions: int = MAX_SESSIONS,
        token_hex: Callable[[int], str] = secrets.token_hex,
    ) -> None:
        self._make_seat = make_seat
        self._max_sessions = max_sessions
        self._token_hex = token_hex
        self._sessions: dict[str, Session[SeatT]] = {}
        self._claimed: set[str] = set()
        self._leaving: set[str] = set()
        """Sessions that are making room; nobody comes in to them."""
        self._holders: dict[str, str] = {}
        self._by_digest: dict[bytes, Session[SeatT]] = {}
        self._expired: dict[bytes, None] = {}

    def __len__(self) -> int:
        return len(self._sessions)

    def __iter__(self) -> Iterator[Session[SeatT]]:
        return iter(tuple(self._sessions.values()))

    # -- logging in and out ------------------------------------------------------------

    @contextmanager
    def reserve(self, request: LoginRequest) -> Iterator[Claim]:
        """Keep a sid and the roles for the block, in which they may be published.

        Not before there is room: see `surplus`. What was not published by its end is free again.
        Raises `RolesTaken`; nothing is reserved then.
        """
        conflicts = [role for role in request.roles if role in self._holders]
        if conflicts:
            raise RolesTaken(conflicts)
        claim = Claim(self._fresh_sid(), request, Moment.now(), self._token_hex(16))
        self._claimed.add(claim.sid)
        self._holders.update(dict.fromkeys(request.roles, claim.sid))
        try:
            yield claim
        finally:
            self._claimed.discard(claim.sid)
            if claim.sid not in self._sessions:
                self._free(claim.sid, request.roles)

    def publish(self, claim: Claim) -> Minted[SeatT]:
        """Make the session of a claim that is still reserved."""
        session = self._add(claim.sid, claim.request, claim.digest, claim.moment.wall, claim.moment)
        return Minted(session, claim.token)

    def mint(self, request: LoginRequest) -> Minted[SeatT]:
        """Log an operator in, in one step, if there is room. Raises `RolesTaken` or `BusyError`."""
        with self.reserve(request) as claim:
            if self.surplus > 0:
                raise self._full()
            return self.publish(claim)

    # -- where it is full --------------------------------------------------------------

    @property
    def surplus(self) -> int:
        """So many too many with those that are reserved; such as are making room do not count."""
        return len(self._sessions) + len(self._claimed) - len(self._leaving) - self._max_sessions

    @contextmanager
    def making_room(self) -> Iterator[Session[SeatT]]:
        """Choose, in one step, a session that makes room; for the block nobody comes in to it.

        Of the `Session.spare` ones; such as never had a socket first, because a socket costs nobody
        more than a login does. Of these the one that was accessed the longest ago: whoever has just shown
        its token may be on the way in. Raises `BusyError` if there are fewer than the `surplus`.
        """
        may_go = [each for each in self._sessions.values() if each.spare and each.sid not in self._leaving]
        if len(may_go) < max(self.surplus, 1):
            raise self._full()
        session = min(may_go, key=lambda each: (each.seated, each.last_access.at))
        self._leaving.add(session.sid)
        try:
            yield session
        finally:
            self._leaving.discard(session.sid)

    def restore(
        self,
        sid: str,
        request: LoginRequest,
        *,
        digest: bytes,
        joined_at: float,
        last_access: Moment,
        seated: bool,
    ) -> Session[SeatT]:
        """Bring back a session of an earlier server. Raises ``ValueError`` or `RolesTaken`."""
        if sid in self._sessions or digest in self._by_digest:
            raise ValueError("there are two of it")
        conflicts = [role for role in request.roles if role in self._holders]
        if conflicts:
            raise RolesTaken(conflicts)
        self._holders.update(dict.fromkeys(request.roles, sid))
        session = self._add(sid, request, digest, joined_at, last_access)
        session.seated = seated
        return session

    def remove(self, sid: str) -> Session[SeatT] | None:
        """Log it out and free its roles; None if it is not there."""
        session = self._sessions.pop(sid, None)
        if session is not None:
            del self._by_digest[session.digest]
            self._leaving.discard(sid)
            self._free(sid, session.roles)
        return session

    def remember_expired(self, digest: bytes) -> None:
        """Whoever presents that token is told that its session expired; the latest ones only."""
        self._expired[digest] = None
        while len(self._expired) > _EXPIRED_REMEMBERED:
            del self._expired[next(iter(self._expired))]

    # -- finding -----------------------------------------------------------------------

    def find(self, name: str) -> Session[SeatT] | None:
        """The session with that sid, or else the one that holds that role."""
        return self._sessions.get(name) or self._sessions.get(self._holders.get(name, ""))

    def open(self, sid: str, presented: Presented) -> Session[SeatT]:
        """The session, for whoever has its token.

        Raises `UnknownSession` and `BadTokenError`, in this order (contract: operators 1.2), and `BusyError`
        for one that is making room: it may yet be put back.
        """
        session = self._sessions.get(sid)
        if session is None:
            raise UnknownSession("unknown sid")
        if not session.opened_by(presented):
            raise BadTokenError("token mismatch")
        if sid in self._leaving:
            raise BusyError("the session may be about to end: come again")
        return session

    def identify(self, presented: Presented) -> Session[SeatT]:
        """Whose token that is. Raises `ExpiredToken` or another `BadTokenError`."""
        session = self._by_digest.get(presented.digest)
        if session is not None:
            return session
        if presented.digest in self._expired:
            raise ExpiredToken("your session expired")
        raise BadTokenError("no such token")

    def _add(
        self, sid: str, request: LoginRequest, digest: bytes, joined_at: float, last_access: Moment
    ) -> Session[SeatT]:
        session = Session(
            sid=sid,
            request=request,
            seat=self._make_seat(sid, request),
            joined_at=joined_at,
            last_access=last_access,
            digest=digest,
        )
        self._sessions[sid] = self._by_digest[digest] = session
        return session

    def _full(self) -> BusyError:
        return BusyError(f"{self._max_sessions} sessions are open already")

    def _free(self, sid: str, roles: tuple[str, ...]) -> None:
        for role in roles:
            if self._holders.get(role) == sid:
                del self._holders[role]

    def _fresh_sid(self) -> str:
        while True:
            sid = f"S-{self._token_hex(8)}"
            if sid not in self._sessions and sid not in self._claimed:
                return sid
