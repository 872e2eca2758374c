"""Credentials that waited with their spawn (contract: operators 3.5, S9 to S11); the test sets the clock."""

from __future__ import annotations

from functools import partial

import attrs
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.operators.support import Events, Result, log_in, serving, socket_of
from trio_swarm.errors import Refused

STEP = {
    "task_id": "ST-1",
    "agent": "coder",
    "attempt": 1,
    "directive": "do it",
    "worker_handle": "wh-12345678",
}


@attrs.define
class Credential:
    """Good for so long, by a clock that the test sets; renewed as often as it allows."""

    expires: float = 1800.0
    now: float = 0.0
    refuses: bool = False
    minted: int = 0

    @property
    def good_for(self) -> float:
        return self.expires - self.now

    def renew(self) -> str:
        if self.refuses:
            raise Refused("no more of them")
        self.minted += 1
        self.expires = self.now + 1800
        return f"fresh-{self.minted}"


async def parked(credential: Credential, *, wait: float, events: Events | None = None):
    """The frame of a spawn that was made, waited so long for its operator, and was delivered then."""
    async with serving(events) as server, trio.open_nursery() as nursery:
        login = await log_in(server)
        seat, result = server.seat(login.sid), Result()
        call = partial(seat.spawn, **STEP, capability_token="original", credential=credential)
        nursery.start_soon(result.run, call)
        await wait_all_tasks_blocked()
        credential.now += wait
        async with socket_of(server, login) as peer:
            frame = await peer.next()
            await peer.send(type="spawn_ack", req_id=frame["req_id"], value="done")
            await result.done.wait()
        assert result.value.value == "done"
        return frame


@pytest.mark.parametrize("wait", [1740, 1800, 5000])
async def test_a_parked_spawn_re_mints_a_capability_that_would_arrive_expired(wait) -> None:
    """S9: with 60 s left or less, or none; only the token is another."""
    frame = await parked(Credential(), wait=wait)
    assert frame["capability_token"] == "fresh-1"
    assert {key: frame[key] for key in STEP} == STEP


async def test_a_parked_spawn_whose_token_is_still_fresh_is_delivered_unchanged() -> None:
    """S10."""
    credential = Credential()
    frame = await parked(credential, wait=1739)
    assert (frame["capability_token"], credential.minted) == ("original", 0)


async def test_a_refused_re_mint_still_delivers_the_original_frame() -> None:
    """S11: it is told, and is no failure."""
    events = Events()
    frame = await parked(Credential(refuses=True), wait=1790, events=events)
    assert frame["capability_token"] == "original"
    (told,) = events.of("renewal_refused")
    assert (told["req_id"], told["task_id"]) == (frame["req_id"], "ST-1")
    assert "no more" in str(told["error"])


async def test_what_did_not_wait_is_not_renewed_and_what_is_delivered_again_is() -> None:
    """A short life alone is no reason; the renewed token stays until it is about to end as well."""
    credential = Credential(expires=30)
    async with serving() as server, trio.open_nursery() as nursery:
        login = await log_in(server)
        seat, tokens, result = server.seat(login.sid), [], Result()
        call = partial(seat.spawn, **STEP, capability_token="original", credential=credential)
        for wait in (0, 0, 10, 1735):
            credential.now += wait
            async with socket_of(server, login) as peer:
                if not tokens:
                    await server.wait_seat(login.sid)
                    nursery.start_soon(result.run, call)
                frame = await peer.next()
                tokens.append(frame["capability_token"])
            while seat.connected:
                await trio.lowlevel.checkpoint()
        await server.remove(login.sid, "enough")
        await result.done.wait()

    assert tokens == ["original", "fresh-1", "fresh-1", "fresh-2"]
    assert seat._renewals._of == {}


async def test_what_waits_behind_others_is_renewed_when_its_turn_comes() -> None:
    """It is judged when it is written, not when it was taken to be: the operator may read slowly."""
    credential, seen = Credential(expires=100), []

    async with serving() as server, trio.open_nursery() as nursery:
        login = await log_in(server)
        seat = server.seat(login.sid)

        @attrs.define
        class Slow(Credential):
            """Writing its spawn takes a minute, as the clock has it."""

            @property
            def good_for(self) -> float:
                seen.append(self.now)
                credential.now = 60 if len(seen) > 1 else 0
                return 1000

        nursery.start_soon(partial(seat.spawn, **STEP, capability_token="first", credential=Slow()))
        await wait_all_tasks_blocked()
        nursery.start_soon(partial(seat.spawn, **STEP, capability_token="second", credential=credential))
        await wait_all_tasks_blocked()
        async with socket_of(server, login) as peer:
            tokens = [(await peer.next())["capability_token"] for _ in range(2)]
        nursery.cancel_scope.cancel()

    assert tokens == ["first", "fresh-1"]
