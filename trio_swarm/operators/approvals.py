"""`approve`: ask several operators for leave at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import attrs
import trio

from trio_swarm._io.groups import collapse
from trio_swarm._state.approval import ApprovalMachine, Decision, How
from trio_swarm.errors import ApprovalDenied, ApprovalExpired, BusyError, PeerGoneError
from trio_swarm.operators.base import AnySeat
from trio_swarm.operators.lineage import Withdrawal, withdrawing

__all__ = ["Approval", "ApprovalPolicy", "approve"]


def _check_rule(_: object, __: object, rule: object) -> None:
    counts = isinstance(rule, int) and not isinstance(rule, bool) and rule >= 1
    if not counts and rule not in ("first", "all"):
        raise ValueError(f"rule: expected 'first', 'all' or a number from 1, not {rule!r}")


def _check_within(_: object, __: object, within: float | None) -> None:
    if within is not None and not within > 0:
        raise ValueError(f"within: expected seconds above 0, or None, not {within!r}")


def _check_on_expiry(_: object, __: object, on_expiry: object) -> None:
    if on_expiry not in ("deny", "allow"):
        raise ValueError(f"on_expiry: expected 'deny' or 'allow', not {on_expiry!r}")


@attrs.frozen
class ApprovalPolicy:
    """Whose leave is needed. Raises ``ValueError`` for what is no policy."""

    rule: Literal["first", "all"] | int = attrs.field(default="first", validator=_check_rule)
    """``first``: one yes; ``all``: everybody's; a number: so many."""
    within: float | None = attrs.field(default=None, kw_only=True, validator=_check_within)
    """Seconds; None leaves it to the caller's cancel scope."""
    on_expiry: Literal["deny", "allow"] = attrs.field(
        default="deny", kw_only=True, validator=_check_on_expiry
    )
    """What it means that nobody settled it within that time."""
    veto: bool = attrs.field(default=True, kw_only=True)
    """One no denies at once. Else it is one yes that will not come."""

    def need(self, seats: int) -> int:
        """How many of so many must say yes."""
        if self.rule == "all":
            return seats
        return 1 if self.rule == "first" else self.rule


@attrs.frozen
class Approval:
    """Who said what when it was settled. Names are the seats'."""

    allowed: bool
    how: How
    """``approved``, ``veto``, ``unreachable`` (too few were left who could say yes) or ``expired``."""
    by: str
    """Whose word settled it; empty when it was time."""
    approved: tuple[str, ...]
    denied: tuple[tuple[str, str], ...]
    """Each with the reason given."""
    absent: tuple[tuple[str, str], ...]
    """Abstentions: who could not be asked or went away, each with why."""
    unanswered: tuple[str, ...]
    """Who was asked and had not answered."""


async def approve(
    seats: Sequence[AnySeat | str],
    policy: ApprovalPolicy | None = None,
    *,
    task_id: str,
    agent: str,
    attempt: int,
    parent_req_id: str | None = None,
    seat_of: Callable[[str], AnySeat] | None = None,
) -> Approval:
    """Ask all ``seats`` at once for leave to start an attempt (`AnySeat.hook_before`).

    Args:
        seats: who is asked; a name (a role or a sid) is looked up by ``seat_of``.
        policy: whose leave is needed; one yes, and any no denies, by default.
        task_id, agent, attempt, parent_req_id: as in `AnySeat.hook_before`.
        seat_of: for example `OperatorServer.seat`; ``KeyError`` from it means that nobody
            holds the role, which is an abstention.

    An operator whose session ends, or who has too many requests already, abstains. Those who
    had not answered when it is settled have their request withdrawn with the reason
    ``settled_by:NAME``; with ``deadline`` when the time is over.

    Raises:
        ApprovalDenied: ``approval`` tells who said what.
        ApprovalExpired: nobody settled it within ``policy.within``, and the policy denies then.
        AskCycle: one of them is being asked already and waits for this.
        ValueError: nobody is asked, somebody twice, or fewer than the policy needs.
        TypeError: a name without ``seat_of``, or an operator that cannot be asked this.

    When cancelled, every request is withdrawn.
    """
    policy = policy if policy is not None else ApprovalPolicy()
    voters = [_Voter.of(seat, seat_of) for seat in seats]
    if len({voter.key for voter in voters}) < len(voters):
        raise ValueError("an operator is asked twice")
    machine = ApprovalMachine(
        [voter.name for voter in voters], need=policy.need(len(voters)), veto=policy.veto
    )
    fields = {"task_id": task_id, "agent": agent, "attempt": attempt, "parent_req_id": parent_req_id}
    await trio.lowlevel.checkpoint()
    within = policy.within if policy.within is not None else float("inf")
    with trio.move_on_after(within), withdrawing() as withdrawal, collapse():
        async with trio.open_nursery() as nursery:
            for place, voter in enumerate(voters):
                asking = _Asking(machine, place, withdrawal, nursery.cancel_scope)
                nursery.start_soon(asking.run, voter, fields)
    decision = machine.expire(allow=policy.on_expiry == "allow")
    return _approval(machine, decision, agent, within)


@attrs.frozen(eq=False)
class _Voter:
    name: str
    seat: AnySeat | None
    """None: nobody holds the role."""

    @classmethod
    def of(cls, seat: AnySeat | str, seat_of: Callable[[str], AnySeat] | None) -> _Voter:
        if not isinstance(seat, str):
            return cls(seat.name, seat)
        if seat_of is None:
            raise TypeError(f"seat_of is needed to find the operator {seat!r}")
        try:
            return cls(seat, seat_of(seat))
        except KeyError:
            return cls(seat, None)

    @property
    def key(self) -> object:
        return self.name if self.seat is None else id(self.seat)


@attrs.frozen(eq=False)
class _Asking:
    """One of those that are asked."""

    machine: ApprovalMachine
    place: int
    withdrawal: Withdrawal
    everybody: trio.CancelScope

    async def run(self, voter: _Voter, fields: dict[str, Any]) -> None:
        decision = await self._answer(voter, fields)
        if decision is not None:
            self.withdrawal.reason = f"settled_by:{decision.by}"
            self.everybody.cancel()

    async def _answer(self, voter: _Voter, fields: dict[str, Any]) -> Decision | None:
        if voter.seat is None:
            return self.machine.abstain(self.place, "nobody holds the role")
        try:
            await voter.seat.hook_before(**fields)
        except ApprovalDenied as denied:
            return self.machine.deny(self.place, denied.reason)
        except (PeerGoneError, BusyError) as absent:
            return self.machine.abstain(self.place, str(absent))
        return self.machine.approve(self.place)


def _approval(machine: ApprovalMachine, decision: Decision, agent: str, within: float) -> Approval:
    tally = machine.tally()
    approval = Approval(
        allowed=decision.allowed,
        how=decision.how,
        by=decision.by,
        approved=tally.approved,
        denied=tally.denied,
        absent=tally.absent,
        unanswered=tally.unanswered,
    )
    if decision.allowed:
        return approval
    if decision.how == "expired":
        raise ApprovalExpired(within=within, subject=agent, approval=approval)
    raise ApprovalDenied(decision.reason, by=decision.by, subject=agent, approval=approval)
