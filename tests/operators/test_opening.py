"""A server that is cancelled before it serves has left no port taken."""

from __future__ import annotations

import pytest
import trio

from tests.operators.support import serving
from trio_swarm.operators.sessions import Sessions


async def two_listeners() -> list[trio.SocketListener]:
    """Closing the first is where a cancellation comes in."""
    return [(await trio.open_tcp_listeners(0, host="127.0.0.1"))[0] for _ in range(2)]


async def assert_free(ports: list[int]) -> None:
    """Anybody may listen there."""
    for port in ports:
        [listener] = await trio.open_tcp_listeners(port, host="127.0.0.1")
        await listener.aclose()


def ports_of(listeners: list[trio.SocketListener]) -> list[int]:
    return [each.socket.getsockname()[1] for each in listeners]


@pytest.mark.parametrize("stored", [False, True])
async def test_cancelled_before_it_began(tmp_path, stored) -> None:
    listeners = await two_listeners()
    ports = ports_of(listeners)
    with trio.CancelScope() as scope:
        scope.cancel()
        async with serving(listeners=listeners, state=tmp_path / "state" if stored else None):
            await trio.lowlevel.checkpoint()
    assert scope.cancelled_caught
    await assert_free(ports)


async def test_cancelled_while_it_brings_back_its_sessions(tmp_path, monkeypatch) -> None:
    listeners, begun = await two_listeners(), trio.Event()
    ports = ports_of(listeners)

    async def restore(self: Sessions) -> None:
        begun.set()
        await trio.sleep_forever()

    async def serve() -> None:
        async with serving(listeners=listeners, state=tmp_path / "state"):
            pytest.fail("it serves")

    monkeypatch.setattr(Sessions, "restore", restore)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        await begun.wait()
        nursery.cancel_scope.cancel()
    await assert_free(ports)
