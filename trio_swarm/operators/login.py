"""What an operator says of itself when it logs in, and the session that it gets."""

from __future__ import annotations

import hashlib
import hmac
import json
import math
import re
import time
from typing import Any, Final, Generic, Protocol, TypeVar

import attrs
import trio

from trio_swarm.errors import BadTokenError, Refused
from trio_swarm.operators.observed import Observed

__all__ = [
    "MAX_LOGIN_BODY",
    "ExpiredToken",
    "LoginRequest",
    "Moment",
    "Presented",
    "RolesTaken",
    "SeatLike",
    "SeatT",
    "Session",
    "UnknownSession",
    "bearer_of",
]


class SeatLike(Protocol):
    """What a session must know of its seat."""

    @property
    def connected(self) -> bool: ...

    @property
    def ever_addressed(self) -> bool: ...


SeatT = TypeVar("SeatT", bound=SeatLike)

_MAX_ROLES: Final = 64
_MAX_ROLE: Final = 256
_MAX_ABOUT: Final = 64 * 2**10
"""Description and manifest of one session together, in characters of JSON."""
MAX_LOGIN_BODY: Final = 12 * _MAX_ROLES * _MAX_ROLE + 2 * _MAX_ABOUT
"""Bytes of a login, 320 KiB: all of that, each character of a role as two escapes, and half as much
of the rest again for what says nothing. Anybody may send one, and it is parsed in one go."""
_LIKE_A_SID: Final = re.compile(r"S-[0-9A-Fa-f]{16}")


class RolesTaken(Refused):
    """A login wanted roles that others hold; it got none. ``conflicts``, in the order asked."""

    def __init__(self, conflicts: list[str]) -> None:
        super().__init__(f"roles are held by others: {', '.join(conflicts)}")
        self.conflicts = conflicts


class UnknownSession(Refused):
    """No session has that sid, or no longer."""


class ExpiredToken(BadTokenError):
    """The token was good once; its session expired."""


@attrs.frozen
class Moment:
    """One point of time on both clocks: what is stored needs the one, what is waited for the other."""

    wall: float
    """Seconds since 1970. Survives a restart; jumps when the system's clock is set."""
    at: float
    """On ``trio.current_time()``'s clock."""

    @classmethod
    def now(cls) -> Moment:
        return cls(time.time(), trio.current_time())

    def since(self, wall: float) -> Moment:
        """The moment that long ago by the wall clock; not in the future, whatever that clock says."""
        return Moment(wall, self.at - max(0.0, self.wall - wall))


@attrs.frozen
class Presented:
    """A token as somebody presented it: only its digest is kept."""

    digest: bytes = attrs.field(repr=False)

    @classmethod
    def of(cls, token: str) -> Presented:
        return cls(hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest())


@attrs.frozen
class LoginRequest:
    """What an operator says of itself when it logs in."""

    roles: tuple[str, ...] = ()
    desc: str | None = None
    capability_manifest: dict[str, Any] | None = attrs.field(default=None, repr=False)

    @classmethod
    def parse(cls, body: Any) -> LoginRequest:
        """Read it from a request's body. Unknown keys are ignored; raises ``ValueError``.

        A role is any text (contract: operators 1.3), but for what a sid looks like: whoever names a
        session means that one, also when it has ended, and nobody who took its sid for a role.
        """
        if not isinstance(body, dict):
            raise ValueError("expected an object")
        roles = body.get("roles", [])
        if not isinstance(roles, list) or not all(isinstance(role, str) for role in roles):
            raise ValueError("roles: expected a list of strings")
        if len(roles) > _MAX_ROLES or any(not 0 < len(role) <= _MAX_ROLE for role in roles):
            raise ValueError(f"roles: at most {_MAX_ROLES}, each of 1 to {_MAX_ROLE} characters")
        for role in filter(_LIKE_A_SID.fullmatch, roles):
            raise ValueError(f"roles: {role!r} looks like the sid of a session, which no role may")
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
class Session(Generic[SeatT]):
    """One operator that is logged in."""

    sid: str
    request: LoginRequest
    """What it said of itself."""
    seat: SeatT
    """What the owner of the table keeps for the session."""
    joined_at: float
    """When it logged in, in seconds since 1970."""
    last_access: Moment
    """When its operator last did something, or was there."""
    digest: bytes = attrs.field(repr=False)
    """SHA-256 of its token."""
    seated: bool = False
    """A socket came at least once."""
    deleted: bool = False
    """It was ended for good: it is not to be there for the next server either."""
    observed: Observed = attrs.field(factory=Observed, repr=False)
    """The steps that addressed it."""

    @property
    def roles(self) -> tuple[str, ...]:
        """Names that no other session has while this one lives."""
        return self.request.roles

    @property
    def desc(self) -> str | None:
        """For people: what the operator is."""
        return self.request.desc

    @property
    def capability_manifest(self) -> dict[str, Any] | None:
        """What the operator says that it can do; opaque."""
        return self.request.capability_manifest

    @property
    def spare(self) -> bool:
        """Nothing is lost with it: nobody is connected now, and nothing was ever given to it."""
        return not (self.seat.connected or self.seat.ever_addressed or self.observed.total)

    def opened_by(self, presented: Presented) -> bool:
        """That token is this session's; in constant time."""
        return hmac.compare_digest(self.digest, presented.digest)

    def expires(self, *, join_within: float, idle_within: float) -> float:
        """When it ends if nothing happens before, on ``trio.current_time()``'s clock.

        ``join_within`` seconds after the last access where no socket ever came, ``idle_within``
        after it otherwise; never while there is a socket.
        """
        if self.seat.connected:
            return math.inf
        return self.last_access.at + (idle_within if self.seated else join_within)


def bearer_of(values: tuple[str, ...]) -> str:
    """The operator's token in the values of ``Authorization`` (contract: operators 1.1).

    The scheme is exactly ``Bearer``, one space. Raises `BadTokenError`.
    """
    if len(values) == 1 and values[0].startswith("Bearer "):
        token = values[0].removeprefix("Bearer ").strip()
        if token and token.isascii():
            return token
        del token
    del values  # A traceback that shows variables must not show what may be a token all the same.
    raise BadTokenError("missing or empty Bearer token")
