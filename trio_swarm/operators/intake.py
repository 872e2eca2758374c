"""What comes from an operator: replies, which are accounted for, and messages that are none."""

from __future__ import annotations

import json
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from typing import Any, Final

import attrs
import trio

from trio_swarm._io.calls import ReplyTable, Resolution, Stray
from trio_swarm._io.http_messages import Request
from trio_swarm._io.link import Malformed
from trio_swarm._state.allowance import Allowance
from trio_swarm._state.seat import SeatMachine
from trio_swarm.errors import FrameError
from trio_swarm.frames import ClientMsg, encode
from trio_swarm.frames.operator import Receipt
from trio_swarm.limits import MALFORMED_PER_MINUTE, MAX_PENDING, SETTLED_REMEMBERED

__all__ = ["RECEIPTS_HEADER", "Intake", "Receipts", "wants_receipts"]

RECEIPTS_HEADER: Final = "trio-swarm-receipts"
"""Said with the WebSocket's request, with the value 1: send me a receipt for each reply."""

_ID_SHOWN: Final = 200
"""Of an id that a peer chose, so much goes into an event."""
_MAX_ID: Final = 1024
"""Characters of an id that a receipt repeats; no id of ours is nearly so long."""
_MAX_RECEIPTS: Final = 4 * MAX_PENDING
"""Only an operator that replies and does not read gets there."""
_STRAYS_TOLD: Final = 120
"""Events of stray replies per minute; the others are only counted."""


def wants_receipts(request: Request) -> bool:
    """The operator asked for receipts when it opened its WebSocket."""
    return request.query.get("receipts") == "1" or "1" in request.head.all(RECEIPTS_HEADER)


@attrs.define(eq=False)
class Receipts:
    """Receipts that wait to be written on one socket; the oldest is dropped when there are too many."""

    _waiting: deque[Receipt] = attrs.field(factory=lambda: deque(maxlen=_MAX_RECEIPTS))

    def put(self, req_id: str, reason: str | None) -> None:
        """For a reply that was accepted, or refused for a reason; never waits."""
        receipt = Receipt(req_id=req_id, accepted=reason is None, reason=reason)
        try:
            encode(receipt)
        except FrameError:
            return  # The id is no text that can be sent back.
        self._waiting.append(receipt)

    def take(self) -> list[Receipt]:
        """All that wait, in order."""
        taken = list(self._waiting)
        self._waiting.clear()
        return taken


class Intake:
    """The replies of one seat, on whichever socket they come."""

    def __init__(
        self,
        sid: str,
        machine: SeatMachine,
        *,
        emit: Callable[[str, Mapping[str, object]], None],
        max_pending: int = MAX_PENDING,
        max_malformed: int = MALFORMED_PER_MINUTE,
    ) -> None:
        self.replies = ReplyTable[Any](max_pending=max_pending, on_stray=self._stray)
        self.malformed = 0
        self._sid = sid
        self._machine = machine
        self._emit = emit
        self._malformed_allowed = Allowance(max_malformed)
        self._strays_told = Allowance(_STRAYS_TOLD)
        self._given_up: OrderedDict[str, str] = OrderedDict()

    def take(self, item: ClientMsg | Malformed, receipts: Receipts | None) -> bool:
        """Account for one message. False when there were too many that are no frame."""
        if isinstance(item, Malformed):
            # Dropped without a word, by contract (2.10): the socket stays open, up to a point.
            self.malformed += 1
            req_id = None if receipts is None else _req_id_in(item.data)
            if receipts is not None and req_id is not None:
                receipts.put(req_id, "malformed")
            return self._malformed_allowed.take(trio.current_time())
        verdict = self.replies.resolve(item.req_id, item)
        if verdict == "accepted":
            self._machine.settle(item.req_id)
        if receipts is not None and len(item.req_id) <= _MAX_ID:
            receipts.put(item.req_id, self._reason(item.req_id, verdict))
        return True

    def given_up(self, req_id: str, reason: str) -> None:
        """A request was withdrawn: a reply to it will be late, for this reason."""
        self._given_up[req_id] = reason
        while len(self._given_up) > SETTLED_REMEMBERED:
            self._given_up.popitem(last=False)

    def _reason(self, req_id: str, verdict: Resolution) -> str | None:
        if verdict == "accepted":
            return None
        if verdict == "late" and req_id in self._given_up:
            return f"late:{self._given_up[req_id]}"
        return verdict

    def _stray(self, stray: Stray) -> None:
        if self._strays_told.take(trio.current_time()):
            self._emit(
                "reply_stray",
                {
                    "sid": self._sid,
                    "req_id": stray.req_id[:_ID_SHOWN],
                    "verdict": stray.verdict,
                    "kind": stray.kind,
                },
            )


def _req_id_in(data: str | bytes) -> str | None:
    """The id that a message carries although it is no frame."""
    try:
        known = json.loads(data)
    except (ValueError, RecursionError):
        return None
    req_id = known.get("req_id") if isinstance(known, dict) else None
    return req_id if isinstance(req_id, str) and len(req_id) <= _MAX_ID else None
