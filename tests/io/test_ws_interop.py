"""Both ends against an implementation that shares no code with ours."""

import gc
from functools import partial

import trio
import websockets.exceptions
import websockets.sync.client
import websockets.sync.server

from trio_swarm._io.guard import serve_guarded
from trio_swarm._io.head import read_head
from trio_swarm._io.link import open_link
from trio_swarm._io.ws import accept_ws, open_ws_client
from trio_swarm.frames import ServerMsg
from trio_swarm.frames.operator import Answer, Ask

TEXTS = ["", "x", "å∂ƒ", "y" * 125, "y" * 126, "z" * 70_000, "w" * 1_000_000]


async def echo(stream):
    opened = await read_head(stream)
    async with accept_ws(stream, opened[0].raw, extra_headers=[("X-Ours", "yes")]) as transport:
        while batch := await transport.receive_batch():
            await transport.send_batch([str(message) for message in batch])
        assert transport.close_reason == (1000, "")


async def test_a_client_of_websockets_talks_to_our_server():
    def talk(port):
        with websockets.sync.client.connect(f"ws://127.0.0.1:{port}/", compression="deflate") as peer:
            assert peer.response.headers["X-Ours"] == "yes"
            for text in TEXTS:
                peer.send(text)
            assert [peer.recv() for _ in TEXTS] == TEXTS
            peer.send(iter(["in ", "", "pieces"]))
            assert peer.recv() == "in pieces"
            assert peer.ping().wait(5)
        return peer.close_code

    errors = []
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        await nursery.start(
            partial(serve_guarded, listeners, echo, on_error=lambda *args: errors.append(args))
        )
        code = await trio.to_thread.run_sync(talk, listeners[0].socket.getsockname()[1])
        nursery.cancel_scope.cancel()

    assert code == 1000
    assert errors == []


async def test_our_client_talks_to_a_server_of_websockets():
    closed = []

    def answer(peer):
        try:
            for message in peer:
                peer.send(message)
        except websockets.exceptions.ConnectionClosed:
            # Any code but 1000 and 1001 is an error to it, and so is a close before its answer.
            pass
        closed.append((peer.close_code, peer.close_reason))

    with websockets.sync.server.serve(answer, "127.0.0.1", 0) as server:
        port = server.socket.getsockname()[1]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, server.serve_forever)
            async with open_ws_client(f"ws://127.0.0.1:{port}/") as transport:
                assert transport.header("X-Ours") is None
                assert "websockets" in (transport.header("Server") or "")
                await transport.send_batch(TEXTS)
                got = []
                while len(got) < len(TEXTS):
                    got += await transport.receive_batch()
                assert got == TEXTS
                await transport.aclose(4001, "done here")
            async with (
                open_ws_client(f"ws://127.0.0.1:{port}/", ping_every=0.01) as transport,
                open_link(transport, ServerMsg) as link,
            ):
                await trio.sleep(0.1)
                await link.send(Ask("r1", "t", {"value": 1}))
                assert await link.receive() == Ask("r1", "t", {"value": 1})
                await link.send(Answer("r1", 1))
            server.shutdown()
    # websockets leaves its selector to the garbage collector.
    gc.collect()

    assert sorted(closed) == [(1000, ""), (4001, "done here")]
