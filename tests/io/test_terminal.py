"""Lines and text over descriptors that are nobody's to change."""

from __future__ import annotations

import os
import select
import sys
from contextlib import contextmanager

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.pipes import full_pipe, text_in, unread_terminal
from trio_swarm._io.terminal import LineInput, TextOutput, edit, editor_argv, write_text


@contextmanager
def pipe():
    read, write = os.pipe()
    ends = {read, write}

    def close(fd) -> None:
        ends.discard(fd)
        os.close(fd)

    try:
        yield read, write, close
    finally:
        for fd in ends:
            os.close(fd)


async def test_lines_come_whole_however_they_are_written() -> None:
    """The last one without its end too; what is no UTF-8 is replaced."""
    with pipe() as (read, write, close):
        lines = LineInput(read)
        os.write(write, b"one\r\ntw")
        assert await lines.receive() == "one"
        async with trio.open_nursery() as nursery:

            async def rest() -> None:
                await wait_all_tasks_blocked()
                os.write(write, b"o\n\n\xff")
                close(write)

            nursery.start_soon(rest)
            assert await lines.receive() == "two"
        assert [await lines.receive() for _ in range(3)] == ["", "�", None]
        assert await lines.receive() is None


async def test_waiting_for_a_line_can_be_cancelled_and_nothing_is_lost_or_changed() -> None:
    """No thread is left in ``read``, and the descriptor blocks as before."""
    with pipe() as (read, write, _):
        lines = LineInput(read)
        os.write(write, b"half")
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(lines.receive)
                await wait_all_tasks_blocked()
                assert os.get_blocking(read)
                scope.cancel()
        assert scope.cancelled_caught
        os.write(write, b" a line\n")
        assert await lines.receive() == "half a line"
        assert not lines.interactive


async def test_a_line_without_end_is_refused() -> None:
    """Its size is bounded."""
    with pipe() as (read, write, _):
        lines = LineInput(read, max_line=100)
        os.write(write, b"x" * 200)
        with pytest.raises(ValueError, match="longer than 100"):
            await lines.receive()


async def test_a_regular_file_is_read_and_written_too(tmp_path) -> None:
    """It cannot be waited for, and need not be."""
    path = tmp_path / "in"
    path.write_text("a\nb")
    fd = os.open(path, os.O_RDONLY)
    try:
        lines = LineInput(fd)
        assert [await lines.receive() for _ in range(3)] == ["a", "b", None]
    finally:
        os.close(fd)
    fd = os.open(path, os.O_WRONLY | os.O_TRUNC)
    try:
        async with trio.open_nursery() as nursery:
            out = TextOutput(fd)
            nursery.start_soon(out.run)
            out.write("x" * 2000)
            await out.drain()
            nursery.cancel_scope.cancel()
    finally:
        os.close(fd)
    assert path.read_text() == "x" * 2000 + "\n"


async def test_output_that_nobody_takes_holds_nothing_up() -> None:
    """It is bounded, the loss is told, and it comes when there is room."""
    with pipe() as (read, write, _):
        out = TextOutput(write)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(out.run)
            for _ in range(100):
                out.write("y" * 100_000)
            await wait_all_tasks_blocked()
            assert os.get_blocking(write)
            got = bytearray()
            lines = LineInput(read)
            out.write("end")
            while (line := await lines.receive()) != "end":
                got += line.encode()
            nursery.cancel_scope.cancel()
        assert b"texts were lost here" in got
        assert 3_900_000 < len(got) < 4_500_000


async def test_a_text_whose_writing_was_cancelled_goes_on_where_it_was() -> None:
    """Nothing of it is lost or twice there; without a task, too, as far as there is room."""
    text = "".join(f"{number}\n" for number in range(50_000))
    with full_pipe() as (read, write):
        out = TextOutput(write)
        out.write(text)
        got = ""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(out.run)
            got += os.read(read, 10_000).decode()
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        while piece := text_in(read):
            got += piece
            out.write_now()
    assert got.lstrip("x") == text + "\n"


async def test_a_reader_that_goes_ends_the_writing_and_nothing_else() -> None:
    """What is written then is dropped, and who waits for it does not wait."""
    with pipe() as (read, write, close):
        out = TextOutput(write)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(out.run)
            close(read)
            out.write("to nobody")
            await out.drain()
            await wait_all_tasks_blocked()
            out.write("again")
            await out.drain()


async def test_held_output_comes_afterwards() -> None:
    """While another program has the terminal, nothing is written."""
    with pipe() as (read, write, _):
        out = TextOutput(write)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(out.run)
            with out.held():
                out.write("later")
                out.write_now()
                await wait_all_tasks_blocked()
                os.set_blocking(read, False)
                with pytest.raises(BlockingIOError):
                    os.read(read, 10)
                os.set_blocking(read, True)
            await out.drain()
            assert os.read(read, 10) == b"later\n"
            nursery.cancel_scope.cancel()


LINES = ["x" * (number % 97) for number in range(3000)]
"""What never fits exactly: a terminal's buffers have room for a part of some line."""


def descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


async def test_a_terminal_that_nobody_reads_holds_nothing_up() -> None:
    """One that has room has it for a byte perhaps. All of it comes, and in its order, when somebody reads."""
    with unread_terminal() as terminal:
        before = descriptors()
        with TextOutput(terminal.writer) as out:
            for line in LINES:
                out.write(line)
            out.write_now()
            assert not terminal.rescued
            got = bytearray()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(out.run)
                await wait_all_tasks_blocked()
                while got.count(b"\n") < len(LINES):
                    await trio.lowlevel.wait_readable(terminal.reader)
                    got += os.read(terminal.reader, 333)
                nursery.cancel_scope.cancel()
        assert not terminal.rescued
        assert os.get_blocking(terminal.writer), "it is as it was for everybody else"
        assert descriptors() == before
    assert got.decode().splitlines() == LINES


async def test_the_task_of_a_terminal_that_nobody_reads_holds_nothing_up() -> None:
    """As above; what was not written is not written later, either, when the descriptor may be another's."""
    with unread_terminal() as terminal:
        with TextOutput(terminal.writer) as out:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(out.run)
                for line in LINES:
                    out.write(line)
                await wait_all_tasks_blocked()
                nursery.cancel_scope.cancel()
        assert not terminal.rescued
        os.read(terminal.reader, 2**16)
        out.write("later")
        out.write_now()
        while select.select([terminal.reader], [], [], 0.1)[0]:
            assert b"later" not in os.read(terminal.reader, 2**16)


async def test_a_text_for_a_terminal_that_nobody_reads_can_be_cancelled() -> None:
    """The descriptor it was written by is gone then."""
    with unread_terminal() as terminal:
        before = descriptors()
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(write_text, terminal.writer, "\n".join(LINES))
                await wait_all_tasks_blocked()
                scope.cancel()
        assert scope.cancelled_caught
        assert not terminal.rescued
        assert descriptors() == before


async def test_a_terminal_that_cannot_be_opened_is_written_as_it_is(monkeypatch) -> None:
    """As another person's, after ``su``."""

    def denied(*args: object) -> int:
        raise PermissionError

    with unread_terminal() as terminal:
        monkeypatch.setattr(os, "open", denied)
        await write_text(terminal.writer, "one\n")
        with TextOutput(terminal.writer) as out:
            out.write("two")
            out.write_now()
        assert text_in(terminal.reader) == "one\r\ntwo\r\n"


async def test_the_other_end_of_a_terminal_is_written_as_it_is() -> None:
    """Its name, opened, would be a new terminal."""
    with unread_terminal() as terminal:
        await write_text(terminal.reader, "typed\n")
        with trio.fail_after(5):
            assert await LineInput(terminal.writer).receive() == "typed"


def test_whose_editor_it_is() -> None:
    """With its arguments."""
    assert editor_argv({"EDITOR": "code -w", "VISUAL": " "}) == ["code", "-w"]
    assert editor_argv({"VISUAL": "a 'b c'", "EDITOR": "no"}) == ["a", "b c"]
    assert editor_argv({}) == ["vi"]


async def test_what_the_editor_leaves_is_the_answer() -> None:
    """In a file that is private and gone afterwards; an editor that fails gives none."""
    code = (
        "import os, pathlib, sys; path = pathlib.Path(sys.argv[1]); mode = os.stat(path.parent).st_mode\n"
        "path.write_text(f'{path.read_text()} {mode & 0o077} {path}')"
    )
    text = await edit("was", [sys.executable, "-c", code])
    assert text is not None
    was, others, path = text.split()
    assert (was, others) == ("was", "0")
    assert not os.path.exists(os.path.dirname(path))
    assert await edit("was", [sys.executable, "-c", "raise SystemExit(1)"]) is None
    with pytest.raises(FileNotFoundError):
        await edit("was", ["/no/such/editor"])
