"""connect_worker against real workers and against scripted foreign ones (C4, C8)."""

import json
import shutil
import socket
import sys
import tempfile
from pathlib import Path

import pytest
import trio
import trio.testing

from trio_swarm.errors import HandshakeError, PeerGoneError, ProtocolError, SpawnError
from trio_swarm.frames import pool
from trio_swarm.limits import POOL_HANDSHAKE
from trio_swarm.pools import WorkerError, connect_worker

OK = {"ok": True, "data": {"kind": "handshake", "version": "0.33.0"}}


@pytest.fixture
def path():
    directory = tempfile.mkdtemp(prefix="ts-")
    yield f"{directory}/w.sock"
    shutil.rmtree(directory)


async def foreign(path, *answers, task_status):
    """Answers one connection's requests with `answers` (None: never, b"": cut, bytes: as they are)."""
    listener = trio.socket.socket(trio.socket.AF_UNIX)
    with listener:
        await listener.bind(path)
        listener.listen()
        task_status.started()
        connection, _ = await listener.accept()
        with connection:
            for answer in answers:
                await connection.recv(65536)
                if answer is None:
                    await trio.sleep_forever()
                data = answer if isinstance(answer, bytes) else json.dumps(answer).encode() + b"\n"
                await connection.send(data)
            while await connection.recv(65536):
                pass


def failed(feed_result):
    return {"ok": True, "data": {"kind": "feed", "session_id": "s-1", "feed_result": feed_result}}


async def test_a_worker_of_the_original(path, nursery):
    """Answers without null keys; a pause, an accepted answer, the end, shutdown."""
    await nursery.start(
        foreign,
        path,
        OK,
        failed({"Paused": {"queries": [{"id": "q-0", "prompt": "p", "system": None, "max_tokens": 9}]}}),
        failed({"Accepted": {"remaining": 1}}),
        failed({"Finished": {"state": {"Failed": {"error": "lua"}}, "metrics": {}}}),
        {"ok": True, "data": {"kind": "status", "has_session": False, "session_id": None}},
        {"ok": True, "data": {"kind": "shutdown"}},
    )
    async with connect_worker(path, "0.33.0") as client:
        paused = await client.run("return alc.llm('p')")
        assert paused.session_id == "s-1"
        assert paused.feed.queries[0].prompt == "p"
        assert (await client.cont("s-1", "x", "q-0")).feed == pool.Accepted(1)
        assert (await client.cont("s-1", "y", "q-1")).feed.error == "lua"
        assert (await client.status()).has_session is False
        await client.shutdown()


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ({"ok": True, "data": {"kind": "handshake", "version": "999.0.0"}}, "client=0.33.0, server=999.0.0"),
        ({"ok": False, "error": "version mismatch"}, "unexpected handshake response"),
        ({"ok": True, "data": {"kind": "shutdown"}}, "unexpected handshake response"),
        (b"nonsense\n", "unexpected handshake response"),
    ],
)
async def test_a_failed_handshake(path, nursery, answer, says):
    """C8: version_mismatch_returns_pool_error, and everything that is no handshake answer."""
    await nursery.start(foreign, path, answer)
    with pytest.raises(HandshakeError, match=says):
        async with connect_worker(path, "0.33.0"):
            raise AssertionError


async def test_the_handshake_is_finite(path, nursery):
    """C8: test_connect_handshake_timeout_finite; 10 s unless said otherwise."""
    assert POOL_HANDSHAKE == 10
    await nursery.start(foreign, path, None)
    with pytest.raises(HandshakeError, match=r"handshake recv timeout \(0.1s\)"):
        async with connect_worker(path, "0.33.0", handshake=0.1):
            raise AssertionError


@pytest.mark.parametrize(
    ("answer", "error", "says"),
    [
        ({"ok": False, "error": "worker already has an active session"}, WorkerError, "active session"),
        ({"ok": True, "data": {"kind": "shutdown"}}, ProtocolError, "expected Feed response, got shutdown"),
        (b"{\n", ProtocolError, "failed to parse worker response"),
        (b"{}\n{}\n", ProtocolError, "2 answers"),
    ],
)
async def test_a_wrong_answer_to_run(path, nursery, answer, error, says):
    """C4: each has its own text."""
    await nursery.start(foreign, path, OK, answer)
    async with connect_worker(path, "0.33.0") as client:
        with pytest.raises(error, match=says):
            await client.run("x")


@pytest.mark.parametrize("last", [b"", b'{"ok":tr'])
async def test_a_worker_that_goes_away_is_gone(path, last):
    """C4 [R]: the end of the stream has its own message, also in the middle of an answer."""
    async with trio.open_nursery() as nursery:

        async def answer_and_leave(task_status):
            with trio.socket.socket(trio.socket.AF_UNIX) as listener:
                await listener.bind(path)
                listener.listen()
                task_status.started()
                connection, _ = await listener.accept()
                with connection:
                    await connection.recv(9999)
                    await connection.send(json.dumps(OK).encode() + b"\n")
                    await connection.recv(9999)
                    if last:
                        await connection.send(last)

        await nursery.start(answer_and_leave)
        async with connect_worker(path, "0.33.0") as client:
            with pytest.raises(PeerGoneError):
                await client.run("x")


async def test_an_unknown_shape_is_told_as_such(path, nursery):
    """C4: an error result, not an exception of the parser."""
    await nursery.start(foreign, path, OK, failed({"New": 1}))
    async with connect_worker(path, "0.33.0") as client:
        assert (await client.run("x")).feed == pool.Unknown({"New": 1})


async def test_a_cancelled_request_closes_the_connection(path, nursery):
    """The next answer would be the last request's."""
    await nursery.start(foreign, path, OK, None)
    async with connect_worker(path, "0.33.0") as client:
        with trio.CancelScope() as scope:
            nursery.start_soon(scope_cancel, scope)
            await client.run("x")
        with pytest.raises((trio.ClosedResourceError, PeerGoneError)):
            await client.run("x")


async def scope_cancel(scope):
    scope.cancel()


async def test_one_request_at_a_time(path, nursery):
    """A second task is told at once."""
    await nursery.start(foreign, path, OK, None)
    async with connect_worker(path, "0.33.0") as client, trio.open_nursery() as inner:
        inner.start_soon(client.run, "x")
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await client.run("y")
        inner.cancel_scope.cancel()


async def test_nobody_listens(path):
    """Waited for, then SpawnError; and not waited for if the process is known to be gone."""
    with pytest.raises(SpawnError, match="timeout waiting for worker socket"):
        async with connect_worker(path, "1", wait=0.1):
            raise AssertionError
    with pytest.raises(SpawnError, match="exited 3 before it listened"):
        async with connect_worker(path, "1", gone=lambda: "exited 3"):
            raise AssertionError


async def test_a_full_queue_is_waited_for(path):
    """Linux answers EAGAIN to who comes then; that is no connection, and no reason to give the worker up."""
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
        listener.bind(path)
        listener.listen(0)
        first.connect(path)
        with pytest.raises(SpawnError, match="timeout waiting for worker socket"):
            async with connect_worker(path, "1", wait=0.1):
                raise AssertionError


async def test_two_clients_at_the_same_time(path, nursery):
    """C8: test_connect_handshake_concurrent_two_clients: each in its turn, on a worker that pauses."""
    argv = [sys.executable, "-m", "trio_swarm._child.pool_worker", "--sid", "p-1", "--sock", path]
    process = await nursery.start(trio.run_process, [*argv, "--version", "1"])
    async with connect_worker(path, "1") as first:
        sid = (await first.run("return query('x')")).session_id

        async def second(task_status):
            async with connect_worker(path, "1") as client:
                task_status.started()
                assert (await client.cont(sid, "y")).feed.result == "y"

        async with trio.open_nursery() as inner:

            async def leave():
                await trio.testing.wait_all_tasks_blocked()
                await first.aclose()

            inner.start_soon(leave)
            await inner.start(second)
    await process.wait()
    assert not Path(path).exists()
