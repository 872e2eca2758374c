"""When a session that has no socket ends, on a clock that jumps."""

from __future__ import annotations

import math
from functools import partial

import trio
from trio.testing import wait_all_tasks_blocked

from trio_swarm._io.memory import memory_transport_pair
from trio_swarm.operators.expiry import Expiry
from trio_swarm.operators.login import LoginRequest, SessionTable
from trio_swarm.operators.seat import Seat


async def test_it_sleeps_from_deadline_to_deadline(autojump_clock) -> None:
    """The first by the login, the later by the last socket's end; none while there is one."""
    expiry: Expiry | None = None
    ended: list[tuple[str, float]] = []

    def emit(kind, data) -> None:
        if kind == "operator_away" and expiry is not None:
            expiry.check()

    def end(session, reason) -> None:
        sessions.remove(session.sid)
        session.seat.close(reason)
        ended.append((session.roles[0], round(trio.current_time() - began, 3)))

    sessions = SessionTable(lambda sid, request: Seat(sid, roles=request.roles, emit=emit))
    expiry = Expiry(sessions, end, join_within=3.0, idle_within=20.0)
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(expiry.run)
        await wait_all_tasks_blocked()
        late = sessions.mint(LoginRequest(("late",))).session
        comes = sessions.mint(LoginRequest(("comes",))).session
        expiry.check()
        near, far = memory_transport_pair()
        nursery.start_soon(partial(comes.seat.serve, near))
        await trio.sleep(10)
        assert ended == [("late", 3.0)]
        assert late.seat.gone
        assert comes.seat.expires(join_within=3.0, idle_within=20.0) == math.inf
        await far.aclose()
        await trio.sleep(30)
        nursery.cancel_scope.cancel()
    assert ended == [("late", 3.0), ("comes", 30.0)]
