"""Records that nobody else handles, on a descriptor that may have no room."""

from __future__ import annotations

import io
import logging
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.pipes import full_pipe, text_in, unread_terminal
from trio_swarm._io import last_resort, terminal
from trio_swarm._io.last_resort import descriptor_of, open_last_resort

LOG = logging.getLogger("trio_swarm.test_last_resort")


@asynccontextmanager
async def opened(fd: int) -> AsyncIterator[Callable[[str], None]]:
    """Where nobody has configured logging; pytest has."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LOG, "propagate", False)
        patch.setattr(LOG, "handlers", [])
        async with open_last_resort(fd) as say:
            yield say


@contextmanager
def pipe() -> Iterator[tuple[int, int]]:
    read, write = os.pipe()
    try:
        yield read, write
    finally:
        os.close(read)
        os.close(write)


async def test_a_record_is_written_at_once() -> None:
    """As the last resort of `logging` does: the message, a traceback whole, and warnings at least."""
    with pipe() as (read, write):
        async with opened(write):
            LOG.warning("one %d", 1)
            assert text_in(read) == "one 1\n"
            LOG.info("no warning")
            try:
                raise ValueError("x" * 2000)
            except ValueError:
                LOG.exception("two")
            first, second, *_, last = text_in(read).splitlines()
            assert (first, second, last) == (
                "two",
                "Traceback (most recent call last):",
                f"ValueError: {'x' * 2000}",
            )


async def test_afterwards_it_is_as_before() -> None:
    before = logging.lastResort
    with pipe() as (read, write):
        with pytest.raises(KeyError):
            async with opened(write):
                assert logging.lastResort is not before
                raise KeyError
        assert logging.lastResort is before
        async with opened(write):
            monkey = logging.NullHandler()
            logging.lastResort = monkey
        try:
            assert logging.lastResort is monkey, "somebody else's is left alone"
        finally:
            logging.lastResort = before
        assert text_in(read) == ""


async def test_who_has_a_handler_finds_the_records_there_alone(monkeypatch) -> None:
    """Also one that comes later."""
    got: list[str] = []

    class Mine(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            got.append(record.getMessage())

    with pipe() as (read, write):
        async with opened(write):
            monkeypatch.setattr(LOG, "handlers", [Mine()])
            LOG.warning("mine")
        assert text_in(read) == ""
    assert got == ["mine"]


async def test_without_room_a_record_waits_and_nobody_else_does() -> None:
    """It is written by itself when there is room, in its order and once, also what was half written."""
    long = "y" * 100_000
    with full_pipe() as (read, write):
        async with opened(write) as say:
            LOG.warning("one")
            say("two")
            LOG.warning(long)
            LOG.warning("three")
            text = ""
            while not text.endswith("three\n"):
                await trio.lowlevel.wait_readable(read)
                text += os.read(read, 1000).decode()
        assert text.lstrip("x") == f"one\ntwo\n{long}\nthree\n"


async def test_what_waits_is_bounded_and_its_loss_is_told(monkeypatch) -> None:
    monkeypatch.setattr(terminal, "_MAX_QUEUED", 1000)
    with full_pipe() as (read, write):
        async with opened(write):
            for number in range(1000):
                LOG.warning("%05d", number)
            text_in(read)
            await wait_all_tasks_blocked()
            LOG.warning("end")
            lines = text_in(read).splitlines()
    # One was taken out of the queue already, to be written next.
    assert lines[:3] == ["00000", "(833 texts were lost here)", "00834"]
    assert lines[-2:] == ["00999", "end"]


async def test_leaving_waits_for_room_for_a_bounded_time(autojump_clock) -> None:
    """Also when cancelled; what there is room for in the last moment is written."""
    with full_pipe() as (read, write):
        began = trio.current_time()
        with trio.CancelScope() as scope:
            async with opened(write):
                LOG.warning("one")
                scope.cancel()
                await trio.lowlevel.checkpoint()
        assert scope.cancelled_caught
        assert trio.current_time() - began == last_resort.CLOSE_DEADLINE
        assert "one" not in text_in(read)


async def test_leaving_writes_what_waits() -> None:
    with full_pipe() as (read, write):
        async with opened(write):
            LOG.warning("one")
            text_in(read)
            LOG.warning("two")
        assert text_in(read) == "one\ntwo\n"


async def test_leaving_writes_what_waits_also_when_cancelled() -> None:
    """The writer is not cancelled before it has had its time."""
    lines = [f"{number} {'y' * 100}" for number in range(3000)]
    with full_pipe() as (read, write):
        text = ""

        async def reader() -> None:
            nonlocal text
            while not text.endswith(f"{lines[-1]}\n"):
                await trio.lowlevel.wait_readable(read)
                text += os.read(read, 2**16).decode()

        async with trio.open_nursery() as nursery:
            with trio.CancelScope() as scope:
                async with opened(write) as say:
                    for line in lines:
                        say(line)
                    await wait_all_tasks_blocked()
                    scope.cancel()
                    nursery.start_soon(reader)
                    await trio.lowlevel.checkpoint()
            assert scope.cancelled_caught
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        assert text.lstrip("x").splitlines() == lines


async def test_a_terminal_that_nobody_reads_holds_nobody_up() -> None:
    """It has room for less than a record, perhaps, and the server goes on."""
    with unread_terminal() as terminal:
        before = set(os.listdir("/proc/self/fd"))
        with trio.move_on_after(0):
            async with opened(terminal.writer):
                for number in range(3000):
                    LOG.warning("%s", "x" * (number % 97))
                assert not terminal.rescued
                # So that the way out need not wait its time for a reader.
                logging.lastResort._out._fail()
        assert not terminal.rescued
        assert os.get_blocking(terminal.writer)
        assert set(os.listdir("/proc/self/fd")) == before


async def test_records_of_other_threads_are_written() -> None:
    """Before the task runs, while it does, and while it cannot write; each of them once."""
    with full_pipe() as (read, write):
        async with opened(write):
            await trio.to_thread.run_sync(LOG.warning, "one")
            text_in(read)
            await trio.to_thread.run_sync(LOG.warning, "two")
            with trio.fail_after(5):
                await trio.lowlevel.wait_readable(read)
            await wait_all_tasks_blocked()
            assert text_in(read) == "one\ntwo\n"
            thread = threading.Thread(target=LOG.warning, args=["three"])
            thread.start()
            thread.join()
            # The event loop was not there to be told: it is taken over in time all the same.
            LOG.warning("four")
            assert text_in(read) == "three\nfour\n"
            thread = threading.Thread(target=LOG.warning, args=["five"])
            thread.start()
            thread.join()
        assert text_in(read) == "five\n"


async def test_records_of_other_threads_are_bounded(monkeypatch) -> None:
    monkeypatch.setattr(last_resort, "_MAX_ELSEWHERE", 3)

    def many() -> None:
        for number in range(5):
            LOG.warning("%d", number)

    with pipe() as (read, write):
        async with opened(write):
            thread = threading.Thread(target=many)
            thread.start()
            thread.join()
        assert text_in(read) == "(2 texts were lost here)\n2\n3\n4\n"


async def test_a_record_that_cannot_be_shown_is_said_and_raises_nothing() -> None:
    """On the descriptor, too, where `logging` would write to standard error by itself."""
    with pipe() as (read, write):
        async with opened(write):
            LOG.warning("%d", "no number")
            text = text_in(read)
    assert text.startswith("a record of trio_swarm.test_last_resort cannot be shown: '%d'\nTraceback ")
    assert text.splitlines()[-1].startswith("TypeError: ")


async def test_an_error_of_the_descriptor_loses_lines_and_says_so() -> None:
    """A disk that is full may have room later."""
    with pipe() as (read, write), open("/dev/full", "wb") as full:
        kept = os.dup(write)
        try:
            os.dup2(full.fileno(), write)
            async with opened(write):
                LOG.warning("one")
                LOG.warning("two")
                await wait_all_tasks_blocked()
                os.dup2(kept, write)
                LOG.warning("three")
            assert text_in(read) == "(2 texts were lost here)\nthree\n"
        finally:
            os.close(kept)


async def test_without_a_descriptor_nothing_is_changed() -> None:
    before = logging.lastResort
    async with open_last_resort(None) as say:
        assert logging.lastResort is before
        say("to nobody")


def test_the_descriptor_of_a_stream_that_may_have_none() -> None:
    """Closed when we were started, closed since, or put in its place by somebody."""
    with pipe() as (_, write):
        stream = os.fdopen(write, "w", closefd=False)
        assert descriptor_of(stream) == write
        stream.close()
        assert [descriptor_of(each) for each in (None, stream, io.StringIO())] == [None] * 3
