"""The actor process by itself, under a parent of plain frames (children contract, A4 and A5)."""

from __future__ import annotations

import json
import signal
import stat
from contextlib import asynccontextmanager

import pytest
import trio
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from tests.children.support import HERE, actor, provision, registered, stderr_of
from trio_swarm._io.fabric import Fabric
from trio_swarm._io.ws import open_ws_client
from trio_swarm.errors import HandshakeError


@asynccontextmanager
async def parent(record, **headers):
    """A parent that sends and receives JSON objects."""
    async with open_ws_client(record.endpoint, headers=list(headers.items())) as transport:
        yield Wire(transport)


class Wire:
    def __init__(self, transport):
        self.transport = transport
        self.received = []

    async def send(self, *frames):
        await self.transport.send_batch([f if isinstance(f, str) else json.dumps(f) for f in frames])

    async def next(self):
        while not self.received:
            batch = await self.transport.receive_batch()
            assert batch, "the actor hung up"
            self.received += [json.loads(message) for message in batch]
        return self.received.pop(0)

    async def until_terminal(self):
        seen = []
        while not seen or seen[-1]["kind"] != "terminal":
            seen.append(await self.next())
        return seen


def engine(name):
    return {"kind": "python", "target": f"{HERE}:{name}"}


RUN = {"kind": "run", "assignment": "hello world"}


@pytest.fixture
def fabric(tmp_path):
    return Fabric(tmp_path / "fabric")


async def test_loopback_run_streams_events_then_terminal(fabric):
    """The whole life of a one-shot worker: record, run, clean exit, record gone."""
    async with actor(provision(fabric.directory)) as process:
        record = await registered(fabric)
        assert record.pid == process.pid
        assert record.role == "worker"
        assert 55 < (record.lease_expires_at - fabric.clock()).total_seconds() <= 60
        path = fabric.path("child-7")
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert path.read_text().startswith("{\n")
        async with parent(record) as wire:
            await wire.send(RUN)
            assert await wire.until_terminal() == [
                {"kind": "event", "event": {"type": "token", "content": "hello "}},
                {"kind": "event", "event": {"type": "token", "content": "world "}},
                {"kind": "event", "event": {"type": "complete"}},
                {"kind": "terminal", "status": "completed", "result": "echo: hello world"},
            ]
        assert await process.wait() == 0
        assert await fabric.discover() == []


async def test_a_client_of_another_make_is_served(fabric):
    """The websockets library's client, with its own handshake and masking."""

    def talk(endpoint):
        with connect(endpoint) as ws:
            ws.send(json.dumps(RUN))
            return [json.loads(ws.recv())["kind"] for _ in range(4)]

    async with actor(provision(fabric.directory)) as process:
        record = await registered(fabric)
        kinds = await trio.to_thread.run_sync(talk, record.endpoint)
        assert kinds == ["event", "event", "event", "terminal"]
        assert await process.wait() == 0


async def test_what_means_nothing_is_ignored_and_the_connection_stays(fabric):
    """Malformed, unknown, binary, a message and an approval before any run: then a valid run (A10)."""

    def talk(endpoint):
        with connect(endpoint) as ws:
            ws.send("{")
            ws.send('{"kind":"nope"}')
            ws.send('{"kind":"run"}')
            ws.send(b"\0binary")
            ws.send('{"kind":"message","text":"nobody"}')
            ws.send('{"kind":"approval_reply","id":"never","approved":true}')
            ws.send('{"kind":"cancel"}')
            ws.send('{"kind":"run","assignment":"x","messages":[{"role":"assistant"}],"execution_epoch":0}')
            return [json.loads(ws.recv())["kind"] for _ in range(3)]

    async with actor(provision(fabric.directory)):
        record = await registered(fabric)
        assert await trio.to_thread.run_sync(talk, record.endpoint) == ["event", "event", "terminal"]


async def test_second_run_cancels_previous(fabric):
    """First terminal 'cancelled' without a cancel frame; the second ends only on cancel."""
    async with actor(provision(fabric.directory)) as _, parent(await registered(fabric)) as wire:
        await wire.send({"kind": "run", "assignment": "__sleep_ms:60000 one"})
        await wire.send({"kind": "run", "assignment": "__sleep_ms:60000 two"})
        with trio.fail_after(2):
            assert await wire.next() == {"kind": "terminal", "status": "cancelled"}
        await wire.send({"kind": "cancel"})
        assert await wire.next() == {"kind": "terminal", "status": "cancelled"}


@pytest.mark.parametrize("name", ["stubborn", "stuck"])
async def test_explicit_cancel_bounds_uncooperative_execution_and_emits_terminal(fabric, name):
    """After 3 s its terminal is sent, the connection closed, and the process ends with it."""
    async with actor(provision(fabric.directory, executor=engine(name), reusable=True)) as process:
        async with parent(await registered(fabric)) as wire:
            await wire.send({"kind": "run", "assignment": "x"})
            assert (await wire.next())["kind"] == "event"
            await wire.send({"kind": "cancel"})
            with trio.fail_after(8):
                assert await wire.next() == {"kind": "terminal", "status": "cancelled"}
                assert await wire.transport.receive_batch() == ()
                assert await process.wait() == 70
        assert await fabric.discover() == []


async def test_disconnect_reclaims_uncooperative_execution(fabric):
    """The socket's end bounds a run that does not obey, too (8 s upstream)."""
    async with actor(provision(fabric.directory, executor=engine("stubborn"))) as process:
        async with parent(await registered(fabric)) as wire:
            await wire.send({"kind": "run", "assignment": "x"})
            await wire.next()
        with trio.fail_after(8):
            assert await process.wait() == 70
        assert "did not end" in await stderr_of(process)
        assert await fabric.discover() == []


async def test_the_deadline_is_enforced_here(fabric):
    """deadline_ms, our extension: an error, since nobody cancelled."""
    async with actor(provision(fabric.directory)), parent(await registered(fabric)) as wire:
        await wire.send({"kind": "run", "assignment": "__sleep_ms:60000 x", "deadline_ms": 100})
        assert await wire.next() == {
            "kind": "terminal",
            "status": "error",
            "error": "deadline exceeded",
        }


async def test_approvals_ask_with_both_keys_and_take_the_first_answer(fabric):
    """approval_request_round_trips; unknown ids are ignored."""
    async with (
        actor(provision(fabric.directory, executor=engine("gate"))),
        parent(await registered(fabric)) as wire,
    ):
        await wire.send({"kind": "run", "assignment": "git push"})
        request = await wire.next()
        assert request["body"] == {
            "tool_name": "Bash",
            "permission": "execute",
            "permission_type": "execute",
            "resource": "git push",
            "question": "May I?",
        }
        await wire.send(
            {"kind": "approval_reply", "id": "sa-other", "approved": True},
            {"kind": "approval_reply", "id": request["id"], "approved": False},
            {"kind": "approval_reply", "id": request["id"], "approved": True},
        )
        assert await wire.next() == {"kind": "terminal", "status": "completed", "result": "no"}


async def test_a_parent_that_leaves_while_an_approval_is_pending_denies_it(fabric):
    """The worker ends cleanly at once; it does not wait for an answer."""
    async with actor(provision(fabric.directory, executor=engine("gate"))) as process:
        async with parent(await registered(fabric)) as wire:
            await wire.send({"kind": "run", "assignment": "x"})
            assert (await wire.next())["kind"] == "approval_request"
        with trio.fail_after(2):
            assert await process.wait() == 0


async def test_reusable_server_serves_sequential_connections_then_idles_out(fabric):
    """Two connections one after another, then a clean end."""
    document = provision(fabric.directory, reusable=True, limits={"idle_timeout_secs": 1})
    async with actor(document) as process:
        record = await registered(fabric)
        for text in ("one", "two"):
            async with parent(record) as wire:
                await wire.send({"kind": "run", "assignment": text})
                assert (await wire.until_terminal())[-1]["result"] == f"echo: {text}"
        begun = trio.current_time()
        assert await process.wait() == 0
        assert trio.current_time() - begun > 0.8
        assert await fabric.discover() == []


async def test_the_next_connection_waits_for_the_end_of_this_one(fabric):
    """One after another, also when they come at once (A4.4)."""
    document = provision(fabric.directory, reusable=True, limits={"idle_timeout_secs": 5})
    order = []
    async with actor(document):
        record = await registered(fabric)

        async def second():
            async with parent(record) as wire:
                order.append("second is in")
                await wire.send(RUN)
                await wire.until_terminal()

        async with trio.open_nursery() as nursery, parent(record) as wire:
            nursery.start_soon(second)
            await wire.send({"kind": "run", "assignment": "x __sleep_ms:200"})
            await wire.until_terminal()
            order.append("first is done")
        assert order == ["first is done", "second is in"]


async def test_a_stray_probe_does_not_end_a_one_shot_worker(fabric):
    """A repair: upstream counts a bare TCP connect, or a failed upgrade, as the one connection."""
    async with actor(provision(fabric.directory)) as process:
        record = await registered(fabric)
        port = int(record.endpoint.rpartition(":")[2])
        for sent in (b"", b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", b"\0\xff garbage\r\n\r\n"):
            stream = await trio.open_tcp_stream("127.0.0.1", port)
            async with stream:
                if sent:
                    await stream.send_all(sent)
                    assert b"HTTP/1.1 4" in await stream.receive_some(4096)
        async with parent(record) as wire:
            await wire.send(RUN)
            assert (await wire.until_terminal())[-1]["result"] == "echo: hello world"
        assert await process.wait() == 0


async def test_bearer_token_gates_the_upgrade(fabric):
    """Wrong or missing: 401, and the worker keeps waiting for its parent."""
    document = provision(fabric.directory, secrets={"worker_auth_token": "t0k\u00e9n"})

    def refused(endpoint):
        statuses = []
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic dDBr"}):
            with pytest.raises(InvalidStatus) as caught:
                connect(endpoint, additional_headers=headers)
            statuses.append(caught.value.response.status_code)
        return statuses

    async with actor(document):
        assert await trio.to_thread.run_sync(refused, (await registered(fabric)).endpoint) == [401] * 3
    document = provision(fabric.directory, secrets={"worker_auth_token": "s3cret"})
    async with actor(document) as process:
        while (record := await registered(fabric)).pid != process.pid:
            await trio.sleep(0.02)
        async with parent(record, Authorization="bearer s3cret") as wire:
            await wire.send(RUN)
            await wire.until_terminal()


async def test_browsers_and_foreign_hosts_are_refused(fabric):
    """A web page cannot reach an actor, whatever it knows."""
    async with actor(provision(fabric.directory)):
        record = await registered(fabric)
        with pytest.raises(HandshakeError) as caught:
            async with parent(record, Origin="https://evil.example"):
                raise AssertionError("not reached")
        assert caught.value.status == 403
        async with await trio.open_tcp_stream("127.0.0.1", int(record.endpoint.rpartition(":")[2])) as stream:
            await stream.send_all(b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n")
            assert b"421" in await stream.receive_some(4096)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_withdraws_the_record(fabric, signum):
    """And the status says which signal it was (repair: upstream dies without a word)."""
    async with actor(provision(fabric.directory)) as process:
        await registered(fabric)
        process.send_signal(signum)
        assert await process.wait() == -signum
        assert await fabric.discover() == []
        assert list(fabric.directory.iterdir()) == []


@pytest.mark.parametrize("name", ["hang", "stubborn", "stuck"])
async def test_sigterm_in_a_run_ends_in_time(fabric, name):
    """Within the grace of 2 s, engine obeying or not, record withdrawn."""
    async with actor(provision(fabric.directory, executor=engine(name))) as process:
        async with parent(await registered(fabric)) as wire:
            await wire.send({"kind": "run", "assignment": "x"})
            await wire.next()
            process.terminate()
            with trio.fail_after(2):
                status = await process.wait()
            assert status == (-signal.SIGTERM if name == "hang" else 128 + signal.SIGTERM)
        assert await fabric.discover() == []


async def test_a_peer_that_breaks_the_protocol_ends_its_connection_alone(fabric):
    """A bad frame on the socket: the reusable worker serves the next."""
    document = provision(fabric.directory, reusable=True, limits={"idle_timeout_secs": 5})

    def rude(endpoint):
        with connect(endpoint, close_timeout=0.5) as ws:
            ws.socket.sendall(b"\xff\xff\xff\xff\xff")
            with pytest.raises(ConnectionClosed):
                ws.recv()

    async with actor(document):
        record = await registered(fabric)
        await trio.to_thread.run_sync(rude, record.endpoint)
        async with parent(record) as wire:
            await wire.send(RUN)
            await wire.until_terminal()


@pytest.mark.parametrize(
    ("document", "status", "text"),
    [
        (b"", 1, "not a provision document"),
        (b"{", 1, "not a provision document"),
        (b'{"version":1}', 1, "identity"),
        (
            b'{"version":1,"identity":{"child_id":"c"},"executor":{"kind":"nope"},"fabric_dir":"/x"}',
            1,
            "nope",
        ),
        (b" " * (8 * 2**20 + 1), 1, "more than 8388608 bytes"),
        (provision("/x", executor={"kind": "bamboo_runtime"}), 2, "provision error: bamboo_runtime"),
        (provision("/x", executor={"kind": "cli_adapter", "command": "x", "args": []}), 2, "provision error"),
        (
            provision("/x", executor={"kind": "python", "target": "json:nope"}),
            2,
            "provision error: json:nope",
        ),
        (provision("/proc/none"), 1, "actor: "),
        (provision("/tmp", identity={"child_id": "../x"}), 1, "child_id"),
    ],
)
async def test_what_cannot_be_started_says_so_in_one_line(document, status, text):
    """Status 1 for a document that is none, 2 for an executor that is not there (A4.2)."""
    async with actor(document) as process:
        said = await stderr_of(process)
        assert await process.wait() == status
        assert text in said
        assert said.count("\n") == 1


async def test_the_document_is_lossy_utf8_and_trimmed(fabric):
    """Nine-digit fractions and bad bytes in values are no reason to stop (A4.2)."""
    document = provision(fabric.directory, workspace="x").replace(b'"x"', b'"\xff\xfe"')
    async with actor(b" \n" + document + b"\n ") as process:
        await registered(fabric)
        process.terminate()
        await process.wait()
