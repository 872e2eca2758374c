"""`OperatorClient.serve` with all places taken: what needs none goes on."""

from __future__ import annotations

from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.operators.support import Result, serving
from trio_swarm import PeerGoneError, Withdrawn, connect_operator
from trio_swarm.operators.handling import NOTICES_AT_ONCE

STEP = {"task_id": "ST-1", "agent": "a", "attempt": 1}


@asynccontextmanager
async def full(handle_notice):
    """An operator whose one place is taken by a request that is not answered."""
    async with serving() as server, trio.open_nursery() as nursery:
        async with connect_operator(server.url, roles=["main"], keep=True) as client:
            seat = await server.wait_seat("main")
            handled, begun, served, asking = [], trio.Event(), Result(), trio.CancelScope()

            async def handle(item) -> None:
                handled.append(item)
                if hasattr(item, "answer"):
                    begun.set()
                    await trio.sleep_forever()
                await handle_notice(item)

            async def ask() -> None:
                with asking:
                    await seat.ask("first", task_id="ST-1")

            nursery.start_soon(ask)
            nursery.start_soon(served.run, partial(client.serve, handle, at_once=1))
            await begun.wait()
            with trio.fail_after(10):
                yield server, seat, client, handled, asking, served
            nursery.cancel_scope.cancel()


async def test_the_handler_is_told_that_its_own_request_was_withdrawn() -> None:
    """While it has the only place."""
    told = trio.Event()

    async def note(item) -> None:
        told.set()

    async with full(note) as (_, _, _, handled, asking, _):
        asking.cancel()
        await told.wait()
    assert [type(item) for item in handled[1:]] == [Withdrawn]
    assert handled[1].request is handled[0]


async def test_what_was_withdrawn_before_it_was_handled_keeps_no_room(monkeypatch) -> None:
    """Else the reader would wait for room in the end, and hear nothing any more."""
    told = trio.Event()
    monkeypatch.setattr("trio_swarm.operators.client._INBOX", 2)

    async def note(item) -> None:
        told.set()

    async with full(note) as (_, seat, client, handled, asking, _):
        for number in range(1, 6):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(partial(seat.ask, "another", task_id="ST-2"))
                while client.statistics().requests <= number:
                    await wait_all_tasks_blocked(0.001)
                nursery.cancel_scope.cancel()
            while client.statistics().withdrawn < number:
                await wait_all_tasks_blocked(0.001)
        asking.cancel()
        await told.wait()
    assert [type(item) for item in handled[1:]] == [Withdrawn]


async def test_no_more_notices_are_handled_at_a_time_than_may_be() -> None:
    """They have places of their own, and those are counted too."""
    go, now, most = trio.Event(), 0, 0

    async def wait(item) -> None:
        nonlocal now, most
        now += 1
        most = max(now, most)
        await go.wait()
        now -= 1

    async with full(wait) as (_, seat, _, handled, _, _):
        for _ in range(2 * NOTICES_AT_ONCE):
            seat.hook_after(**STEP, result=None)
        while most < NOTICES_AT_ONCE:
            await wait_all_tasks_blocked(0.01)
        await wait_all_tasks_blocked(0.05)
        assert most == NOTICES_AT_ONCE
        go.set()
        while len(handled) < 1 + 2 * NOTICES_AT_ONCE or now:
            await wait_all_tasks_blocked(0.01)
    assert most == NOTICES_AT_ONCE


@pytest.mark.parametrize("waits", [False, True])
async def test_another_connection_that_takes_the_session_over_ends_it(waits) -> None:
    """Also while a request waits for the place."""

    async def nothing(item) -> None:
        """Not called."""

    async with full(nothing) as (server, seat, client, handled, _, served), trio.open_nursery() as nursery:
        if waits:
            nursery.start_soon(partial(seat.ask, "second", task_id="ST-2"))
            while client.statistics().requests < 2:
                await trio.lowlevel.checkpoint()
        async with connect_operator(server.url, session=client.session, keep=True):
            await served.done.wait()
        nursery.cancel_scope.cancel()
    assert isinstance(served.error, PeerGoneError)
    assert len(handled) == 1
