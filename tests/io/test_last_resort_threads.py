"""Records of other threads that come when the event loop has no time, has not begun, or is over."""

from __future__ import annotations

import logging
import os
import threading

import trio
from trio.testing import wait_all_tasks_blocked

from tests.io.test_last_resort import LOG, opened, pipe
from tests.pipes import full_pipe, text_in
from trio_swarm._io.last_resort import _LastResort


def in_a_thread(call, *args) -> None:
    """The event loop waits for it, so that it hears of nothing before."""
    thread = threading.Thread(target=call, args=args)
    thread.start()
    thread.join()


async def test_what_came_before_there_was_a_task_is_written_by_it() -> None:
    """Nobody tells it of that."""
    with pipe() as (read, write):
        async with opened(write):
            in_a_thread(LOG.warning, "one")
            assert text_in(read) == ""
            await wait_all_tasks_blocked()
            assert text_in(read) == "one\n"


async def test_leaving_waits_for_room_for_what_nobody_has_told_of() -> None:
    with full_pipe() as (read, write):
        text = ""

        async def reader() -> None:
            nonlocal text
            await wait_all_tasks_blocked()
            while not text.endswith("one\n"):
                await trio.lowlevel.wait_readable(read)
                text += os.read(read, 1000).decode()

        async with trio.open_nursery() as nursery:
            async with opened(write):
                await wait_all_tasks_blocked()
                logging.lastResort._token = None  # As long as the event loop has not come to it.
                in_a_thread(LOG.warning, "one")
                nursery.start_soon(reader)
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        assert text.endswith("one\n")


async def test_what_comes_at_the_very_end_is_written_if_there_is_room(monkeypatch) -> None:
    """The task is over by then."""
    drain = _LastResort.drain

    async def and_then_another(self: _LastResort) -> None:
        await drain(self)
        self._token = None
        in_a_thread(LOG.warning, "one")

    monkeypatch.setattr(_LastResort, "drain", and_then_another)
    with pipe() as (read, write):
        async with opened(write):
            await wait_all_tasks_blocked()
        assert text_in(read) == "one\n"


async def test_what_comes_later_still_is_written_nowhere() -> None:
    """The descriptor may be somebody else's by then."""
    with pipe() as (read, write):
        async with opened(write) as say:
            await wait_all_tasks_blocked()
        in_a_thread(say, "one")
        await wait_all_tasks_blocked(0.01)
        assert text_in(read) == ""


def test_a_thread_that_outlasts_the_event_loop_gets_no_error() -> None:
    """It had looked for the event loop when there was one."""
    with pipe() as (_, write):

        async def main() -> tuple[_LastResort, trio.lowlevel.TrioToken]:
            async with opened(write):
                handler = logging.lastResort
                assert isinstance(handler, _LastResort)
                return handler, trio.lowlevel.current_trio_token()

        handler, handler_token = trio.run(main)
        handler._token = handler_token
        errors = []

        def late() -> None:
            try:
                handler.write("late")
            except Exception as error:
                errors.append(error)

        in_a_thread(late)
        assert errors == []


async def test_a_flood_of_another_thread_is_one_thing_to_do(monkeypatch) -> None:
    """An event loop that has no time for it is told once, and has no more to remember."""
    calls, write_elsewhere = 0, _LastResort._write_elsewhere

    def counted(self: _LastResort) -> None:
        nonlocal calls
        calls += 1
        write_elsewhere(self)

    def flood() -> None:
        for number in range(500):
            LOG.warning("%d", number)

    with pipe() as (read, write):
        async with opened(write):
            await wait_all_tasks_blocked()
            monkeypatch.setattr(_LastResort, "_write_elsewhere", counted)
            in_a_thread(flood)
            await wait_all_tasks_blocked(0.01)
            assert calls == 1
            assert text_in(read).splitlines() == [str(number) for number in range(500)]


async def test_what_is_no_warning_is_not_shown(monkeypatch) -> None:
    """Whatever a logger would let pass: nobody has asked for it."""
    with pipe() as (read, write):
        async with opened(write):
            LOG.setLevel(logging.DEBUG)
            try:
                LOG.info("no warning")
                LOG.warning("a warning")
            finally:
                LOG.setLevel(logging.NOTSET)
            assert text_in(read) == "a warning\n"
