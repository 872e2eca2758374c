"""The seat of an operator that is at the other end of a WebSocket.

A request is made to the seat, not to a socket: `SeatMachine` decides what is written where
and when, one task per socket writes it, and the asker waits on a channel of its own.
Sockets come and go below; the asker notices nothing of it but time.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from functools import partial
from itertools import count
from typing import Any, Final, TypeAlias, TypeVar, cast

import attrs
import trio

from trio_swarm._io.calls import ReplyStatistics
from trio_swarm._io.deadline import ended_by_deadline
from trio_swarm._io.link import Malformed, open_link
from trio_swarm._io.transport import Transport
from trio_swarm._state.seat import Due, Phase, SeatGone, SeatMachine, SeatStatistics
from trio_swarm.errors import ApprovalDenied, FrameError, PeerGoneError, RemoteError
from trio_swarm.frames import ClientMsg, decode, encode
from trio_swarm.frames.operator import (
    Answer,
    Ask,
    HookAck,
    HookAfter,
    HookBefore,
    Spawn,
    SpawnAck,
    SpawnHalt,
    Withdraw,
    Worker,
)
from trio_swarm.limits import EVENTS_BUFFERED, MALFORMED_PER_MINUTE, MAX_PENDING
from trio_swarm.operators.base import VERBS, AnySeat, WorkerResult
from trio_swarm.operators.intake import Intake, Receipts
from trio_swarm.operators.lineage import nesting, withdrawal_reason
from trio_swarm.operators.renewal import Renewable, Renewals
from trio_swarm.operators.sockets import SeatSocket

__all__ = ["REPLACED", "OperatorStatistics", "Seat"]

REPLACED: Final = 4001
"""Close code of a socket whose session connected anew: not to be reconnected by itself."""

Emit: TypeAlias = Callable[[str, Mapping[str, object]], None]
ReplyT = TypeVar("ReplyT")

_NORMAL: Final = 1000
_TOO_MALFORMED: Final = (1008, "too many messages that are no frames")
_REJECTED: Final = "the operator rejected it and gave no reason"


@attrs.frozen
class OperatorStatistics:
    """What passed over one seat since it was made."""

    sid: str
    connected: bool
    delivery: SeatStatistics
    replies: ReplyStatistics
    malformed: int
    """Messages that were no frame; each was dropped. Too many in a minute close their socket."""

    @property
    def redelivered(self) -> int:
        """Requests that were delivered again after a reconnect."""
        return self.delivery.redelivered


@attrs.frozen
class _Unsendable:
    """Settles a request that turned out to be no frame, or larger than a frame may be."""

    error: FrameError


class Seat(AnySeat):
    """One operator session; made by a login, and gone with its logout or `OperatorServer.remove`.

    See `AnySeat` for the four verbs. Requests are parked while the operator is away and
    delivered again, under the same id and in order, until they are answered.
    """

    def __init__(
        self,
        sid: str,
        *,
        roles: tuple[str, ...] = (),
        desc: str | None = None,
        emit: Emit,
        max_pending: int = MAX_PENDING,
        max_notices: int = EVENTS_BUFFERED,
        max_malformed: int = MALFORMED_PER_MINUTE,
        new_id: Callable[[], object] = uuid.uuid4,
    ) -> None:
        self._sid = sid
        self.roles = roles
        """Names that no other session has while this one lives."""
        self.desc = desc
        """What the operator says of itself."""
        self._emit = emit
        self._new_id = new_id
        self._machine = SeatMachine(max_notices=max_notices)
        self._intake = Intake(
            sid, self._machine, emit=emit, max_pending=max_pending, max_malformed=max_malformed
        )
        self._renewals = Renewals(sid, self._machine, emit)
        self._replies = self._intake.replies
        self._numbers = count(1)
        self._open: dict[int, SeatSocket] = {}
        self._due = trio.lowlevel.ParkingLot()
        self._changed = trio.lowlevel.ParkingLot()
        self._farewell_code = _NORMAL

    def __repr__(self) -> str:
        return f"<Seat {self._sid} {self.roles} {self._machine.phase.value}>"

    @property
    def sid(self) -> str:
        """The session's id."""
        return self._sid

    @property
    def name(self) -> str:
        """The first role, or else the sid."""
        return self.roles[0] if self.roles else self._sid

    @property
    def connected(self) -> bool:
        """A socket is attached now."""
        return self._machine.phase is Phase.CONNECTED

    @property
    def ever_connected(self) -> bool:
        """A socket was attached at least once."""
        return self._machine.ever_connected

    @property
    def gone(self) -> bool:
        """The session is over for good."""
        return self._machine.phase is Phase.GONE

    @property
    def ever_addressed(self) -> bool:
        """It was asked, or told of, something at least once."""
        return self._machine.ever_addressed

    @property
    def verbs(self) -> frozenset[str]:
        """All four."""
        return frozenset(VERBS)

    def pending(self) -> tuple[str, ...]:
        """The ids of requests that wait for their answer, oldest first."""
        return self._replies.pending()

    def statistics(self) -> OperatorStatistics:
        """Counts so far."""
        return OperatorStatistics(
            sid=self._sid,
            connected=self.connected,
            delivery=self._machine.statistics(),
            replies=self._replies.statistics(),
            malformed=self._intake.malformed,
        )

    # -- the four verbs ----------------------------------------------------------------

    async def ask(self, question: Any, *, task_id: str, parent_req_id: str | None = None) -> Any:
        """See `AnySeat.ask`."""
        frame = Ask(
            req_id=self._req_id("ask"),
            **nesting(self.identity, parent_req_id),
            task_id=task_id,
            question=question,
        )
        return (await self._exchange(frame, Answer)).value

    async def hook_before(
        self, *, task_id: str, agent: str, attempt: int, parent_req_id: str | None = None
    ) -> None:
        """See `AnySeat.hook_before`."""
        frame = HookBefore(
            req_id=self._req_id("hb"),
            **nesting(self.identity, parent_req_id),
            task_id=task_id,
            agent=agent,
            attempt=attempt,
        )
        ack = await self._exchange(frame, HookAck)
        if not ack.ok:
            reason = ack.reason if ack.reason is not None else _REJECTED
            raise ApprovalDenied(reason, by=self.name, subject=agent)

    def hook_after(
        self, *, task_id: str, agent: str, attempt: int, result: Any, parent_req_id: str | None = None
    ) -> None:
        """See `AnySeat.hook_after`. Raises `FrameError` for a result that is no JSON."""
        frame = HookAfter(
            req_id=self._req_id("ha"),
            **nesting(self.identity, parent_req_id, waits=False),
            task_id=task_id,
            agent=agent,
            attempt=attempt,
            result=result,
        )
        text = encode(frame)
        # It may wait long, and its sender may change the result meanwhile: it is told as it is now.
        for dropped in self._machine.notify(decode(text, HookAfter), size=len(text)):
            self._notice_dropped(dropped.req_id)
        self._due.unpark_all()

    async def spawn(
        self,
        *,
        task_id: str,
        agent: str,
        attempt: int,
        directive: str,
        capability_token: str = "",
        worker_handle: str | None = None,
        worker: Worker | None = None,
        credential: Renewable | None = None,
        parent_req_id: str | None = None,
    ) -> WorkerResult:
        """See `AnySeat.spawn`."""
        frame = Spawn(
            req_id=self._req_id("spawn"),
            **nesting(self.identity, parent_req_id),
            task_id=task_id,
            agent=agent,
            attempt=attempt,
            capability_token=capability_token,
            worker_handle=worker_handle,
            worker=worker,
            directive=directive,
        )
        with self._renewals.holding(frame.req_id, credential):
            return _result_of(await self._exchange(frame, SpawnAck, SpawnHalt))

    # -- sockets -----------------------------------------------------------------------

    async def serve(self, transport: Transport, *, receipts: bool = False) -> None:
        """Be at this end of one WebSocket until it ends; it replaces an older one.

        What the peer does ends the socket, never the seat. If the session is over already,
        the socket is closed at once. With ``receipts`` each reply that comes on it is
        answered by a `Receipt`.
        """
        number = next(self._numbers)
        async with open_link(transport, ClientMsg, name=self._sid) as link:
            socket = SeatSocket(
                number,
                link,
                transport,
                self._machine,
                self._due,
                partial(self._received, number),
                self._cannot_be_sent,
                self._renewals.fresh,
            )
            socket.receipts = Receipts() if receipts else None
            try:
                self._attach(socket)
            except SeatGone as gone:
                await link.aclose(self._farewell_code, gone.reason)
                return
            try:
                await socket.run()
            finally:
                self._detach(socket)
            # A reply counts from whichever socket it comes (contract 3.3), while any does.
            await socket.say_farewell(listening=not self.gone)

    async def wait_connected(self) -> None:
        """Wait until a socket is attached. Raises `PeerGoneError` if the session ends instead."""
        await trio.lowlevel.checkpoint()
        while not self.connected:
            if self.gone:
                raise PeerGoneError(f"the session of {self.name} is over")
            await self._changed.park()

    async def disconnect(self) -> None:
        """Cut the socket, without a word, as a network does; the session lives on."""
        socket = self._open.get(self._machine.socket or 0)
        if socket is not None:
            await socket.cut()
        await trio.lowlevel.checkpoint()

    def _close(self, reason: str, *, code: int = _NORMAL) -> int:
        """End what hangs on the session: every wait fails now, the socket is closed. Says how many waits.

        For whoever has just taken the session out of its table: alone it would leave one behind that
        nobody can use. Idempotent. Does not wait for the socket, which takes the notices that are queued
        first. A socket that comes later is closed with the same code.
        """
        if self.gone:
            return 0
        self._farewell_code = code
        last = self._machine.unwritten()
        attached = self._machine.close(reason)
        if attached is not None:
            self._open[attached].part(code, reason, last)
        self._changed.unpark_all()
        return self._replies.fail_all(PeerGoneError(reason))

    def _attach(self, socket: SeatSocket) -> None:
        first = not self._machine.ever_connected
        attached = self._machine.attach(socket.number)
        self._open[socket.number] = socket
        if attached.replaced is not None:
            self._open[attached.replaced].part(REPLACED, "replaced by a newer connection")
        self._changed.unpark_all()
        self._emit("operator_connected" if first else "operator_back", {"sid": self._sid, "name": self.name})
        if attached.again:
            self._emit("redelivered", {"sid": self._sid, "req_ids": list(attached.again)})

    def _detach(self, socket: SeatSocket) -> None:
        del self._open[socket.number]
        if self._machine.detach(socket.number):
            self._emit("operator_away", {"sid": self._sid, "name": self.name})

    def _received(self, number: int, item: ClientMsg | Malformed) -> None:
        socket = self._open.get(number)  # None when it was parted from.
        fine = self._intake.take(item, None if socket is None else socket.receipts)
        if socket is not None and not fine and socket.farewell is None:
            self._emit("operator_malformed", {"sid": self._sid, "name": self.name})
            socket.part(*_TOO_MALFORMED)
        if socket is not None and socket.receipts is not None:
            self._due.unpark_all()

    def _cannot_be_sent(self, due: Due, error: FrameError) -> None:
        """Tell the asker, and never try again: the next socket would fare no better."""
        req_id = cast(Ask | HookBefore | Spawn | HookAfter | Withdraw, due.frame).req_id
        if due.notice:
            self._machine.written([due])
            self._notice_dropped(req_id)
            return
        if self._replies.resolve(req_id, _Unsendable(error)) == "accepted":
            self._machine.settle(req_id)

    # -- requests ----------------------------------------------------------------------

    async def _exchange(self, frame: Ask | HookBefore | Spawn, *kinds: type[ReplyT]) -> ReplyT:
        """Make a request and wait for its reply, however many sockets that takes."""
        encode(frame)  # What is no JSON is the caller's error, here and now.
        until = trio.current_effective_deadline()
        with self._replies.expect(frame.req_id, (*kinds, _Unsendable)) as waiter:
            try:
                good_for = self._renewals.good_for(frame.req_id)
                self._machine.request(frame, until=until, good_for=good_for)
            except SeatGone as gone:
                raise PeerGoneError(gone.reason) from None
            self._due.unpark_all()
            try:
                reply = await waiter.wait()
            except PeerGoneError as error:
                raise PeerGoneError(str(error)) from None  # Each asker has one of its own.
            except trio.Cancelled as cancelled:
                self._give_up(frame.req_id, by_deadline=ended_by_deadline(cancelled, until))
                raise
            finally:
                self._give_up(frame.req_id)
        if isinstance(reply, _Unsendable):
            raise FrameError(reply.error.reason, key=reply.error.key) from reply.error
        return cast(ReplyT, reply)

    def _give_up(self, req_id: str, *, by_deadline: bool = False) -> None:
        """Withdraw the request, unless it is settled."""
        reason = withdrawal_reason() or ("deadline" if by_deadline else "cancelled")
        given_up = self._machine.withdraw(req_id, Withdraw(req_id=req_id, reason=reason))
        if given_up is not None:
            self._intake.given_up(req_id, reason)
            if given_up.dropped is not None:
                self._notice_dropped(given_up.dropped.req_id)
            self._due.unpark_all()

    def _notice_dropped(self, req_id: str) -> None:
        self._emit("notice_dropped", {"sid": self._sid, "req_id": req_id})

    def _req_id(self, verb: str) -> str:
        return f"{self._sid}-{verb}-{self._new_id()}"


def _result_of(reply: SpawnAck | SpawnHalt) -> WorkerResult:
    if isinstance(reply, SpawnHalt):
        # A controlled stop counts as success (contract 2.9).
        return WorkerResult({"halted": True, "reason": reply.reason, "value": reply.value})
    if reply.error is not None:
        # Any text, even an empty one, overrides ok (contract 2.8).
        raise RemoteError(reply.error)
    return WorkerResult(reply.value, reply.ok, reply.stats)
