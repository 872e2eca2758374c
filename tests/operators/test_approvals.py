"""Several operators asked for leave at once, over real sockets and in process."""

from __future__ import annotations

import math
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.operators.support import Result, a_host, log_in, serving, socket_of
from trio_swarm.errors import ApprovalDenied, ApprovalExpired, AskCycle
from trio_swarm.operators import ApprovalPolicy, LocalSeat, approve

STEP = {"task_id": "ST-1", "agent": "coder", "attempt": 2}


@asynccontextmanager
async def three(**options):
    """A server and the independent peers of three operators a, b and c."""
    async with serving(**options) as server:
        logins = [await log_in(server, roles=[name]) for name in "abc"]
        async with (
            socket_of(server, logins[0]) as a,
            socket_of(server, logins[1]) as b,
            socket_of(server, logins[2]) as c,
        ):
            for name in "abc":
                await server.wait_seat(name)
            yield server, (a, b, c)


@asynccontextmanager
async def asked(policy, **options):
    """Everybody has been asked; yields the result to come, and each peer with its request's id."""
    async with three() as (server, peers), trio.open_nursery() as nursery:
        result = Result()
        seats = [server.seat(name) for name in "abc"]
        nursery.start_soon(result.run, partial(approve, seats, policy, **STEP, **options))
        frames = [await peer.next() for peer in peers]
        assert {frame["type"] for frame in frames} == {"hook_before"}
        yield server, list(zip(peers, [frame["req_id"] for frame in frames], strict=True)), result


async def ack(asked_one, **fields) -> None:
    peer, req_id = asked_one
    await peer.send(type="hook_ack", req_id=req_id, **{"ok": True, **fields})


async def told(asked_one) -> str:
    peer, req_id = asked_one
    frame = await peer.next()
    assert (frame["type"], frame["req_id"]) == ("withdraw", req_id)
    return frame["reason"]


async def test_the_first_yes_settles_it_and_the_losers_are_told_who() -> None:
    """``settled_by:`` and a name."""
    async with asked(ApprovalPolicy("first")) as (server, (a, b, c), result):
        await ack(b)
        await result.done.wait()
        assert [await told(a), await told(c)] == ["settled_by:b"] * 2
        assert (result.value.how, result.value.by) == ("approved", "b")
        assert (result.value.approved, result.value.unanswered) == (("b",), ("a", "c"))
        assert all(seat.pending() == () for seat in server.seats())


async def test_all_waits_for_all() -> None:
    """Nobody is withdrawn from."""
    async with asked(ApprovalPolicy("all")) as (_, (a, b, c), result):
        for each in (c, a):
            await ack(each)
        await wait_all_tasks_blocked(0.02)
        assert not result.done.is_set()
        await ack(b)
        await result.done.wait()
        assert result.value.approved == ("a", "b", "c")


async def test_a_quorum_is_so_many_and_any_no_is_a_veto() -> None:
    """Two of three would do; one no is enough to deny, with its reason."""
    async with asked(ApprovalPolicy(2)) as (_, (a, b, c), result):
        await ack(a)
        await ack(c)
        await result.done.wait()
        assert await told(b) == "settled_by:c" or result.value.by == "a"
        assert set(result.value.approved) == {"a", "c"}
    async with asked(ApprovalPolicy(2)) as (_, (a, b, c), result):
        await ack(b, ok=False, reason="not today")
        await result.done.wait()
        assert isinstance(result.error, ApprovalDenied)
        assert (str(result.error), result.error.by, result.error.subject) == ("not today", "b", "coder")
        assert (result.error.approval.how, result.error.approval.denied) == ("veto", (("b", "not today"),))
        assert [await told(a), await told(c)] == ["settled_by:b"] * 2


async def test_without_veto_the_majority_decides() -> None:
    """One no of three changes nothing for a quorum of two."""
    async with asked(ApprovalPolicy(2, veto=False)) as (_, (a, b, c), result):
        await ack(a, ok=False, reason="no")
        await wait_all_tasks_blocked(0.02)
        await ack(b)
        await ack(c)
        await result.done.wait()
        assert result.value.denied == (("a", "no"),)


async def test_a_session_that_ends_abstains_and_an_unreachable_quorum_is_denied_at_once() -> None:
    """And the reason says so."""
    async with asked(ApprovalPolicy(2)) as (server, (_a, _b, c), result):
        await server.remove("a", "it left")
        await wait_all_tasks_blocked(0.02)
        assert not result.done.is_set()
        await server.remove("b", "it left too")
        await result.done.wait()
        assert isinstance(result.error, ApprovalDenied)
        assert str(result.error) == "2 of 3 must approve and 1 still could (a: it left; b: it left too)"
        assert result.error.approval.how == "unreachable"
        assert result.error.approval.absent == (("a", "it left"), ("b", "it left too"))
        assert await told(c) == "settled_by:b"


@pytest.mark.parametrize("on_expiry", ["deny", "allow"])
async def test_time_decides_as_the_policy_says(on_expiry) -> None:
    """The operators learn that it was the deadline."""
    policy = ApprovalPolicy("all", within=0.2, on_expiry=on_expiry)
    async with asked(policy) as (_, (a, b, c), result):
        await ack(a)
        await result.done.wait()
        assert [await told(b), await told(c)] == ["deadline"] * 2
        if on_expiry == "deny":
            assert isinstance(result.error, ApprovalExpired)
            approval = result.error.approval
        else:
            approval = result.value
        assert (approval.how, approval.approved, approval.unanswered) == ("expired", ("a",), ("b", "c"))


async def test_the_callers_scope_ends_it_and_withdraws_everywhere() -> None:
    """It is the caller's cancellation, not an answer."""
    async with three() as (server, peers), trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:
            nursery.start_soon(_cancel_when_asked, peers, scope)
            await approve([server.seat(name) for name in "abc"], **STEP)
        assert scope.cancelled_caught
        for peer in peers:
            frame = await peer.next()
            assert (frame["type"], frame["reason"]) == ("withdraw", "cancelled")
        assert all(seat.pending() == () for seat in server.seats())


async def _cancel_when_asked(peers, scope) -> None:
    for peer in peers:
        await peer.next()
    scope.cancel()


async def test_roles_are_looked_up_and_one_that_nobody_holds_abstains() -> None:
    """A role that is missing cannot approve; the others still can."""
    async with three() as (server, (a, *_)), trio.open_nursery() as nursery:
        result = Result()
        call = partial(approve, ["nobody", "a"], ApprovalPolicy("first"), **STEP, seat_of=server.seat)
        nursery.start_soon(result.run, call)
        await ack((a, (await a.next())["req_id"]))
        await result.done.wait()
        assert result.value.absent == (("nobody", "nobody holds the role"),)
        with pytest.raises(ApprovalDenied, match="nobody holds the role"):
            await approve(["nobody"], **STEP, seat_of=server.seat)
        with pytest.raises(TypeError, match="seat_of"):
            await approve(["a"], **STEP)


async def test_an_operator_in_process_votes_too_and_is_cancelled_when_it_is_settled() -> None:
    """The same four verbs."""

    class Slow:
        cancelled = False

        async def before_spawn(self, frame) -> None:
            try:
                await trio.sleep_forever()
            except trio.Cancelled:
                self.cancelled = True
                raise

    class Quick:
        async def before_spawn(self, frame) -> None:
            await wait_all_tasks_blocked()

    slow = Slow()
    async with LocalSeat.open(a_host(), slow) as one, LocalSeat.open(a_host(), Quick()) as other:
        approval = await approve([one, other], **STEP)
    assert (approval.by, approval.unanswered) == ("Quick", ("Slow",))
    assert slow.cancelled


async def test_who_is_being_asked_already_cannot_approve() -> None:
    """An error that names the cycle, as itself; the others are withdrawn from."""

    class Gate:
        async def before_spawn(self, frame) -> None:
            await approve([me, other], **STEP)

    class Patient:
        async def before_spawn(self, frame) -> None:
            await trio.sleep_forever()

    async with LocalSeat.open(a_host(), Gate()) as me, LocalSeat.open(a_host(), Patient()) as other:
        with pytest.raises(AskCycle, match="Gate -> Gate"):
            await me.hook_before(**STEP)


async def test_what_is_no_approval_is_refused_at_the_edge() -> None:
    """Before anybody is asked."""
    for wrong in (
        lambda: ApprovalPolicy("some"),
        lambda: ApprovalPolicy(0),
        lambda: ApprovalPolicy(True),
        lambda: ApprovalPolicy(within=0),
        lambda: ApprovalPolicy(within=math.nan),
        lambda: ApprovalPolicy(on_expiry="maybe"),
    ):
        with pytest.raises(ValueError, match="expected"):
            wrong()
    async with serving() as server:
        await log_in(server, roles=["a"])
        seat = server.seat("a")
        for seats, policy in (
            ([], None),
            ([], ApprovalPolicy("all")),
            ([seat], ApprovalPolicy(2)),
            ([seat, seat], None),
        ):
            with pytest.raises(ValueError, match=r"cannot approve|twice"):
                await approve(seats, policy, **STEP)
        assert seat.pending() == ()
