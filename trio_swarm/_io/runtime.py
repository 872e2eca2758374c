"""A private directory for sockets: the guard of every socket in it is its mode, 0700."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import trio

from trio_swarm.limits import REAP_DEADLINE

__all__ = ["MAX_NAME", "MAX_SOCKET_PATH", "check_place", "make_private", "private_dir"]

MAX_SOCKET_PATH: Final = 103
"""Bytes of a socket's path; the smallest limit among systems is 104 with the final NUL."""

MAX_NAME: Final = 32
"""Bytes of a name that fits into the directory as ``<name>.sock``."""


@asynccontextmanager
async def private_dir(
    prefix: str = "swarm-", *, make: bool = True, sockets: bool = True
) -> AsyncIterator[Path]:
    """A fresh directory of mode 0700, deleted with all that is in it when the block is left.

    Without ``make`` only its path is chosen: whoever tells a warden of it first, and makes it then
    (`make_private`), leaves nothing behind even if killed in between.

    It lies in ``XDG_RUNTIME_DIR`` where that is a directory of ours which nobody else may write to,
    and not a symbolic link; else where temporary files go. A socket ``<name up to 32 bytes>.sock``
    in it has a path that every system takes.

    Without ``sockets`` it is for files, maybe large ones: it lies where temporary files go, since
    ``XDG_RUNTIME_DIR`` is memory, and little of it.

    Deleting is not cut short by cancellation; it has ``REAP_DEADLINE`` seconds.

    Raises:
        OSError: ENAMETOOLONG where each place has too long a path; ENOTDIR, ENOENT, EACCES and their
            like where TMPDIR is needed and names no directory that can be written: Python would take
            another one without a word; else what the system said.
    """
    path = await trio.to_thread.run_sync(_choose if sockets else _choose_for_files, prefix)
    if make:
        make_private(path)
    try:
        yield path
    finally:
        with trio.move_on_after(REAP_DEADLINE, shield=True):
            await trio.to_thread.run_sync(_delete, path, abandon_on_cancel=True)


def make_private(path: Path) -> None:
    """Make the directory; it must not be there yet."""
    os.mkdir(path, 0o700)


def check_place(prefix: str = "trio-swarm-") -> None:
    """Raise what `private_dir` would for want of a place; makes nothing."""
    _choose(prefix)


def _choose(prefix: str) -> Path:
    name = f"{prefix}{secrets.token_hex(4)}"
    too_long = []
    for base in _places():
        if len(os.fsencode(base / name / ("n" * MAX_NAME + ".sock"))) <= MAX_SOCKET_PATH:
            return base / name
        too_long.append(f"{os.fspath(base)!r:.160}")
    reason = f"no room for a socket's path ({MAX_SOCKET_PATH} bytes) in {' or '.join(too_long)}; set TMPDIR"
    raise OSError(errno.ENAMETOOLONG, f"{reason} to a shorter path")


def _choose_for_files(prefix: str) -> Path:
    _check_named(os.environ.get("TMPDIR", ""))
    return Path(tempfile.gettempdir()) / f"{prefix}{secrets.token_hex(8)}"


def _places() -> Iterator[Path]:
    wanted = os.environ.get("XDG_RUNTIME_DIR", "")
    if os.path.isabs(wanted) and _is_ours(wanted):
        yield Path(wanted)
    _check_named(os.environ.get("TMPDIR", ""))
    yield Path(tempfile.gettempdir())


def _check_named(path: str) -> None:
    """What TMPDIR names, if it is set, must be of use."""
    if not path:
        return
    try:
        mode = os.stat(path).st_mode
        if not stat.S_ISDIR(mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if not os.access(path, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise OSError(error.errno, f"TMPDIR names {path!r:.160}: {error.strerror}") from error


def _is_ours(path: str) -> bool:
    """Asked of the open directory, so that it is the one that was asked about."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        found = os.fstat(fd)
    finally:
        os.close(fd)
    return found.st_uid == os.geteuid() and not stat.S_IMODE(found.st_mode) & 0o022


def _delete(path: Path) -> None:
    try:
        shutil.rmtree(path)
    except FileNotFoundError:
        if path.exists():  # somebody deletes in it as well: once more, and then it shows
            shutil.rmtree(path)
