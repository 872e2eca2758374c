"""Who is being asked while somebody asks: nested requests, and cycles of them.

While a request is being answered, the one who answers may ask others. A context variable
knows which request that is; every request made in that context, in tasks that were started
there too, names it as its parent and tells who is being asked further up: its *lineage*,
outermost first. The lineage travels in the frames, so it reaches across processes. A request
that would go to somebody in its own lineage can never be answered: each waits for the next.

Each entry of a lineage is ``name#id``: the name for people, the id, which no two seats
share, to tell them apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final, TypedDict

import attrs

from trio_swarm.errors import AskCycle, BusyError
from trio_swarm.limits import MAX_LINEAGE

__all__ = [
    "Answering",
    "Nesting",
    "Withdrawal",
    "answering",
    "identity",
    "nesting",
    "withdrawal_reason",
    "withdrawing",
]

_MAX_ENTRY: Final = 600
"""Characters: a role, a sid and what is between them."""


class Nesting(TypedDict):
    """The fields of a frame that tell where it stands."""

    parent_req_id: str | None
    lineage: tuple[str, ...]


@attrs.define(eq=False)
class Answering:
    """A request that is being answered in this context."""

    req_id: str
    lineage: tuple[str, ...]
    """Who waits for whom, up to the one that answers now."""
    outer: Answering | None
    over: bool = False
    """It was answered, or given up: nobody waits for it, and who goes on is nested no more."""


@attrs.define(eq=False)
class Withdrawal:
    """What operators are told when a request is given up, in place of ``cancelled``."""

    reason: str | None = None
    outer: Withdrawal | None = attrs.field(default=None, repr=False)
    over: bool = attrs.field(default=False, repr=False)
    """Its block was left: what was started there and lives on is given up for reasons of its own."""


_ANSWERING: Final[ContextVar[Answering | None]] = ContextVar("trio_swarm_answering", default=None)
_WITHDRAWAL: Final[ContextVar[Withdrawal | None]] = ContextVar("trio_swarm_withdrawal", default=None)


def identity(name: str, sid: str) -> str:
    """The entry of a seat in a lineage."""
    return sid if name == sid else f"{name}#{sid}"


@contextmanager
def answering(req_id: str, lineage: Sequence[str], who: str | None = None) -> Iterator[Answering]:
    """What is asked in the block is asked while ``who`` answers ``req_id``.

    ``lineage`` is that of the request, ``who`` the `identity` of who answers; None when
    nobody waits for it (a notice), so that no cycle can come of it. Who replies, or learns that
    nobody waits any more, before the block is left sets `Answering.over`.
    """
    entries = [entry[-_MAX_ENTRY:] for entry in lineage[: MAX_LINEAGE + 1]]
    if who is not None:
        entries.append(who)
    here = Answering(req_id, tuple(entries), _ANSWERING.get())
    token = _ANSWERING.set(here)
    try:
        yield here
    finally:
        here.over = True
        _ANSWERING.reset(token)


def nesting(who: str, parent_req_id: str | None, *, waits: bool = True) -> Nesting:
    """The fields for a request to the seat ``who``; ``parent_req_id`` if the caller gave one.

    With ``waits`` False it is a notice: nobody waits, so there is no cycle to find.
    Raises `AskCycle`, and `BusyError` beyond ``MAX_LINEAGE``.
    """
    here = _ANSWERING.get()
    while here is not None and here.over:
        here = here.outer
    if here is None:
        return {"parent_req_id": parent_req_id, "lineage": ()}
    if waits:
        _check(here.lineage, who)
    parent = parent_req_id if parent_req_id is not None else here.req_id
    return {"parent_req_id": parent, "lineage": here.lineage[:MAX_LINEAGE]}


def _check(lineage: Sequence[str], who: str) -> None:
    ids = [_id_of(entry) for entry in lineage]
    if _id_of(who) in ids:
        raise AskCycle([_shown(entry) for entry in [*lineage[ids.index(_id_of(who)) :], who]])
    if len(lineage) > MAX_LINEAGE:
        raise BusyError(f"requests are nested {MAX_LINEAGE} deep already")


def _id_of(entry: str) -> str:
    return entry.rpartition("#")[2]


def _shown(entry: str) -> str:
    return entry.rpartition("#")[0] or entry


@contextmanager
def withdrawing() -> Iterator[Withdrawal]:
    """Requests made in the block and then given up are withdrawn with the reason set here.

    That is ``cancelled`` or ``deadline`` as long as `Withdrawal.reason` is None. ::

        with withdrawing() as withdrawal:
            async with trio.open_nursery() as nursery:
                ...
                withdrawal.reason = "settled_by:alice"
                nursery.cancel_scope.cancel()
    """
    withdrawal = Withdrawal(outer=_WITHDRAWAL.get())
    token = _WITHDRAWAL.set(withdrawal)
    try:
        yield withdrawal
    finally:
        withdrawal.over = True
        _WITHDRAWAL.reset(token)


def withdrawal_reason() -> str | None:
    """What the caller wants its operators told, if it said so."""
    withdrawal = _WITHDRAWAL.get()
    while withdrawal is not None and withdrawal.over:
        withdrawal = withdrawal.outer
    return None if withdrawal is None else withdrawal.reason
