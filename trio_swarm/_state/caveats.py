"""What a capability token allows: scopes, and the caveats that take some of it away again.

A scope is ``VERB`` or ``VERB@SELECTOR[&SELECTOR...]``. ``VERB`` is a verb, or ``*`` for each of
them; the selectors ``task=ID``, ``attempt=N`` and ``out=NAME`` say for which task, which attempt
and which output (a ``*`` at the end of NAME stands for any rest). A selector fails closed: a
scope with ``out=`` allows nothing that names no output.

A list of scopes allows what any of them allows. A *caveat* is one line that is chained to a
token's signature (`trio_swarm._state.token`): ``scopes=A,B``, ``expire_at=N`` (Unix seconds) or
``max_uses=N``. All of a token's caveats hold at once, together with the token's own fields, so
that no caveat, whatever it says, can give more.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Final, TypeAlias

import attrs

__all__ = [
    "MAX_SCOPES",
    "U32",
    "U64",
    "Caveat",
    "ExpireAt",
    "MaxUses",
    "Only",
    "Scope",
    "check_text",
    "covered",
    "parse_caveat",
    "parse_scopes",
]

U32: Final = 2**32 - 1
U64: Final = 2**64 - 1
MAX_SCOPES: Final = 64
"""Scopes of one list."""
_MAX_TEXT: Final = 256
"""Characters of one field or scope."""
_VERB: Final = re.compile(r"\*|[a-z][a-z0-9_]{0,63}")
_NUMBER: Final = re.compile(r"0|[1-9][0-9]{0,19}")
_ID: Final = re.compile(r"[A-Za-z0-9._~:-]{1,128}")
_NAME: Final = re.compile(r"[^&*]*\*|[^&*]+")


@attrs.frozen
class Scope:
    """One scope. A selector that is None does not restrict."""

    verb: str
    task: str | None = None
    attempt: int | None = None
    out: str | None = None

    @classmethod
    def parse(cls, text: str) -> Scope:
        """Raises ``ValueError`` that names the scope and the rule."""
        check_text("a scope", text)
        verb, at, rest = text.partition("@")
        if _VERB.fullmatch(verb) is None:
            raise ValueError(f"the scope {text!r} begins with neither a verb nor *")
        found: dict[str, str] = {}
        for selector in rest.split("&") if at else ():
            key, _, value = selector.partition("=")
            if key in found or not _selects(key, value):
                raise ValueError(
                    f"the scope {text!r}: a selector is task=ID, attempt=N or out=NAME, each once at most"
                )
            found[key] = value
        attempt = found.get("attempt")
        return cls(verb, found.get("task"), None if attempt is None else int(attempt), found.get("out"))

    def allows(self, verb: str, task_id: str | None, attempt: int | None, output: str | None) -> bool:
        """Whether this scope stands for ``verb`` there."""
        return (
            self.verb in ("*", verb)
            and self.task in (None, task_id)
            and self.attempt in (None, attempt)
            and (self.out is None or (output is not None and _names(self.out, output)))
        )

    def covers(self, inner: Scope) -> bool:
        """Whether all that ``inner`` allows is allowed by this scope alone."""
        return (
            self.verb in ("*", inner.verb)
            and self.task in (None, inner.task)
            and self.attempt in (None, inner.attempt)
            and (self.out is None or (inner.out is not None and _names(self.out, inner.out)))
        )


def _names(pattern: str, name: str) -> bool:
    """Whether ``pattern`` stands for ``name``; for a name that is a pattern, for all of its names.

    A pattern without ``*`` equals nothing that has one at its end: that would be too narrow,
    never too wide.
    """
    if pattern.endswith("*"):
        return name.startswith(pattern[:-1])
    return name == pattern


def _selects(key: str, value: str) -> bool:
    if key == "task":
        return _ID.fullmatch(value) is not None
    if key == "attempt":
        return _is_number(value, U32) and value != "0"
    return key == "out" and _NAME.fullmatch(value) is not None


def _is_number(text: str, most: int) -> bool:
    return _NUMBER.fullmatch(text) is not None and int(text) <= most


def check_text(what: str, text: str) -> None:
    """A field of a token. Raises ``ValueError``.

    The signature is over the fields joined by ``|``, scopes by ``,``: a field that held one
    could pass for two.
    """
    if not text or len(text) > _MAX_TEXT:
        raise ValueError(f"{what} has 1 to {_MAX_TEXT} characters, not {len(text)}")
    if "|" in text or "," in text or not text.isprintable():
        raise ValueError(f"{what} holds no '|', no ',' and only printable characters: {text!r}")


def parse_scopes(scopes: Iterable[str]) -> tuple[Scope, ...]:
    """A whole list. Raises ``ValueError``."""
    parsed = tuple(map(Scope.parse, scopes))
    if not 1 <= len(parsed) <= MAX_SCOPES:
        raise ValueError(f"a token has 1 to {MAX_SCOPES} scopes, not {len(parsed)}")
    return parsed


def covered(inner: Iterable[Scope], outer: Iterable[Scope]) -> bool:
    """Whether each scope of ``inner`` lies within a single one of ``outer``."""
    wider = tuple(outer)
    return all(any(each.covers(scope) for each in wider) for scope in inner)


@attrs.frozen
class Only:
    """Nothing but what these scopes allow."""

    scopes: tuple[str, ...]

    def __str__(self) -> str:
        return f"scopes={','.join(self.scopes)}"


@attrs.frozen
class ExpireAt:
    """Not at this time, in Unix seconds, nor after it."""

    time: int

    def __str__(self) -> str:
        return f"expire_at={self.time}"


@attrs.frozen
class MaxUses:
    """So many uses, counted from the caveat on."""

    uses: int

    def __str__(self) -> str:
        return f"max_uses={self.uses}"


Caveat: TypeAlias = Only | ExpireAt | MaxUses


def parse_caveat(text: str) -> Caveat:
    """The only reading of a caveat's text. Raises ``ValueError`` for every other text."""
    key, _, value = text.partition("=")
    if key == "scopes":
        scopes = tuple(value.split(","))
        parse_scopes(scopes)
        return Only(scopes)
    if key == "expire_at" and _is_number(value, U64):
        return ExpireAt(int(value))
    if key == "max_uses" and _is_number(value, U32):
        return MaxUses(int(value))
    raise ValueError("a caveat is scopes=..., expire_at=N or max_uses=N")


def expiries(caveats: Iterable[Caveat]) -> Iterator[int]:
    """Every time at which one of them ends a token."""
    return (each.time for each in caveats if isinstance(each, ExpireAt))
