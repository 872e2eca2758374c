"""The client's end of one worker connection (pools.md C2, C4).

Speaks to any worker that keeps the contract, ours or not: request, answer, request.
The caller's own task does the input and output, so a call costs no task switch beyond
the wait for the answer.
"""

from __future__ import annotations

import errno
import math
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import attrs
import trio

from trio_swarm._io.deadline import remaining_ms
from trio_swarm._io.lines import LineTransport
from trio_swarm._io.unix import connect_unix
from trio_swarm.errors import FrameError, HandshakeError, PeerError, PeerGoneError, ProtocolError, SpawnError
from trio_swarm.frames import PoolRequest, PoolResponse, decode, encode, pool
from trio_swarm.limits import CLOSE_DEADLINE, MAX_POOL_LINE, POOL_HANDSHAKE, SOCKET_POLL, SOCKET_WAIT

__all__ = ["Answer", "WorkerClient", "WorkerError", "connect_worker", "line_of"]

_END_SEEN: Final = 0.2
"""Seconds for the end of the stream to follow a line that makes no sense."""

_NOT_YET: Final = (errno.ENOENT, errno.ECONNREFUSED, errno.EAGAIN)
"""The last: its queue is full just now."""


class WorkerError(PeerError):
    """The worker answered ``ok: false``: it refused the request, and nothing changed there.

    ``text`` is what it said. The connection can still be used.
    """

    def __init__(self, text: str) -> None:
        super().__init__(f"worker returned error: {text}")
        self.text = text


@attrs.frozen
class Answer:
    """What ``run`` and ``continue`` give."""

    session_id: str
    feed: pool.FeedResult


@attrs.define(eq=False)
class WorkerClient:
    """One connection, one request in flight; any task may use it, one at a time.

    A request that is cancelled or fails closes the connection, because the next answer
    would be the last request's. There is one exception: see `late_answer`.
    """

    _transport: LineTransport
    _busy: bool = attrs.field(default=False, init=False)
    _owed: bool = attrs.field(default=False, init=False)
    sent: bool = attrs.field(default=False, init=False)
    """Whether the last request went out whole, so that the worker may have acted on it."""

    @property
    def begun(self) -> bool:
        """Whether any of the last request went out, so that the worker may have died of it."""
        return self._transport.begun

    async def handshake(self, version: str, *, within: float = POOL_HANDSHAKE) -> None:
        """Agree on *version*, which must be the worker's, character by character.

        Raises:
            HandshakeError: it is another, or no handshake answer came within *within* seconds.
            PeerGoneError: the worker closed the connection.
        """
        answer: PoolResponse | None = None
        with trio.move_on_after(within):
            try:
                answer = await self.request(pool.Handshake(version=version))
            except ProtocolError as error:
                raise HandshakeError(f"unexpected handshake response: {error}") from error
        match answer:
            case pool.HandshakeOk(version=told) if told == version:
                return
            case pool.HandshakeOk(version=told):
                raise HandshakeError(f"version mismatch: client={version}, server={told}")
            case None:
                raise HandshakeError(f"handshake recv timeout ({within:g}s)")
            case pool.Failure(error=text):
                raise HandshakeError(f"unexpected handshake response: {text}")
        raise HandshakeError("unexpected handshake response")

    async def run(self, code: str, ctx: Any = None, lib_paths: Sequence[str] = ()) -> Answer:
        """Start a job; returns at its first pause or its end.

        The caller's remaining time goes along and ends the job in the worker.

        Raises:
            FrameError: *ctx* is not JSON, or too large; nothing was sent.
            WorkerError: the worker refused.
            PeerGoneError: the connection ended first.
        """
        return await self.feed(
            pool.Run(code=code, ctx=ctx, lib_paths=tuple(lib_paths), deadline_ms=remaining_ms())
        )

    async def cont(
        self, sid: str, response: str, query_id: str | None = None, *, usage: pool.Usage | None = None
    ) -> Answer:
        """Answer one query of the pause; raises like `run`."""
        return await self.feed(
            pool.Continue(
                sid=sid, response=response, query_id=query_id, usage=usage, deadline_ms=remaining_ms()
            )
        )

    async def status(self, *, include_history: bool = False) -> pool.StatusReport:
        """What the worker is at; raises like `run`."""
        answer = await self.request(pool.Status(include_history=include_history))
        if isinstance(answer, pool.StatusReport):
            return answer
        raise _unexpected("Status", answer)

    async def shutdown(self) -> None:
        """Ask the worker to end; it has answered when this returns, and is about to exit."""
        answer = await self.request(pool.Shutdown())
        if not isinstance(answer, pool.ShutdownOk):
            raise _unexpected("Shutdown", answer)

    async def feed(self, frame: pool.Run | pool.Continue) -> Answer:
        """Send a ready-made ``run`` or ``continue``."""
        return await self.feed_line(line_of(frame))

    async def feed_line(self, line: str) -> Answer:
        """Send a ``run`` or ``continue`` that `line_of` has made just now, with the caller's deadline."""
        return _fed(await self._request(line, trio.current_effective_deadline()))

    async def late_answer(self) -> Answer:
        """Receive what a request is still owed that was cancelled because its time was over.

        The worker knew of the deadline and enforces it, so its answer is about to come, and
        the connection was kept for it (`owed`). Raises like `run`.
        """
        assert self._owed
        self._owed, self._busy = False, True
        try:
            return _fed(await self._receive())
        except BaseException:
            with trio.move_on_after(CLOSE_DEADLINE, shield=True):
                await self._transport.aclose_forcefully()
            raise
        finally:
            self._busy = False

    @property
    def owed(self) -> bool:
        """Whether the last request was cancelled by its own deadline with its answer outstanding."""
        return self._owed

    async def request(self, frame: PoolRequest) -> PoolResponse:
        """Send one request and receive its answer.

        Raises:
            FrameError: *frame* cannot be written; nothing was sent.
            trio.BusyResourceError: another task's request is in flight.
            PeerGoneError: the connection ended first.
            ProtocolError: what came is no answer.
        """
        return await self._request(line_of(frame), math.inf)

    async def _request(self, line: str, deadline: float) -> PoolResponse:
        if self._busy or self._owed:
            raise trio.BusyResourceError("one request at a time")
        self._busy, self.sent = True, False
        try:
            return await self._exchange(line)
        except BaseException as error:
            late = trio.current_time() >= deadline
            self._owed = isinstance(error, trio.Cancelled) and self.sent and late
            if not self._owed:
                with trio.move_on_after(CLOSE_DEADLINE, shield=True):
                    await self._transport.aclose_forcefully()
            raise
        finally:
            self._busy = False

    async def aclose(self) -> None:
        """Hang up."""
        await self._transport.aclose()

    async def _has_ended(self) -> bool:
        """Whether the line was the stream's last, and may lack its end."""
        with trio.move_on_after(_END_SEEN):
            try:
                return not await self._transport.receive_batch()
            except trio.BrokenResourceError:
                return True
        return False

    async def _exchange(self, line: str) -> PoolResponse:
        try:
            await self._transport.send_batch((line,))
        except trio.BrokenResourceError as error:
            raise PeerGoneError("the worker is gone: the request could not be sent") from error
        self.sent = True
        return await self._receive()

    async def _receive(self) -> PoolResponse:
        try:
            batch = await self._transport.receive_batch()
        except trio.BrokenResourceError as error:
            raise PeerGoneError("the connection to the worker broke") from error
        if not batch:
            raise PeerGoneError("the worker hung up without an answer")
        if len(batch) > 1:
            raise ProtocolError(f"{len(batch)} answers to one request")
        try:
            return decode(batch[0], PoolResponse)
        except FrameError as error:
            fault = error
        if await self._has_ended():
            raise PeerGoneError("the worker was cut off in the middle of its answer") from fault
        raise ProtocolError(f"failed to parse worker response: {fault}") from fault


def line_of(frame: PoolRequest) -> str:
    """*frame* as it travels, without its newline; FrameError if it is not JSON or too long."""
    try:
        line = encode(frame)
        size = len(line.encode())
    except (TypeError, ValueError, RecursionError) as error:
        if isinstance(error, FrameError):
            raise
        raise FrameError(f"not JSON: {error}") from error
    if size > MAX_POOL_LINE:
        raise FrameError(f"{size} bytes are more than a line may have ({MAX_POOL_LINE})")
    return line


def _fed(response: PoolResponse) -> Answer:
    if isinstance(response, pool.Feed):
        return Answer(response.session_id, pool.parse_feed(response.feed_result))
    raise _unexpected("Feed", response)


def _unexpected(wanted: str, response: PoolResponse) -> PeerError:
    if isinstance(response, pool.Failure):
        return WorkerError(response.error)
    return ProtocolError(f"expected {wanted} response, got {response.tag}")


@asynccontextmanager
async def connect_worker(
    path: str,
    version: str,
    *,
    wait: float = SOCKET_WAIT,
    poll: float = SOCKET_POLL,
    handshake: float = POOL_HANDSHAKE,
    gone: Callable[[], str | None] = lambda: None,
) -> AsyncIterator[WorkerClient]:
    """Connect to the worker at *path* and agree on *version*; hangs up at the end of the block.

    A worker that is not there yet is waited for: its socket is tried every *poll* seconds
    for *wait* seconds (C4), or until *gone* says how its process ended. Its handshake answer
    has *handshake* seconds. (A sub-agent that does a step: `trio_swarm.workers.connect_worker`.)

    Raises:
        SpawnError: nobody listened in time, or the process ended before it did.
        HandshakeError: see `WorkerClient.handshake`.
        PeerGoneError: it hung up.
    """
    stream = await _connect(path, wait, poll, gone)
    transport = LineTransport(stream, max_line=MAX_POOL_LINE)
    try:
        client = WorkerClient(transport)
        await client.handshake(version, within=handshake)
        yield client
    finally:
        with trio.move_on_after(CLOSE_DEADLINE, shield=True):
            await transport.aclose_forcefully()


async def _connect(path: str, wait: float, poll: float, gone: Callable[[], str | None]) -> trio.SocketStream:
    until = trio.current_time() + wait
    while True:
        how = gone()
        if how is not None:
            raise SpawnError(f"the worker {how} before it listened at {path}")
        try:
            return await connect_unix(path)
        except OSError as error:
            if error.errno not in _NOT_YET:
                raise SpawnError(f"failed to connect to UDS socket: {error}") from error
            if trio.current_time() >= until:
                raise SpawnError(f"timeout waiting for worker socket at {path}") from error
        await trio.sleep(poll)
