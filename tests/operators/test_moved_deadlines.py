"""A request whose asker moves its deadline while it waits."""

from __future__ import annotations

import pytest
import trio

from tests.operators.support import Result, log_in, seated, serving, socket_of


@pytest.mark.parametrize("how", ["extended", "brought forward"])
async def test_a_withdrawal_says_what_ended_the_wait(how) -> None:
    """Not what the deadline at the call would have made of it."""
    async with seated() as (_, seat, peer, _login), trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:

            async def move() -> None:
                await peer.next()
                if how == "extended":
                    passed, scope.deadline = scope.deadline, trio.current_time() + 3600
                    await trio.sleep_until(passed + 0.01)
                    scope.cancel()
                else:
                    scope.deadline = trio.current_time()

            if how == "extended":
                scope.deadline = trio.current_time() + 0.2
            nursery.start_soon(move)
            await seat.ask("?", task_id="ST-1")
        with trio.fail_after(5):
            withdrawn = await peer.next()
    assert withdrawn["type"] == "withdraw"
    assert withdrawn["reason"] == {"extended": "cancelled", "brought forward": "deadline"}[how]


async def test_no_time_is_told_of_a_request_that_has_outlived_the_deadline_at_its_call() -> None:
    """It waited for its operator; its asker waits still."""
    async with serving() as server, trio.open_nursery() as nursery:
        login = await log_in(server)
        seat, result = server.seat(login.sid), Result()
        began = trio.current_time()
        scope = trio.CancelScope(deadline=began + 0.05)

        async def ask() -> None:
            with scope:
                await result.run(seat.ask, "?", task_id="ST-1")

        nursery.start_soon(ask)
        while not seat.pending():
            await trio.lowlevel.checkpoint()
        scope.deadline = began + 3600
        await trio.sleep_until(began + 0.06)
        async with socket_of(server, login) as peer:
            asked = await peer.next()
            await peer.send(type="answer", req_id=asked["req_id"], value="yes")
            await result.done.wait()
    assert "deadline_ms" not in asked
    assert result.value == "yes"
