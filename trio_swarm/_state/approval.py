"""Several are asked for leave at once: when is it given, and when is it not? Pure.

``need`` yeses give it. A no denies at once where each has a veto; else it is one who will not
say yes. So is one who cannot answer any more: an abstention. When those who are left are too
few, it is denied at once: there is nothing to wait for. Whatever comes after the decision
changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Literal, TypeAlias

import attrs

__all__ = ["ApprovalMachine", "Decision", "How", "Tally"]

How: TypeAlias = Literal["approved", "veto", "unreachable", "expired"]


class _Vote(Enum):
    NONE = "none"
    YES = "yes"
    NO = "no"
    ABSENT = "absent"


@attrs.frozen
class Decision:
    """How it ended."""

    allowed: bool
    how: How
    """``approved``: enough said yes; ``veto``: one said no; ``unreachable``: too few are left
    who could say yes; ``expired``: the time was over."""
    by: str = ""
    """Whose word settled it; empty when it was time."""
    reason: str = ""
    """Why not."""


@attrs.frozen
class Tally:
    """Who has said what."""

    approved: tuple[str, ...]
    denied: tuple[tuple[str, str], ...]
    """Each with the reason given."""
    absent: tuple[tuple[str, str], ...]
    """Who could not be asked, or went away; each with why."""
    unanswered: tuple[str, ...]


@attrs.define
class _Voter:
    name: str
    vote: _Vote = _Vote.NONE
    reason: str = ""


class ApprovalMachine:
    """One approval. Voters are known by their place in ``names``, which need not be unique."""

    def __init__(self, names: Sequence[str], *, need: int, veto: bool) -> None:
        """Raises ``ValueError`` for a need that these voters could never meet, or that is none."""
        if not 1 <= need <= len(names):
            raise ValueError(f"{need} of {len(names)} cannot approve")
        self._voters = [_Voter(name) for name in names]
        self._need = need
        self._veto = veto
        self._decision: Decision | None = None

    def __repr__(self) -> str:
        state = "open" if self._decision is None else self._decision.how
        return f"<ApprovalMachine {state}: {self._count(_Vote.YES)} of {self._need}>"

    @property
    def decision(self) -> Decision | None:
        """None while it is open."""
        return self._decision

    def approve(self, voter: int) -> Decision | None:
        """A yes. Returns the decision if this was what settled it."""
        return self._vote(voter, _Vote.YES, "")

    def deny(self, voter: int, reason: str) -> Decision | None:
        """A no. Returns the decision if this was what settled it."""
        return self._vote(voter, _Vote.NO, reason)

    def abstain(self, voter: int, reason: str) -> Decision | None:
        """It cannot answer, or not any more. Returns the decision if this was what settled it."""
        return self._vote(voter, _Vote.ABSENT, reason)

    def expire(self, *, allow: bool) -> Decision:
        """The time is over; the decision, which may have come before."""
        if self._decision is None:
            self._decision = Decision(allow, "expired", reason="" if allow else "nobody settled it in time")
        return self._decision

    def tally(self) -> Tally:
        """Who has said what up to the decision."""
        return Tally(
            approved=tuple(each.name for each in self._voters if each.vote is _Vote.YES),
            denied=tuple((each.name, each.reason) for each in self._voters if each.vote is _Vote.NO),
            absent=tuple((each.name, each.reason) for each in self._voters if each.vote is _Vote.ABSENT),
            unanswered=tuple(each.name for each in self._voters if each.vote is _Vote.NONE),
        )

    def _vote(self, place: int, vote: _Vote, reason: str) -> Decision | None:
        voter = self._voters[place]
        if self._decision is not None or voter.vote is not _Vote.NONE:
            return None
        voter.vote, voter.reason = vote, reason
        self._decision = self._settled_by(voter)
        return self._decision

    def _settled_by(self, voter: _Voter) -> Decision | None:
        if self._count(_Vote.YES) >= self._need:
            return Decision(True, "approved", voter.name)
        if voter.vote is _Vote.NO and self._veto:
            return Decision(False, "veto", voter.name, voter.reason)
        possible = self._count(_Vote.YES) + self._count(_Vote.NONE)
        if possible < self._need:
            lost = [each for each in self._voters if each.vote in (_Vote.NO, _Vote.ABSENT)]
            why = "; ".join(f"{each.name}: {each.reason}" for each in lost)
            reason = f"{self._need} of {len(self._voters)} must approve and {possible} still could ({why})"
            return Decision(False, "unreachable", voter.name, reason)
        return None

    def _count(self, vote: _Vote) -> int:
        return sum(each.vote is vote for each in self._voters)
