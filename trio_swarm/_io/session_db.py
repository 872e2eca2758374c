"""Operator sessions on disk, so that they outlive the server that made them.

One SQLite file in a private directory. One process has it at a time: the directory is locked, and
the database is opened for this connection alone (its write-ahead log needs no shared memory then).
A statement that has returned is on the disk (``synchronous=FULL``); one that raised has changed
nothing. Nothing here is a secret but what people say of themselves: of a token there is its SHA-256
digest only.

All calls block in one worker thread, one at a time. One that has begun is not given up when its
caller is cancelled, and then does not raise ``Cancelled``: who gets past it knows that it happened.
"""

from __future__ import annotations

import errno
import json
import os
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import attrs
import trio

from trio_swarm._io import observed_rows
from trio_swarm._io.observed_rows import ObservedRow
from trio_swarm._io.session_files import check_files, check_log, file_id, make_database, remove_index
from trio_swarm._io.unix import locked_directory
from trio_swarm.errors import FrameError, StoreError
from trio_swarm.frames import parse_json

__all__ = ["FILE_NAME", "ObservedRow", "SessionDB", "SessionRow", "Unreadable", "open_session_db"]

T = TypeVar("T")

FILE_NAME: Final = "sessions.sqlite"
"""Of the database, in the directory; SQLite puts ``-wal`` and ``-journal`` beside it."""

_APPLICATION_ID: Final = 0x74737773
"""Marks the file as ours, so that no other database is taken for one."""

_SCHEMA: Final = f"""
BEGIN IMMEDIATE;
CREATE TABLE sessions (
    sid TEXT PRIMARY KEY NOT NULL,
    token_digest BLOB NOT NULL,
    roles_json TEXT NOT NULL,
    desc_json TEXT NOT NULL,
    capability_manifest_json TEXT NOT NULL,
    joined_at_secs REAL NOT NULL,
    last_access_secs REAL NOT NULL,
    seated INTEGER NOT NULL
);
PRAGMA application_id = {_APPLICATION_ID};
PRAGMA user_version = 1;
COMMIT;
"""
_STEPS: Final = (observed_rows.SCHEMA,)
"""What each version added to the one before, from 1 on."""
_SCHEMA_VERSION: Final = 1 + len(_STEPS)
_COLUMNS: Final = (
    "sid, token_digest, roles_json, desc_json, capability_manifest_json,"
    " joined_at_secs, last_access_secs, seated"
)
_DIGEST_BYTES: Final = 32
_FAR: Final = 1e12
"""Seconds: no time that anybody noted is farther from 1970."""


@attrs.frozen
class SessionRow:
    """What is kept of one session."""

    sid: str
    token_digest: bytes = attrs.field(repr=False)
    """SHA-256 of the token."""
    roles: tuple[str, ...]
    desc: str | None
    capability_manifest: dict[str, Any] | None = attrs.field(repr=False)
    joined_at: float
    """Seconds since 1970, like the next."""
    last_access: float
    seated: bool
    """A socket came at least once."""


@attrs.frozen
class Unreadable:
    """A row that is no session; it is left where it is."""

    sid: str
    """As far as it can be told, shortened."""
    reason: str


class SessionDB:
    """The rows of one server's sessions; made by `open_session_db`."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self._connection = connection
        self._path = path
        self._file = file_id(path)  # One call that does not wait.
        self._one_at_a_time = trio.CapacityLimiter(1)

    def __repr__(self) -> str:
        return f"<SessionDB {str(self._path)!r}>"

    async def load(self) -> tuple[list[SessionRow], list[Unreadable]]:
        """All sessions, the oldest first, and what could not be read as one. Raises `StoreError`."""
        return await self._call(self._load)

    async def insert(self, row: SessionRow) -> None:
        """Put a session there; it is on disk when this returns. Raises `StoreError`.

        Cancelled before it has begun: nothing was written.
        """
        values = (
            row.sid,
            row.token_digest,
            json.dumps(row.roles),
            json.dumps(row.desc),
            json.dumps(row.capability_manifest),
            row.joined_at,
            row.last_access,
            int(row.seated),
        )
        marks = ", ".join("?" * len(values))
        await self._call(self._execute, f"INSERT INTO sessions ({_COLUMNS}) VALUES ({marks})", [values])

    async def delete(self, sid: str) -> None:
        """Forget a session; no error if there is no such row. Raises `StoreError`.

        Cancelled before it has begun: the row is there.
        """
        await self._call(self._execute, "DELETE FROM sessions WHERE sid = ?", [(sid,)])

    async def touch(self, accesses: Iterable[tuple[str, float, bool]]) -> None:
        """Note last accesses, as (sid, seconds since 1970, ever seated); all of them or none.

        Raises `StoreError`.
        """
        values = [(last_access, int(seated), sid) for sid, last_access, seated in accesses]
        await self._call(
            self._execute, "UPDATE sessions SET last_access_secs = ?, seated = ? WHERE sid = ?", values
        )

    async def load_observed(self) -> tuple[list[ObservedRow], list[Unreadable]]:
        """The logs of all sessions, in their order, and what could not be read. Raises `StoreError`."""
        return await self._call(self._load_observed)

    async def note_observed(self, rows: Iterable[ObservedRow], *, most: int) -> None:
        """Add entries to the logs of their sessions, of which each keeps the latest ``most``.

        Entries of a session that is gone are dropped. Raises `StoreError`.
        """
        added = list(rows)
        latest = {row.sid: row.number for row in added}
        await self._call(self._execute, observed_rows.INSERT, list(observed_rows.values_of(added)))
        trims = [(sid, number - most) for sid, number in latest.items() if number > most]
        if trims:
            await self._call(self._execute, observed_rows.TRIM, trims)

    async def _call(self, function: Callable[..., T], *args: Any) -> T:
        return await trio.to_thread.run_sync(function, *args, limiter=self._one_at_a_time)

    # -- in the worker thread ----------------------------------------------------------

    def _load(self) -> tuple[list[SessionRow], list[Unreadable]]:
        rows: list[SessionRow] = []
        unreadable: list[Unreadable] = []
        with _store_errors(self._path, "read"):
            found = self._connection.execute(
                f"SELECT {_COLUMNS} FROM sessions ORDER BY joined_at_secs, sid"
            ).fetchall()
        for values in found:
            try:
                rows.append(_row_of(values))
            except ValueError as error:
                unreadable.append(Unreadable(_shown(values[0]), str(error)))
        return rows, unreadable

    def _load_observed(self) -> tuple[list[ObservedRow], list[Unreadable]]:
        rows: list[ObservedRow] = []
        unreadable: list[Unreadable] = []
        with _store_errors(self._path, "read"):
            found = self._connection.execute(observed_rows.SELECT).fetchall()
        for values in found:
            try:
                rows.append(observed_rows.entry_of(values))
            except ValueError as error:
                unreadable.append(Unreadable(_shown(values[0]), str(error)))
        return rows, unreadable

    def _execute(self, statement: str, values: Sequence[tuple[Any, ...]]) -> None:
        if file_id(self._path) != self._file:
            # SQLite would go on in a file without a name, which ends with this process.
            raise StoreError(f"cannot write {self._path}: it was removed or replaced; start the server again")
        with _store_errors(self._path, "write"):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                self._connection.executemany(statement, values)
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise


@asynccontextmanager
async def open_session_db(directory: str | os.PathLike[str]) -> AsyncIterator[SessionDB]:
    """Keep sessions in ``directory`` for the block; it is made (0700) if it is not there.

    No other server may use it meanwhile, of this process or another.

    Raises:
        StoreError: the directory or a file in it is a symbolic link, not ours, or open to others;
            another server has it; it is no store of ours, damaged, or of a later version; or what
            the system said. Nothing was changed then but that an empty store may have been made.
    """
    path = _absolute(directory)
    with_all = ExitStack()

    def open_it() -> sqlite3.Connection:
        try:
            fd = with_all.enter_context(locked_directory(path))
        except OSError as error:
            raise StoreError(f"cannot use the state directory {path}: {_why(error)}") from error
        return with_all.enter_context(closing(_open(path / FILE_NAME, fd)))

    try:
        # What it has opened when it is cancelled is closed below: a thread is not given up.
        connection = await trio.to_thread.run_sync(open_it)
        yield SessionDB(connection, path / FILE_NAME)
    finally:
        # As long as the disk takes: without it the lock would stay.
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(with_all.close)


def _absolute(directory: str | os.PathLike[str]) -> Path:
    return Path(os.path.abspath(directory))


def _open(path: Path, directory: int) -> sqlite3.Connection:
    try:
        check_files(path.name, directory)
        with _store_errors(path, "make"):
            make_database(path, directory, _SCHEMA)
    except OSError as error:
        where = path.parent / (error.filename or path.name)
        raise StoreError(f"cannot use the state file {where}: {_why(error)}") from error
    with _store_errors(path, "open"):
        check_log(path, partial(_version_of, path=path))
        connection = sqlite3.connect(path, timeout=1.0, isolation_level=None, check_same_thread=False)
        try:
            # Text comes as bytes: one that is no UTF-8 is one bad row, not an error of the whole.
            connection.text_factory = bytes
            connection.execute("PRAGMA trusted_schema = OFF")
            connection.execute("PRAGMA locking_mode = EXCLUSIVE")
            connection.execute("PRAGMA synchronous = FULL")
            _check_schema(connection, path)
            remove_index(path.name, directory)
            # Not before: it writes to the file, which may have been another program's.
            connection.execute("PRAGMA journal_mode = WAL")
            # Not only when a thousand pages are there: what is in the log alone is lost with it.
            connection.execute("PRAGMA wal_autocheckpoint = 1")
        except BaseException:
            connection.close()
            raise
    return connection


def _check_schema(connection: sqlite3.Connection, path: Path) -> None:
    """Make the tables in an empty file; refuse one that somebody else made."""
    # Takes the lock that this connection then keeps.
    connection.execute("BEGIN EXCLUSIVE")
    connection.execute("COMMIT")
    version = _version_of(connection, path)
    if version == 0:
        connection.executescript(_SCHEMA)
        version = 1
    for number, step in enumerate(_STEPS[version - 1 :], version + 1):
        connection.executescript(f"BEGIN IMMEDIATE;{step}PRAGMA user_version = {number};COMMIT;")


def _version_of(connection: sqlite3.Connection, path: Path) -> int:
    """The version of its schema; 0 if there is nothing in it. Raises `StoreError` if it is none of ours."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if (version, application, tables) == (0, 0, 0):
        return 0
    if application != _APPLICATION_ID:
        raise StoreError(f"{path} is a database of another program")
    if not 1 <= version <= _SCHEMA_VERSION:
        raise StoreError(
            f"{path} has schema version {version}, this program knows 1 to {_SCHEMA_VERSION} only"
        )
    return int(version)


def _row_of(values: tuple[Any, ...]) -> SessionRow:
    """Raises ``ValueError``, which names the column."""
    sid, digest, roles, desc, manifest, joined_at, last_access, seated = values
    if not isinstance(digest, bytes) or len(digest) != _DIGEST_BYTES:
        raise ValueError(f"token_digest: not {_DIGEST_BYTES} bytes")
    for column, value in (("joined_at_secs", joined_at), ("last_access_secs", last_access)):
        if not isinstance(value, float) or not abs(value) < _FAR:
            raise ValueError(f"{column}: not a time")
    if seated not in (0, 1):
        raise ValueError("seated: neither 0 nor 1")
    names = _json("roles_json", roles, list)
    if not all(isinstance(name, str) for name in names):
        raise ValueError("roles_json: not a list of strings")
    return SessionRow(
        sid=_text("sid", sid),
        token_digest=digest,
        roles=tuple(names),
        desc=_json("desc_json", desc, str, type(None)),
        capability_manifest=_json("capability_manifest_json", manifest, dict, type(None)),
        joined_at=joined_at,
        last_access=last_access,
        seated=bool(seated),
    )


def _json(column: str, value: object, *kinds: type) -> Any:
    try:
        found = parse_json(_text(column, value))
    except FrameError as error:
        raise ValueError(f"{column}: {error}") from None
    if not isinstance(found, kinds):
        raise ValueError(f"{column}: not of the expected kind")
    return found


def _text(column: str, value: object) -> str:
    # SQLite gives a TEXT by our factory and a BLOB as it is: both as bytes.
    if not isinstance(value, bytes):
        raise ValueError(f"{column}: not text")
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise ValueError(f"{column}: not UTF-8") from None


def _shown(value: object) -> str:
    return (value.decode("utf-8", "replace") if isinstance(value, bytes) else repr(value))[:64]


@contextmanager
def _store_errors(path: Path, action: str) -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, UnicodeDecodeError, OverflowError) as error:  # The last: 2^63 and beyond.
        # What SQLite says may quote a damaged schema: anything, and not even always UTF-8.
        reason = "it is damaged" if isinstance(error, UnicodeDecodeError) else str(error)
        if "locked" in reason:
            reason = "another program has it open"
        shown = "".join(each if each.isprintable() else "?" for each in reason)
        raise StoreError(f"cannot {action} {path}: {shown}") from error


def _why(error: OSError) -> str:
    if error.errno in (errno.ENOTDIR, errno.ELOOP):
        return "it is a symbolic link, or not a directory"
    if error.errno == errno.EBUSY:
        return "another server is using it"
    return error.strerror or str(error)
