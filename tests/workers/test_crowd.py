"""Hundreds of workers at one address, at once, beside a peer there that only holds connections."""

from __future__ import annotations

from functools import partial

import pytest
import trio
import trio.testing

from tests.workers.cutting import backend
from tests.workers.support import Bench, bearer, serving
from trio_swarm._io.http_messages import Response
from trio_swarm.errors import BusyError
from trio_swarm.workers import Attempt
from trio_swarm.workers.client import Retry, connect_worker

WORKERS = 200


def begun(bench: Bench) -> list[Attempt]:
    return [bench.board.create("coder", f"do {number}").begin() for number in range(WORKERS)]


async def work(bench: Bench, attempt: Attempt) -> None:
    url = f"http://127.0.0.1:{bench.port}"
    async with connect_worker(url, attempt.worker_handle, task_id=attempt.task_id) as worker:
        payload = await worker.fetch_prompt()
        await worker.partial(payload.prompt)
        await worker.submit(payload.prompt)


async def all_work(bench: Bench) -> None:
    attempts = begun(bench)
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for attempt in attempts:
                nursery.start_soon(work, bench, attempt)
    finals = [(attempt.finals, (await attempt.wait_final()).value) for attempt in attempts]
    assert finals == [(1, f"do {number}") for number in range(WORKERS)]


async def test_two_hundred_workers_at_once(tmp_path) -> None:
    """Of our own client, with all limits as they are set."""
    async with serving(tmp_path, max_tasks=WORKERS) as bench:
        await all_work(bench)
        assert bench.errors == []


async def test_two_hundred_workers_beside_one_that_only_holds_connections(tmp_path) -> None:
    """It has opened as many as there are places, and opens each again, twenty times a second."""

    again = 1 / 20

    async def hold(port: int) -> None:
        while True:
            async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                try:
                    async for _ in stream:
                        pass
                except trio.BrokenResourceError:
                    pass
            await trio.sleep(again)

    async with serving(tmp_path, max_tasks=WORKERS) as bench, trio.open_nursery() as nursery:
        for _ in range(256):
            nursery.start_soon(hold, bench.port)
        await trio.testing.wait_all_tasks_blocked(0.1)
        await all_work(bench)
        assert bench.errors == []
        nursery.cancel_scope.cancel()


async def test_connections_of_two_hundred_workers_that_stay_open(tmp_path) -> None:
    """By plain HTTP/1.1, all open before any has sent a byte: each is served, and served again on it."""
    async with serving(tmp_path, max_tasks=WORKERS) as bench:
        attempts = begun(bench)
        streams = [await trio.open_tcp_stream("127.0.0.1", bench.port) for _ in attempts]
        try:
            for _ in range(2):
                for stream, attempt in zip(streams, attempts, strict=True):
                    headers = {"Host": f"127.0.0.1:{bench.port}", **bearer(attempt.worker_handle)}
                    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
                    target = f"/v1/worker/prompt?task_id={attempt.task_id}"
                    await stream.send_all(f"GET {target} HTTP/1.1\r\n{lines}\r\n".encode())
                for stream in streams:
                    with trio.fail_after(20):
                        answer = bytes(await stream.receive_some())
                    assert answer.startswith(b"HTTP/1.1 200 ")
                    assert b"connection: close" not in answer
        finally:
            for stream in streams:
                await trio.aclose_forcefully(stream)


AGAIN = Response.text(429, "full", headers=((b"retry-after", b"0"),))


async def test_who_is_asked_to_come_again_soon_does() -> None:
    """A post too, whatever the server says of keys: it did nothing. As often as a lost one is tried."""
    async with backend() as server:
        connected = partial(connect_worker, server.url, "wh-1a2b3c4d", task_id="T-1")
        server.answers["/v1/worker/submit"] = AGAIN
        async with connected(retry=Retry(tries=3, first=0)) as worker:
            with pytest.raises(BusyError, match="again after 0 s"):
                await worker.submit("x")
        assert [target for _, target, _, _ in server.seen] == ["/v1/worker/submit?task_id=T-1"] * 3
        for longest, seconds in ((0.5, b"1"), (5.0, b"6"), (5.0, b"soon"), (5.0, b"-1")):
            server.seen.clear()
            server.answers["/v1/worker/submit"] = Response.text(429, "", headers=((b"retry-after", seconds),))
            async with connected(retry=Retry(longest=longest)) as worker:
                with pytest.raises(BusyError):
                    await worker.submit("x")
            assert len(server.seen) == 1
