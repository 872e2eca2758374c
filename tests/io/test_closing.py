"""Closing on the way out loses nothing that is on its way."""

from __future__ import annotations

import pytest
import trio

from trio_swarm import frames
from trio_swarm._io.closing import closing
from trio_swarm._io.link import open_link
from trio_swarm._io.memory import memory_transport_pair


async def test_an_error_in_a_cancelled_scope_comes_out() -> None:
    """The error of the block is not replaced by the Cancelled of its closing."""
    near, far = memory_transport_pair()
    with trio.CancelScope() as scope, pytest.raises(ValueError, match="mine"):
        async with open_link(near, frames.ClientMsg):
            scope.cancel()
            raise ValueError("mine")
    await trio.aclose_forcefully(far)

    assert not scope.cancelled_caught


async def test_a_cancelled_block_is_cancelled() -> None:
    """And closed, at once."""
    closed = []

    async def aclose():
        try:
            await trio.sleep_forever()
        finally:
            closed.append(True)

    with trio.fail_after(1), trio.CancelScope() as scope:
        async with closing(aclose):
            scope.cancel()
            await trio.sleep_forever()

    assert scope.cancelled_caught
    assert closed == [True]


async def test_a_polite_close_has_a_bound(autojump_clock) -> None:
    """After an error it may take a few seconds, and no more."""
    with pytest.raises(ValueError, match="mine"):
        async with closing(trio.sleep_forever):
            raise ValueError("mine")

    assert 1 < trio.current_time() < 60
