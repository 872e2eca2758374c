"""Large outputs through the worker's client: files and pieces, over connections that break."""

from __future__ import annotations

import os
import tracemalloc

import pytest
import trio
import trio.testing

from tests.workers.support import files_in
from tests.workers.test_client_board import CUTS, Served, serving
from trio_swarm.errors import PeerGoneError, ProtocolError
from trio_swarm.frames.worker import Inline, Partial
from trio_swarm.limits import MAX_FRAME
from trio_swarm.workers.client import RequestRefused, Retry

PIECE = b"x" * 2**18


def begun(served: Served):
    task = served.board.create("coder", "do it")
    return task, task.begin()


async def in_pieces(*pieces: bytes):
    for piece in pieces:
        yield piece


async def test_whatever_may_be_put_is_read_back_by_default(tmp_path) -> None:
    """More than a frame has."""
    content = bytes(MAX_FRAME + 1)
    async with serving(tmp_path) as served:
        _, attempt = begun(served)
        async with served.worker(attempt) as worker:
            await worker.put("big", content)
            assert await worker.read("big") == content
            with pytest.raises(ProtocolError, match="larger than 1000 bytes"):
                await worker.read("big", max_size=1000)


@pytest.mark.parametrize("content", [b"a,b", b"", b'{"id": "out-1", "task_id": "T", "attempt": 1}'])
async def test_the_record_of_what_was_put_is_refused_with_the_remedy(tmp_path, content) -> None:
    """It has none; and what it is itself, JSON or not, is not taken for one."""
    async with serving(tmp_path) as served:
        _, attempt = begun(served)
        async with served.worker(attempt) as worker:
            out_id = await worker.put("x", content)
            for key in ("x", out_id):
                with pytest.raises(
                    ProtocolError, match=f"the output '{key}' was kept as a raw body.*use `read`"
                ):
                    await worker.get(key)
            assert await worker.read(out_id) == content


@pytest.mark.parametrize("size", [0, 1, 700_000])
async def test_from_a_file_and_to_a_file(tmp_path, size) -> None:
    content = os.urandom(size)
    (tmp_path / "from").write_bytes(content)
    async with serving(tmp_path) as served:
        _, attempt = begun(served)
        async with served.worker(attempt) as worker:
            await worker.put("x", tmp_path / "from", content_type="text/csv")
            (tmp_path / "to").write_bytes(b"old")
            await worker.save("x", tmp_path / "to")
        (output,) = served.board.outputs.of(attempt.task_id)
    assert (output.content_type, output.size) == ("text/csv", size)
    assert (tmp_path / "to").read_bytes() == content
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["from", "to"]


async def test_in_pieces_and_out_in_pieces(tmp_path) -> None:
    async with serving(tmp_path) as served:
        _, attempt = begun(served)
        async with served.worker(attempt) as worker:
            await worker.put("x", in_pieces(b"", b"abc", b"", b"d" * 300_000))
            received = b""
            async with worker.reading("x") as pieces:
                async for piece in pieces:
                    received += piece
            assert received == b"abc" + b"d" * 300_000
            await worker.emit(Partial(Inline(1)), producer="event")
            async with worker.reading("event") as pieces:
                assert b'"event"' in b"".join([piece async for piece in pieces])


async def test_memory_is_bounded_both_ways(tmp_path) -> None:
    """64 MiB through a file, and through an iterator, in one process with the server."""
    size = 64 * 2**20
    source = tmp_path / "from"
    with source.open("wb") as file:
        file.truncate(size)

    async def content():
        for _ in range(size // len(PIECE)):
            yield PIECE

    async with serving(tmp_path) as served:
        _, attempt = begun(served)
        async with served.worker(attempt) as worker:
            tracemalloc.start()
            try:
                await worker.put("a", source)
                await worker.put("b", content())
                await worker.save("a", tmp_path / "to")
                received = 0
                async with worker.reading("b") as pieces:
                    async for piece in pieces:
                        received += len(piece)
                peak = tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()
    assert (received, (tmp_path / "to").stat().st_size) == (size, size)
    assert peak < 8 * 2**20


@pytest.mark.parametrize("cut", CUTS)
async def test_a_file_is_sent_and_fetched_again(tmp_path, cut) -> None:
    """It is kept once, and whole."""
    content = os.urandom(500_000)
    (tmp_path / "from").write_bytes(content)
    async with serving(tmp_path) as served:
        _, attempt = begun(served)
        async with served.worker(attempt) as worker:
            await worker.fetch_prompt()
            served.cuts.extend([cut, cut])
            await worker.put("x", tmp_path / "from")
            served.cuts.extend([cut, cut])
            await worker.save("x", tmp_path / "to")
        assert len(served.board.outputs.of(attempt.task_id)) == 1
    assert (tmp_path / "to").read_bytes() == content


async def test_what_is_given_in_pieces_is_not_sent_twice(tmp_path) -> None:
    """Half of it is used up; that it may have arrived is said."""
    async with serving(tmp_path) as served:
        _, attempt = begun(served)
        async with served.worker(attempt) as worker:
            await worker.fetch_prompt()
            served.cuts.append("unanswered")
            with pytest.raises(PeerGoneError, match="may or may not have arrived"):
                await worker.put("x", in_pieces(b"a" * 100, b"b"))
            served.cuts.append("body")
            with pytest.raises(PeerGoneError):
                await worker.put("y", in_pieces(*[PIECE] * 100))
        assert [each.producer for each in served.board.outputs.of(attempt.task_id)] == ["x"]


async def test_pieces_that_were_handed_on_are_not_handed_on_again(tmp_path) -> None:
    async with serving(tmp_path) as served:
        _, attempt = begun(served)
        async with served.worker(attempt, retry=Retry(tries=5, first=0)) as worker:
            await worker.put("x", b"z" * 30_000)
            served.cuts.append("unanswered")
            async with worker.reading("x") as pieces:
                assert b"".join([piece async for piece in pieces]) == b"z" * 30_000
            served.cuts.append("half")
            received = b""
            with pytest.raises(PeerGoneError, match="not answered to the end"):
                async with worker.reading("x") as pieces:
                    async for piece in pieces:
                        received += piece
    assert 0 < len(received) < 30_000


async def test_what_the_pieces_raise_is_raised_and_nothing_is_kept(tmp_path) -> None:
    async def broken():
        yield b"a" * 100_000
        raise KeyError("mine")

    async with serving(tmp_path) as served:
        task, attempt = begun(served)
        async with served.worker(attempt) as worker:
            with pytest.raises(KeyError, match="mine"):
                await worker.put("x", broken())
            with pytest.raises(FileNotFoundError):
                await worker.put("x", tmp_path / "nothing")
            with pytest.raises(IsADirectoryError):
                await worker.put("x", tmp_path)
            await worker.put("y", b"y")
    # The server is closed: whatever was on its way has come to its end.
    assert [each.producer for each in served.board.outputs.of(task.task_id)] == ["y"]
    assert files_in(tmp_path / "spool") == []


async def test_a_refusal_comes_before_all_is_sent(tmp_path) -> None:
    """And the source is closed."""
    closed = trio.Event()

    async def endless():
        try:
            while True:
                yield PIECE
        finally:
            closed.set()

    async with serving(tmp_path) as served:
        _, attempt = begun(served)
        async with served.worker(attempt) as worker:
            await worker.fetch_prompt()
            source = endless()
            with pytest.raises(RequestRefused) as caught:
                await worker.put("x", source, parent_refs=["out-0000000000"])
            assert caught.value.status == 422
            await source.aclose()
            assert closed.is_set()


async def test_a_file_is_there_whole_or_not_at_all(tmp_path) -> None:
    async with serving(tmp_path) as served:
        _, attempt = begun(served)
        target = tmp_path / "to"
        async with served.worker(attempt) as worker:
            await worker.put("x", b"x" * 100_000)
            with pytest.raises(RequestRefused):
                await worker.save("nothing", target)
            with pytest.raises(ProtocolError):
                await worker.save("x", target, max_size=99_999)
            with trio.CancelScope() as scope:
                scope.cancel()
                await worker.save("x", target)
            assert [path for path in tmp_path.iterdir() if path.is_file()] == []
            await worker.save("x", str(target))
    assert target.read_bytes() == b"x" * 100_000


async def test_a_block_may_be_left_before_the_end(tmp_path) -> None:
    """By itself, or by an exception, which comes out as it is."""
    async with serving(tmp_path) as served:
        _, attempt = begun(served)
        async with served.worker(attempt) as worker:
            await worker.put("x", bytes(3 * 2**20))
            async with worker.reading("x") as pieces:
                assert await pieces.receive()
            with pytest.raises(KeyError, match="mine"):
                async with worker.reading("x") as pieces:
                    await pieces.receive()
                    raise KeyError("mine")
            with pytest.raises(RequestRefused) as caught:
                async with worker.reading("nothing") as pieces:
                    async for _ in pieces:
                        pass
            assert caught.value.status == 404


async def test_who_takes_its_time_is_not_the_servers_silence(tmp_path, mock_clock) -> None:
    """Neither while it makes pieces nor while it takes them."""

    async def slowly():
        for _ in range(3):
            await later()
            yield b"x" * 70_000

    async def later() -> None:
        mock_clock.jump(8)
        await trio.testing.wait_all_tasks_blocked()

    class Slow:
        received = 0

        async def take(self, data: bytes) -> None:
            if not self.received:
                await later()
            self.received += len(data)

        async def again(self) -> bool:
            return False

    async with serving(tmp_path) as served:
        _, attempt = begun(served)
        async with served.worker(attempt, silence=5, retry=Retry(tries=1)) as worker:
            await worker.put("x", slowly())
            sink = Slow()
            await worker._output("x", sink=sink)
    assert sink.received == 210_000
