"""Files that other processes read while we write them.

A file is replaced, never rewritten: a temporary file of mode 0600 beside it, fsync, rename.
A reader sees the old content or the new one. All calls here block; run them in a worker thread.
"""

from __future__ import annotations

import errno
import os
import stat
import uuid
from pathlib import Path

__all__ = ["MAX_NAME", "MAX_SMALL_FILE", "check_name", "read_small", "remove", "replace"]

MAX_NAME = 200
"""Bytes of a name that becomes a file name (children contract, A3)."""

MAX_SMALL_FILE = 2**20
"""Bytes that ``read_small`` reads at most; a discovery record has a few hundred."""


def check_name(name: str, what: str = "name") -> str:
    """Return ``name`` if it may become (part of) a file name, else raise ``ValueError``.

    Refused: the empty name, more than 200 bytes of UTF-8, a slash or backslash, control
    characters (NUL among them), ``..`` anywhere, a leading dot, and what has no UTF-8 form.
    """
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        raise ValueError(f"{what} cannot be written as UTF-8") from None
    if not name:
        raise ValueError(f"{what} is empty")
    if size > MAX_NAME:
        raise ValueError(f"{what} has {size} bytes, more than {MAX_NAME}")
    if name.startswith(".") or ".." in name:
        raise ValueError(f"{what} {name!r} begins with a dot or holds two")
    if any(c in "/\\\x7f" or c < " " for c in name):
        raise ValueError(f"{what} {name!r} holds a slash or a control character")
    return name


def replace(path: Path, data: bytes, *, sync: bool = True) -> None:
    """Put ``data`` at ``path``, all or nothing, readable by its owner alone.

    The directory must exist. With ``sync`` the content is on disk before the name points to
    it; the directory itself is not synced (the contract asks for no more: a lost rename leaves the
    older file). On any error the temporary file is gone and ``path`` is as it was.

    Raises:
        OSError: what the operating system said, a full disk for one.
    """
    temporary = path.with_name(f".{path.name}.tmp.{uuid.uuid4()}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(temporary, flags, 0o600)
    try:
        try:
            _write_all(fd, data)
            if sync:
                os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(temporary, path)
    except BaseException:
        remove(temporary)
        raise


def _write_all(fd: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(fd, left) :]


def read_small(path: Path, *, limit: int = MAX_SMALL_FILE) -> tuple[bytes, os.stat_result]:
    """Read a whole regular file and say which one it was.

    Symbolic links are not followed, and a pipe that somebody planted does not block.

    Raises:
        FileNotFoundError: there is none.
        ValueError: not a regular file, or larger than ``limit``.
        OSError: anything else.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):  # a symbolic link; a socket
            raise ValueError(f"{path.name} is not a regular file") from error
        raise
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise ValueError(f"{path.name} is not a regular file")
        if found.st_size > limit:
            raise ValueError(f"{path.name} has {found.st_size} bytes, more than {limit}")
        with open(fd, "rb", closefd=False) as file:
            data = file.read(limit + 1)
        if len(data) > limit:
            raise ValueError(f"{path.name} grew beyond {limit} bytes")
        return data, found
    finally:
        os.close(fd)


def remove(path: Path) -> bool:
    """Unlink ``path``; False if there was nothing."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return False
    return True
