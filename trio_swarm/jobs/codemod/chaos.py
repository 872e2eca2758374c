"""When to break what: the plan of ``--chaos``, decided by counting and by nothing else."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

import attrs

__all__ = ["KINDS", "ChaosPlan", "Strike", "parse_chaos"]

KINDS: Final = ("kill-worker", "drop-operator", "kill-child")
"""SIGKILL of a pool worker; cutting the operator's socket; SIGKILL of the child actor."""

MAX_STRIKES: Final = 64
"""Strikes of one run; more is a typing error, not a test."""

_STRIKE: Final = re.compile(r"([a-z][a-z-]*)@([0-9]{1,3})%", re.ASCII)


@attrs.frozen
class Strike:
    """One thing to break, once."""

    kind: str
    """One of KINDS."""
    percent: int
    """At this share of the files, 0 to 100."""

    def __str__(self) -> str:
        return f"{self.kind}@{self.percent}%"


def parse_chaos(spec: str) -> tuple[Strike, ...]:
    """The strikes of ``kind@NN%[,kind@NN%...]``; an empty spec has none. Raises ValueError.

    The same strike may stand there more than once, and then falls as often.
    """
    if not spec.strip():
        return ()
    strikes = tuple(_strike(part.strip()) for part in spec.split(","))
    if len(strikes) > MAX_STRIKES:
        raise ValueError(f"{len(strikes)} strikes; at most {MAX_STRIKES}")
    return strikes


def _strike(part: str) -> Strike:
    found = _STRIKE.fullmatch(part)
    if found is None:
        raise ValueError(f"{part!r} is not KIND@NN% (for example kill-worker@30%)")
    kind, percent = found[1], int(found[2])
    if kind not in KINDS:
        raise ValueError(f"unknown kind {kind!r} (one of {', '.join(KINDS)})")
    if percent > 100:
        raise ValueError(f"{part!r} is beyond 100%")
    return Strike(kind, percent)


def _by_share(strikes: Iterable[Strike]) -> list[Strike]:
    return sorted(strikes, key=lambda strike: strike.percent)


@attrs.define(eq=False)
class ChaosPlan:
    """Strikes that have not fallen yet. Pure: it is told how far the work is."""

    _waiting: list[Strike] = attrs.field(converter=_by_share, alias="strikes")

    @property
    def waiting(self) -> tuple[Strike, ...]:
        """What is still to fall, earliest first."""
        return tuple(self._waiting)

    def due(self, done: int, total: int) -> list[str]:
        """The kinds that fall now, each strike once: at *done* of *total* files or past it.

        In order of their shares; strikes of one share in the order of the spec. With no files
        nothing falls.
        """
        if total <= 0:
            return []
        fallen = [s for s in self._waiting if done * 100 >= s.percent * total]
        self._waiting = self._waiting[len(fallen) :]
        return [strike.kind for strike in fallen]
