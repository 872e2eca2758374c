"""What every link promises, over every transport."""

import contextlib

import pytest
import trio
import trio.testing

from tests.io.links import SOCKETS, TRANSPORTS, open_pair
from trio_swarm._io.lines import LineTransport
from trio_swarm._io.link import Malformed, open_link
from trio_swarm._io.memory import memory_transport_pair
from trio_swarm.errors import FrameError, ProtocolError, SlowPeerError
from trio_swarm.frames import ClientMsg, ServerMsg
from trio_swarm.frames.operator import Answer, Ask

every_transport = pytest.mark.parametrize("kind", TRANSPORTS)
every_socket = pytest.mark.parametrize("kind", SOCKETS)


def ask(number, size=0):
    return Ask(f"r{number}", "ST-1", {"pad": "x" * size})


async def send_without_end(link, size=0):
    while True:
        await link.send(ask(0, size))


async def receive_all(link, count):
    return [await link.receive() for _ in range(count)]


@every_transport
async def test_frames_arrive_in_order_both_ways(kind):
    async with (
        open_pair(kind) as pair,
        open_link(pair.left, ClientMsg) as left,
        open_link(pair.right, ServerMsg) as right,
    ):
        for number in range(100):
            await left.send(ask(number))
            await right.send(Answer(f"r{number}", number))
            if number % 10 == 9:
                assert await receive_all(right, 10) == [ask(n) for n in range(number - 9, number + 1)]
                assert [a.value for a in await receive_all(left, 10)] == list(range(number - 9, number + 1))


@every_transport
async def test_queued_frames_share_a_write_and_a_read(kind):
    async with (
        open_pair(kind) as pair,
        open_link(pair.left, ClientMsg) as left,
        open_link(pair.right, ServerMsg) as right,
    ):
        before = left.statistics().writes
        for number in range(60):
            left.send_nowait(ask(number))
        await left.flush()
        assert await receive_all(right, 60) == [ask(n) for n in range(60)]

        sent, got = left.statistics(), right.statistics()
        assert sent.frames_out == 60
        assert sent.writes - before <= 3
        assert got.frames_in == 60
        assert got.reads <= 20


@every_transport
async def test_a_full_queue_refuses_nowait_and_makes_send_wait(kind):
    async with open_pair(kind) as pair, open_link(pair.left, ClientMsg, outgoing_frames=4) as left:
        for number in range(4):
            left.send_nowait(ask(number))
        with pytest.raises(trio.WouldBlock):
            left.send_nowait(ask(4))
        assert left.statistics().queued == 4


@every_transport
async def test_a_peer_that_does_not_receive_is_felt_by_the_sender(kind):
    async with (
        open_pair(kind) as pair,
        open_link(pair.left, ClientMsg, outgoing_frames=4) as left,
        open_link(pair.right, ServerMsg, incoming_frames=8) as right,
    ):
        sent = 0
        with trio.move_on_after(0.5) as scope:
            while True:
                await left.send(ask(sent, 5_000))
                sent += 1
        assert scope.cancelled_caught
        assert right.statistics().waiting < 8 + 300
        assert sent < 1500

        # Nothing of it is lost: when the owner receives again, all of it arrives in order.
        got = await receive_all(right, sent)
        assert got == [ask(n, 5_000) for n in range(sent)]


@every_socket
async def test_a_peer_that_does_not_read_is_dropped_and_the_sender_told(kind):
    async with open_pair(kind) as pair, open_link(pair.left, ClientMsg, send_deadline=0.2) as left:
        with pytest.raises(SlowPeerError):
            await send_without_end(left, 100_000)
        with pytest.raises(SlowPeerError):
            await left.send(ask(1))
        with pytest.raises(SlowPeerError):
            await left.flush()
        with pytest.raises(SlowPeerError):
            await left.receive()


async def test_a_slow_peer_is_dropped_after_exactly_the_send_deadline(autojump_clock):
    left_end, _ = memory_transport_pair(batches=1)
    async with open_link(left_end, ClientMsg, outgoing_frames=1, send_deadline=10) as left:
        started = trio.current_time()
        with pytest.raises(SlowPeerError):
            await send_without_end(left)
        assert trio.current_time() - started == 10


@every_transport
async def test_a_malformed_message_is_a_value_and_the_link_goes_on(kind):
    async with open_pair(kind) as pair, open_link(pair.right, ServerMsg) as right:
        await pair.left.send_batch(["{nonsense", '{"type":"from the future"}', '{"type":"ask"}', "[" * 5000])
        await pair.left.send_batch(['{"type":"ask","req_id":"r1","task_id":"t","question":null}'])

        bad = await receive_all(right, 4)
        assert all(isinstance(each, Malformed) for each in bad)
        assert [each.size for each in bad] == [9, 26, 14, 5000]
        assert bad[1].error.unknown_tag == "from the future"
        assert isinstance(await right.receive(), Ask)
        assert right.statistics().malformed == 4


@every_socket
async def test_an_over_long_message_ends_the_link(kind):
    async with open_pair(kind, max_message=1000) as pair, open_link(pair.right, ServerMsg) as right:
        await pair.left.send_batch(['{"type":"ask","req_id":"r1","task_id":"t","question":null}'])
        assert isinstance(await right.receive(), Ask)
        await pair.left.send_batch(["x" * 1001])
        with pytest.raises(ProtocolError):
            await right.receive()
        with pytest.raises(ProtocolError):
            await right.send(Answer("r1", 1))


@every_transport
async def test_what_is_larger_than_the_peer_takes_is_refused_here_and_the_link_goes_on(kind):
    async with (
        open_pair(kind, max_message=1000) as pair,
        open_link(pair.left, ClientMsg) as left,
        open_link(pair.right, ServerMsg) as right,
    ):
        with pytest.raises(FrameError):
            await left.send(ask(0, 1000))
        await left.send(ask(1))
        assert await right.receive() == ask(1)


@every_transport
async def test_what_is_larger_only_in_bytes_is_refused_too(kind):
    """The peer counts bytes: it would cut the connection."""
    async with (
        open_pair(kind, max_message=1000) as pair,
        open_link(pair.left, ClientMsg) as left,
        open_link(pair.right, ServerMsg) as right,
    ):
        with pytest.raises(FrameError):
            left.send_nowait(Ask("r0", "ST-1", {"pad": "é" * 600}))
        fits = Ask("r1", "ST-1", {"pad": "é" * 400})
        await left.send(fits)
        assert await right.receive() == fits


@every_transport
async def test_a_clean_end_comes_after_everything_that_was_sent(kind):
    async with open_pair(kind) as pair, open_link(pair.right, ServerMsg) as right:
        async with open_link(pair.left, ClientMsg) as left:
            for number in range(50):
                left.send_nowait(ask(number))

        assert [frame async for frame in right] == [ask(n) for n in range(50)]
        with pytest.raises(trio.EndOfChannel):
            await right.receive()


@pytest.mark.parametrize("kind", ["memory", "tcp lines", "websocket"])
async def test_a_cut_is_told_from_a_clean_end(kind):
    async with open_pair(kind) as pair, open_link(pair.left, ClientMsg) as left:
        await pair.cut_right()
        with pytest.raises(trio.BrokenResourceError):
            await left.receive()
        with pytest.raises(trio.BrokenResourceError):
            await send_without_end(left)


@every_socket
async def test_a_cancelled_write_poisons_the_link_and_the_peer_sees_a_cut_not_a_mixture(kind):
    async with open_pair(kind, max_message=2**22) as pair:
        with trio.move_on_after(0.2) as scope:
            await pair.left.send_batch(["x" * 3_000_000])
        assert scope.cancelled_caught
        with pytest.raises((trio.BrokenResourceError, trio.ClosedResourceError)):
            await pair.left.send_batch(["again"])
        got = []
        with contextlib.suppress(trio.BrokenResourceError, ProtocolError):
            while batch := await pair.right.receive_batch():
                got += batch
        # At most a half line before the end: nothing was joined to it.
        assert all(len(each) < 3_000_000 and "again" not in str(each) for each in got)


@every_transport
async def test_a_cancelled_send_queues_nothing(kind):
    async with open_pair(kind) as pair, open_link(pair.left, ClientMsg) as left:
        with trio.CancelScope() as scope:
            scope.cancel()
            await left.send(ask(1))
        assert scope.cancelled_caught
        async with open_link(pair.right, ServerMsg) as right:
            await left.send(ask(2))
            assert await right.receive() == ask(2)


@every_transport
async def test_an_exception_of_the_block_leaves_as_itself(kind):
    with pytest.raises(KeyError, match="mine"):
        async with open_pair(kind) as pair, open_link(pair.left, ClientMsg):
            raise KeyError("mine")


@every_transport
async def test_cancelling_the_block_ends_it_at_once(kind):
    with trio.fail_after(5):
        async with open_pair(kind) as pair:
            with trio.move_on_after(0.05) as scope:
                async with open_link(pair.left, ClientMsg) as left:
                    await left.receive()
    assert scope.cancelled_caught


@every_transport
async def test_closing_twice_is_closing_once_and_everybody_who_waits_is_told(kind):
    async with open_pair(kind) as pair, open_link(pair.left, ClientMsg) as left:
        told = []

        async def wait(what):
            with pytest.raises(trio.ClosedResourceError):
                await what()
            told.append(what)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait, left.receive)
            await trio.testing.wait_all_tasks_blocked(0.01)
            await left.aclose()
            await left.aclose()
        await wait(left.receive)
        await wait(left.flush)
        with pytest.raises(trio.ClosedResourceError):
            await left.send(ask(0))
        with pytest.raises(trio.ClosedResourceError):
            left.send_nowait(ask(0))
        assert len(told) == 3
        assert "closed" in repr(left)


@every_transport
async def test_flush_returns_when_what_was_queued_is_on_its_way(kind):
    async with open_pair(kind) as pair, open_link(pair.left, ClientMsg) as left:
        for number in range(5):
            await left.send(ask(number))
        await left.flush()
        assert left.statistics().frames_out == 5


@every_transport
async def test_receive_many_hands_over_all_that_waits(kind):
    async with (
        open_pair(kind) as pair,
        open_link(pair.left, ClientMsg) as left,
        open_link(pair.right, ServerMsg) as right,
    ):
        for number in range(40):
            left.send_nowait(ask(number))
        got = []
        calls = 0
        while len(got) < 40:
            got += await right.receive_many()
            calls += 1
        assert got == [ask(n) for n in range(40)]
        assert calls < 20


@every_transport
async def test_send_many_keeps_the_order_and_waits_where_the_queue_is_full(kind):
    async with (
        open_pair(kind) as pair,
        open_link(pair.left, ClientMsg, outgoing_frames=4) as left,
        open_link(pair.right, ServerMsg) as right,
    ):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(left.send_many, [ask(n) for n in range(200)])
            assert await receive_all(right, 200) == [ask(n) for n in range(200)]
        await left.send_many([])
        with pytest.raises(FrameError):
            await left.send_many([ask(0), ask("\ud800")])
        with pytest.raises(TypeError):
            await left.send_many([ask(0), "no frame"])
        assert left.statistics().queued == 0
        await left.aclose()
        with pytest.raises(trio.ClosedResourceError):
            await left.send_many([ask(0)])


@every_transport
async def test_many_tasks_may_send_and_each_ones_frames_keep_their_order(kind):
    async with (
        open_pair(kind) as pair,
        open_link(pair.left, ClientMsg, outgoing_frames=3) as left,
        open_link(pair.right, ServerMsg) as right,
    ):

        async def send(name):
            for number in range(20):
                await left.send(Ask(f"{name}{number}", "t", None))

        async with trio.open_nursery() as nursery:
            for name in "abc":
                nursery.start_soon(send, name)
            got = [frame.req_id for frame in await receive_all(right, 60)]
        for name in "abc":
            assert [each for each in got if each[0] == name] == [f"{name}{n}" for n in range(20)]


async def test_what_the_peer_said_before_it_went_is_still_received_when_sending_breaks():
    async with open_pair("unix lines") as pair:
        async with open_link(pair.right, ServerMsg) as right:
            await right.send(ask(1))
        async with open_link(pair.left, ServerMsg) as left:
            with pytest.raises(trio.BrokenResourceError):
                await send_without_end(left)
            assert await left.receive() == ask(1)
            with pytest.raises(trio.EndOfChannel):
                await left.receive()


async def test_the_link_receives_the_same_however_the_bytes_are_cut():
    wire = b"".join(
        f'{{"type":"ask","req_id":"r{n}","task_id":"t","question":"\u00e4"}}\n'.encode() for n in range(3)
    )
    for cut in range(1, len(wire)):
        near, far = trio.testing.memory_stream_pair()
        async with open_link(LineTransport(far), ServerMsg) as link:
            await near.send_all(wire[:cut])
            await trio.testing.wait_all_tasks_blocked()
            await near.send_all(wire[cut:])
            assert [frame.req_id for frame in await receive_all(link, 3)] == ["r0", "r1", "r2"]


async def test_leaving_the_block_waits_only_so_long_for_a_peer_that_does_not_read(autojump_clock):
    left_end, _ = memory_transport_pair(batches=1)
    async with open_link(left_end, ClientMsg, send_deadline=1000) as left:
        for number in range(20):
            await left.send(ask(number))
            await trio.testing.wait_all_tasks_blocked()
        started = trio.current_time()
    assert trio.current_time() - started <= 4
