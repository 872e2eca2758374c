"""An operator's end of its session: the connection, the requests and the replies."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from typing import Final, Self

import attrs
import trio

from trio_swarm._io.link import Link, Malformed, open_link
from trio_swarm._io.ws import WsTransport, open_ws_client
from trio_swarm.errors import FrameError, HandshakeError, PeerError, PeerGoneError
from trio_swarm.frames import ClientMsg, ServerMsg, encode
from trio_swarm.frames.operator import Ask, HookAfter, HookBefore, Receipt, Spawn, Withdraw
from trio_swarm.limits import CLOSE_DEADLINE, MAX_FRAME, MAX_PENDING, PEER_SILENCE
from trio_swarm.operators.api import INSTANCE_HEADER
from trio_swarm.operators.handling import Handle, handle_each, is_notice
from trio_swarm.operators.inbox import Inbox
from trio_swarm.operators.joining import Login, OperatorSession
from trio_swarm.operators.ledger import Ledger, LedgerStatistics, Orphans
from trio_swarm.operators.lineage import identity
from trio_swarm.operators.reconnect import Reconnect
from trio_swarm.operators.requests import (
    OperatorItem,
    OperatorRequest,
    ReplyRefused,
    Settled,
    Withdrawn,
    deadline_of,
    disown,
    request_for,
)
from trio_swarm.operators.seat import REPLACED

__all__ = ["OperatorClient"]

_INBOX: Final = 2 * MAX_PENDING
_STEADY: Final = 3.0
"""A connection that lasted so long, in seconds, was one, even if nothing was said on it."""
_SESSION_OVER: Final = frozenset({401, 404, 410})


@attrs.define(eq=False)
class OperatorClient:
    """One operator's end of its session; made by `connect_operator`.

    ``async for item in client`` gives `AskRequest`, `GateRequest`, `SpawnRequest` and the
    notices `HookAfter`, `Withdrawn` and `ReplyRefused`, each once, from any number of tasks. It ends when
    the session was ended by the server, and raises `PeerGoneError` when the server cannot
    be reached any more or another connection took the session over.

    When the session comes back to another server, started in the place of the one that had it,
    what the former one had asked is over, since nobody waits for it any more: it is `Withdrawn`,
    or, if it was replied to and no receipt had come, `ReplyRefused` as ``unknown``. Only a server
    that says which one it is makes that known; of an original everything stays as it was.
    """

    _session: Login
    _reconnect: Reconnect
    _rng: random.Random = attrs.field(repr=False)
    _ping_every: float | None = None
    _silence: float = PEER_SILENCE
    _connected: bool = False
    _ledger: Ledger[OperatorRequest] = attrs.field(factory=lambda: Ledger[OperatorRequest](), repr=False)
    _inbox: Inbox[OperatorItem] = attrs.field(init=False, repr=False)
    _due: trio.lowlevel.ParkingLot = attrs.field(factory=trio.lowlevel.ParkingLot, repr=False)
    _written: trio.lowlevel.ParkingLot = attrs.field(factory=trio.lowlevel.ParkingLot, repr=False)
    _begun: trio.Event = attrs.field(factory=trio.Event, repr=False)
    _moved: trio.lowlevel.ParkingLot = attrs.field(factory=trio.lowlevel.ParkingLot, repr=False)
    _over: Exception | None = attrs.field(default=None, repr=False)
    _ended: bool = False
    _connections: int = 0
    _heard: bool = False
    """A frame came on the present or the last socket."""
    _malformed: int = 0
    _notices_dropped: int = 0

    def __attrs_post_init__(self) -> None:
        self._inbox = Inbox(_INBOX, is_notice)

    @property
    def sid(self) -> str:
        """The session's id, chosen by the server."""
        return self._session.sid

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles that this session holds."""
        return self._session.roles

    @property
    def identity(self) -> str:
        """Who this is in the lineage of a request: ``name#sid``."""
        return identity(self.roles[0] if self.roles else self.sid, self.sid)

    @property
    def session(self) -> OperatorSession:
        """What `connect_operator` needs to come back to it; it holds the token."""
        return self._session.session

    @property
    def redelivers(self) -> bool:
        """The server asks again, on a new connection, what was not answered."""
        return self._session.redelivers

    @property
    def receipts(self) -> bool:
        """The server says of each reply whether it counts."""
        return self._session.receipts

    @property
    def connected(self) -> bool:
        """There is a socket now."""
        return self._connected

    async def connection_changed(self) -> None:
        """Wait until a socket is opened or lost from now on. When cancelled, nothing is lost."""
        await self._moved.park()

    @property
    def taken_over(self) -> bool:
        """Another connection has the session now: it is not this one's to end."""
        return isinstance(self._over, _TakenOver)

    @property
    def connections(self) -> int:
        """Sockets opened so far: one more than reconnects."""
        return self._connections

    def statistics(self) -> LedgerStatistics:
        """Counts so far."""
        return self._ledger.statistics()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> OperatorItem:
        try:
            return await self.receive()
        except trio.EndOfChannel:
            raise StopAsyncIteration from None

    async def receive(self) -> OperatorItem:
        """The next request or notice.

        Raises ``trio.EndOfChannel`` when the server has ended the session, and
        `PeerGoneError` as the class says. When cancelled, nothing is lost.
        """
        return await self._receive(lambda notice: True)

    async def _receive(self, wanted: Callable[[bool], bool]) -> OperatorItem:
        while True:
            try:
                item = await self._inbox.take(wanted)
            except trio.EndOfChannel:
                if self._over is not None:
                    raise PeerGoneError(str(self._over)) from self._over
                raise
            if isinstance(item, HookAfter | Withdrawn | ReplyRefused):
                return item
            if item.withdrawn is None:
                item.show()
                return item

    async def serve(self, handle: Handle, *, at_once: int = MAX_PENDING) -> None:
        """Call ``handle`` with each request and notice, in a task each, until the session is over.

        A request is handled inside its ``answering()``: what the handler asks of others is asked
        for that request. At most ``at_once`` requests are handled at a time; the others wait, and
        what is withdrawn meanwhile is not handled. Notices need no such place: up to 64 are handled
        beside them, so that a handler may learn that its request was withdrawn. What ``handle``
        raises ends this; raises as `receive` does, also while requests wait for their place.
        """
        await handle_each(self._receive, self._inbox.look_again, handle, at_once=at_once)

    def reply(self, frame: ClientMsg) -> bool:
        """Keep a reply until the server has it; the requests' own methods call this.

        False, and nothing is kept, when the request is not open or the session is over. Raises
        `FrameError` for what is no JSON, or too large for a frame.
        """
        size = len(encode(frame).encode())
        if size > MAX_FRAME:
            raise FrameError(f"the reply is larger than {MAX_FRAME} bytes")
        if self._ended:
            return False
        accepted = self._ledger.reply(frame.req_id, frame, size)
        self._due.unpark_all()
        return accepted

    async def flush(self) -> None:
        """Wait until every reply has left on some socket; `PeerGoneError` if there will be none for it."""
        await trio.lowlevel.checkpoint()
        while not self._ledger.settled:
            if self._ended:
                raise PeerGoneError("the session was over before every reply had left")
            await self._written.park()

    async def _stay_connected(self) -> None:
        """Open a socket, and another when it is lost; raises only before the first one is open."""
        try:
            error = await self._connect_until_over()
        finally:
            self._inbox.close()
            # Nothing leaves any more: who waits for that is told.
            self._ended = True
            self._written.unpark_all()
            for request in self._ledger.unreceipted():
                request.settle(None)
        if not self._connections and error is not None:
            raise error

    async def _connect_until_over(self) -> Exception | None:
        """Returns how the last try failed, if it did."""
        failures, lost = 0, trio.current_time()
        while True:
            had, began, self._heard = self._connections, trio.current_time(), False
            try:
                await self._connect_once()
                error: Exception | None = None
            except (PeerError, OSError, trio.BrokenResourceError, trio.ClosedResourceError) as caught:
                error = caught
            if self._connections > had:
                lost = trio.current_time()
                if self._heard or lost - began >= _STEADY:
                    failures = 0
            if self._is_over(error, trio.current_time() - lost):
                return error
            await trio.sleep(self._reconnect.delay(failures, self._rng))
            failures += 1

    def _is_over(self, error: Exception | None, away: float) -> bool:
        """Whether to stop trying; sets what `receive` then raises, if anything."""
        if isinstance(error, HandshakeError) and error.status in _SESSION_OVER:
            return True
        if isinstance(error, _TakenOver):
            self._over = error
            return True
        if away >= self._reconnect.give_up_after:
            self._over = error or PeerGoneError(f"no connection for {away:g} s")
            return True
        return False

    async def _connect_once(self) -> None:
        """One socket, from its opening to its end."""
        session = self._session
        async with open_ws_client(
            session.address.ws_url(session.path + "/ws"),
            headers=session.ws_headers,
            ssl_context=session.ssl_context,
            uds=session.address.uds,
            ping_every=self._ping_every,
            silence=self._silence,
        ) as transport:
            self._connections += 1
            self._begun.set()
            try:
                await self._use(transport)
            finally:
                # Also where this end is leaving just now: the session is another's then.
                if (transport.close_reason or (0, ""))[0] == REPLACED:
                    self._over = _TakenOver("another connection took the session over")
        if self._over is not None:
            raise self._over

    async def _use(self, transport: WsTransport) -> None:
        async with open_link(transport, ServerMsg, name=self._session.sid) as link:
            # Before any frame of this socket: what that asks is this server's.
            self._begin_socket(transport.header(INSTANCE_HEADER) or None)
            self._connected = True
            self._moved.unpark_all()
            try:
                await self._converse(link)
            finally:
                self._connected = False
                self._moved.unpark_all()

    def _begin_socket(self, instance: str | None) -> None:
        """There is a new socket; what another server than this one had asked is over."""
        orphans = self._ledger.connected(
            redelivers=self.redelivers, receipts=self.receipts, instance=instance
        )
        for notice in disown(orphans):
            self._notify(notice)
        for request in orphans.open:
            self._inbox.drop(request)
        self._written.unpark_all()

    async def _converse(self, link: Link[ServerMsg]) -> None:
        """Until the link is over; everything that had come by then was taken in."""
        unread: deque[ServerMsg | Malformed] = deque()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._write_all, link, nursery.cancel_scope)
            nursery.start_soon(self._read_all, link, unread, nursery.cancel_scope)
        for frame in (*unread, *link.take_arrived()):
            self._heard = True
            request = self._received(frame)
            if request is not None:
                self._show_nowait(request)

    async def _write_all(self, link: Link[ServerMsg], scope: trio.CancelScope) -> None:
        try:
            while True:
                replies = self._ledger.take()
                if not replies:
                    await self._due.park()
                    continue
                for frame in replies:
                    await link.send(frame)
                await link.flush()
                self._ledger.written(replies)
                self._written.unpark_all()
        except (PeerError, trio.BrokenResourceError, trio.ClosedResourceError):
            # The reader has the last word, as the link says; but not for as long as it waits
            # for the user, because there are replies that want another socket.
            scope.deadline = trio.current_time() + CLOSE_DEADLINE

    async def _read_all(
        self, link: Link[ServerMsg], unread: deque[ServerMsg | Malformed], scope: trio.CancelScope
    ) -> None:
        try:
            while True:
                unread += await link.receive_many()
                self._heard = True
                while unread:
                    request = self._received(unread[0])
                    if request is not None:
                        await self._show(request)
                    unread.popleft()
        except (trio.EndOfChannel, PeerError, trio.BrokenResourceError, trio.ClosedResourceError):
            scope.cancel()

    def _received(self, frame: ServerMsg | Malformed) -> OperatorRequest | None:
        """Take in what the server said; returns a request that is to be shown to the user."""
        if isinstance(frame, Malformed):
            self._malformed += 1
        elif isinstance(frame, Withdraw):
            self._taken_back(frame)
        elif isinstance(frame, Receipt):
            self._receipted(frame)
        elif isinstance(frame, HookAfter):
            if self._ledger.told(frame.req_id):
                self._notify(frame)
        else:
            return self._requested(frame)
        return None

    def _requested(self, frame: Ask | HookBefore | Spawn) -> OperatorRequest | None:
        arrival = self._ledger.arrived(frame.req_id)
        if arrival == "answered":
            self._due.unpark_all()
        shown = self._ledger.shown(frame.req_id)
        if shown is not None:
            shown.deadline = deadline_of(frame)
        if arrival != "new":
            return None
        request = request_for(frame, self)
        for notice in disown(Orphans(replied=self._ledger.show(frame.req_id, request))):
            self._notify(notice)
        return request

    async def _show(self, request: OperatorRequest) -> None:
        put = False
        try:
            await self._inbox.put(request)
            put = True
        finally:
            if not put:
                # Nobody was shown it: when it comes again, it is new.
                self._ledger.unshow(request.req_id)

    def _show_nowait(self, request: OperatorRequest) -> None:
        if not self._inbox.put_nowait(request):
            self._ledger.unshow(request.req_id)

    def _taken_back(self, frame: Withdraw) -> None:
        request = self._ledger.withdraw(frame.req_id)
        if request is not None:
            self._inbox.drop(request)
            if request.take_back(frame.reason):
                self._notify(Withdrawn(request, frame.reason))

    def _receipted(self, frame: Receipt) -> None:
        told = self._ledger.receipt(frame.req_id, frame.accepted, frame.reason)
        if told is None:
            return
        told.request.settle(Settled(told.refused))
        if told.refused is not None:
            self._notify(ReplyRefused(told.request, told.refused))

    def _notify(self, item: HookAfter | Withdrawn | ReplyRefused) -> None:
        if not self._inbox.put_nowait(item):
            self._notices_dropped += 1


class _TakenOver(PeerGoneError):
    """The server says that another socket has the session now; coming back would start a fight."""
