"""The sessions of one server, with or without a disk beneath them.

The order is always disk, table, answer: a login that was answered is there after a crash, and one
whose row could not be written never was. At the end of a session its row goes first: if that fails
the session is whole, and ending it can be tried again.

Everything about one session between two awaits is one step of `SessionTable`; what waits for the
disk waits in a worker thread that a cancellation does not interrupt, and no cancellation comes
between the row and the table.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from itertools import groupby
from typing import Any, Final

import attrs
import trio

from trio_swarm._io.session_db import ObservedRow, SessionDB, SessionRow
from trio_swarm.errors import BadTokenError, BusyError, StoreError
from trio_swarm.operators.login import LoginRequest, Moment, Presented, RolesTaken, Session
from trio_swarm.operators.observed import MAX_LOGGED, Observed
from trio_swarm.operators.seat import Seat
from trio_swarm.operators.table import Claim, Minted, SessionTable

__all__ = ["IDLE_WITHIN", "JOIN_WITHIN", "Sessions"]

JOIN_WITHIN: Final = 60.0
"""From a login to its first socket. A login needs no token, so that those left behind must go."""

IDLE_WITHIN: Final = 86400.0
"""Without a socket and without a word. The original's idle horizon, 24 h."""

_MADE_ROOM: Final = "it made room: nobody was connected, and nothing had been given to it"

_log: Final = logging.getLogger("trio_swarm.operators")


@attrs.define(eq=False)
class Sessions:
    """A table of sessions, its rows on disk, and when its sessions expire."""

    table: SessionTable[Seat]
    store: SessionDB | None
    ended: Callable[[Session[Seat], str], None]
    """Called, synchronously, with each session that has just left the table, and the reason."""
    emit: Callable[[str, Mapping[str, object]], None]
    join_within: float = JOIN_WITHIN
    idle_within: float = IDLE_WITHIN
    _written: dict[str, tuple[float, bool]] = attrs.field(factory=dict, repr=False)
    """What the row of each session says of its last access."""
    _overdue: set[str] = attrs.field(factory=set, repr=False)
    """Sids of rows that should be gone, and could not be deleted yet."""
    closed: str | None = None
    """Why there are no sessions here any more: the server is leaving."""

    async def restore(self) -> None:
        """Bring back what an earlier server left: disconnected, and under the same sid and token.

        Rows whose time was over are dropped, rows that cannot be read are skipped with a warning.
        Raises `StoreError` if nothing can be read.
        """
        if self.store is None:
            return
        rows, unreadable = await self.store.load()
        for each in unreadable:
            self._skipped(each.sid, each.reason)
        now = Moment.now()
        for row in rows:
            if now.wall - row.last_access >= self.idle_within:
                await self._drop_expired(row)
                continue
            try:
                self._restore_row(row, now)
            except (ValueError, RolesTaken) as error:
                self._skipped(row.sid, str(error))
        await self._restore_observed(self.store)

    async def _restore_observed(self, store: SessionDB) -> None:
        found, unreadable = await store.load_observed()
        for each in unreadable:
            _log.warning("a stored observation was skipped: %r: %s", each.sid, each.reason)
        for sid, rows in groupby(found, key=lambda row: row.sid):
            session = self.table.find(sid)
            if session is not None and session.sid == sid:
                session.observed = Observed.restored((row.number, row.entry) for row in rows)

    async def mint(self, request: LoginRequest) -> Minted[Seat]:
        """Log an operator in. Cancelled: it is logged in, on disk as well, or it is not.

        Where there are too many, one that can be spared is ended for it, even if it then does not come
        about. Raises `RolesTaken`, `BusyError` (none of them can go, or the server is leaving) or
        `StoreError`; there is nothing of it then.
        """
        await trio.lowlevel.checkpoint()
        # Roles of those whose time is over are free, even if no sweep came by since.
        for holder in filter(None, map(self.table.find, request.roles)):
            await self.judge(holder)
        if self.closed is not None:
            # The table is empty by now, and would give away roles that stored sessions have.
            raise BusyError(self.closed)
        with self.table.reserve(request) as claim:
            while self.table.surplus > 0:
                await self._make_room()
            if self.store is not None:
                await self.store.insert(_row_of_claim(claim))
            minted = self.table.publish(claim)
        self._written[claim.sid] = (claim.moment.wall, False)
        return minted

    async def _make_room(self) -> None:
        """End one session that can be spared. Raises `BusyError` or `StoreError`."""
        with self.table.making_room() as session:
            sockets = session.seat.statistics().delivery.sockets
            if self.store is not None:
                await self.store.delete(session.sid)
            if session.spare and session.seat.statistics().delivery.sockets == sockets:
                self._finish(session, _MADE_ROOM)
                return
        # It was at the door before it was chosen, or just being given something: that is not taken away.
        if not session.deleted:
            await self._put_back(session)

    async def _put_back(self, session: Session[Seat]) -> None:
        """Write the row of a session that lives. If that fails the session ends, as after a crash."""
        if self.store is None:
            return
        row = _row_of(session)
        # As long as the disk takes: without its row it would be lost with this process.
        with trio.CancelScope(shield=True):
            try:
                await self.store.insert(row)
            except StoreError:
                self.forget(session, "its state could not be written")
                raise
            if session.deleted:  # By somebody else meanwhile, who was told so.
                self._overdue.add(session.sid)
                for error in await self.delete_overdue():
                    _log.warning("the ended session %s could not be deleted: %s", session.sid, error)
        if self.table.find(session.sid) is session:  # If not: it is there for the next server.
            self._written[session.sid] = (row.last_access, row.seated)
        session.observed = attrs.evolve(session.observed, stored=0)  # Its log had gone with the row.

    async def end(self, session: Session[Seat], reason: str) -> bool:
        """End a session: its row, then all the rest in one step. False if it is ended already.

        Raises `StoreError`; the session is as it was then. Cancelled: likewise, or it is ended.
        If the server leaves meanwhile, the session is not there for the next one.
        """
        if self.store is not None:
            await self.store.delete(session.sid)
        else:
            await trio.lowlevel.checkpoint()
        return self._finish(session, reason)

    def _finish(self, session: Session[Seat], reason: str) -> bool:
        """Its row is deleted. False if it was ended before."""
        first, session.deleted = not session.deleted, True
        self.forget(session, reason)
        return first

    async def delete_overdue(self) -> list[StoreError]:
        """Try again what could not be deleted when its session ended; what it failed at."""
        errors = []
        for sid in tuple(self._overdue):
            assert self.store is not None
            try:
                await self.store.delete(sid)
                self._overdue.discard(sid)
            except StoreError as error:
                errors.append(error)
        return errors

    def forget(self, session: Session[Seat], reason: str) -> bool:
        """End a session in this process alone: its row, if it has one, stays for the next server."""
        if self.table.find(session.sid) is not session:
            return False
        self.table.remove(session.sid)
        self._written.pop(session.sid, None)
        self.ended(session, reason)
        return True

    async def admits(self, presented: Presented) -> bool:
        """That is the token of a session which lives; its time begins anew then."""
        try:
            session = self.table.identify(presented)
        except BadTokenError:
            return False
        if await self.judge(session):
            return False
        self.touch(session)
        return True

    # -- who is still there --------------------------------------------------------------

    def touch(self, session: Session[Seat]) -> None:
        """Its operator did something: its time begins anew. On disk with the next `write_accesses`."""
        session.last_access = Moment.now()

    def seated(self, sid: str) -> None:
        """A socket came to the session, or went."""
        session = self.table.find(sid)
        if session is not None:
            session.seated = True
            self.touch(session)

    def expires(self, session: Session[Seat]) -> float:
        """When it ends, on ``trio.current_time()``'s clock; infinity while it is connected."""
        return session.expires(join_within=self.join_within, idle_within=self.idle_within)

    def next_expiry(self, *, after: float) -> float:
        """When the next of them ends that does not end until ``after``; infinity if none will."""
        return min((due for due in map(self.expires, self.table) if due > after), default=math.inf)

    async def judge(self, session: Session[Seat]) -> bool:
        """End the session if its time is over, before anything renews it. True: it is over.

        Where its row cannot be deleted it stays, over as it is, for the next try.
        """
        if self.expires(session) > trio.current_time():
            return False
        try:
            await self._expire(session)
        except StoreError as error:
            _log.warning("the expired session %s could not be ended: %s", session.sid, error)
        return True

    async def sweep(self) -> tuple[int, list[StoreError]]:
        """End all sessions whose time is over: how many, and what kept others from it."""
        count, errors = 0, await self.delete_overdue()
        now = trio.current_time()
        for session in self.table:
            if self.expires(session) <= now:
                try:
                    count += await self._expire(session)
                except StoreError as error:
                    errors.append(error)
        return count, errors

    async def write_accesses(self) -> int:
        """Put on disk when each session was last accessed; those that are connected are at this moment.

        Returns how many had changed. Raises `StoreError`.
        """
        changed = {}
        for session in self.table:
            if session.seat.connected:
                self.touch(session)
            access = (session.last_access.wall, session.seated)
            if self._written.get(session.sid) != access:
                changed[session.sid] = access
        if self.store is None or not changed:
            return 0
        await self.store.touch([(sid, wall, seated) for sid, (wall, seated) in changed.items()])
        self._written.update((sid, access) for sid, access in changed.items() if sid in self._written)
        return len(changed)

    async def write_observed(self) -> int:
        """Put on disk what the operators were given to do since; returns how many entries.

        Raises `StoreError`; they are written the next time then.
        """
        if self.store is None:
            return 0
        new = {session: session.observed.unstored() for session in self.table}
        rows = [ObservedRow(each.sid, number, entry) for each, log in new.items() for number, entry in log]
        if rows:
            await self.store.note_observed(rows, most=MAX_LOGGED)
        for session, log in new.items():
            session.observed.stored(log[-1][0] if log else 0)
        return len(rows)

    async def _expire(self, session: Session[Seat]) -> bool:
        seated, digest = session.seated, session.digest
        reason = (
            f"nobody was connected for {self.idle_within:g} s"
            if seated
            else f"nobody connected within {self.join_within:g} s of the login"
        )
        ended = await self.end(session, reason)
        if ended:
            self.table.remember_expired(digest)
        return ended

    async def _drop_expired(self, row: SessionRow) -> None:
        assert self.store is not None
        self.table.remember_expired(row.token_digest)
        try:
            await self.store.delete(row.sid)
        except StoreError as error:
            # A full disk, say: the sessions that live are not to suffer for one that does not.
            _log.warning("the expired session %s could not be dropped: %s", row.sid, error)

    def _restore_row(self, row: SessionRow, now: Moment) -> None:
        about = {
            "roles": list(row.roles),
            "desc": row.desc,
            "capability_manifest": row.capability_manifest,
        }
        # Who had no socket yet could not come while no server was there: that time starts anew.
        access = now.since(row.last_access) if row.seated else now
        session = self.table.restore(
            row.sid,
            LoginRequest.parse(about),
            digest=row.token_digest,
            joined_at=row.joined_at,
            last_access=access,
            seated=row.seated,
        )
        self._written[session.sid] = (row.last_access, row.seated)

    def _skipped(self, sid: str, reason: str) -> None:
        _log.warning("a stored session was skipped: %r: %s", sid, reason)
        self.emit("session_skipped", {"sid": sid, "reason": reason})


def _row_of(session: Session[Seat]) -> SessionRow:
    about: dict[str, Any] = attrs.asdict(session.request, recurse=False)
    return SessionRow(
        sid=session.sid,
        token_digest=session.digest,
        joined_at=session.joined_at,
        last_access=session.last_access.wall,
        seated=session.seated,
        **about,
    )


def _row_of_claim(claim: Claim) -> SessionRow:
    about: dict[str, Any] = attrs.asdict(claim.request, recurse=False)
    return SessionRow(
        sid=claim.sid,
        token_digest=claim.digest,
        joined_at=claim.moment.wall,
        last_access=claim.moment.wall,
        seated=False,
        **about,
    )
