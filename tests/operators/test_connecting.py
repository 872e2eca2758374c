"""Whose session it is at the end of `connect_operator`'s block."""

from __future__ import annotations

import pytest

from tests.operators.support import serving
from trio_swarm import PeerGoneError, connect_operator


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
