"""The cut of the operator's socket: it counts only if somebody's request was under it."""

from __future__ import annotations

from contextlib import asynccontextmanager

import pytest
import trio

import trio_swarm
from trio_swarm.errors import ApprovalDenied
from trio_swarm.jobs.codemod.chaos import ChaosPlan, parse_chaos
from trio_swarm.jobs.codemod.strikes import Strikes


@asynccontextmanager
async def due_cut():
    """A cut that is due, the seat that it is to hit, and its operator."""
    strikes = Strikes(ChaosPlan(parse_chaos("drop-operator@0%")))
    async with (
        trio_swarm.open_swarm("strikes") as swarm,
        swarm.serve_operators() as server,
        trio_swarm.connect_operator(server.url, roles=["main"]) as client,
        trio.open_nursery() as strikes.nursery,
    ):
        seat = await server.wait_seat("main")
        strikes.aim(swarm, server, seat, None, [])
        strikes.fall(0, 1)
        yield strikes, seat, client
        strikes.nursery.cancel_scope.cancel()


async def test_a_cut_that_nobody_felt_falls_again_on_the_next_request() -> None:
    """The answer was there before the cut: that is no strike yet."""
    async with due_cut() as (strikes, seat, client):

        async def at_once() -> str:
            return "no request of the seat's at all"

        async def answer() -> None:
            async for request in client:
                request.answer("yes")

        assert await strikes.at_operator(at_once) == "no request of the seat's at all"
        assert strikes.struck == []

        strikes.nursery.start_soon(answer)
        assert await strikes.at_operator(lambda: seat.ask("?", task_id="t")) == "yes"
        assert (strikes.struck, seat.statistics().redelivered) == (["drop-operator"], 1)
        assert await strikes.at_operator(lambda: seat.ask("?", task_id="t")) == "yes"
        assert (strikes.struck, seat.statistics().redelivered) == (["drop-operator"], 1)


async def test_a_gate_that_says_no_under_the_cut_says_it_to_whoever_asked() -> None:
    """The exception is the caller's own, in no group."""
    async with due_cut() as (strikes, seat, client):

        async def reject() -> None:
            async for request in client:
                request.reject("not today")

        strikes.nursery.start_soon(reject)
        with pytest.raises(ApprovalDenied, match=r"^not today"):
            await strikes.at_operator(lambda: seat.hook_before(task_id="t", agent="a", attempt=1))
        assert strikes.struck == ["drop-operator"]


def nothing(ctx, query):
    """A job that is never given."""


async def test_the_idle_are_hit_when_they_are_there_again() -> None:
    """A restart is counted before its worker is there: who is due for that one waits."""
    strikes = Strikes(ChaosPlan(parse_chaos("kill-worker@99%,kill-worker@99%")))
    async with (
        trio_swarm.open_swarm("strikes") as swarm,
        swarm.open_pool(nothing, size=1) as pool,
    ):
        strikes.aim(swarm, None, None, pool, [])
        strikes.fall(1, 1)
        assert strikes.struck == []
        await strikes.fall_on_the_idle()
        assert (strikes.struck, strikes.missed) == (["kill-worker", "kill-worker"], [])
        assert pool.statistics().restarts == 2
