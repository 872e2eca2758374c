"""A Unix socket instead of an address: who is there is spoken to, and why nobody is is said."""

from __future__ import annotations

import gc
import os
import shutil
import socket
import ssl
import sys
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing
import trustme
import websockets.exceptions
import websockets.sync.server

from trio_swarm._io.dialing import connect_uds
from trio_swarm._io.http_client import Address, Outgoing, exchange, request
from trio_swarm._io.unix import open_unix_listener
from trio_swarm._io.ws import open_ws_client
from trio_swarm.errors import HandshakeError, SlowPeerError

ROOT = str(Path(__file__).parents[2])


async def refusal(path) -> str:
    with pytest.raises(HandshakeError) as caught:
        await connect_uds(str(path))
    assert isinstance(caught.value.__cause__, OSError)
    said = str(caught.value)
    assert said.startswith(f"cannot connect to {path}: ")
    return said.removeprefix(f"cannot connect to {path}: ")


async def test_why_there_is_no_connection(tmp_path) -> None:
    """Nothing is there, or something else; nobody listens; a path that cannot be one."""
    (tmp_path / "file").write_text("")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(tmp_path / "left"))
    assert await refusal(tmp_path / "none") == "No such file or directory"
    assert await refusal(tmp_path / "file") == "Connection refused: it is not a socket"
    assert await refusal(tmp_path) == "Connection refused: it is not a socket"
    assert await refusal(tmp_path / "file" / "s") == "Not a directory"
    assert await refusal(tmp_path / "left") == "Connection refused"
    with pytest.raises(ValueError, match="more than 103: "):
        await connect_uds(str(tmp_path / ("x" * 108)))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as letters:
        letters.bind(str(tmp_path / "letters"))
        assert await refusal(tmp_path / "letters") == "Protocol wrong type for socket"


SAY = (
    "import sys, trio; from trio_swarm._io.dialing import connect_uds\n"
    "try: trio.run(connect_uds, sys.argv[1])\nexcept Exception as error: print(error)"
)


@pytest.mark.skipif(
    os.geteuid() == 0 and shutil.which("setpriv") is None, reason="no setpriv, and root may do anything"
)
async def test_a_socket_that_we_may_not_use(tmp_path) -> None:
    """The system's word for it."""
    may_not = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.geteuid() == 0 else []
    async with open_unix_listener(tmp_path / "s"):
        (tmp_path / "s").chmod(0)
        done = await trio.run_process(
            [*may_not, sys.executable, "-c", SAY, str(tmp_path / "s")],
            capture_stdout=True,
            env={"PYTHONPATH": ROOT, "PATH": "/usr/bin:/bin"},
        )
    assert done.stdout.decode() == f"cannot connect to {tmp_path}/s: Permission denied\n"


def full(path) -> socket.socket:
    """A listener that has no room: one connection waits, and it takes none."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(0)
    return listener


async def test_a_full_queue_is_waited_for(tmp_path) -> None:
    """To Trio alone that is a connection, and what is sent on it is lost."""
    streams = []

    async def another() -> None:
        streams.append(await connect_uds(str(tmp_path / "s")))

    with full(tmp_path / "s") as listener:
        async with trio.open_nursery() as nursery:
            await another()
            nursery.start_soon(another)
            await trio.testing.wait_all_tasks_blocked()
            assert len(streams) == 1
            listener.accept()[0].close()
        await streams[1].send_all(b"hello")
        with listener.accept()[0] as accepted:
            assert accepted.recv(100) == b"hello"
    for stream in streams:
        await stream.aclose()


async def test_a_queue_that_stays_full_is_given_up(tmp_path, autojump_clock) -> None:
    """In time, with nothing sent, and named by its path."""
    path, began = str(tmp_path / "s"), []
    address = Address.parse("http://localhost", path)
    with full(path):
        async with await connect_uds(path):
            outgoing = Outgoing("POST", "/x")
            with pytest.raises(HandshakeError, match=f"^cannot connect to {path} within 10 s$"):
                await exchange(address, outgoing, on_sending=partial(began.append, 1))
            with pytest.raises(SlowPeerError, match=f"^no answer from {path} within 3 s$"):
                await request(address, "GET", "/", deadline=3)
            with pytest.raises(HandshakeError, match=f"^no connection to {path} within 4 s$"):
                async with open_ws_client("ws://localhost/", uds=path, handshake_deadline=4):
                    pytest.fail("connected")
    assert began == []


async def test_a_request_over_a_unix_socket(tmp_path) -> None:
    """The URL says Host and prefix alone: nobody listens at its port."""
    received = []

    async def one(stream) -> None:
        received.append(bytes(await stream.receive_some()))
        await stream.send_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")

    async with open_unix_listener(tmp_path / "s") as listener, trio.open_nursery() as nursery:
        await nursery.start(trio.serve_listeners, one, [listener])
        address = Address.parse("http://swarm.example:1/prefix/", tmp_path / "s")
        assert (await request(address, "GET", "/x")).body == b"ok"
        assert (await exchange(address, Outgoing("GET", "/y"))).body == b"ok"
        nursery.cancel_scope.cancel()
    lines = [head.split(b"\r\n") for head in received]
    assert [line[0] for line in lines] == [b"GET /prefix/x HTTP/1.1", b"GET /prefix/y HTTP/1.1"]
    assert all(b"Host: swarm.example:1" in line for line in lines)


async def test_tls_over_a_unix_socket(tmp_path) -> None:
    """The certificate is held to the URL's host."""
    authority = trustme.CA()
    theirs, ours = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.issue_cert("swarm.example").configure_cert(theirs)
    authority.configure_trust(ours)

    async def one(stream) -> None:
        try:
            await stream.receive_some()
            await stream.send_all(b"HTTP/1.1 204 No Content\r\n\r\n")
        except trio.BrokenResourceError:
            pass

    async with open_unix_listener(tmp_path / "s") as listener, trio.open_nursery() as nursery:
        secured = trio.SSLListener(listener, theirs, https_compatible=True)
        await nursery.start(trio.serve_listeners, one, [secured])
        address = Address.parse("https://swarm.example", tmp_path / "s")
        assert (await request(address, "GET", "/", ssl_context=ours)).status == 204
        other = Address.parse("https://localhost", tmp_path / "s")
        with pytest.raises(HandshakeError, match=r"no TLS with localhost: .*mismatch"):
            await request(other, "GET", "/", ssl_context=ours)
        nursery.cancel_scope.cancel()


async def test_a_websocket_of_others_at_a_unix_socket(tmp_path) -> None:
    """An implementation that shares no code with ours."""
    hosts = []

    def answer(peer) -> None:
        hosts.append(peer.request.headers["Host"])
        try:
            for message in peer:
                peer.send(message)
        except websockets.exceptions.ConnectionClosed:
            pass

    with websockets.sync.server.unix_serve(answer, str(tmp_path / "s")) as server:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, server.serve_forever)
            async with open_ws_client("ws://swarm.example/", uds=str(tmp_path / "s")) as transport:
                assert transport.name == str(tmp_path / "s")
                await transport.send_batch(["one", "two"])
                got = []
                while len(got) < 2:
                    got += await transport.receive_batch()
                assert got == ["one", "two"]
            server.shutdown()
    # websockets leaves its selector to the garbage collector.
    gc.collect()
    assert hosts == ["swarm.example"]


async def test_who_is_cancelled_while_it_waits_leaves_nothing(tmp_path) -> None:
    """No descriptor, as every test is held to; and nobody in the queue."""
    path = str(tmp_path / "s")
    with full(path) as listener:
        async with await connect_uds(path):
            with trio.move_on_after(0.05) as scope:
                await connect_uds(path)
            assert scope.cancelled_caught
        listener.accept()[0].close()
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()
