"""Thousands of connections from one seed: mutated sessions, in memory, against both ends."""

import random

import pytest
import trio
from trio.testing import memory_stream_pair

from tests.io.hostile import ANSWER_HEAD, BINARY, CLOSE, GOOD_HEAD, PING, PONG, TEXT, frame
from trio_swarm._io.groups import leaves
from trio_swarm._io.head import HeadError, read_head
from trio_swarm._io.ws import WsTransport, accept_ws, open_ws_client
from trio_swarm.errors import PeerError

CONNECTIONS = 1000

seeds = pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 3))]
)


def session(rng, *, mask):
    """The frames of a plausible peer."""
    kinds = [
        lambda: frame(TEXT, b"x" * rng.choice((0, 1, 125, 126, 500)), mask=mask),
        lambda: frame(TEXT, b"close", mask=mask),
        lambda: frame(TEXT, "å∂".encode(), fin=False, mask=mask) + frame(0, b"end", mask=mask),
        lambda: frame(PING, b"p" * rng.choice((0, 4, 125)), mask=mask),
        lambda: frame(PONG, b"p", mask=mask),
        lambda: frame(BINARY, b"\xff\x00", mask=mask),
        lambda: frame(CLOSE, rng.choice((b"", b"\x03\xe8", b"\x03\xe8bye", b"\x03")), mask=mask),
    ]
    return b"".join(rng.choice(kinds)() for _ in range(rng.randrange(1, 8)))


def mutated(rng, data):
    data = bytearray(data)
    for _ in range(rng.choice((0, 1, 1, 2, 5, 20))):
        at = rng.randrange(len(data) + 1)
        what = rng.randrange(6)
        if what == 0 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif what == 1:
            data[at:at] = rng.randbytes(rng.randrange(1, 6))
        elif what == 2:
            del data[at : at + rng.randrange(1, 12)]
        elif what == 3:
            data[at:at] = data[at : at + 40]
        elif what == 4:
            data[at:at] = rng.choice((b"\r\n", b"\r\n\r\n", b"\xff", b"\0", b", ", b"\x88\x80\0\0\0\0"))
        else:
            del data[at:]
    return bytes(data)


async def pour(rng, stream, data):
    """``data`` in random pieces, then the end, or a cut in the middle."""
    try:
        while data:
            size = rng.choice((1, 7, 100, 1000))
            await stream.send_all(data[:size])
            data = data[size:]
            if rng.random() < 0.2:
                await trio.lowlevel.checkpoint()
        if rng.random() < 0.5:
            await stream.send_eof()
        else:
            await stream.aclose()
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass


async def use(transport: WsTransport):
    while batch := await transport.receive_batch():
        if "close" in batch:
            await transport.aclose(1001)
            return
        await transport.send_batch([str(message) for message in batch])


def documented(error, seed, number):
    allowed = PeerError | trio.BrokenResourceError | trio.ClosedResourceError | HeadError
    assert all(isinstance(leaf, allowed) for leaf in leaves(error)), (seed, number, repr(error))
    return type(error).__name__


@seeds
async def test_only_documented_errors_come_out_of_the_server_side(seed, autojump_clock):
    rng = random.Random(seed)
    outcomes = set()
    for number in range(CONNECTIONS):
        near, far = memory_stream_pair()
        head, frames = GOOD_HEAD, session(rng, mask=rng.randbytes(4))
        data = mutated(rng, head + frames) if number % 4 == 0 else head + mutated(rng, frames)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pour, rng, near, data)
            try:
                opened = await read_head(far)
                if opened is not None:
                    async with accept_ws(far, opened[0].raw, max_message=600) as transport:
                        await use(transport)
                outcomes.add("clean")
            except Exception as error:
                outcomes.add(documented(error, seed, number))
            await trio.aclose_forcefully(far)
            nursery.cancel_scope.cancel()
    assert outcomes >= {"clean", "ProtocolError", "HeadError", "HandshakeError", "BrokenResourceError"}


@seeds
async def test_only_documented_errors_come_out_of_the_client_side(seed, autojump_clock, monkeypatch):
    rng = random.Random(seed)
    outcomes = set()

    async def connect_in_memory(address, ssl_context):
        near, far = memory_stream_pair()
        nursery.start_soon(answer, near)
        return far

    async def answer(stream):
        from tests.io.test_ws_client_hostile import accept_of

        request = b""
        while b"\r\n\r\n" not in request:
            if not (more := await stream.receive_some()):
                return
            request += bytes(more)
        head, frames = ANSWER_HEAD % accept_of(request), session(rng, mask=None)
        data = mutated(rng, head + frames) if rng.random() < 0.25 else head + mutated(rng, frames)
        await pour(rng, stream, data)
        await trio.sleep(100)
        await stream.aclose()

    monkeypatch.setattr("trio_swarm._io.ws.connect", connect_in_memory)
    for number in range(CONNECTIONS):
        async with trio.open_nursery() as nursery:
            try:
                async with open_ws_client("ws://h/", max_message=600) as transport:
                    await use(transport)
                outcomes.add("clean")
            except Exception as error:
                outcomes.add(documented(error, seed, number))
            nursery.cancel_scope.cancel()
    assert outcomes >= {"clean", "ProtocolError", "HandshakeError", "BrokenResourceError"}
