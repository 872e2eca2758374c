"""One attempt of one job on one worker, in the caller's own task."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import attrs
import trio

from trio_swarm._io.deadline import remaining_ms
from trio_swarm._io.groups import collapse, leaves
from trio_swarm.errors import ChildCrashed, PeerGoneError, ProtocolError, RemoteError
from trio_swarm.frames import pool
from trio_swarm.pools._client import Answer, WorkerClient, WorkerError, line_of
from trio_swarm.pools._remote import rebuild
from trio_swarm.pools._values import JobQuery
from trio_swarm.pools._worker import Worker, WorkerLost

__all__ = ["Job", "drive"]


_ENDS: Final = (pool.Completed, pool.Failed, pool.Cancelled)

_NOTICED: Final = 1.0
"""Seconds between the worker's notice of a deadline and the caller's own, at most."""


@attrs.define(eq=False)
class Job:
    """What is to be run, and how often it was tried."""

    number: int
    code: str
    ctx: Any
    lib_paths: tuple[str, ...]
    on_query: Callable[[JobQuery], Awaitable[str]] | None
    attempts: int = 0
    last_crash: ChildCrashed | None = None


class _Gone(Exception):
    """The worker is lost. Not to be mixed up with what ``on_query`` may raise.

    ``how`` says what it did, if it broke the contract; else its connection ended.
    """

    def __init__(self, how: str = "") -> None:
        super().__init__(how)
        self.how = how


async def drive(worker: Worker, job: Job) -> Any:
    """Run *job* on *worker* to its end and return the result.

    Afterwards the worker is fit for another job, or it was handed back with a verdict.

    Raises:
        WorkerLost: it went down; its process is reaped by now.
        Exception: the job's own error, or that of its ``on_query``.
    """
    # Up to here and in line_of the worker has heard nothing: it stays fit.
    await trio.lowlevel.checkpoint_if_cancelled()
    deadline_ms = remaining_ms()
    line = line_of(pool.Run(code=job.code, ctx=job.ctx, lib_paths=job.lib_paths, deadline_ms=deadline_ms))
    begun = False
    try:
        with _verdict(worker):
            try:
                answer = await _exchange(worker.client, line)
            finally:
                begun = worker.client.begun
            if answer.session_id == worker.session:
                # Somebody answers twice, and what came is the last job's.
                raise _Gone(f"broke the contract: the session {answer.session_id} was over")
            worker.session = answer.session_id
            while isinstance(answer.feed, pool.Paused):
                answer = await _resume(worker.client, job, answer.session_id, answer.feed)
            if not isinstance(answer.feed, _ENDS):
                raise _Gone(f"broke the contract: no end of a job: {str(answer.feed)[:200]}")
    except _Gone as error:
        gone = error
        if not begun:
            # Not this job's doing: the death counts for the pool, like that of an idle worker.
            worker.job = None
    else:
        worker.completed += 1
        if deadline_ms is not None and _ran_out_of_time(answer.feed):
            # The worker was the first to notice. The caller's own scope says it, a moment later;
            # unless the caller has given itself more time meanwhile.
            until = min(trio.current_effective_deadline(), trio.current_time() + _NOTICED)
            await trio.sleep_until(until)
        return _result(answer.feed)
    await worker.gone.wait()
    assert worker.crash is not None
    raise WorkerLost(worker.crash, begun=begun) from gone


@contextmanager
def _verdict(worker: Worker) -> Iterator[None]:
    """Whatever ends the conversation early says what becomes of the worker."""
    try:
        yield
    except _Gone as gone:
        worker.how = gone.how
        worker.hand_back("lost")
        raise
    except trio.Cancelled:
        worker.hand_back("late" if worker.client.owed else "cancelled")
        raise
    except WorkerError as refused:
        # A request that the worker could not read (nested too deep, say) has changed nothing there.
        if refused.text.startswith("malformed request"):
            raise
        worker.how = f"broke the contract: {refused}"
        worker.hand_back("lost")
        raise _Gone(worker.how) from refused
    except BaseExceptionGroup as group:
        found = [each for each in leaves(group) if isinstance(each, _Gone)]
        worker.hand_back("lost" if found else "dismissed")
        if not found:
            raise
        worker.how = found[0].how
        raise _Gone(worker.how) from group
    except BaseException:
        # Of on_query.
        worker.hand_back("dismissed")
        raise


async def _exchange(client: WorkerClient, line: str) -> Answer:
    try:
        return await client.feed_line(line)
    except (PeerGoneError, trio.ClosedResourceError, trio.BrokenResourceError) as error:
        raise _Gone from error
    except ProtocolError as error:
        raise _Gone(f"broke the contract: {error}") from error


async def _resume(client: WorkerClient, job: Job, sid: str, paused: pool.Paused) -> Answer:
    """Have the queries of one pause answered, and feed each answer as it comes."""
    if len(paused.queries) == 1:
        query = paused.queries[0]
        return await _feed(client, sid, query.id, await _ask(job, query))
    send, receive = trio.open_memory_channel[tuple[str, str]](len(paused.queries))

    async def ask(query: pool.Query) -> None:
        send.send_nowait((query.id, await _ask(job, query)))

    answer: Answer | None = None
    with collapse():
        async with trio.open_nursery() as nursery:
            for query in paused.queries:
                nursery.start_soon(ask, query)
            for _ in paused.queries:
                answer = await _feed(client, sid, *await receive.receive())
                if not isinstance(answer.feed, pool.Accepted):
                    break
            nursery.cancel_scope.cancel()
    if answer is None or isinstance(answer.feed, pool.Accepted):
        raise _Gone("broke the contract: it has every answer and wants more")
    return answer


async def _feed(client: WorkerClient, sid: str, query_id: str, text: str) -> Answer:
    return await _exchange(
        client,
        line_of(pool.Continue(sid=sid, response=text, query_id=query_id, deadline_ms=remaining_ms())),
    )


async def _ask(job: Job, query: pool.Query) -> str:
    if job.on_query is None:
        raise RuntimeError(f"the job asks, and the pool has no on_query: {query.prompt[:200]!r}")
    text = await job.on_query(
        JobQuery(
            prompt=query.prompt,
            system=query.system,
            max_tokens=query.max_tokens,
            query_id=query.id,
            ctx=job.ctx,
            attempt=job.attempts,
        )
    )
    if not isinstance(text, str):
        raise TypeError(f"on_query must return a str, not {type(text).__name__}")
    return text


def _ran_out_of_time(feed: pool.FeedResult) -> bool:
    told = feed.exception if isinstance(feed, pool.Failed) else None
    return isinstance(told, dict) and told.get("type") == "DeadlineExceeded"


def _result(feed: pool.FeedResult) -> Any:
    match feed:
        case pool.Completed(result=value):
            return value
        case pool.Failed(error=text, exception=exception):
            raise rebuild(text, exception)
        case pool.Cancelled():
            raise RemoteError("the worker cancelled the job", remote_type="Cancelled")
    raise AssertionError("only these were let through")
