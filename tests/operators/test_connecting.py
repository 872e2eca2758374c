"""Whose session it is at the end of `connect_operator`'s block."""

from __future__ import annotations

from contextlib import AsyncExitStack

import pytest

from tests.operators.support import serving
from trio_swarm import HandshakeError, PeerGoneError, connect_operator
from trio_swarm.operators import Reconnect


async def test_who_lost_the_session_to_another_leaves_it_to_that_one() -> None:
    """It was handed on by its owner, who then leaves as an iteration ends that is over."""
    async with serving() as server:
        async with connect_operator(server.url, roles=["lead"]) as first:
            async with connect_operator(server.url, session=first.session) as second:
                with pytest.raises(PeerGoneError, match="took the session over"):
                    await first.receive()
                assert first.taken_over
                assert not second.taken_over
                async with connect_operator(server.url, session=second.session, keep=True) as third:
                    with pytest.raises(PeerGoneError, match="took the session over"):
                        await second.receive()
                    sid = third.sid
        # Both that had lost it have left.
        assert [seat.sid for seat in server.seats()] == [sid]
        assert await server.remove(sid)


async def test_a_session_can_be_taken_over_though_all_seats_are_taken() -> None:
    """It takes nobody's seat but its own: 3 of 8 connections may be seats of one address. Often, too."""
    once = Reconnect(first=0.0, longest=0.0, give_up_after=0.0)
    async with serving(max_connections=8) as server, AsyncExitStack() as stack:
        for _ in range(3):
            client = await stack.enter_async_context(connect_operator(server.url, reconnect=once))
        with pytest.raises(HandshakeError, match="503"):
            async with connect_operator(server.url, reconnect=once):
                pytest.fail("there is no seat for another operator")
        for _ in range(3):
            old = client
            # The one before may not be quite gone yet: then it comes again.
            taking = connect_operator(server.url, session=old.session, reconnect=Reconnect(give_up_after=5.0))
            client = await stack.enter_async_context(taking)
            with pytest.raises(PeerGoneError, match="took the session over"):
                await old.receive()
        with pytest.raises(HandshakeError, match="503"):
            async with connect_operator(server.url, reconnect=once):
                pytest.fail("there is no seat for another operator")
