"""Capability tokens: minted with a secret, narrowed by anybody, verified with the secret.

The form is the operators contract's, section 5: a JSON object in unpadded URL-safe base64,
signed by HMAC-SHA256 over its fields joined by ``|``. That joining is ambiguous for fields that
hold a ``|`` or a ``,``, so every field is held to a grammar both when a token is minted and when
it is verified.

`attenuate` is ours: it appends a line to ``caveats`` (a key that the originals do not know) and
replaces the signature by its HMAC *of* that line, keyed with the signature before. Whoever holds
a token can do that without the secret, and nobody can undo it: the signature before is gone.

Pure: the secret, the nonce and the time are arguments.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import re
from collections.abc import Iterable, Sequence
from typing import Any, Final, cast

import attrs

from trio_swarm._state.caveats import (
    U32,
    U64,
    Caveat,
    ExpireAt,
    MaxUses,
    Only,
    Scope,
    check_text,
    covered,
    expiries,
    parse_caveat,
    parse_scopes,
)
from trio_swarm._state.grants import (
    ROLE_VERBS,
    VERBS,
    Grant,
    Role,
    TokenExpired,
    TokenForged,
    TokenMalformed,
    UseLimit,
)
from trio_swarm.errors import FrameError
from trio_swarm.frames import parse_json
from trio_swarm.limits import MAX_CAVEATS, MAX_TOKEN

__all__ = ["CapabilityToken", "attenuate", "fingerprint_of", "mint", "verify"]

_ALPHABET: Final = re.compile(r"[A-Za-z0-9_-]+")
_NONCE: Final = re.compile(r"[0-9a-f]{32}")
_SIGNATURE: Final = re.compile(r"[0-9a-f]{64}")


def fingerprint_of(nonce: str) -> str:
    """The SHA-256 of a nonce's text in hex: what may be kept and shown of it."""
    return hashlib.sha256(nonce.encode("utf-8", "surrogatepass")).hexdigest()


@attrs.frozen
class CapabilityToken:
    """The fields of a token, checked for their types only: `verify` is who believes them."""

    agent_id: str
    role: str
    scopes: tuple[str, ...]
    issued_at: int
    """Unix seconds."""
    expire_at: int
    """Unix seconds."""
    max_uses: int | None
    nonce: str = attrs.field(repr=False)
    """32 hex digits; secret. `fingerprint` is what may be shown of it."""
    sig_hex: str = attrs.field(repr=False)
    caveats: tuple[str, ...] = ()
    """What took something away since it was minted, first to last."""

    @property
    def fingerprint(self) -> str:
        """The SHA-256 of the nonce's text, in hex (contract: operators 5.1)."""
        return fingerprint_of(self.nonce)

    def encode(self) -> str:
        """As it travels: base64url without padding, of one JSON object."""
        fields = attrs.asdict(self, filter=lambda field, value: field.name != "caveats" or bool(value))
        text = json.dumps(fields, separators=(",", ":"))
        return base64.urlsafe_b64encode(text.encode("ascii")).rstrip(b"=").decode("ascii")

    @classmethod
    def decode(cls, text: str) -> CapabilityToken:
        """Read what `encode`, or an original, wrote. Keys that are not known are ignored.

        Raises:
            TokenMalformed: it is too long, not in the URL-safe alphabet without padding, not
                JSON, or a field is missing or of another type. Never anything else.
        """
        fields = _json_of(text)
        if not isinstance(fields, dict):
            raise TokenMalformed("it is no JSON object")
        return cls(
            agent_id=_text(fields, "agent_id"),
            role=_role(fields),
            scopes=_texts(fields, "scopes"),
            issued_at=_number(fields, "issued_at", U64),
            expire_at=_number(fields, "expire_at", U64),
            max_uses=None if fields.get("max_uses") is None else _number(fields, "max_uses", U32),
            nonce=_text(fields, "nonce"),
            sig_hex=_text(fields, "sig_hex"),
            caveats=_texts(fields, "caveats") if "caveats" in fields else (),
        )


def _json_of(text: str) -> Any:
    if len(text) > MAX_TOKEN:
        raise TokenMalformed(f"it is longer than {MAX_TOKEN} characters")
    if _ALPHABET.fullmatch(text) is None:
        raise TokenMalformed("it is not base64url without padding")
    try:
        data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
        if base64.urlsafe_b64encode(data).rstrip(b"=").decode() != text:
            # Bits behind the last byte: the same token would have several texts.
            raise TokenMalformed("it is not base64url without padding")
        return parse_json(data)
    except (binascii.Error, FrameError):
        # Neither the error's text, which may quote the token, nor the error itself.
        raise TokenMalformed("it is not base64url of JSON") from None


def _text(fields: dict[str, Any], key: str) -> str:
    value = fields.get(key)
    if not isinstance(value, str):
        raise TokenMalformed(f"{key} must be a string")
    return value


def _texts(fields: dict[str, Any], key: str) -> tuple[str, ...]:
    value = fields.get(key)
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise TokenMalformed(f"{key} must be a list of strings")
    return tuple(value)


def _number(fields: dict[str, Any], key: str, most: int) -> int:
    value = fields.get(key)
    if type(value) is not int or not 0 <= value <= most:
        raise TokenMalformed(f"{key} must be an integer from 0 to {most}")
    return value


def _role(fields: dict[str, Any]) -> str:
    role = _text(fields, "role")
    if role not in ROLE_VERBS:
        raise TokenMalformed(f"role must be one of {', '.join(ROLE_VERBS)}")
    return role


# -- the grammar, at mint and at verify ------------------------------------------------------


def _check(token: CapabilityToken) -> tuple[Caveat, ...]:
    """Hold each field to its grammar; the caveats, read. Raises ``ValueError``."""
    check_text("agent_id", token.agent_id)
    if token.role not in ROLE_VERBS:
        raise ValueError(f"a role is one of {', '.join(ROLE_VERBS)}, not {token.role!r}")
    parse_scopes(token.scopes)
    _check_number("issued_at", token.issued_at, U64)
    _check_number("expire_at", token.expire_at, U64)
    if token.max_uses is not None:
        _check_number("max_uses", token.max_uses, U32)
    if _NONCE.fullmatch(token.nonce) is None:
        raise ValueError("a nonce has 32 hex digits in lower case")
    if len(token.caveats) > MAX_CAVEATS:
        raise ValueError(f"a token has at most {MAX_CAVEATS} caveats, not {len(token.caveats)}")
    return tuple(map(parse_caveat, token.caveats))


def _check_number(name: str, value: int, most: int) -> None:
    if type(value) is not int or not 0 <= value <= most:
        raise ValueError(f"{name} must be an integer from 0 to {most}, not {value!r:.40}")


def _signed_text(token: CapabilityToken) -> str:
    """What the secret signs (contract: operators 5.1). Unambiguous after `_check` only."""
    uses = "None" if token.max_uses is None else f"Some({token.max_uses})"
    fields = (
        token.agent_id,
        token.role.capitalize(),
        ",".join(token.scopes),
        str(token.issued_at),
        str(token.expire_at),
        uses,
        token.nonce,
    )
    return "|".join(fields)


def _mac(key: bytes, text: str) -> bytes:
    return hmac.digest(key, text.encode("utf-8"), hashlib.sha256)


def _check_size(token: CapabilityToken) -> CapabilityToken:
    size = len(token.encode())
    if size > MAX_TOKEN:
        raise ValueError(f"the token would have {size} characters, more than {MAX_TOKEN}")
    return token


# -- what is done with them --------------------------------------------------------------------


def mint(
    *,
    secret: bytes,
    agent_id: str,
    role: Role | str,
    scopes: Sequence[str] = ("*",),
    issued_at: int,
    expire_at: int,
    max_uses: int | None = None,
    nonce: str,
) -> CapabilityToken:
    """Make a token. Times in Unix seconds; ``nonce`` is 32 random hex digits.

    Raises ``ValueError`` for a field outside its grammar: ``agent_id`` and scopes are
    printable text without ``|`` and ``,``; scopes are as in `trio_swarm._state.caveats`.
    """
    if not secret:
        raise ValueError("the secret is empty")
    token = CapabilityToken(agent_id, role, tuple(scopes), issued_at, expire_at, max_uses, nonce, "")
    _check(token)
    return _check_size(attrs.evolve(token, sig_hex=_mac(secret, _signed_text(token)).hex()))


def attenuate(
    token: CapabilityToken,
    *,
    scopes: Sequence[str] | None = None,
    expire_at: int | None = None,
    max_uses: int | None = None,
) -> CapabilityToken:
    """A token that allows less than ``token``; needs no secret and does not verify it.

    Args:
        scopes: nothing but these, each within one scope that the token has. A scope is a verb or
            ``*``, and after an ``@`` for what: ``emit_output@task=ST-1&attempt=2&out=report*``, each
            of the three if wanted. Of a worker's verbs the routes ask for ``fetch_prompt``,
            ``fetch_data``, ``emit_output``, ``post_result`` and ``read_task_state``.
        expire_at: Unix seconds, not later than the token's own.
        max_uses: not more than the token's own; they are counted from here on, and count for
            ``token`` too.

    Raises ``ValueError`` for what would widen it, for a verb that no role has, and for a token that
    could not verify. (A caveat that says more than the token allows would have no effect: all
    of them hold.)
    """
    if _SIGNATURE.fullmatch(token.sig_hex) is None:
        raise ValueError("the token's signature is not 64 hex digits")
    held = _check(token)
    added: list[Caveat] = []
    if scopes is not None:
        wanted = parse_scopes(scopes)
        _check_verbs(wanted, token)
        if not all(covered(wanted, parse_scopes(each)) for each in _scope_lists(token, held)):
            raise ValueError(f"the scopes {', '.join(scopes)} are not within the token's own")
        added.append(Only(tuple(scopes)))
    if expire_at is not None:
        _check_narrower("expire_at", expire_at, _expiry(token, held), U64)
        added.append(ExpireAt(expire_at))
    if max_uses is not None:
        _check_narrower("max_uses", max_uses, _least_uses(token, held), U32)
        added.append(MaxUses(max_uses))
    if not added:
        raise ValueError("nothing to narrow: give scopes, expire_at or max_uses")
    signature = bytes.fromhex(token.sig_hex)
    for caveat in added:
        signature = _mac(signature, str(caveat))
    caveats = (*token.caveats, *map(str, added))
    narrower = attrs.evolve(token, sig_hex=signature.hex(), caveats=caveats)
    _check(narrower)
    return _check_size(narrower)


def _check_verbs(wanted: Iterable[Scope], token: CapabilityToken) -> None:
    """A verb that means nothing would make a token for nothing: nearly always a typing mistake."""
    own = {scope.verb for scope in parse_scopes(token.scopes)}
    for scope in wanted:
        if scope.verb not in VERBS and scope.verb not in own and scope.verb != "*":
            raise ValueError(f"the scope {str(scope.verb)!r}: no role has that verb")


def _check_narrower(name: str, value: int, held: int | None, most: int) -> None:
    _check_number(name, value, most)
    if held is not None and value > held:
        raise ValueError(f"{name} {value} is more than the token's own {held}")


def verify(token: CapabilityToken, *, secret: bytes, now: float) -> Grant:
    """What ``token`` allows at ``now``, in Unix seconds. First the signature, then the time.

    A token of role operator does not end by its own ``expire_at``, since the session does; by
    a caveat's it does. (contract: operators 5.2)

    Raises:
        TokenForged: a field is outside its grammar, a caveat is not understood, or the
            signature is another one.
        TokenExpired: ``now`` is its ``expire_at``, or a caveat's, or later.
    """
    if not secret:
        raise ValueError("the secret is empty")
    try:
        caveats = _check(token)
    except ValueError:
        raise TokenForged("a field or a caveat is outside the grammar", token.fingerprint) from None
    signature = _mac(secret, _signed_text(token))
    for caveat in token.caveats:
        signature = _mac(signature, caveat)
    if not hmac.compare_digest(signature.hex().encode(), token.sig_hex.encode("utf-8", "surrogatepass")):
        raise TokenForged("the signature is wrong", token.fingerprint)
    expiry = _expiry(token, caveats)
    if expiry is not None and now >= expiry:
        raise TokenExpired(f"it ended at {expiry}", token.fingerprint)
    return Grant(
        agent_id=token.agent_id,
        role=cast(Role, token.role),
        scopes=_scope_lists(token, caveats),
        expire_at=expiry,
        max_uses=_least_uses(token, caveats),
        fingerprint=token.fingerprint,
        use_limits=_use_limits(token, caveats),
    )


def _scope_lists(token: CapabilityToken, caveats: Iterable[Caveat]) -> tuple[tuple[str, ...], ...]:
    return (token.scopes, *(each.scopes for each in caveats if isinstance(each, Only)))


def _expiry(token: CapabilityToken, caveats: Iterable[Caveat]) -> int | None:
    own = () if token.role == "operator" else (token.expire_at,)
    return min((*own, *expiries(caveats)), default=None)


def _least_uses(token: CapabilityToken, caveats: Iterable[Caveat]) -> int | None:
    own = () if token.max_uses is None else (token.max_uses,)
    return min((*own, *(each.uses for each in caveats if isinstance(each, MaxUses))), default=None)


def _use_limits(token: CapabilityToken, caveats: Sequence[Caveat]) -> tuple[UseLimit, ...]:
    """One counter per limit; its name says which token it was put on, by all before it."""
    limits = [] if token.max_uses is None else [UseLimit(token.fingerprint, token.max_uses)]
    name = hashlib.sha256(token.fingerprint.encode())
    line: tuple[str, ...] = ()
    for caveat in caveats:
        name.update(f"|{caveat}".encode())
        line = (*line, name.hexdigest())
        if isinstance(caveat, MaxUses):
            limits.append(UseLimit(line[-1], caveat.uses, line))
    return tuple(limits)
