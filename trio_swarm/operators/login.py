"""Who is logged in: sessions, their secrets and their exclusive roles.

Every decision is made in one synchronous step: of two logins that want the same role,
exactly one gets it (contract 1.3). A token is kept as its SHA-256 digest only, and compared
in constant time.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from collections.abc import Callable, Iterator
from typing import Any, Final, Generic, TypeVar

import attrs

from trio_swarm.errors import BadTokenError, BusyError, Refused

__all__ = [
    "MAX_SESSIONS",
    "LoginRequest",
    "Minted",
    "RolesTaken",
    "Session",
    "SessionTable",
    "UnknownSession",
    "bearer_of",
]

T = TypeVar("T")

MAX_SESSIONS: Final = 1024
"""Sessions of one server. A login needs no token by contract, so that something must bound it."""

_MAX_ROLES: Final = 64
_MAX_ROLE: Final = 256
_MAX_ABOUT: Final = 64 * 2**10
"""Description and manifest of one session together, in characters of JSON."""


class RolesTaken(Refused):
    """A login wanted roles that others hold; it got none. ``conflicts``, in the order asked."""

    def __init__(self, conflicts: list[str]) -> None:
        super().__init__(f"roles are held by others: {', '.join(conflicts)}")
        self.conflicts = conflicts


class UnknownSession(Refused):
    """No session has that sid, or no longer."""


@attrs.frozen
class LoginRequest:
    """What an operator says of itself when it logs in."""

    roles: tuple[str, ...] = ()
    desc: str | None = None
    capability_manifest: dict[str, Any] | None = attrs.field(default=None, repr=False)

    @classmethod
    def parse(cls, body: Any) -> LoginRequest:
        """Read it from a request's body. Unknown keys are ignored; raises ``ValueError``."""
        if not isinstance(body, dict):
            raise ValueError("expected an object")
        roles = body.get("roles", [])
        if not isinstance(roles, list) or not all(isinstance(role, str) for role in roles):
            raise ValueError("roles: expected a list of strings")
        if len(roles) > _MAX_ROLES or any(not 0 < len(role) <= _MAX_ROLE for role in roles):
            raise ValueError(f"roles: at most {_MAX_ROLES}, each of 1 to {_MAX_ROLE} characters")
        desc = body.get("desc")
        if desc is not None and not isinstance(desc, str):
            raise ValueError("desc: expected a string")
        manifest = body.get("capability_manifest")
        if manifest is not None and not isinstance(manifest, dict):
            raise ValueError("capability_manifest: expected an object")
        if len(json.dumps([desc, manifest])) > _MAX_ABOUT:
            raise ValueError("desc and capability_manifest are too large")
        return cls(tuple(dict.fromkeys(roles)), desc, manifest)


@attrs.define(eq=False)
class Session(Generic[T]):
    """One operator that is logged in."""

    sid: str
    roles: tuple[str, ...]
    desc: str | None
    capability_manifest: dict[str, Any] | None = attrs.field(repr=False)
    seat: T
    """What the owner of the table keeps for the session."""
    _digest: bytes = attrs.field(repr=False)

    def opened_by(self, token: str) -> bool:
        """``token`` is this session's; in constant time."""
        return hmac.compare_digest(self._digest, _digest(token))


@attrs.frozen
class Minted(Generic[T]):
    """A new session, and its token: the only time that it is seen."""

    session: Session[T]
    token: str = attrs.field(repr=False)


class SessionTable(Generic[T]):
    """The sessions of one server; ``make_seat(sid, request)`` makes what each holds."""

    def __init__(
        self,
        make_seat: Callable[[str, LoginRequest], T],
        *,
        max_sessions: int = MAX_SESSIONS,
        token_hex: Callable[[int], str] = secrets.token_hex,
    ) -> None:
        self._make_seat = make_seat
        self._max_sessions = max_sessions
        self._token_hex = token_hex
        self._sessions: dict[str, Session[T]] = {}
        self._holders: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._sessions)

    def __iter__(self) -> Iterator[Session[T]]:
        return iter(tuple(self._sessions.values()))

    def mint(self, request: LoginRequest) -> Minted[T]:
        """Log an operator in. Raises `RolesTaken` (nothing is reserved then) or `BusyError`."""
        conflicts = [role for role in request.roles if role in self._holders]
        if conflicts:
            raise RolesTaken(conflicts)
        if len(self._sessions) >= self._max_sessions:
            raise BusyError(f"{self._max_sessions} sessions are open already")
        sid = self._fresh_sid()
        token = self._token_hex(16)
        session = Session(
            sid=sid,
            roles=request.roles,
            desc=request.desc,
            capability_manifest=request.capability_manifest,
            seat=self._make_seat(sid, request),
            digest=_digest(token),
        )
        self._sessions[sid] = session
        self._holders.update(dict.fromkeys(request.roles, sid))
        return Minted(session, token)

    def find(self, name: str) -> Session[T] | None:
        """The session with that sid, or else the one that holds that role."""
        return self._sessions.get(name) or self._sessions.get(self._holders.get(name, ""))

    def open(self, sid: str, token: str) -> Session[T]:
        """The session, for whoever has its token.

        Raises `UnknownSession` and `BadTokenError`, in this order (contract 1.2).
        """
        session = self._sessions.get(sid)
        if session is None:
            raise UnknownSession("unknown sid")
        if not session.opened_by(token):
            raise BadTokenError("token mismatch")
        return session

    def remove(self, sid: str) -> Session[T] | None:
        """Log it out and free its roles; None if it is not there."""
        session = self._sessions.pop(sid, None)
        if session is not None:
            for role in session.roles:
                del self._holders[role]
        return session

    def _fresh_sid(self) -> str:
        while True:
            sid = f"S-{self._token_hex(8)}"
            if sid not in self._sessions:
                return sid


def bearer_of(values: tuple[str, ...]) -> str:
    """The operator's token in the values of ``Authorization`` (contract 1.1).

    The scheme is exactly ``Bearer``, one space. Raises `BadTokenError`.
    """
    if len(values) == 1 and values[0].startswith("Bearer "):
        token = values[0].removeprefix("Bearer ").strip()
        if token and token.isascii():
            return token
    raise BadTokenError("missing or empty Bearer token")


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
