"""The list of operators and the server's status (contract 1.7; 8.3 J37 to J47; 8.4 I5, I6, I17 to I19)."""

from __future__ import annotations

import time

import pytest
import trio

from tests.operators.support import Login, log_in, rest, serving, socket_of
from tests.operators.test_sessions import age
from trio_swarm.operators.login import LoginRequest


async def listed(server, login: Login, query: str = ""):
    async with rest(server) as client:
        return await client.get(f"/v1/operators{query}", headers=login.bearer)


async def test_any_operator_reads_the_list() -> None:
    """1.7: shape; newest activity first, the sid breaks ties; the reader is renewed, nobody else."""
    begun = int(time.time())
    async with serving() as server:
        old = await log_in(server, roles=["a"], desc="the old one")
        mute, reader = await log_in(server), await log_in(server)
        age(server, old, 500)
        age(server, mute, 100)
        async with socket_of(server, old):
            await server.wait_seat("a")
            age(server, old, 500)
            answer = await listed(server, reader)
        assert answer.status_code == 200
        body = answer.json()
        assert body.keys() == {"operators", "total", "limit"}
        assert (body["total"], body["limit"]) == (3, 50)
        assert [each["sid"] for each in body["operators"]] == [reader.sid, mute.sid, old.sid]
        told = body["operators"][2]
        assert begun <= told.pop("joined_at_secs") <= time.time()
        assert begun - 501 <= told.pop("last_activity_secs") <= time.time() - 499
        assert told == {
            "sid": old.sid,
            "connected": True,
            "desc": "the old one",
            "observed": [],
            "observed_total": 0,
        }
        assert "token" not in answer.text
        for _ in range(10):  # Whose sids are in order by chance only.
            await log_in(server)
        same = server._table.find(old.sid).last_access
        for session in server._table:
            session.last_access = same
        tied = [each["sid"] for each in (await listed(server, reader)).json()["operators"][1:]]
        assert len(tied) == 12
        assert tied == sorted(tied)


@pytest.mark.parametrize(
    ("limit", "status", "count"),
    [
        ("1", 200, 1),
        ("2", 200, 2),
        ("200", 200, 3),
        ("201", 200, 3),
        ("18446744073709551615", 200, 3),
        ("0", 400, 0),
        ("-1", 400, 0),
        ("+1", 400, 0),
        ("x", 400, 0),
        ("", 400, 0),
        ("1.0", 400, 0),
        ("%D9%A1", 400, 0),  # an Arabic one
        ("9" * 5000, 400, 0),
    ],
)
async def test_the_limit(limit, status, count) -> None:
    """From 1, and 200 at most; anything else is 400, and says the rule. The total is of all."""
    async with serving() as server:
        logins = [await log_in(server) for _ in range(3)]
        answer = await listed(server, logins[0], f"?limit={limit}")
        assert answer.status_code == status
        if status == 200:
            assert len(answer.json()["operators"]) == count
            assert (answer.json()["total"], answer.json()["limit"]) == (3, min(int(limit), 200))
        else:
            assert "limit: expected a number from 1" in answer.text


async def test_the_list_is_bounded() -> None:
    """1.7: 50 unless asked for more, 200 at most."""
    async with serving() as server:
        reader = await log_in(server)
        for _ in range(219):
            server._table.mint(LoginRequest())
        for query, count in (("", 50), ("?limit=51", 51), ("?limit=200", 200), ("?limit=1000", 200)):
            body = (await listed(server, reader, query)).json()
            assert (len(body["operators"]), body["limit"], body["total"]) == (count, count, 220)


async def test_a_bad_limit_is_told_before_a_bad_bearer() -> None:
    """1.1: as every query that cannot be read."""
    async with serving() as server, rest(server) as client:
        for headers in ({}, {"Authorization": "Bearer nobody"}):
            answer = await client.get("/v1/operators?limit=x", headers=headers)
            assert answer.status_code == 400


async def test_who_is_nobody_reads_nothing() -> None:
    """401 as JSON; why is told apart: no token, an unknown one, an expired one."""
    async with serving() as server, rest(server) as client:
        login, other = await log_in(server), await log_in(server)
        hints = set()

        async def refused(headers: dict[str, str], error: str) -> None:
            answer = await client.get("/v1/operators", headers=headers)
            assert answer.status_code == 401
            assert answer.headers["content-type"] == "application/json"
            assert answer.headers["www-authenticate"] == "Bearer"
            assert answer.json()["error"] == error
            assert login.token not in answer.text
            hints.add(answer.json()["hint"])

        await refused({}, "missing or empty Bearer token")
        await refused({"Authorization": f"bearer {login.token}"}, "missing or empty Bearer token")
        await refused({"Authorization": "Bearer nobody"}, "no such token")
        age(server, login, 86_401)
        for _ in range(2):  # The first ends it; it is remembered.
            await refused(login.bearer, "your session expired")
        assert [seat.sid for seat in server.seats()] == [other.sid]
        assert len(hints) == 2
        await client.delete(f"/v1/operators/{other.sid}", headers=other.bearer)
        await refused(other.bearer, "no such token")


async def test_the_list_ends_those_whose_time_is_over() -> None:
    """J37, J38, J41: 24 h; one inside the horizon stays."""
    async with serving() as server:
        idle, near, reader = await log_in(server, roles=["r"]), await log_in(server), await log_in(server)
        age(server, idle, 86_401)
        age(server, near, 86_300)
        body = (await listed(server, reader)).json()
        assert [each["sid"] for each in body["operators"]] == [reader.sid, near.sid]
        await log_in(server, roles=["r"])


async def test_the_status_is_numbers_for_anybody() -> None:
    """Runs, who is connected, and the jobs that run by themselves."""
    running = 7
    async with serving(running_runs=lambda: running) as server, rest(server) as client:
        login = await log_in(server, roles=["r"])
        await log_in(server)
        async with socket_of(server, login):
            await server.wait_seat("r")
            body = (await client.get("/v1/status")).json()
        assert body.keys() == {"running_runs", "attached_operators", "periodic_jobs"}
        assert (body["running_runs"], body["attached_operators"]) == (7, 1)
        sweep, write = body["periodic_jobs"]
        assert (sweep["name"], sweep["period_secs"], sweep["enabled"]) == ("session_sweep", 300.0, True)
        assert sweep["runs"] >= 1
        assert (write["name"], write["enabled"]) == ("session_access_write", False)
        while server.seat("r").connected:
            await trio.sleep(0.001)
        assert (await client.get("/v1/status")).json()["attached_operators"] == 0
    async with serving(sweep_every=0) as server, rest(server) as client:
        body = (await client.get("/v1/status")).json()
        assert body["running_runs"] == 0
        assert body["periodic_jobs"][0]["enabled"] is False


async def test_a_sweep_that_ended_something_is_counted() -> None:
    """I17, I18."""
    async with serving(join_within=0.05) as server, rest(server) as client:
        await log_in(server)
        with trio.fail_after(10):
            while not (job := (await client.get("/v1/status")).json()["periodic_jobs"][0])["acted_total"]:
                await trio.sleep(0.005)
        assert (job["acted_total"], job["errors"], job["last_outcome"]) == (1, 0, "ok")
        assert job["last_finished_secs"] >= job["last_started_secs"] > 1e9


async def test_a_long_description_is_cut_in_the_list() -> None:
    """At 1 KiB, as the log's texts: anybody may log in with 64 KiB of it. Its own record is whole."""
    async with serving() as server, rest(server) as client:
        long, short = await log_in(server, desc="\u20ac" * 10_000), await log_in(server, desc="x" * 1024)
        answer = await listed(server, long)
        told = {each["sid"]: each["desc"] for each in answer.json()["operators"]}
        assert told == {long.sid: "\u20ac" * 340 + "\u2026", short.sid: "x" * 1024}
        own = await client.get(f"/v1/operators/{long.sid}", headers=long.bearer)
        assert own.json()["desc"] == "\u20ac" * 10_000
