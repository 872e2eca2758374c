"""Whatever one peer or one handler does ends that connection alone."""

import contextlib
import logging
import resource
from functools import partial

import pytest
import trio
import trio.testing

from trio_swarm._io.guard import crash_barrier, serve_guarded
from trio_swarm.errors import ProtocolError


async def echo(stream):
    async for data in stream:
        if data == b"crash":
            raise RuntimeError("handler")
        await stream.send_all(data)


async def serve(nursery, handler=echo, **options):
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    started = await nursery.start(partial(serve_guarded, listeners, handler, **options))
    assert list(started) == listeners
    return listeners[0].socket.getsockname()


async def ask(address, data):
    stream = await trio.open_tcp_stream(*address)
    async with stream:
        try:
            await stream.send_all(data)
            return bytes(await stream.receive_some())
        except trio.BrokenResourceError:
            return b""


async def test_a_handler_that_raises_ends_its_own_connection_and_is_reported():
    stopped = []
    async with trio.open_nursery() as nursery:
        address = await serve(nursery, name="test", on_error=lambda *args: stopped.append(args))
        stays = await trio.open_tcp_stream(*address)

        assert await ask(address, b"crash") == b""
        assert await ask(address, b"hello") == b"hello"
        await stays.send_all(b"still here")
        assert bytes(await stays.receive_some()) == b"still here"
        await stays.aclose()
        nursery.cancel_scope.cancel()

    [(name, error)] = stopped
    assert name == "test connection"
    assert str(error) == "handler"


async def test_more_connections_than_slots_are_hung_up_on_at_once_and_slots_come_back():
    async with trio.open_nursery() as nursery:
        address = await serve(nursery, max_connections=2)
        held = [await trio.open_tcp_stream(*address) for _ in range(2)]
        for stream in held:
            await stream.send_all(b"in")
            assert bytes(await stream.receive_some()) == b"in"

        assert await ask(address, b"too many") == b""
        await held.pop().aclose()
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert await ask(address, b"room") == b"room"
        await held.pop().aclose()
        nursery.cancel_scope.cancel()


async def test_cancelling_it_ends_its_connections_and_closes_its_listeners():
    ended = trio.Event()

    async def hold(stream):
        try:
            await trio.sleep_forever()
        finally:
            ended.set()

    async with trio.open_nursery() as nursery:
        address = await serve(nursery, hold)
        stream = await trio.open_tcp_stream(*address)
        await trio.testing.wait_all_tasks_blocked(0.01)
        nursery.cancel_scope.cancel()

    assert ended.is_set()
    async with stream:
        with contextlib.suppress(trio.BrokenResourceError):
            assert bytes(await stream.receive_some()) == b""
    with pytest.raises(OSError, match="all attempts"):
        await trio.open_tcp_stream(*address)


async def test_nothing_to_listen_on_is_an_error():
    with pytest.raises(ValueError, match="listen"):
        await serve_guarded([], echo)


async def test_out_of_descriptors_it_serves_everybody_later():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with trio.open_nursery() as nursery:
        address = await serve(nursery)
        waiting = [trio.socket.socket() for _ in range(8)]
        in_use = max(sock.fileno() for sock in waiting) + 1
        resource.setrlimit(resource.RLIMIT_NOFILE, (in_use + 2, hard))
        logging.getLogger("trio.serve_listeners").disabled = True
        try:
            for sock in waiting:
                await sock.connect(address)
            for sock in waiting:
                await sock.send(b"me too")
                with trio.fail_after(10):
                    assert await sock.recv(100) == b"me too"
                sock.close()
        finally:
            logging.getLogger("trio.serve_listeners").disabled = False
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        nursery.cancel_scope.cancel()


def test_a_barrier_stops_errors_and_groups_of_them(caplog):
    stopped = []
    with caplog.at_level(logging.DEBUG, "trio_swarm.guard"):
        with crash_barrier("a", lambda _, error: stopped.append(error)):
            raise ValueError("x")
        with crash_barrier("b", lambda _, error: stopped.append(error)):
            raise ExceptionGroup("", [ValueError("y")])
        with crash_barrier("c"):
            raise ProtocolError("peer")

    assert [type(error) for error in stopped] == [ValueError, ExceptionGroup]
    assert [record.levelno for record in caplog.records] == [logging.ERROR, logging.ERROR, logging.DEBUG]


def test_a_barrier_lets_pass_what_is_no_exception():
    stopped = []
    with pytest.raises(KeyboardInterrupt), crash_barrier("a"):
        raise KeyboardInterrupt
    with (
        pytest.raises(BaseExceptionGroup) as caught,
        crash_barrier("b", lambda _, error: stopped.append(error)),
    ):
        raise BaseExceptionGroup("", [ValueError(), KeyboardInterrupt()])

    assert [type(leaf) for leaf in caught.value.exceptions] == [KeyboardInterrupt]
    assert len(stopped) == 1


async def test_an_error_that_meets_a_cancellation_does_not_take_the_server_down():
    stopped = []
    with trio.CancelScope() as scope:
        with crash_barrier("a", lambda _, error: stopped.append(error)):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.sleep_forever)
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel()
                raise RuntimeError("at shutdown")
        await trio.lowlevel.checkpoint()

    assert scope.cancelled_caught
    assert len(stopped) == 1


def test_an_error_callback_that_raises_is_logged_and_no_more(caplog):
    def bad(name, error):
        raise KeyError("callback")

    with crash_barrier("a", bad):
        raise ValueError("x")

    assert "callback" in caplog.text
