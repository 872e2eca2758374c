"""What an operator has been asked and has replied: so that each request is replied to once.

Pure. A server that redelivers sends a request again after a reconnect, under the same id,
because it cannot know how far the reply came. Then

* a request that is still *open* is not shown to the user a second time,
* one that was *answered* gets the very same reply again,
* and only one that is *new* is shown.

A reply is due on a socket at most once. On a new socket, due are the replies that never
left, and, for a server that does not redeliver (an original), the last ones that did: it
ignores what it has got already.

A server may say which one it is (`Ledger.connected`). When it is another one than before, who
asked until then is gone: all of it is over, replied to or not, and it is forgotten, so that an
id that should come again is a new request.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Final, Generic, Literal, TypeAlias, TypeVar, cast

import attrs

from trio_swarm.frames import ClientMsg
from trio_swarm.limits import MAX_FRAME, MAX_PENDING, SETTLED_REMEMBERED

__all__ = ["Arrival", "Ledger", "LedgerStatistics", "Orphans", "Receipted"]

RequestT = TypeVar("RequestT")

Arrival: TypeAlias = Literal["new", "open", "answered", "refused"]

_MAX_OPEN: Final = 4 * MAX_PENDING
_MAX_BYTES: Final = 4 * MAX_FRAME
_SENT_AGAIN: Final = 256
"""Replies sent again, unasked, to a server that does not redeliver."""


@attrs.frozen
class LedgerStatistics:
    """Counts since the ledger was begun."""

    open: int
    """Requests that wait for the user now."""
    unsent: int
    """Replies that wait for a socket now."""
    requests: int
    """Requests that were new."""
    repeated: int
    """Requests that came again."""
    answered: int
    """Replies that the user gave; each id once."""
    answered_again: int
    """Replies that were written again because their request came again."""
    withdrawn: int
    """Requests that the server took back, or that were open when another took its place."""
    refused: int
    """Requests left alone because too many were open; they come again after a reconnect."""


@attrs.frozen
class Receipted(Generic[RequestT]):
    """What the server made of a reply."""

    request: RequestT
    refused: str | None
    """Why it does not count; None if it does."""


@attrs.frozen
class Orphans(Generic[RequestT]):
    """What a server had asked whose place another one has taken: nobody waits for it any more."""

    open: tuple[RequestT, ...] = ()
    """Not replied to."""
    replied: tuple[RequestT, ...] = ()
    """Replied to, and the server had not said what became of that."""


@attrs.define(eq=False)
class _Reply:
    frame: ClientMsg
    size: int
    request: object = None
    """What it replies to, until its receipt has come."""
    offers: int = 0
    """How often it was taken for writing."""
    written: bool = False
    """The system took it once."""
    queued: bool = True
    """It is due on the present socket, or was written to it."""


class Ledger(Generic[RequestT]):
    """The requests and replies of one session. ``RequestT`` is what the user is shown."""

    def __init__(
        self,
        *,
        max_open: int = _MAX_OPEN,
        remembered: int = SETTLED_REMEMBERED,
        max_bytes: int = _MAX_BYTES,
        sent_again: int = _SENT_AGAIN,
    ) -> None:
        self._max_open = max_open
        self._remembered = remembered
        self._max_bytes = max_bytes
        self._sent_again = sent_again
        self._open: dict[str, RequestT] = {}
        self._replies: OrderedDict[str, _Reply] = OrderedDict()
        self._bytes = 0
        self._forgotten: dict[str, tuple[RequestT, int]] = {}
        """Requests whose reply was let go before its receipt had come: that may still come."""
        self._due: list[str] = []
        self._told: OrderedDict[str, None] = OrderedDict()
        self._receipts = False
        self._instance: str | None = None
        self._requests = self._repeated = self._answered = 0
        self._answered_again = self._withdrawn = self._refused = 0

    def arrived(self, req_id: str) -> Arrival:
        """A request came; says what it is. For ``new``, call `show` before anything else."""
        if req_id in self._open:
            self._repeated += 1
            return "open"
        reply = self._replies.get(req_id)
        if reply is not None:
            self._repeated += 1
            if not reply.queued:
                reply.queued = True
                self._answered_again += 1
                self._due.append(req_id)
            return "answered"
        if len(self._open) + len(self._forgotten) >= self._max_open:
            self._refused += 1
            return "refused"
        return "new"

    def show(self, req_id: str, request: RequestT) -> tuple[RequestT, ...]:
        """It is open from now on. Returns an earlier one of that id, whose reply was let go unreceipted.

        The server would not ask again if that reply counted: nothing more is heard of it.
        """
        self._open[req_id] = request
        self._requests += 1
        earlier = self._forgotten.pop(req_id, None)
        return () if earlier is None else earlier[:1]

    def unshow(self, req_id: str) -> None:
        """It was not shown after all: it is new when it comes again."""
        if self._open.pop(req_id, None) is not None:
            self._requests -= 1

    def shown(self, req_id: str) -> RequestT | None:
        """What the user was shown for an open request."""
        return self._open.get(req_id)

    def told(self, req_id: str) -> bool:
        """A notice came. False if it is one that came before."""
        if req_id in self._told:
            return False
        self._told[req_id] = None
        while len(self._told) > self._remembered:
            self._told.popitem(last=False)
        return True

    def reply(self, req_id: str, frame: ClientMsg, size: int) -> bool:
        """The user replied. False if the request is not open: withdrawn, or replied to before."""
        request = self._open.pop(req_id, None)
        if request is None:
            return False
        self._answered += 1
        self._replies[req_id] = _Reply(frame, size, request if self._receipts else None)
        self._bytes += size
        self._due.append(req_id)
        self._forget_oldest()
        return True

    def withdraw(self, req_id: str) -> RequestT | None:
        """The server took a request back; returns what was shown, if it was open."""
        request = self._open.pop(req_id, None)
        if request is not None:
            self._withdrawn += 1
        return request

    def receipt(self, req_id: str, accepted: bool, reason: str | None) -> Receipted[RequestT] | None:
        """The server said what became of a reply; None if it is none of ours, or told before.

        A reply that was sent again and is a ``duplicate`` counts: the first copy came through.
        """
        reply = self._replies.get(req_id)
        if reply is None and req_id in self._forgotten:
            request, offers = self._forgotten.pop(req_id)
        elif reply is None or reply.request is None:
            return None
        else:
            request, offers, reply.request = cast(RequestT, reply.request), reply.offers, None
        accepted = accepted or (reason == "duplicate" and offers > 1)
        return Receipted(request, None if accepted else reason or "refused")

    def unreceipted(self) -> list[RequestT]:
        """What was replied to without a word of the server about it so far."""
        requests = [reply.request for reply in self._replies.values()]
        kept = [cast(RequestT, request) for request in requests if request is not None]
        return [*(request for request, _ in self._forgotten.values()), *kept]

    def connected(
        self, *, redelivers: bool, receipts: bool = False, instance: str | None = None
    ) -> Orphans[RequestT]:
        """There is a new socket; nothing was written to it yet, and nothing read.

        With ``receipts`` the server says of each reply what became of it: those without
        one are sent again. ``instance`` is which server it says that it is; None where it says
        nothing, and is taken for the one before. Returns what ended with that.
        """
        orphans = self._disowned() if self._is_another(instance) else Orphans[RequestT]()
        self._receipts = receipts
        for reply in self._replies.values():
            reply.queued = not reply.written
        written = [req_id for req_id, reply in self._replies.items() if reply.written]
        again = [] if redelivers else written[-self._sent_again :] if self._sent_again else []
        if receipts:
            again = [req_id for req_id in written if self._replies[req_id].request is not None]
        for req_id in again:
            self._replies[req_id].queued = True
        self._due = [req_id for req_id, reply in self._replies.items() if reply.queued]
        return orphans

    def take(self) -> list[ClientMsg]:
        """The replies to write now, in the order in which they were given."""
        due, self._due = self._due, []
        replies = [self._replies[req_id] for req_id in due]
        for reply in replies:
            reply.offers += 1
        return [reply.frame for reply in replies]

    def written(self, frames: Sequence[ClientMsg]) -> None:
        """The system has taken these."""
        for frame in frames:
            reply = self._replies.get(frame.req_id)
            if reply is not None:
                reply.written = True
        self._forget_oldest()

    @property
    def settled(self) -> bool:
        """Every reply has left at least once."""
        return not self._due and all(reply.written for reply in self._replies.values())

    def statistics(self) -> LedgerStatistics:
        """Counts so far."""
        return LedgerStatistics(
            open=len(self._open),
            unsent=sum(not reply.written for reply in self._replies.values()),
            requests=self._requests,
            repeated=self._repeated,
            answered=self._answered,
            answered_again=self._answered_again,
            withdrawn=self._withdrawn,
            refused=self._refused,
        )

    def _is_another(self, instance: str | None) -> bool:
        # A server says it on each of its sockets, or on none: one that says it now is not the
        # one that never did, but an earlier version's successor.
        if instance is None or instance == self._instance:
            return False
        self._instance = instance
        return True

    def _disowned(self) -> Orphans[RequestT]:
        orphans = Orphans(tuple(self._open.values()), tuple(self.unreceipted()))
        self._withdrawn += len(orphans.open)
        self._open.clear()
        self._replies.clear()
        self._forgotten.clear()
        self._told.clear()
        self._bytes = 0
        return orphans

    def _forget_oldest(self) -> None:
        while len(self._replies) > self._remembered or self._bytes > self._max_bytes:
            due = set(self._due)  # What is due again would not be sent.
            written = [key for key, reply in self._replies.items() if reply.written and key not in due]
            # One whose receipt has come is the least loss: it is never needed again.
            receipted = (key for key in written if self._replies[key].request is None)
            oldest = next(receipted, written[0] if written else None)
            if oldest is None:
                return
            reply = self._replies.pop(oldest)
            self._bytes -= reply.size
            if reply.request is not None:
                self._forgotten[oldest] = (cast(RequestT, reply.request), reply.offers)
