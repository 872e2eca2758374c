"""From a login to its end, each thing that a second operator sees of it (contract 8.3 J; 8.4 A and I)."""

from __future__ import annotations

import pytest
import trio
from websockets.exceptions import ConnectionClosed

from tests.operators.support import Events, Login, Result, log_in, rest, serving, socket_of
from tests.operators.test_sessions import age
from trio_swarm.errors import PeerGoneError
from trio_swarm.operators.server import OperatorServer


async def read(server: OperatorServer, login: Login, path: str = "") -> dict:
    async with rest(server) as client:
        answer = await client.get(f"/v1/operators{path}", headers=login.bearer)
        assert answer.status_code == 200, answer.text
        return answer.json()


async def test_a_login_without_a_manifest_has_none() -> None:
    """J2: the key is not there, rather than null; a null that is sent is none either."""
    async with serving() as server:
        for body in ({}, {"desc": None, "capability_manifest": None}):
            login = await log_in(server, **body)
            known = await read(server, login, f"/{login.sid}")
            assert "capability_manifest" not in known
            assert known["desc"] is None


async def test_two_logins_in_a_row_are_both_there_and_both_reachable() -> None:
    """J8, J11, I4: neither takes anything of the other; one that never connected is listed as such."""
    async with serving() as server, trio.open_nursery() as nursery:
        one, two, away = [await log_in(server) for _ in range(3)]
        assert len({one.sid, two.sid, away.sid}) == len({one.token, two.token, away.token}) == 3
        async with socket_of(server, one) as first, socket_of(server, two) as second:
            for login, peer in ((one, first), (two, second)):
                asked = Result()
                nursery.start_soon(
                    lambda asked=asked, sid=login.sid: asked.run(server.seat(sid).ask, sid, task_id="ST-1")
                )
                frame = await peer.next()
                assert frame["question"] == login.sid
                await peer.send(type="answer", req_id=frame["req_id"], value="here")
                await asked.done.wait()
                assert asked.value == "here"
            entries = (await read(server, away))["operators"]
        assert {entry["sid"]: entry["connected"] for entry in entries} == {
            one.sid: True,
            two.sid: True,
            away.sid: False,
        }
        vacant = next(entry for entry in entries if entry["sid"] == away.sid)
        assert (vacant["desc"], vacant["observed"]) == (None, [])


async def test_a_session_left_behind_is_seen_and_blocks_nobody() -> None:
    """I6: its socket died; others see that, cannot end it, and log in beside it."""
    async with serving() as server, rest(server) as client:
        stale = await log_in(server, desc="left behind")
        async with socket_of(server, stale):
            await server.wait_seat(stale.sid)
        while server.seat(stale.sid).connected:
            await trio.sleep(0.001)
        other = await log_in(server, desc="new")
        entries = {entry["sid"]: entry for entry in (await read(server, other))["operators"]}
        assert (entries[stale.sid]["connected"], entries[stale.sid]["desc"]) == (False, "left behind")
        for headers, status in ((other.bearer, 401), ({}, 401)):
            answer = await client.delete(f"/v1/operators/{stale.sid}", headers=headers)
            assert answer.status_code == status
        assert (await read(server, stale, f"/{stale.sid}"))["sid"] == stale.sid
        assert len(server.seats()) == 2


async def test_a_connect_changes_nothing_but_the_connection() -> None:
    """I9: the seat is that of the login, however often a socket comes."""
    events = Events()
    async with serving(events) as server:
        login = await log_in(server, roles=["r"])
        seat, before = server.seat("r"), server.seats()
        for _ in range(3):
            async with socket_of(server, login):
                assert await server.wait_seat("r") is seat
                assert server.seats() == before
            while seat.connected:
                await trio.sleep(0.001)
        assert server.seat(login.sid) is server.seat("r") is seat
        assert len(events.of("operator_joined")) == 1


async def test_a_session_that_ended_is_over_for_whoever_still_holds_its_seat() -> None:
    """J7, A18: not connected, and every verb says that it is gone; also where nobody was waiting."""
    async with serving() as server:
        login = await log_in(server, roles=["r"])
        seat = server.seat("r")
        async with socket_of(server, login) as peer:
            await server.wait_seat("r")
            async with rest(server) as client:
                gone = await client.delete(f"/v1/operators/{login.sid}", headers=login.bearer)
            assert gone.status_code == 204
            assert (seat.connected, seat.gone) == (False, True)
            with pytest.raises(ConnectionClosed):
                await peer.next()
        with pytest.raises(PeerGoneError):
            await seat.ask("?", task_id="ST-1")
        with pytest.raises(PeerGoneError):
            await seat.hook_before(task_id="ST-1", agent="a", attempt=1)
        with pytest.raises(PeerGoneError):
            await seat.spawn(task_id="ST-1", agent="a", attempt=1, directive="d")


async def test_the_end_of_a_former_holder_does_not_touch_the_role(tmp_path) -> None:
    """A12, A14: its late DELETE and its late reply meet the successor, and change nothing for it."""
    async with serving() as server, rest(server) as client, trio.open_nursery() as nursery:
        first = await log_in(server, roles=["main"])
        lost, asked = Result(), Result()
        async with socket_of(server, first) as peer:
            nursery.start_soon(lambda: lost.run(server.seat("main").ask, 1, task_id="ST-1"))
            old = await peer.next()
            await client.delete(f"/v1/operators/{first.sid}", headers=first.bearer)
            await lost.done.wait()
        again = await log_in(server, roles=["main"])  # The same operator, anew.
        late = await client.delete(f"/v1/operators/{first.sid}", headers=first.bearer)
        assert late.status_code == 404
        assert server.seat("main").sid == again.sid
        async with socket_of(server, again) as peer:
            nursery.start_soon(lambda: asked.run(server.seat("main").ask, 2, task_id="ST-1"))
            frame = await peer.next()
            await peer.send(type="answer", req_id=old["req_id"], value="late")
            await peer.send(type="answer", req_id=frame["req_id"], value="in time")
            await asked.done.wait()
        assert isinstance(lost.error, PeerGoneError)
        assert asked.value == "in time"
        assert server.seat("main").statistics().replies.unknown == 1


@pytest.mark.parametrize("access", ["own read", "listing", "connect"])
async def test_each_access_of_its_operator_renews_a_session(access) -> None:
    """J40, J41: and only that one, as another operator is told."""
    async with serving() as server:
        login, other, reader = [await log_in(server) for _ in range(3)]
        for each in (login, other):
            age(server, each, 80_000)
        if access == "own read":
            await read(server, login, f"/{login.sid}")
        elif access == "listing":
            await read(server, login)
        else:
            async with socket_of(server, login):
                await server.wait_seat(login.sid)
        told = {
            entry["sid"]: entry["last_activity_secs"] for entry in (await read(server, reader))["operators"]
        }
        assert told[login.sid] > told[other.sid] + 79_000
        session = server._table.find(login.sid)
        assert session is not None
        assert server._sessions.expires(session) > trio.current_time() + 86_000


async def test_a_seat_cannot_be_ended_without_its_session() -> None:
    """It would leave one behind that keeps its roles: `OperatorServer.remove` ends both."""
    async with serving() as server:
        login = await log_in(server, roles=["r"])
        seat = server.seat("r")
        assert not {"close", "aclose", "end", "expires"} & set(dir(seat))
        assert await server.remove("r")
        assert seat.gone
        assert (await log_in(server, roles=["r"])).sid != login.sid
