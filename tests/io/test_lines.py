"""JSON lines over any Trio stream."""

import pytest
import trio
import trio.testing
from trio.testing import memory_stream_pair, memory_stream_pump

from trio_swarm._io.lines import LineTransport
from trio_swarm.errors import ProtocolError


async def test_a_batch_is_one_write():
    near, far = memory_stream_pair()
    writes = []

    deliver = near.send_stream.send_all_hook

    async def count():
        writes.append(None)
        await deliver()

    near.send_stream.send_all_hook = count
    await LineTransport(near).send_batch(["one", "två", "three"])

    assert len(writes) == 1
    assert list(await LineTransport(far).receive_batch()) == [b"one", "två".encode(), b"three"]


async def test_begun_tells_whether_any_of_a_batch_went_out():
    """Also where the peer was lost in the middle of it."""
    near, _ = memory_stream_pair()
    transport = LineTransport(near)
    writes = []

    async def break_second():
        await trio.lowlevel.checkpoint()
        writes.append(None)
        if len(writes) == 2:
            raise trio.BrokenResourceError

    near.send_stream.send_all_hook = break_second
    with pytest.raises(trio.BrokenResourceError):
        await transport.send_batch(["x" * 2**20])
    assert transport.begun
    near.send_stream.close()
    with pytest.raises(trio.ClosedResourceError):
        await transport.send_batch(["x"])
    assert not transport.begun


async def test_all_lines_of_one_read_are_handed_over_together_and_the_rest_waits():
    near, far = memory_stream_pair()
    transport = LineTransport(far)
    await near.send_all(b"a\nb\nhal")
    assert list(await transport.receive_batch()) == [b"a", b"b"]
    await near.send_all(b"f\n")
    assert list(await transport.receive_batch()) == [b"half"]


async def test_the_same_lines_however_the_bytes_are_cut():
    data = "a\n\nüü\u2028x\n{}\n".encode()
    for cut in range(1, len(data)):
        near, far = memory_stream_pair()
        transport, got = LineTransport(far), []
        async with trio.open_nursery() as nursery:

            async def feed(near=near, cut=cut):
                await near.send_all(data[:cut])
                await trio.testing.wait_all_tasks_blocked()
                await near.send_all(data[cut:])
                await near.send_eof()

            nursery.start_soon(feed)
            while batch := await transport.receive_batch():
                got += batch
        assert got == data.split(b"\n")[:-1]


async def test_a_last_line_without_newline_counts_and_then_comes_the_end():
    near, far = memory_stream_pair()
    transport = LineTransport(far)
    await near.send_all(b"a\nlast")
    await near.aclose()

    assert list(await transport.receive_batch()) == [b"a"]
    assert list(await transport.receive_batch()) == [b"last"]
    assert await transport.receive_batch() == ()
    assert await transport.receive_batch() == ()


async def test_a_line_at_the_limit_passes_and_one_over_it_ends_the_connection():
    near, far = memory_stream_pair()
    transport = LineTransport(far, max_line=8)
    await near.send_all(b"x" * 8 + b"\n" + b"y" * 9)

    assert list(await transport.receive_batch()) == [b"x" * 8]
    with pytest.raises(ProtocolError):
        await transport.receive_batch()
    with pytest.raises(ProtocolError):
        await transport.receive_batch()


async def test_a_cancelled_send_poisons_the_stream(autojump_clock):
    near, far = memory_stream_pair()

    async def pump_nothing():
        await trio.sleep_forever()

    near.send_stream.send_all_hook = pump_nothing
    transport = LineTransport(near)
    with trio.move_on_after(1) as scope:
        await transport.send_batch(["a"])

    assert scope.cancelled_caught
    with pytest.raises(trio.BrokenResourceError):
        await transport.send_batch(["b"])
    with pytest.raises(trio.ClosedResourceError):
        await transport.receive_batch()
    # What had gone out before the cancellation arrives; nothing is joined to it.
    memory_stream_pump(near.send_stream, far.receive_stream)
    assert bytes(await far.receive_some()) == b"a\n"


async def test_a_cancelled_receive_loses_nothing():
    near, far = memory_stream_pair()
    transport = LineTransport(far)
    await near.send_all(b"ha")
    with trio.move_on_after(0):
        await transport.receive_batch()
    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:

            async def cancel():
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel()

            nursery.start_soon(cancel)
            await transport.receive_batch()
    await near.send_all(b"lf\n")

    assert list(await transport.receive_batch()) == [b"half"]


async def test_closing_twice_is_closing_once_and_then_it_says_so():
    near, _ = memory_stream_pair()
    transport = LineTransport(near)
    await transport.aclose()
    await transport.aclose()

    with pytest.raises(trio.ClosedResourceError):
        await transport.send_batch(["a"])
    with pytest.raises(trio.ClosedResourceError):
        await transport.receive_batch()


async def test_it_runs_over_a_pair_of_pipes():
    import os

    (r1, w1), (r2, w2) = os.pipe(), os.pipe()
    ends = [trio.lowlevel.FdStream(fd) for fd in (w1, r2, w2, r1)]
    near, far = (
        LineTransport(trio.StapledStream(ends[0], ends[1])),
        LineTransport(trio.StapledStream(ends[2], ends[3])),
    )
    await near.send_batch(["ping"])
    assert list(await far.receive_batch()) == [b"ping"]
    await far.send_batch(["pong"])
    assert list(await near.receive_batch()) == [b"pong"]
    await near.aclose()
    assert await far.receive_batch() == ()
    await far.aclose()
