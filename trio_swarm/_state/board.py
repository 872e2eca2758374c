"""The board's machine: tasks, their attempts, and who may act for an attempt.

A task is one dispatched step; each try of it is an *attempt* with a capability token and a
handle of its own, and both die with it (operators contract 5; the original's handles lived
for ever and acted for whatever attempt was current). The machine decides every request of a
worker in one synchronous step: `BoardMachine.admit` says yes, or raises `Denied` with the
status to answer. Time, secrets and random names are arguments.

Tokens are known by the fingerprint of their nonce, handles by their digest: neither is kept,
and how long a look-up takes tells nothing of how close a guess was.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from typing import Final, Literal, TypeAlias

import attrs

from trio_swarm._state.attempt import AttemptRecord, Denied, FinalValue, Remembered
from trio_swarm._state.grants import Grant, TokenExhausted, TokenMalformed
from trio_swarm._state.guesses import GuessLimit, Misses, left, no_misses
from trio_swarm._state.token import CapabilityToken, verify
from trio_swarm.errors import BadTokenError, BusyError, Refused
from trio_swarm.limits import (
    FORGOTTEN_HANDLES,
    KEPT_ATTEMPTS,
    MAX_KEPT,
    MAX_RENEWALS,
    MAX_SPAWN_DEPTH,
    MAX_TASKS,
)

__all__ = [
    "STATUSES",
    "Admission",
    "AttemptRecord",
    "BoardMachine",
    "Denied",
    "FinalValue",
    "Remembered",
    "Status",
    "TaskRecord",
    "is_handle",
]

Status: TypeAlias = Literal["pending", "running", "pass", "blocked", "failed", "cancelled", "timeout"]
STATUSES: Final = frozenset({"pass", "blocked", "failed", "cancelled", "timeout"})
"""Of a task that has ended."""

_HANDLE: Final = re.compile(r"wh-[A-Za-z0-9]{2,61}")


def is_handle(bearer: str) -> bool:
    """It has the form of a handle; anything else is tried as a token (contract 5.3)."""
    return _HANDLE.fullmatch(bearer) is not None


@attrs.define(eq=False)
class TaskRecord:
    """One dispatched step."""

    task_id: str
    depth: int
    above: tuple[str, ...] = ()
    """The tasks that it is below and that ran when it was made, outermost first."""
    status: Status = "pending"
    attempts: int = 0
    kept: dict[int, AttemptRecord] = attrs.field(factory=dict, repr=False)
    """The latest attempts by number."""
    misses: Misses = attrs.field(factory=no_misses, repr=False)
    """Unknown handles that were shown for it."""
    size: int = 0
    """Bytes that it holds in memory, once it has ended."""

    @property
    def ended(self) -> bool:
        """No further attempt will come."""
        return self.status in STATUSES


@attrs.frozen
class Admission:
    """Whose request it is, and that it may pass."""

    record: AttemptRecord
    grant: Grant | None
    """None for a handle, which may do whatever a worker may."""

    def allows(self, verb: str, output: str | None = None) -> bool:
        """It may do that as well."""
        at = self.record
        return self.grant is None or self.grant.allows(
            verb, task_id=at.task_id, attempt=at.number, output=output
        )


class BoardMachine:
    """See the module's text. ``secret`` signs the tokens."""

    def __init__(
        self,
        *,
        secret: bytes,
        max_tasks: int = MAX_TASKS,
        max_kept: int = MAX_KEPT,
        guesses: GuessLimit | None = None,
    ) -> None:
        self._secret = secret
        self._max_tasks = max_tasks
        self._max_kept = max_kept
        self._kept = 0
        """Bytes that ended tasks hold in memory."""
        self._guesses = guesses if guesses is not None else GuessLimit()
        self._tasks: dict[str, TaskRecord] = {}
        self._done: dict[str, None] = {}
        """Ids of ended tasks, in the order in which they ended."""
        self._by_fingerprint: dict[str, AttemptRecord] = {}
        self._by_handle: dict[bytes, AttemptRecord] = {}
        self._gone: dict[bytes, None] = {}
        """Handles of forgotten attempts: a worker that comes late is no guesser."""

    def __iter__(self) -> Iterator[TaskRecord]:
        return iter(tuple(self._tasks.values()))

    # -- tasks -------------------------------------------------------------------------

    def create(self, task_id: str, *, parent: str | None = None) -> list[str]:
        """A new task; returns the ids of those that were forgotten for it.

        Raises `Refused` for a parent that is unknown or too deep already, `BusyError` when
        as many tasks as there may be have not ended yet.
        """
        above, depth = self._place_below(parent)
        if task_id in self._tasks:
            raise ValueError(f"task {task_id} is there already")
        forgotten: list[str] = []
        while len(self._tasks) >= self._max_tasks:
            if not self._done:
                raise BusyError(f"{self._max_tasks} tasks are running")
            forgotten.append(self._forget_oldest())
        self._tasks[task_id] = TaskRecord(task_id, depth, above)
        return forgotten

    def _place_below(self, parent: str | None) -> tuple[tuple[str, ...], int]:
        """What a task of that parent is nested in, and how deep.

        A parent that has ended says where the task comes from, and nests it in nothing; but
        what the parent was nested in and still runs, the task is nested in.
        """
        if parent is None:
            return (), 0
        named = self._tasks.get(parent)
        if named is None:
            raise Refused(f"the parent {parent!r} is no task of this board")
        above = (*self._running(named.above), *self._running((parent,)))
        depth = self._tasks[above[-1]].depth + 1 if above else 0
        if depth >= MAX_SPAWN_DEPTH:
            raise Refused(f"tasks below tasks are limited to {MAX_SPAWN_DEPTH} levels")
        return above, depth

    def _running(self, task_ids: Iterable[str]) -> tuple[str, ...]:
        """Those of them that have not ended: what is forgotten has."""
        known = map(self._tasks.get, task_ids)
        return tuple(task.task_id for task in known if task is not None and not task.ended)

    def yielding(self) -> Iterator[str]:
        """The ended tasks, in the order in which their outputs give way to those that run.

        First those that are below no task which still runs, and may yet look at them; among
        these, and then among the others, what ended first.
        """
        awaited: list[str] = []
        for task_id in self._done:
            if self._running(self._tasks[task_id].above):
                awaited.append(task_id)
            else:
                yield task_id
        yield from awaited

    def _forget_oldest(self) -> str:
        task_id = next(iter(self._done))
        del self._done[task_id]
        task = self._tasks.pop(task_id)
        self._kept -= task.size
        for record in task.kept.values():
            self._drop(record)
        return task_id

    def _drop(self, record: AttemptRecord) -> None:
        for fingerprint in record.fingerprints:
            del self._by_fingerprint[fingerprint]
        del self._by_handle[record.handle_digest]
        self._gone[record.handle_digest] = None
        while len(self._gone) > FORGOTTEN_HANDLES:
            del self._gone[next(iter(self._gone))]

    def find(self, task_id: str) -> TaskRecord | None:
        """The task of that id, if it is not forgotten."""
        return self._tasks.get(task_id)

    def settle(self, task_id: str, status: Status) -> bool:
        """End a task, and its attempt with it. False if it had ended, or is forgotten."""
        task = self._tasks.get(task_id)
        if task is None or task.ended:
            return False
        if status not in STATUSES:
            raise ValueError(f"a task cannot end as {status!r}")
        task.status = status
        self._done[task_id] = None
        for record in task.kept.values():
            record.ended = True
        return True

    def weigh(self, task_id: str, size: int) -> list[str]:
        """Say how many bytes an ended task holds in memory.

        Returns the ids of those that were forgotten for it: others that have ended, oldest first.
        """
        task = self._tasks[task_id]
        self._kept += size - task.size
        task.size = size
        forgotten: list[str] = []
        while self._kept > self._max_kept and len(self._done) > 1:
            forgotten.append(self._forget_oldest())
        return forgotten

    # -- attempts ----------------------------------------------------------------------

    def is_handle_free(self, handle: str) -> bool:
        """No attempt has it, nor had it lately."""
        digest = _digest(handle)
        return digest not in self._by_handle and digest not in self._gone

    def begin(self, task_id: str, *, fingerprint: str, handle: str, expire_at: float) -> AttemptRecord:
        """The next attempt of a task; the one before is superseded.

        Raises `Refused` if the task has ended or is forgotten.
        """
        task = self._tasks.get(task_id)
        if task is None or task.ended:
            raise Refused(f"task {task_id} has ended")
        task.attempts += 1
        task.status = "running"
        record = AttemptRecord(task_id, task.attempts, expire_at, _digest(handle), [fingerprint])
        for earlier in task.kept.values():
            earlier.ended = True
        while len(task.kept) >= KEPT_ATTEMPTS:
            self._drop(task.kept.pop(next(iter(task.kept))))
        task.kept[record.number] = record
        self._by_fingerprint[fingerprint] = record
        self._by_handle[record.handle_digest] = record
        return record

    def renew(self, record: AttemptRecord, *, fingerprint: str, expire_at: float) -> None:
        """One more token for a living attempt; its handle is good for as long.

        Tokens from before stay what they were. Raises `Refused` if the attempt has ended, or has
        had ``MAX_RENEWALS``.
        """
        if record.ended:
            raise Refused(f"attempt {record.number} of {record.task_id} has ended")
        if len(record.fingerprints) > MAX_RENEWALS:
            raise Refused(f"the credentials of an attempt are renewed {MAX_RENEWALS} times at most")
        record.fingerprints.append(fingerprint)
        record.expire_at = max(record.expire_at, expire_at)
        self._by_fingerprint[fingerprint] = record

    # -- requests ----------------------------------------------------------------------

    def admit(
        self,
        bearer: str,
        verb: str,
        *,
        now: float,
        peer: str = "",
        task_id: str | None = None,
        attempt: int | None = None,
        output: str | None = None,
    ) -> Admission:
        """Who shows ``bearer`` may do ``verb``, to the task and attempt that it names.

        Judged in the order of contract 5.2. Whether the attempt still lives is asked of
        `use`, so that a repeated request can be given its old answer in between. Raises
        `Denied`: 400 a malformed token, or a handle of another task or attempt; 401 forged or
        expired; 403 not in the grant, or a token of another task or attempt; 410 nobody's;
        429 a handle that is nobody's, after too many of the kind. A good one always passes: how
        fast they are tried is `takes_turns`' affair.
        """
        if is_handle(bearer):
            admission = Admission(self._by_its_handle(bearer, now, peer, task_id), None)
            wrong = 400
        else:
            admission = self._by_its_token(bearer, verb, now, task_id, attempt, output)
            wrong = 403
        record = admission.record
        if task_id is not None and task_id != record.task_id:
            raise Denied(wrong, "the credential is bound to another task")
        if attempt is not None and attempt != record.number:
            raise Denied(wrong, f"the credential is bound to attempt {record.number}")
        return admission

    def takes_turns(self, bearer: str, *, now: float, peer: str = "", task_id: str | None = None) -> bool:
        """Too many unknown handles were shown: this one is to wait for its turn, good or bad.

        They are counted against the task that they name, if it runs, and else against the place
        that they come from. So a worker that names its task waits for no guesser who cannot.
        """
        return is_handle(bearer) and self._wait(peer, now, task_id) > 0

    def _wait(self, peer: str, now: float, task_id: str | None) -> float:
        named = self._named(task_id)
        return self._guesses.wait(peer, now) if named is None else left(named.misses, now)

    def _named(self, task_id: str | None) -> TaskRecord | None:
        named = None if task_id is None else self._tasks.get(task_id)
        return None if named is None or named.ended else named

    def _by_its_handle(self, handle: str, now: float, peer: str, task_id: str | None) -> AttemptRecord:
        digest = _digest(handle)
        if digest in self._gone:
            raise Denied(410, "the attempt of this worker handle is forgotten")
        record = self._by_handle.get(digest)
        if record is None:
            raise self._missed(peer, now, task_id)
        if now >= record.expire_at:
            raise Denied(410, "the worker handle has expired")
        return record

    def _missed(self, peer: str, now: float, task_id: str | None) -> Denied:
        wait = self._wait(peer, now, task_id)
        if wait > 0:
            return Denied(429, "too many unknown handles", retry_after=wait)
        named = self._named(task_id)
        if named is None:
            self._guesses.missed(peer, now)
        else:
            named.misses.append(now)
        return Denied(410, "unknown worker handle")

    def _by_its_token(
        self, text: str, verb: str, now: float, task_id: str | None, attempt: int | None, output: str | None
    ) -> Admission:
        try:
            token = CapabilityToken.decode(text)
        except TokenMalformed as error:
            raise Denied(400, f"invalid token: {error}") from None
        try:
            grant = verify(token, secret=self._secret, now=now)
        except BadTokenError as error:
            raise Denied(401, str(error)) from None
        record = self._by_fingerprint.get(grant.fingerprint)
        if record is not None:
            task_id, attempt = record.task_id, record.number
        if not grant.allows(verb, task_id=task_id, attempt=attempt, output=output):
            raise Denied(403, f"the token does not allow {verb}" + (f" of {output!r}" if output else ""))
        if record is None:
            raise Denied(410, f"unknown token {grant.fingerprint[:12]}")
        return Admission(record, grant)

    def knows_token(self, text: str, *, now: float) -> bool:
        """It is a token of an attempt that lives, whatever it allows; a handle is none."""
        if is_handle(text):
            return False
        try:
            grant = verify(CapabilityToken.decode(text), secret=self._secret, now=now)
        except BadTokenError:
            return False
        record = self._by_fingerprint.get(grant.fingerprint)
        return record is not None and not record.ended

    def use(self, admission: Admission, *, count: bool = True) -> None:
        """The attempt lives, and its token has a use left, which is used up (if ``count``).

        Raises `Denied`: 410 the attempt or its task has ended, 409 a later attempt runs, 403
        no use is left.
        """
        record = admission.record
        task = self._tasks.get(record.task_id)
        if task is None or task.ended:
            raise Denied(410, "the task has ended")
        if record.number != task.attempts:
            raise Denied(409, f"attempt {record.number} was superseded by attempt {task.attempts}")
        if record.ended:
            raise Denied(410, "the attempt has ended")
        if admission.grant is None or not count:
            return
        try:
            record.uses.use(admission.grant)
        except TokenExhausted as error:
            raise Denied(403, str(error)) from None


def _digest(handle: str) -> bytes:
    return hashlib.sha256(handle.encode("utf-8", "surrogatepass")).digest()
