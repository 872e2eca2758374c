"""The files of the sessions' database, looked at before SQLite is.

SQLite is forgiving where it should not be: a database of no bytes is a new one to it, and the
write-ahead log beside that one, with all that was ever committed, is deleted. A log whose header is
wrong is an empty one, and written over. Here both are damages, and left as they are. (What it makes
of a log that is wrong further on is not looked at: up to there it counts, as after a power failure.)
"""

from __future__ import annotations

import errno
import os
import sqlite3
import stat
import struct
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Final

__all__ = ["check_files", "check_log", "file_id", "make_database", "remove_index"]

_LOGS: Final = ("-wal", "-journal")
_SUFFIXES: Final = ("", *_LOGS, "-shm")
_NEW: Final = "-new"
"""Of a database that is being made. One that is left over was never used."""

_WAL_MAGIC: Final = {0x377F0682: "<", 0x377F0683: ">"}
"""And the order of the bytes in what is summed up (SQLite's file format, 4.1)."""
_WAL_HEADER: Final = 32


def check_files(name: str, directory: int) -> None:
    """Look at the database of that name, and at what SQLite puts beside it.

    Each is a regular file of ours that nobody else may read, and that we may read and write, in a
    directory where we may make files. A database is not empty, and has its log beside it or none.

    Raises ``OSError`` with the name of the file. Must be called before SQLite has them open, because
    closing a descriptor of a file drops all locks that the process holds on it.
    """
    sizes = {suffix: _size_of(name + suffix, directory) for suffix in _SUFFIXES}
    if sizes[""] is None:
        for suffix in _LOGS:
            if sizes[suffix]:
                raise OSError(errno.EIO, f"it is damaged: {name} is gone, which belongs to it", name + suffix)
    elif sizes[""] <= 1:  # SQLite takes one byte for none.
        raise OSError(errno.EIO, "it is damaged: it is empty; remove it to begin anew", name)
    if sizes["-wal"] and not _is_log(_header(name + "-wal", directory)):
        raise OSError(errno.EIO, "it is damaged: its header is wrong", name + "-wal")
    if not _may(".", os.W_OK | os.X_OK, directory):
        raise OSError(errno.EACCES, "no file can be made beside it", name)


def check_log(path: Path, check: Callable[[sqlite3.Connection], object]) -> None:
    """Read a database through its log, if it has one, without leave to write.

    Closing it writes the log's content into the database, sound or not, and deletes the log: so what
    is damaged, or not ours, must not be opened for more. Raises ``sqlite3.DatabaseError`` for the one
    and what ``check`` raises for the other. The log's index that is made for it stays (`remove_index`);
    where there is no room for that, nothing is read.
    """
    log = path.with_name(f"{path.name}-wal")
    if not log.exists() or not log.stat().st_size:
        return
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=1.0)) as connection:
            check(connection)
            (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.DatabaseError as error:
        if error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
            raise
        return
    if found != "ok":
        raise sqlite3.DatabaseError(f"it is damaged: {found.splitlines()[-1]}")


def file_id(path: Path) -> tuple[int, int] | None:
    """Which file that is; None if there is none."""
    try:
        found = os.stat(path, follow_symlinks=False)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def remove_index(name: str, directory: int) -> None:
    """Remove the log's index, when the database is locked: nobody can be using it then."""
    with suppress(FileNotFoundError):
        os.unlink(f"{name}-shm", dir_fd=directory)


def make_database(path: Path, directory: int, schema: str) -> None:
    """Make the database, mode 0600, if it is not there: under another name until it is whole.

    So an empty one is never ours. SQLite's other files get the mode of this one. Raises ``OSError``
    and ``sqlite3.Error``; nothing is left then.
    """
    with suppress(FileNotFoundError):
        os.stat(path.name, dir_fd=directory, follow_symlinks=False)
        return
    new = path.name + _NEW
    _remove(new, directory)
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(new, flags, 0o600, dir_fd=directory)
        try:
            os.fchmod(fd, 0o600)
        finally:
            os.close(fd)
        with closing(sqlite3.connect(path.with_name(new), isolation_level=None)) as connection:
            connection.execute("PRAGMA synchronous = FULL")
            connection.executescript(schema)
        os.rename(new, path.name, src_dir_fd=directory, dst_dir_fd=directory)
    except BaseException:
        _remove(new, directory)
        raise
    os.fsync(directory)


def _remove(name: str, directory: int) -> None:
    for suffix in _SUFFIXES:
        with suppress(FileNotFoundError):
            os.unlink(name + suffix, dir_fd=directory)


def _size_of(name: str, directory: int) -> int | None:
    """None if there is no such file; raises ``OSError`` for one that must not be used."""
    try:
        found = os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EPERM, "it is not a regular file", name)
    if found.st_uid != os.geteuid():
        raise OSError(errno.EPERM, f"it belongs to uid {found.st_uid}, not to us", name)
    if stat.S_IMODE(found.st_mode) & 0o077:
        raise OSError(errno.EPERM, f"its mode is {stat.S_IMODE(found.st_mode):o}, it must be 600", name)
    if not _may(name, os.R_OK | os.W_OK, directory):
        raise OSError(errno.EACCES, "it cannot be read and written", name)
    return found.st_size


def _may(name: str, mode: int, directory: int) -> bool:
    # Not every system can be asked for the effective ids, which differ for a setuid program only.
    return os.access(name, mode, dir_fd=directory, effective_ids=os.access in os.supports_effective_ids)


def _header(log: str, directory: int) -> bytes:
    fd = os.open(log, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    try:
        return os.read(fd, _WAL_HEADER)
    finally:
        os.close(fd)


def _is_log(header: bytes) -> bool:
    """True as well for what a power failure leaves of one that was just begun: zeros, or less of it."""
    if len(header) < _WAL_HEADER or not any(header):
        return True
    magic, first, second = struct.unpack(">I20xII", header)
    order = _WAL_MAGIC.get(magic)
    if order is None:
        return False
    words = struct.unpack(f"{order}6I", header[:24])
    one = two = 0
    for even, odd in zip(words[::2], words[1::2], strict=True):
        one = (one + even + two) & 0xFFFFFFFF
        two = (two + odd + one) & 0xFFFFFFFF
    return (one, two) == (first, second)
