"""What one operator's seat owes its operator, and in which order: a pure machine.

A request is *outstanding* from the moment it is made until it is answered or given up.
Whatever happens to sockets in between is of no concern to whoever waits: when a socket
is attached, every outstanding request is due again on it, in the order in which the
requests were made, each under its own ``req_id``. Requests that were queued and never
written are simply outstanding, like those that were written to a socket that then died;
nobody can tell the two apart, and redelivery makes it unnecessary to.

::

    AWAY  -- attach(socket) -->  CONNECTED  -- detach(same socket) -->  AWAY
      \\                              |  \\__ attach(newer) replaces: the old is to be closed
       \\___________ close ___________|______________________________-->  GONE (terminal)

Beside requests there are *notices* (``hook_after``; ``withdraw``): nothing answers them.
They wait in two bounded queues, so that no crowd of cancelled requests pushes out what was
told: ``hook_after`` in one, ``withdraw``, at most one for each request that was offered, in
the other. The oldest of a queue is dropped, and named, when it is full, and they leave it
when the socket has taken them (`written`).

All transitions are in this file. Time comes in as ``now``; frames go out as values. The
only errors are ``ValueError`` for a ``req_id`` that is outstanding already and
`SeatGone` for a request to a seat that is gone; on either, nothing changes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final, cast

import attrs

from trio_swarm._state.seat_values import Attached, Due, GivenUp, Phase, SeatGone, SeatStatistics
from trio_swarm._state.seat_values import Frame as _Frame
from trio_swarm.limits import EVENTS_BUFFERED, MAX_FRAME, MAX_PENDING, RENEWAL_MARGIN

__all__ = ["Attached", "Due", "GivenUp", "Phase", "SeatGone", "SeatMachine", "SeatStatistics"]

_MAX_WITHDRAWALS: Final = 4 * MAX_PENDING
"""Only an operator that comes and goes many times, and never takes one, gets there."""
_MAX_NOTICE_BYTES: Final = 4 * MAX_FRAME


@attrs.define(eq=False)
class _Notice:
    """A frame that nothing answers."""

    order: int
    frame: _Frame
    size: int = 0


@attrs.define(eq=False)
class _Outstanding:
    """A request that is neither answered nor given up."""

    order: int
    frame: _Frame
    until: float
    """The asker's deadline, ``math.inf`` for none; on the same clock as ``now``."""
    offers: int = 0
    """How often it was taken for writing so far: at most once on each socket."""
    waits: bool = False
    """What it is about changes with waiting: it was made while nobody was there, or with a
    credential that was good for longer than ``RENEWAL_MARGIN``."""


class SeatMachine:
    """The state of one seat. See the module's text.

    ``max_notices`` and ``max_withdrawals`` bound the notices of each kind that it holds, and
    ``max_notice_bytes`` how large the former are together. The requests are bounded by the
    owner, who keeps a place for each asker anyway.
    """

    def __init__(
        self,
        *,
        max_notices: int = EVENTS_BUFFERED,
        max_withdrawals: int = _MAX_WITHDRAWALS,
        max_notice_bytes: int = _MAX_NOTICE_BYTES,
    ) -> None:
        self._max_notices = max_notices
        self._max_notice_bytes = max_notice_bytes
        self._notice_bytes = 0
        self._max_withdrawals = max_withdrawals
        self._phase = Phase.AWAY
        self._socket: int | None = None
        self._sockets = 0
        self._order = 0
        self._gone_because = ""
        # Each in the order in which they were made; a dict keeps it and forgets in one step.
        self._outstanding: dict[str, _Outstanding] = {}
        self._notices: dict[int, _Notice] = {}
        self._withdrawals: dict[int, _Notice] = {}
        # What the attached socket has not taken yet. Empty while there is none.
        self._due: dict[int, _Outstanding | _Notice] = {}
        self._requests = self._settled = self._withdrawn = 0
        self._redelivered = self._dropped = 0

    def __repr__(self) -> str:
        return f"<SeatMachine {self._phase.value}: {len(self._outstanding)} outstanding>"

    @property
    def phase(self) -> Phase:
        """Where the seat is."""
        return self._phase

    @property
    def socket(self) -> int | None:
        """The number of the attached socket; None unless connected."""
        return self._socket

    @property
    def ever_connected(self) -> bool:
        """A socket was attached at least once."""
        return self._sockets > 0

    @property
    def ever_addressed(self) -> bool:
        """It was asked, or told of, something at least once."""
        return self._order > 0

    def outstanding(self) -> tuple[str, ...]:
        """The ids that wait for an answer, in the order in which they were made."""
        return tuple(self._outstanding)

    # -- sockets -----------------------------------------------------------------------

    def attach(self, socket: int) -> Attached:
        """A new socket takes the seat over; everything outstanding is due on it.

        ``socket`` is a number that the owner never uses twice. Raises `SeatGone`.
        """
        self._refuse_if_gone()
        replaced, self._socket = self._socket, socket
        self._phase = Phase.CONNECTED
        self._sockets += 1
        everything: list[_Outstanding | _Notice] = [
            *self._outstanding.values(),
            *self._notices.values(),
            *self._withdrawals.values(),
        ]
        everything.sort(key=lambda each: each.order)
        self._due = {each.order: each for each in everything}
        again = tuple(req_id for req_id, request in self._outstanding.items() if request.offers)
        self._redelivered += len(again)
        return Attached(replaced, again)

    def detach(self, socket: int) -> bool:
        """That socket is closed. False if it was not the attached one: nothing changes then."""
        if socket != self._socket:
            return False
        self._socket = None
        self._phase = Phase.AWAY
        self._due.clear()
        return True

    def close(self, reason: str) -> int | None:
        """The seat is gone for good; returns the socket to close, if one is attached.

        What was outstanding is forgotten: its askers are the owner's to tell. A second call
        changes nothing.
        """
        if self._phase is Phase.GONE:
            return None
        socket, self._socket = self._socket, None
        self._phase = Phase.GONE
        self._gone_because = reason
        self._outstanding.clear()
        self._notices.clear()
        self._withdrawals.clear()
        self._due.clear()
        return socket

    # -- requests ----------------------------------------------------------------------

    def request(self, frame: _Frame, *, until: float = math.inf, good_for: float = math.inf) -> None:
        """A request is made. It is due at once, and on every later socket until it is settled.

        ``good_for`` is how many seconds the credential in it has left.
        """
        self._refuse_if_gone()
        if frame.req_id in self._outstanding:
            raise ValueError(f"request {frame.req_id!r} is outstanding already")
        waits = self._phase is Phase.AWAY or good_for > RENEWAL_MARGIN
        request = _Outstanding(self._next_order(), frame, until, waits=waits)
        self._outstanding[frame.req_id] = request
        self._make_due(request)
        self._requests += 1

    def settle(self, req_id: str) -> bool:
        """It was answered. False if it is not outstanding."""
        if self._forget(req_id) is None:
            return False
        self._settled += 1
        return True

    def withdraw(self, req_id: str, notice: _Frame | None = None) -> GivenUp | None:
        """Its asker gave it up. None if it is not outstanding.

        ``notice`` tells the operator so, if the request was ever offered to it: an
        operator that never saw it is not told.
        """
        request = self._forget(req_id)
        if request is None:
            return None
        self._withdrawn += 1
        if not request.offers or notice is None:
            return GivenUp()
        dropped = None
        if len(self._withdrawals) >= self._max_withdrawals:
            dropped = self._drop_oldest(self._withdrawals)
        self._tell(_Notice(self._next_order(), notice), self._withdrawals)
        return GivenUp(dropped)

    # -- notices -----------------------------------------------------------------------

    def notify(self, frame: _Frame, *, size: int = 0) -> list[_Frame]:
        """Queue a frame of ``size`` bytes that nothing answers; returns those dropped for it."""
        if self._phase is Phase.GONE:
            return [frame]
        dropped: list[_Frame] = []
        while self._notices and (
            len(self._notices) >= self._max_notices or self._notice_bytes + size > self._max_notice_bytes
        ):
            dropped.append(self._drop_oldest(self._notices))
        self._notice_bytes += size
        self._tell(_Notice(self._next_order(), frame, size), self._notices)
        return dropped

    def written(self, dues: Sequence[Due]) -> None:
        """The socket has taken these; the notices among them need no second telling."""
        for due in dues:
            if due.notice:
                told = self._notices.pop(due.order, None) or self._withdrawals.pop(due.order, None)
                self._notice_bytes -= 0 if told is None else told.size

    # -- delivery ----------------------------------------------------------------------

    def take(self, socket: int, now: float) -> list[Due]:
        """Everything due on that socket that was not taken on it yet, in order.

        Empty when ``socket`` is not the attached one. ``deadline_ms`` of each request is
        what is left at ``now`` of its asker's time, as that was when it was made; left out when it
        has passed: who waits still has moved it, nobody knows where to.
        """
        if socket != self._socket or not self._due:
            return []
        taken, self._due = self._due, {}
        return [self._offer(each, now) for each in taken.values()]

    def wanted(self, due: Due) -> bool:
        """It still is to be written: a request may have been settled since it was taken."""
        if due.notice:
            return due.order in self._notices or due.order in self._withdrawals
        request = self._outstanding.get(cast(_Frame, due.frame).req_id)
        return request is not None and request.order == due.order

    def is_stale(self, due: Due, good_for: float) -> bool:
        """The credential in it needs to be renewed before it is written (contract: operators 3.5).

        Only of what has waited, and has no more than ``RENEWAL_MARGIN`` of ``good_for`` seconds.
        """
        if due.notice or good_for > RENEWAL_MARGIN or not self.wanted(due):
            return False
        return due.again or self._outstanding[cast(_Frame, due.frame).req_id].waits

    def renew(self, due: Due, token: str) -> Due:
        """The same request with another token, now and on every later socket."""
        request = self._outstanding[cast(_Frame, due.frame).req_id]
        request.frame = attrs.evolve(cast(Any, request.frame), capability_token=token)
        return attrs.evolve(due, frame=attrs.evolve(cast(Any, due.frame), capability_token=token))

    def unwritten(self) -> list[Due]:
        """The notices that no socket is known to have taken, in order: for a last try before `close`."""
        held = sorted((*self._notices.values(), *self._withdrawals.values()), key=lambda each: each.order)
        return [Due(each.frame, each.order, notice=True) for each in held]

    def statistics(self) -> SeatStatistics:
        """Counts so far."""
        return SeatStatistics(
            outstanding=len(self._outstanding),
            offered=sum(1 for each in self._outstanding.values() if each.offers),
            notices=len(self._notices) + len(self._withdrawals),
            requests=self._requests,
            settled=self._settled,
            withdrawn=self._withdrawn,
            redelivered=self._redelivered,
            notices_dropped=self._dropped,
            sockets=self._sockets,
        )

    def _offer(self, each: _Outstanding | _Notice, now: float) -> Due:
        if isinstance(each, _Notice):
            return Due(each.frame, each.order, notice=True)
        each.offers += 1
        return Due(_with_time_left(each, now), each.order, again=each.offers > 1)

    def _tell(self, notice: _Notice, queue: dict[int, _Notice]) -> None:
        """Put it into one of the two queues."""
        queue[notice.order] = notice
        self._make_due(notice)

    def _drop_oldest(self, queue: dict[int, _Notice]) -> _Frame:
        oldest = queue.pop(next(iter(queue)))
        self._due.pop(oldest.order, None)
        self._notice_bytes -= oldest.size
        self._dropped += 1
        return oldest.frame

    def _make_due(self, each: _Outstanding | _Notice) -> None:
        if self._phase is Phase.CONNECTED:
            self._due[each.order] = each

    def _forget(self, req_id: str) -> _Outstanding | None:
        request = self._outstanding.pop(req_id, None)
        if request is not None:
            self._due.pop(request.order, None)
        return request

    def _next_order(self) -> int:
        self._order += 1
        return self._order

    def _refuse_if_gone(self) -> None:
        if self._phase is Phase.GONE:
            raise SeatGone(self._gone_because)


def _with_time_left(request: _Outstanding, now: float) -> object:
    if math.isinf(request.until) or request.until <= now:
        return request.frame
    left = math.ceil((request.until - now) * 1000)
    return attrs.evolve(cast(Any, request.frame), deadline_ms=left)
