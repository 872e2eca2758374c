"""The worker's client and the board's routes together, over connections that break."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import attrs
import pytest
import trio

from tests.workers.cutting import Cut, CutListener
from tests.workers.support import Clock, Events
from trio_swarm._io.http import serve_http
from trio_swarm._io.http_routes import RouteTable
from trio_swarm._state.policy import EdgePolicy, loopback_hosts
from trio_swarm._state.token import CapabilityToken, attenuate
from trio_swarm.errors import BadTokenError, PeerGoneError
from trio_swarm.frames.worker import Artifact, Inline
from trio_swarm.workers import Attempt, Outcome, TaskBoard, WorkerApi
from trio_swarm.workers.brief import WorkerBrief
from trio_swarm.workers.client import AttemptOver, RequestRefused, Retry, connect_worker

CUTS: list[Cut] = ["unread", "body", "unanswered", "half"]


@attrs.define(eq=False)
class Served:
    board: TaskBoard
    url: str
    cuts: deque[Cut]
    clock: Clock

    def worker(self, attempt: Attempt, **options):
        options = {"retry": Retry(tries=50, first=0), **options}
        return connect_worker(self.url, attempt.worker_handle, task_id=attempt.task_id, **options)


@asynccontextmanager
async def serving(tmp_path: Path) -> AsyncIterator[Served]:
    clock, cuts = Clock(), deque[Cut]()
    board = TaskBoard(emit=Events(), clock=clock, spool=lambda: tmp_path / "spool")
    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listener.socket.getsockname()[1]
        serve = partial(serve_http, policy=EdgePolicy(loopback_hosts(port)))
        await nursery.start(serve, [CutListener(listener, cuts)], RouteTable(WorkerApi(board).routes()))
        yield Served(board, f"http://127.0.0.1:{port}", cuts, clock)
        nursery.cancel_scope.cancel()


async def test_a_worker_does_its_task(tmp_path) -> None:
    """From the four lines to the Final: the handle alone does for everything."""
    async with serving(tmp_path) as served:
        task = served.board.create("reviewer", "look at it", system="be kind", metadata={"n": 1})
        attempt = task.begin()
        lines = WorkerBrief("reviewer", attempt.worker_handle, served.url, task.task_id).text
        brief = WorkerBrief.parse(f"  {lines}\n")
        async with connect_worker(brief.base_url, brief.worker_handle, task_id=brief.task_id) as worker:
            payload = await worker.fetch_prompt()
            assert (payload.agent, payload.prompt, payload.system) == ("reviewer", "look at it", "be kind")
            assert payload.attempt == 1
            assert await worker.prompt_system() == "be kind"
            assert attempt.fetched

            first = await worker.progress("half")
            second = await worker.emit(Artifact("notes", Inline({"a": 1})), parent_refs=[first])
            assert (await worker.get(second)).parent_refs == (first,)
            assert (await worker.get("reviewer")).event == Artifact("notes", Inline({"a": 1}))
            large = random.Random(1).randbytes(5_000_000)
            assert await worker.read(await worker.put("blob/1 é", large, content_type="x/y")) == large
            await worker.artifact("part", "text")
            await worker.degradation({"what": "no network"})
            await worker.stats({"tokens": 7})
            await worker.final(1, ok=False)
            await worker.result({"verdict": "good"})
            await worker.submit("all good\n")
        final = await attempt.wait_final()
    assert (final.value, final.ok, attempt.finals) == ("all good", True, 3)
    assert attempt.stats == {"tokens": 7}
    assert attempt.degradations[0]["what"] == "no network"


async def test_a_large_system_prompt_comes_by_reference(tmp_path) -> None:
    """Nobody sees the difference."""
    system = "persona é\n" * 10_000
    async with serving(tmp_path) as served:
        task = served.board.create("a", "p", system=system)
        async with served.worker(task.begin()) as worker:
            payload = await worker.fetch_prompt()
    assert (payload.system, payload.system_ref) == (system, None)


@pytest.mark.parametrize("cut", CUTS)
async def test_each_post_counts_once(tmp_path, cut) -> None:
    """With the first two connections of each lost, wherever they were."""
    async with serving(tmp_path) as served:
        task = served.board.create("a", "p")
        attempt = task.begin()
        async with served.worker(attempt) as worker:
            await worker.fetch_prompt()
            body = b"x" * 300_000
            for post in (
                partial(worker.submit, body),
                partial(worker.result, "r"),
                partial(worker.final, "f"),
                partial(worker.artifact, "n", body),
                partial(worker.degradation, {"d": 1}),
                partial(worker.progress, "s"),
                partial(worker.put, "raw", body),
            ):
                served.cuts.extend([cut, cut])
                await post()
                served.cuts.clear()
    kept = served.board.outputs.of(task.task_id)
    assert attempt.finals == 3
    assert len(attempt.degradations) == 1
    assert sorted(output.artifact or output.producer for output in kept) == ["a", "a", "n", "raw"]


async def test_the_answer_that_was_lost_with_the_end_of_the_attempt(tmp_path) -> None:
    """The Final arrived, the step is over, only the 204 was lost: the retry is no failure."""
    async with serving(tmp_path) as served:
        task = served.board.create("a", "p")
        attempt = task.begin()

        async def settles() -> None:
            final = await attempt.wait_final()
            task.settle(Outcome(task.task_id, "pass", final.value, 1))

        async with served.worker(attempt) as worker, trio.open_nursery() as nursery:
            await worker.fetch_prompt()
            nursery.start_soon(settles)
            served.cuts.extend(["unanswered", "unanswered"])
            await worker.submit("done")
            with pytest.raises(AttemptOver, match="410"):
                await worker.submit("again")
    assert attempt.finals == 1


async def test_what_the_board_refuses(tmp_path) -> None:
    """Each as its own exception."""
    async with serving(tmp_path) as served:
        task = served.board.create("a", "p")
        attempt = task.begin()
        token = CapabilityToken.decode(attempt.capability_token)
        # An artifact is found by its own name and by its producer's.
        scopes = ["fetch_prompt", "emit_output@out=log*", "emit_output@out=a"]
        narrow = attenuate(token, scopes=scopes).encode()
        async with connect_worker(served.url, narrow, task_id=task.task_id) as worker:
            await worker.fetch_prompt()
            await worker.artifact("log-1", "x")
            with pytest.raises(BadTokenError, match="403"):
                await worker.artifact("other", "x")
            with pytest.raises(BadTokenError, match="403"):
                await worker.submit("x")
        async with served.worker(attempt) as worker:
            with pytest.raises(RequestRefused, match="404"):
                await worker.get("nothing")
            with pytest.raises(RequestRefused, match="413"):
                await worker.submit(b"x" * 3_000_000)
            with pytest.raises(RequestRefused, match="400"):
                await worker.submit("x", ok=False, verdict="pass")
            task.begin()
            with pytest.raises(AttemptOver, match="409"):
                await worker.submit("x")
        async with connect_worker(served.url, "wh-00000000", task_id=task.task_id) as worker:
            with pytest.raises(AttemptOver, match="410"):
                await worker.fetch_prompt()
        async with connect_worker(served.url, token.encode(), task_id=task.task_id) as worker:
            served.clock.now += 10_000
            with pytest.raises(BadTokenError, match="401"):
                await worker.fetch_prompt()


async def test_a_token_with_few_uses_and_a_bad_connection(tmp_path) -> None:
    """A repetition is no further use."""
    async with serving(tmp_path) as served:
        task = served.board.create("a", "p")
        attempt = task.begin()
        twice = attenuate(CapabilityToken.decode(attempt.capability_token), max_uses=2).encode()
        async with connect_worker(served.url, twice, task_id=task.task_id, retry=Retry(9, 0)) as worker:
            await worker.fetch_prompt()
            served.cuts.extend(["unanswered"] * 3)
            await worker.submit("done")
            with pytest.raises(BadTokenError, match="403"):
                await worker.submit("again")
    assert attempt.finals == 1


@pytest.mark.parametrize("seed", range(10))
async def test_random_losses_at_the_board(tmp_path, seed) -> None:
    """Many workers' posts at the same time: each counts once, and its id is its own."""
    rng = random.Random(seed)
    ids: list[str] = []

    async def works(served: Served, number: int) -> None:
        task = served.board.create("a", "p")
        attempt = task.begin()
        async with served.worker(attempt) as worker:
            await worker.fetch_prompt()
            for piece in range(3):
                ids.append(await worker.partial([number, piece]))
            ids.append(await worker.put("raw", bytes([number]) * 200_000))
            await worker.submit(str(number))
        assert (attempt.finals, attempt.final.value) == (1, str(number))
        assert len(served.board.outputs.of(task.task_id)) == 4

    async with serving(tmp_path) as served:
        served.cuts.extend(rng.choices([*CUTS, "none", "none"], k=150))
        async with trio.open_nursery() as nursery:
            for number in range(10):
                nursery.start_soon(works, served, number)
    assert len(set(ids)) == 40


async def test_a_cancelled_post_leaves_nothing_half(tmp_path) -> None:
    """It arrived or it did not; the attempt goes on."""
    async with serving(tmp_path) as served:
        task = served.board.create("a", "p")
        attempt = task.begin()
        async with served.worker(attempt) as worker:
            await worker.fetch_prompt()
            served.cuts.append("deaf")
            with trio.move_on_after(0.05) as scope:
                await worker.put("raw", b"x" * 1_000_000)
            assert scope.cancelled_caught
            await worker.submit("done")
    assert served.board.outputs.of(task.task_id) == ()
    assert attempt.finals == 1


async def test_a_board_that_is_gone(tmp_path) -> None:
    """The server went away in the middle: after its tries the worker is told."""
    async with serving(tmp_path) as served:
        task = served.board.create("a", "p")
        attempt = task.begin()
        url = served.url
        async with connect_worker(url, attempt.worker_handle, task_id=task.task_id) as worker:
            await worker.fetch_prompt()
    retry = Retry(tries=3, first=0)
    async with connect_worker(url, attempt.worker_handle, task_id=task.task_id, retry=retry) as worker:
        with pytest.raises(PeerGoneError, match="was not sent"):
            await worker.submit("x")
