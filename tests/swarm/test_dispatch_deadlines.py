"""A caller that moves its deadline while its step runs."""

from __future__ import annotations

import pytest
import trio

from tests.swarm.support import a_bench


async def moving(scope, how) -> None:
    """What is done with the deadline while the step runs."""
    if how == "extended":
        passed, scope.deadline = scope.deadline, trio.current_time() + 3600
        await trio.sleep_until(passed + 1)
        scope.cancel()
    elif how == "brought forward":
        scope.deadline = trio.current_time() + 1
    await trio.sleep_forever()


@pytest.mark.parametrize(
    ("how", "status", "reason"),
    [
        ("extended", "cancelled", "its caller was cancelled"),
        ("brought forward", "timeout", "its deadline has passed"),
        ("left", "timeout", "its deadline has passed"),
    ],
)
@pytest.mark.parametrize("beside", [False, True])
async def test_the_status_says_what_ended_the_step(
    tmp_path, autojump_clock, how, status, reason, beside
) -> None:
    """Not what the deadline at the call would have made of it; also beside an error of the step's own."""
    async with a_bench(tmp_path) as bench:
        scope = trio.CancelScope(deadline=trio.current_time() + 5)

        async def execute(step) -> None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(moving, scope, how)
                try:
                    await trio.sleep_forever()
                finally:
                    if beside:
                        raise ValueError("in its own cleaning up")

        try:
            with scope:
                await bench.dispatch(execute=execute)
        except* ValueError:
            assert beside
        assert scope.cancel_called
        assert (bench.last.status, bench.last.outcome.reason) == (status, reason)
