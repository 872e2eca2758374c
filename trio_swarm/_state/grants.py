"""What a verified capability token allows, how often, and the errors of one that does not.

Pure, like all of `trio_swarm._state`. Contract: operators 5.2.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Final, Literal, TypeAlias

import attrs

from trio_swarm._state.caveats import parse_scopes
from trio_swarm.errors import BadTokenError
from trio_swarm.limits import MAX_CAVEATS, MAX_USE_COUNTERS

__all__ = [
    "ROLE_VERBS",
    "VERBS",
    "Grant",
    "Role",
    "TokenError",
    "TokenExhausted",
    "TokenExpired",
    "TokenForged",
    "TokenMalformed",
    "UseCounts",
    "UseLimit",
]

Role: TypeAlias = Literal["operator", "worker", "observer", "senior"]

ROLE_VERBS: Final[Mapping[str, frozenset[str]]] = {
    "operator": frozenset(
        (
            "start_task",
            "dispatch_attempt",
            "mint_worker_token",
            "read_task_state",
            "cancel_task",
            "query_senior",
            "mark_pass",
            "mark_blocked",
            "attach_session",
            "detach_session",
            "heartbeat",
            "poll_task",
        )
    ),
    "worker": frozenset(
        (
            "fetch_prompt",
            "fetch_data",
            "post_result",
            "verify_token",
            "emit_output",
            "start_task",
            "dispatch_attempt",
            "read_task_state",
            "poll_task",
            "cancel_task",
        )
    ),
    "observer": frozenset(("subscribe_events", "read_trace", "read_task_state")),
    "senior": frozenset(
        ("answer_query", "override_verdict", "pause_loop", "resume_loop", "inject_directive")
    ),
}
"""Which role may do what (contract: operators 5.2)."""

VERBS: Final[frozenset[str]] = frozenset().union(*ROLE_VERBS.values())
"""Every verb that some role has."""

_SHOWN: Final = 12
"""Hex digits of a fingerprint in an error."""


class TokenError(BadTokenError):
    """A capability token that does not do. Its text never holds the token or a part of it.

    ``kind`` tells the cases apart for a program, ``fingerprint`` is the beginning of the
    nonce's digest, or empty where no token could be read.
    """

    kind: str = ""

    def __init__(self, reason: str, fingerprint: str = "") -> None:
        super().__init__(reason, fingerprint)
        self.reason = reason
        self.fingerprint = fingerprint[:_SHOWN]

    def __str__(self) -> str:
        of = f" ({self.fingerprint})" if self.fingerprint else ""
        return f"{self.kind} token{of}: {self.reason}"


class TokenMalformed(TokenError):
    """The text is no token at all."""

    kind = "malformed"


class TokenForged(TokenError):
    """The signature is not over these fields and caveats by this secret."""

    kind = "forged"


class TokenExpired(TokenError):
    """The token's time, or that of one of its caveats, is over."""

    kind = "expired"


class TokenExhausted(TokenError):
    """The token, or one of its caveats, has no use left."""

    kind = "exhausted"


@attrs.frozen
class UseLimit:
    """At most ``most`` uses of all tokens that share the counter ``name``."""

    name: str
    most: int
    line: tuple[str, ...] = ()
    """The tokens that it was made of, by the names of their counters, the minted one left out, and
    itself at the end."""


@attrs.frozen
class Grant:
    """What a verified token allows."""

    agent_id: str
    role: Role
    scopes: tuple[tuple[str, ...], ...]
    """Lists of scopes; each of the lists must allow a thing."""
    expire_at: int | None
    """Unix seconds; None: it does not end by time."""
    max_uses: int | None
    """The least of all limits. `UseCounts` says what is left."""
    fingerprint: str
    """Of the nonce: by it the server finds its record of the token."""
    use_limits: tuple[UseLimit, ...] = ()
    """All limits on uses, for `UseCounts`."""

    def allows(
        self, verb: str, *, task_id: str | None, attempt: int | None, output: str | None = None
    ) -> bool:
        """Whether role and scopes allow ``verb`` on that task, attempt and output."""
        if verb not in ROLE_VERBS[self.role]:
            return False
        return all(
            any(scope.allows(verb, task_id, attempt, output) for scope in parse_scopes(each))
            for each in self.scopes
        )


@attrs.define(eq=False)
class UseCounts:
    """How often one minted token, and each limited one made of it, was used.

    Keep one for each record of a minted token. It holds no more than ``most`` counters:
    whoever has a token can make any number of limited ones of it. Those that are made of one
    narrowed token have half of what is left of the counters that the token before it has
    (though never less than one line of caveats needs). So no helper uses up the counters of
    the others, nor do two: each further one that takes what it can leaves half of the rest.
    Enough of them do (seven of 1024): a counter cannot be forgotten without giving its uses back.
    """

    most: int = MAX_USE_COUNTERS
    _used: dict[str, int] = attrs.field(factory=dict, init=False)
    _beneath: dict[str, int] = attrs.field(factory=dict, init=False)
    """Counters of each narrowed token and of those that were made of it."""

    def __len__(self) -> int:
        return len(self._used)

    def use(self, grant: Grant) -> None:
        """Count one use against every limit of ``grant``; all or none.

        Raises:
            TokenExhausted: one of them has none left, or there are too many to count.
        """
        for limit in grant.use_limits:
            if self._used.get(limit.name, 0) >= limit.most:
                raise TokenExhausted(f"all of {limit.most} uses are used up", grant.fingerprint)
        new = [limit for limit in grant.use_limits if limit.name not in self._used]
        if len(self._used) + len(new) > self.most:
            raise TokenExhausted(f"more than {self.most} limits on uses are counted", grant.fingerprint)
        wanted = Counter(name for limit in new for name in limit.line)
        self._check_branches(grant, wanted)
        for name, more in wanted.items():
            self._beneath[name] = self._beneath.get(name, 0) + more
        for limit in grant.use_limits:
            self._used[limit.name] = self._used.get(limit.name, 0) + 1

    def _check_branches(self, grant: Grant, wanted: Mapping[str, int]) -> None:
        """Each branch of the line has at most half of what those beside it have left, its own included."""
        line = max((limit.line for limit in grant.use_limits), key=len, default=())
        most, taken = self.most, len(self._used)
        for name in line:
            own = self._beneath.get(name, 0)
            most, taken = max((most - taken + own) // 2, MAX_CAVEATS), own
            if own + wanted.get(name, 0) > most:
                raise TokenExhausted(
                    f"more than {most} limits on uses are counted for what was made of one token",
                    grant.fingerprint,
                )
