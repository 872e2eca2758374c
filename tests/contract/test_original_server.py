"""Our operator at an original server, of both profiles; the server is `tests.contract.original`."""

from __future__ import annotations

from contextlib import asynccontextmanager
from functools import partial

import httpx2
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.cli.test_operator import environment, person
from tests.contract.original import Original, serving
from trio_swarm.errors import HandshakeError
from trio_swarm.frames.operator import HookAfter
from trio_swarm.operators import (
    AskRequest,
    GateRequest,
    OperatorSession,
    Reconnect,
    RolesTaken,
    SpawnRequest,
    connect_operator,
)
from trio_swarm.workers import connect_worker

QUICK = Reconnect(first=0.01, longest=0.05, give_up_after=5.0)
PROFILES = pytest.mark.parametrize("head", [False, True], ids=["SEED", "HEAD"])
OVERRIDE = {"original": "2 tests failed", "senior_answer": "accept, known flake"}


class Launched:
    """A run that somebody started over HTTP, with the sid three times (1.4)."""

    def __init__(self, original: Original, sid: str) -> None:
        self.original, self.sid = original, sid
        self.answer: httpx2.Response | None = None
        self.done = trio.Event()

    async def run(self) -> None:
        ids = {"spawn_hook_id": self.sid, "senior_bridge_id": self.sid, "operator_backend_id": self.sid}
        layers = ["operator_delegate", "senior_escalation", "main_ai"]
        step = {"agent": "reviewer", "prompt": "review", "spawner_hints": {"layers": layers}}
        body = {
            "blueprint": {"kind": "inline", "value": step},
            "init_ctx": {},
            "operator": {"kind": "main_ai", **ids},
        }
        async with httpx2.AsyncClient(base_url=self.original.url, trust_env=False, timeout=30) as client:
            self.answer = await client.post("/v1/tasks", json=body)
        self.done.set()

    async def outcome(self) -> tuple[int, object]:
        """The status, and the value of the step or the error's last words."""
        with trio.fail_after(20):
            await self.done.wait()
        assert self.answer is not None
        known = self.answer.json()
        if self.answer.status_code == 200:
            return 200, known["final_ctx"]["reviewer"]
        return self.answer.status_code, known["error"].rpartition("ref 'reviewer': ")[2]


@asynccontextmanager
async def seated(head: bool, **options):
    """An original, our operator at it, and a nursery for what is launched."""
    async with serving(head=head) as original:
        async with connect_operator(original.url, roles=["main-ai"], reconnect=QUICK, **options) as client:
            while original.session().tx is None:
                await trio.lowlevel.checkpoint()
            async with trio.open_nursery() as nursery:
                launched = Launched(original, client.sid)
                nursery.start_soon(launched.run)
                yield original, client, launched
                nursery.cancel_scope.cancel()


async def spawned(client) -> SpawnRequest:
    """The gate is passed, and the spawn is there."""
    gate = await client.receive()
    assert isinstance(gate, GateRequest)
    assert gate.ack()
    spawn = await client.receive()
    assert isinstance(spawn, SpawnRequest)
    return spawn


async def do_the_work(original: Original, spawn: SpawnRequest) -> None:
    """What the sub-agent does, with our worker client and the handle of the spawn."""
    handle = spawn.frame.worker_handle
    assert handle is not None
    async with connect_worker(original.url, handle, task_id=spawn.task_id) as worker:
        payload = await worker.fetch_prompt()
        assert (payload.agent, payload.prompt, payload.attempt) == ("reviewer", "review", 1)
        await worker.submit("2 tests failed", ok=False)


@PROFILES
async def test_the_transcript(head) -> None:
    """8.8 from end to end, and on the wire nothing that the original would not take."""
    async with seated(head) as (original, client, launched):
        assert (client.redelivers, client.receipts) == (False, False)
        spawn = await spawned(client)
        assert (spawn.frame.worker is not None) == head
        await do_the_work(original, spawn)
        assert spawn.ack()
        ask = await client.receive()
        assert isinstance(ask, AskRequest)
        assert ask.question == {"reason": "worker reported ok=false", "value": "2 tests failed"}
        assert ask.answer("accept, known flake")
        notice = await client.receive()
        assert isinstance(notice, HookAfter)
        assert notice.result == OVERRIDE
        assert await launched.outcome() == (200, OVERRIDE)
        while head and not original.pongs:
            await trio.lowlevel.checkpoint()

    sid = client.sid
    assert original.sessions == {}
    assert original.dropped == []
    assert original.heard == [
        {"type": "hook_ack", "req_id": original.heard[0]["req_id"], "ok": True},
        {"type": "spawn_ack", "req_id": spawn.req_id, "value": {}, "ok": True},
        {"type": "answer", "req_id": ask.req_id, "value": "accept, known flake"},
    ]
    assert original.said == [
        ("POST", "/v1/operators", 200),
        ("GET", f"/v1/operators/{sid}/ws", 101),
        ("GET", "/v1/worker/prompt", 200),
        ("POST", "/v1/worker/submit", 204),
        ("POST", "/v1/tasks", 200),
        ("DELETE", f"/v1/operators/{sid}", 204),
    ]
    (opening,) = original.upgrades
    assert opening["authorization"].startswith("Bearer ")
    assert "sec-websocket-protocol" not in opening


@PROFILES
async def test_a_socket_that_is_lost_with_everything_open(head) -> None:
    """What was shown stays open, what is answered meanwhile goes out on the next socket."""
    async with seated(head) as (original, client, launched):
        spawn = await spawned(client)
        await original.cut(original.session())
        while client.connected:
            await trio.lowlevel.checkpoint()
        assert spawn.ack("by myself", ok=False)
        ask = await client.receive()
        assert isinstance(ask, AskRequest)
        await original.cut(original.session())
        while not client.connected or client.connections < 3:
            await trio.lowlevel.checkpoint()
        assert ask.answer("fine")
        assert isinstance(await client.receive(), HookAfter)
        assert await launched.outcome() == (200, {"original": "by myself", "senior_answer": "fine"})
        assert client.statistics().requests == 3

    # A reply may come again: nobody could say that it had arrived. Another one never does.
    first = {frame["req_id"]: frame for frame in reversed(original.heard)}
    assert all(frame == first[frame["req_id"]] for frame in original.heard)
    assert (len(first), original.dropped) == (3, [])


@PROFILES
@pytest.mark.parametrize(
    ("reply", "sent", "outcome"),
    [
        (
            lambda gate, _: gate.reject("budget"),
            {"type": "hook_ack", "ok": False, "reason": "budget"},
            "dispatch_attempt: dispatch failed: spawn rejected by middleware: budget",
        ),
        (
            lambda gate, _: gate.reject(),
            {"type": "hook_ack", "ok": False},
            "dispatch_attempt: dispatch failed: spawn rejected by middleware: operator rejected the spawn",
        ),
        (
            lambda _, spawn: spawn.fail("out of tokens"),
            {"type": "spawn_ack", "value": {}, "ok": False, "error": "out of tokens"},
            "dispatch_attempt: dispatch failed: worker fn returned error: out of tokens",
        ),
        (
            lambda _, spawn: spawn.ack({"n": 1}, stats={"model": "m"}),
            {"type": "spawn_ack", "value": {"n": 1}, "ok": True, "stats": {"model": "m"}},
            {"n": 1},
        ),
    ],
    ids=["rejects", "rejects without a reason", "fails", "acks with a value"],
)
async def test_each_reply_has_the_originals_shape(head, reply, sent, outcome) -> None:
    """C8 to C11: keys that are not said are left out, and each reply comes to what the contract says."""
    async with seated(head) as (original, client, launched):
        gate = await client.receive()
        if "gate" in reply.__code__.co_varnames[:1]:
            assert reply(gate, None)
        else:
            assert gate.ack()
            assert reply(None, await client.receive())
        assert (await launched.outcome())[1] == outcome
    frame = dict(original.heard[-1])
    frame.pop("req_id")
    assert (frame, original.dropped) == (sent, [])


async def test_a_halt_is_a_success_at_the_later_profile() -> None:
    """2.9: with the marker as the step's value."""
    async with seated(True) as (original, client, launched):
        assert (await spawned(client)).halt(reason="agreed")
        outcome = await launched.outcome()
    assert outcome == (200, {"halted": True, "reason": "agreed", "value": {}})
    assert {key: value for key, value in original.heard[-1].items() if key != "req_id"} == {
        "type": "spawn_halt",
        "value": {},
        "reason": "agreed",
    }


async def test_roles_are_what_the_server_says() -> None:
    """SEED claims them exclusively and names the conflicts; HEAD knows none, so that none are held."""
    async with serving() as original, connect_operator(original.url, roles=["a", "b"]) as first:
        assert first.roles == ("a", "b")
        assert len(first.session.token) == 10
        with pytest.raises(RolesTaken) as taken:
            async with connect_operator(original.url, roles=["c", "b", "a"]):
                raise AssertionError("it was let in")
        assert taken.value.conflicts == ["b", "a"]
    async with serving(head=True) as original, connect_operator(original.url, roles=["a"]) as first:
        assert first.roles == ()
        async with connect_operator(original.url, roles=["a"]) as second:
            assert second.sid != first.sid


async def test_a_login_whose_socket_cannot_be_opened_is_undone() -> None:
    """Its roles are free again, and the error says why."""
    hurry = Reconnect(first=0.01, longest=0.02, give_up_after=0.1)
    async with serving() as original:
        original.upgradable = False
        with pytest.raises(HandshakeError) as refused:
            async with connect_operator(original.url, roles=["a"], reconnect=hurry):
                raise AssertionError("it was let in")
        assert refused.value.status == 426
        assert original.sessions == {}
        assert original.said[-1][::2] == ("DELETE", 204)


@PROFILES
async def test_a_session_that_somebody_deletes(head) -> None:
    """HEAD closes the socket, SEED leaves it until it dies; then the sid is unknown, and it is over."""
    async with seated(head) as (original, client, launched):
        spawn = await spawned(client)
        session = original.session()
        async with httpx2.AsyncClient(base_url=original.url, trust_env=False) as http:
            bearer = {"Authorization": f"Bearer {session.token}"}
            gone = await http.delete(f"/v1/operators/{session.sid}", headers=bearer)
        assert gone.status_code == 204
        if not head:
            await wait_all_tasks_blocked(0.01)
            assert client.connected
            await original.cut(session)
        with pytest.raises(trio.EndOfChannel):
            await client.receive()
        assert not spawn.ack()
        if head:
            assert (await launched.outcome())[1] == (
                "dispatch_attempt: dispatch failed: worker fn returned error: "
                "ws operator spawn: reply path closed"
            )
    assert original.said[-1] == ("DELETE", f"/v1/operators/{session.sid}", 404)


async def _serve(original: Original, *, task_status) -> None:
    """Until its scope is cancelled, as a server that is stopped."""
    with trio.CancelScope() as scope:
        async with serving(original=original):
            task_status.started(scope)
            await trio.sleep_forever()


@PROFILES
async def test_a_restart_of_the_server(head) -> None:
    """SEED forgets every session, so that it is over; HEAD has them again, so that it goes on."""
    front, original = Front(), Original(head)
    async with trio.open_nursery() as nursery:
        url = await nursery.start(front.serve, original)
        server = await nursery.start(_serve, original)
        async with connect_operator(url, roles=["main-ai"], reconnect=QUICK) as client:
            server.cancel()
            while client.connected or not client.connections:
                await trio.lowlevel.checkpoint()
            if not head:
                original.sessions.clear()
            await nursery.start(_serve, original)
            if head:
                while not client.connected:
                    await trio.lowlevel.checkpoint()
                assert client.connections == 2
                launched = Launched(original, client.sid)
                nursery.start_soon(launched.run)
                assert (await spawned(client)).ack("again")
                assert await launched.outcome() == (200, "again")
            else:
                with pytest.raises(trio.EndOfChannel):
                    await client.receive()
        nursery.cancel_scope.cancel()


class Front:
    """An address that stays, before a server that moves."""

    async def serve(self, original: Original, *, task_status) -> None:
        self.original = original
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        task_status.started(f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}")
        await trio.serve_listeners(self._one, listeners)

    async def _one(self, stream) -> None:
        host, _, port = self.original.url.removeprefix("http://").rpartition(":")
        try:
            inner = await trio.open_tcp_stream(host, int(port))
        except OSError:
            return
        async with inner, trio.open_nursery() as nursery:
            nursery.start_soon(self._pump, stream, inner, nursery.cancel_scope)
            nursery.start_soon(self._pump, inner, stream, nursery.cancel_scope)

    async def _pump(self, source, sink, scope) -> None:
        try:
            async for data in source:
                await sink.send_all(data)
        except trio.BrokenResourceError:
            pass
        scope.cancel()


@PROFILES
async def test_a_session_is_taken_over(head) -> None:
    """With its sid and token; the original leaves the older socket open and sends to the newer."""
    async with seated(head) as (original, client, launched):
        gate = await client.receive()
        kept = OperatorSession(client.sid, client.session.token)
        async with connect_operator(original.url, session=kept, keep=True, reconnect=QUICK) as second:
            while len(original.session().sockets) < 2:
                await trio.lowlevel.checkpoint()
            assert client.connected
            assert gate.ack()
            spawn = await second.receive()
            assert spawn.ack("the second")
            assert await launched.outcome() == (200, "the second")
        with pytest.raises(HandshakeError) as refused:
            async with connect_operator(original.url, session=OperatorSession(client.sid, "0" * 10)):
                raise AssertionError("it was let in")
        assert refused.value.status == 401
    assert original.sessions == {}


async def test_nobody_is_asked_while_away_at_the_earlier_profile() -> None:
    """SEED fails at once what it cannot send; the operator that is back has nothing of it."""
    async with serving() as original, trio.open_nursery() as nursery:
        away = Reconnect(first=3600, longest=3600, give_up_after=7200)
        async with connect_operator(original.url, reconnect=away) as client:
            while original.session().tx is None:
                await trio.lowlevel.checkpoint()
            await original.cut(original.session())
            launched = Launched(original, client.sid)
            nursery.start_soon(launched.run)
            assert (await launched.outcome())[1] == (
                "dispatch_attempt: dispatch failed: spawn rejected by middleware: ws operator disconnected"
            )
        assert client.statistics().requests == 0


@PROFILES
async def test_a_person_at_the_terminal(head, tmp_path) -> None:
    """``trio-swarm operator URL``: the whole transcript, and it leaves."""
    async with serving(head=head) as original, trio.open_nursery() as nursery:
        async with person(original.url, "--role", "main-ai", env=environment(tmp_path)) as who:
            await who.sees("-- joined")
            while original.session().tx is None:
                await trio.lowlevel.checkpoint()
            launched = Launched(original, original.session().sid)
            nursery.start_soon(launched.run)
            await who.sees("hook_before")
            await who.says("ack")
            await who.sees("[agent_primitive dispatch=@reviewer]")
            await original.cut(original.session())
            (task,) = original.tasks.values()
            async with connect_worker(original.url, task.handle, task_id=task.task_id) as worker:
                await worker.submit("2 tests failed", ok=False)
            await who.says("ack")
            await who.sees("2 tests failed")
            await who.says("answer accept, known flake")
            await who.sees("-- ended: step")
            assert await launched.outcome() == (200, OVERRIDE)
            await who.says("leave")
            with trio.fail_after(20):
                assert await who.process.wait() == 0
    assert (original.sessions, original.dropped) == ({}, [])


async def test_a_restart_of_the_later_profile_withdraws_nothing() -> None:
    """It does not say that it is another server: what is open stays open, and replies are sent."""
    front, original = Front(), Original(head=True)
    async with trio.open_nursery() as nursery:
        url = await nursery.start(front.serve, original)
        server = await nursery.start(_serve, original)
        async with connect_operator(url, reconnect=QUICK) as client:
            while original.session().tx is None:
                await trio.lowlevel.checkpoint()
            for number in range(2):
                ask = partial(original.session().request, "ask", task_id="T", question=number)
                nursery.start_soon(ask)
            before, after = await client.receive(), await client.receive()
            server.cancel()
            while client.connected:
                await trio.lowlevel.checkpoint()
            assert before.answer(1)
            await nursery.start(_serve, original)
            while not client.connected:
                await trio.lowlevel.checkpoint()
            assert after.answer(2)
            with trio.fail_after(20):
                while len(original.heard) < 2:
                    await trio.lowlevel.checkpoint()
            assert {frame["req_id"] for frame in original.heard} == {before.req_id, after.req_id}
            assert (before.withdrawn, after.withdrawn) == (None, None)
            known = client.statistics()
            assert (known.requests, known.withdrawn, client.connections) == (2, 0, 2)
        nursery.cancel_scope.cancel()
