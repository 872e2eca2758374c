"""Logging in to an operators server, and out of it, over REST."""

from __future__ import annotations

import logging
import random
import re
import ssl
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, TypeVar

import attrs
import trio

from trio_swarm._io import http_client
from trio_swarm._io.http_client import Address, Reply
from trio_swarm.errors import HandshakeError, PeerError, ProtocolError
from trio_swarm.limits import CLOSE_DEADLINE
from trio_swarm.operators.api import FEATURES_HEADER
from trio_swarm.operators.intake import RECEIPTS_HEADER
from trio_swarm.operators.login import RolesTaken

__all__ = ["Login", "OperatorSession", "log_in", "log_out"]

_log: Final = logging.getLogger("trio_swarm.operators")

FieldT = TypeVar("FieldT")

_ID: Final = re.compile(r"[A-Za-z0-9._~-]{1,256}")
"""What goes into a path and a header as it is."""
_TRIES: Final = 6
"""Of one request, the first included, to a server that says it has too much to do just now."""
_LONGEST: Final = 5
"""Seconds: a server that is busy for longer is not waited for."""
_GONE: Final = frozenset({401, 404, 410})
"""There is no such session any more."""


def _strings(values: Iterable[str]) -> tuple[str, ...]:
    return tuple(values)


@attrs.frozen
class OperatorSession:
    """A session at some server, to come back to: plain values, that can be kept in a file.

    Whoever has the token is the operator: the file must be nobody else's to read.
    """

    sid: str
    token: str = attrs.field(repr=False)
    roles: tuple[str, ...] = attrs.field(default=(), converter=_strings)
    features: tuple[str, ...] = attrs.field(default=(), converter=_strings)
    """What the server does beyond the contract, as it said at the login."""


@attrs.frozen
class Login:
    """A login that succeeded, now or before."""

    address: Address
    session: OperatorSession
    ssl_context: ssl.SSLContext | None = attrs.field(repr=False)

    @classmethod
    def resumed(cls, address: Address, session: OperatorSession, ssl_context: ssl.SSLContext | None) -> Login:
        """One that was made before. Raises ``ValueError`` for what no server would have given."""
        if not _ID.fullmatch(session.sid) or not _ID.fullmatch(session.token):
            raise ValueError("the session has a sid or a token that cannot be used")
        return cls(address, session, ssl_context)

    @property
    def sid(self) -> str:
        return self.session.sid

    @property
    def token(self) -> str:
        return self.session.token

    @property
    def roles(self) -> tuple[str, ...]:
        return self.session.roles

    @property
    def redelivers(self) -> bool:
        """The server sends unanswered requests again by itself."""
        return "redelivery" in self.session.features

    @property
    def receipts(self) -> bool:
        """The server says what became of each reply, to those who want to know."""
        return "receipts" in self.session.features

    @property
    def path(self) -> str:
        return f"/v1/operators/{self.sid}"

    @property
    def headers(self) -> list[tuple[str, str]]:
        return [("Authorization", f"Bearer {self.token}")]

    @property
    def ws_headers(self) -> list[tuple[str, str]]:
        return [*self.headers, (RECEIPTS_HEADER, "1")] if self.receipts else self.headers


async def log_in(
    address: Address,
    roles: Sequence[str],
    desc: str | None,
    manifest: Mapping[str, Any] | None,
    ssl_context: ssl.SSLContext | None,
    rng: random.Random | None = None,
) -> Login:
    """Mint a session. Raises `RolesTaken`, `HandshakeError` or `ProtocolError`.

    A server that is too busy (429) and says that it soon is no more is asked again, a few times: it did
    nothing. ``rng`` spreads the times when those that were sent away together come again.

    When cancelled before its request was sent, nothing was minted. When cancelled later, it
    waits up to ``CLOSE_DEADLINE`` for the answer and deletes the session that came with it.
    """
    body: dict[str, Any] = {"roles": list(roles)}
    if desc is not None:
        body["desc"] = desc
    if manifest is not None:
        body["capability_manifest"] = dict(manifest)
    jitter = rng if rng is not None else random.Random()
    for left in reversed(range(_TRIES)):
        reply = await _ask_for_one(address, body, ssl_context)
        soon = _soon(reply)
        if soon is None or not left:
            break
        _log.debug("the login is sent again: %d %s", reply.status, reply.words)
        await trio.sleep(soon * jitter.uniform(1.0, 2.0))
    return _login_of(address, reply, ssl_context)


def _soon(reply: Reply) -> int | None:
    """Seconds, if the server is busy, and not for long."""
    seconds = reply.retry_after
    return None if seconds is None or seconds > _LONGEST else seconds


async def _ask_for_one(
    address: Address, body: Mapping[str, Any], ssl_context: ssl.SSLContext | None
) -> Reply:
    """The answer to one login. A session that nobody would have is deleted."""
    replies: list[Reply] = []
    try:
        await http_client.request(
            address,
            "POST",
            "/v1/operators",
            json_body=body,
            ssl_context=ssl_context,
            on_reply=replies.append,
            grace=CLOSE_DEADLINE,
        )
    except BaseException:
        # Cancelled, or the answer came after the deadline: nobody would have that session.
        for reply in replies:
            with trio.move_on_after(CLOSE_DEADLINE, shield=True):
                await _undo(address, reply, ssl_context)
        raise
    return replies[0]


async def _undo(address: Address, reply: Reply, ssl_context: ssl.SSLContext | None) -> None:
    try:
        session = _login_of(address, reply, ssl_context)
    except (PeerError, RolesTaken):
        return  # It minted nothing.
    await log_out(session)


def _login_of(address: Address, reply: Reply, ssl_context: ssl.SSLContext | None) -> Login:
    if reply.status == 409:
        conflicts = _field(reply.json(), "conflicts", list)
        raise RolesTaken([role for role in conflicts if isinstance(role, str)])
    if reply.status != 200:
        text = f"the login was refused: {reply.status} {reply.words}".rstrip()
        raise HandshakeError(text, status=reply.status)
    known = reply.json()
    sid, token = _field(known, "sid", str), _field(known, "token", str)
    if not _ID.fullmatch(sid) or not _ID.fullmatch(token):
        raise ProtocolError("the login gave a sid or a token that cannot be used")
    features = (reply.header(FEATURES_HEADER) or "").split(",")
    return Login(
        address=address,
        session=OperatorSession(
            sid=sid,
            token=token,
            roles=_roles_in(known),
            features=[feature.strip() for feature in features if feature],
        ),
        ssl_context=ssl_context,
    )


def _roles_in(known: dict[str, Any]) -> tuple[str, ...]:
    """Those that the server says it gave: a later original has none, whatever was asked (contract 1.7)."""
    roles = known.get("roles")
    return tuple(role for role in roles if isinstance(role, str)) if isinstance(roles, list) else ()


async def log_out(session: Login) -> None:
    """Delete the session at the server, if it can be reached now. The caller bounds how long that takes.

    A server that is too busy (429) and says that it soon is no more is asked again. When the session lives
    on, or may (also when cancelled), that is told in the log: it holds its roles.
    """
    rng = random.Random()
    try:
        for left in reversed(range(_TRIES)):
            reply = await http_client.request(
                session.address,
                "DELETE",
                session.path,
                headers=session.headers,
                ssl_context=session.ssl_context,
            )
            soon = _soon(reply)
            if soon is None or not left:
                break
            await trio.sleep(soon * rng.uniform(1.0, 1.5))  # Who leaves has little time.
    except PeerError as error:
        _log.debug("the session %s could not be deleted: %s", session.sid, error)
        return
    except trio.Cancelled:
        _log.warning("the session %s may be there still: the server did not delete it in time", session.sid)
        raise
    if not 200 <= reply.status < 300 and reply.status not in _GONE:
        # It lives on, and holds its roles until it expires (contract 1.7).
        _log.warning("the session %s was not deleted: the server answered %d", session.sid, reply.status)


def _field(value: Any, key: str, kind: type[FieldT]) -> FieldT:
    found = value.get(key) if isinstance(value, dict) else None
    if not isinstance(found, kind):
        raise ProtocolError(f"the login's answer has no {key}")
    return found
