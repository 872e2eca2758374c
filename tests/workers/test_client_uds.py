"""A worker of a server that listens on a Unix socket alone."""

from __future__ import annotations

from collections import deque
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio
import trio.testing

from tests.workers.cutting import CutListener
from tests.workers.support import Clock, Events
from trio_swarm._io.http import serve_http
from trio_swarm._io.http_routes import RouteTable
from trio_swarm._io.unix import open_unix_listener
from trio_swarm._state.policy import EdgePolicy, loopback_hosts
from trio_swarm.errors import PeerGoneError
from trio_swarm.frames.worker import Inline, Progress
from trio_swarm.workers import TaskBoard, WorkerApi
from trio_swarm.workers.client import Retry, connect_worker

URL = "http://localhost"


@asynccontextmanager
async def serving(path, board, cuts):
    async with open_unix_listener(path) as listener, trio.open_nursery() as nursery:
        serve = partial(serve_http, policy=EdgePolicy(loopback_hosts(None)))
        await nursery.start(serve, [CutListener(listener, cuts)], RouteTable(WorkerApi(board).routes()))
        yield
        nursery.cancel_scope.cancel()


@pytest.fixture
def board(tmp_path) -> TaskBoard:
    return TaskBoard(emit=Events(), clock=Clock(), spool=lambda: tmp_path / "spool")


async def test_a_worker_does_its_task(tmp_path, board) -> None:
    """Its prompt, an output of each kind, its result; what is lost on the way is sent again there."""
    attempt, cuts = board.create("coder", "do it").begin(), deque()
    known = {"task_id": attempt.task_id, "uds": tmp_path / "s", "retry": Retry(tries=3, first=0)}
    async with (
        serving(tmp_path / "s", board, cuts),
        connect_worker(URL, attempt.worker_handle, **known) as worker,
    ):
        assert (await worker.fetch_prompt()).prompt == "do it"
        first = await worker.emit(Progress("half"))
        second = await worker.partial([1])
        assert (await worker.get(second)).event.chunk == Inline([1])
        large = b"x" * 1_000_000
        assert await worker.read(await worker.put("raw", large, parent_refs=[first])) == large
        cuts += ["unanswered", "unread"]
        await worker.submit("done")
        assert not cuts
    assert attempt.finals == 1
    assert (await attempt.wait_final()).value == "done"


async def test_nobody_there_is_told_with_the_path(tmp_path, board) -> None:
    """Nothing was sent; a server that comes within the tries is found."""
    attempt = board.create("a", "p").begin()
    known = {"task_id": attempt.task_id, "uds": tmp_path / "s"}
    async with connect_worker(URL, attempt.worker_handle, retry=Retry(tries=1), **known) as worker:
        with pytest.raises(PeerGoneError) as caught:
            await worker.submit("done")
    patient = Retry(tries=500, first=0.01, longest=0.01)
    told = f"was not sent: cannot connect to {tmp_path}/s: No such file or directory"
    assert str(caught.value).endswith(told)
    async with (
        connect_worker(URL, attempt.worker_handle, retry=patient, **known) as worker,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(worker.submit, "done")
        await trio.testing.wait_all_tasks_blocked()
        async with serving(tmp_path / "s", board, deque()):
            assert (await attempt.wait_final()).value == "done"
    with pytest.raises(ValueError, match="more than 103"):
        async with connect_worker(URL, attempt.worker_handle, task_id="T", uds="x" * 104):
            pytest.fail("a worker of nobody")
