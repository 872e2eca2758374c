"""Opening files below a directory so that nothing, at no moment, leads out of it.

Comparing ``realpath()`` with a prefix and opening afterwards is a race: a symbolic link that is
flipped in between was measured to leak the outside file in almost half of the tries. Here the
kernel resolves with ``openat2(RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS)``; where it has no such call,
the path is walked one component at a time, each opened relative to the one before and none of them a
link. Either way a link anywhere in the path is an error (``ELOOP`` or ``ENOTDIR``), never followed.

Paths are relative to a directory descriptor; ``..``, an absolute path and NUL are refused before the
kernel is asked. Hard links cannot be told from the file itself. All calls block: use a worker thread.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import os
import re
import secrets
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

__all__ = [
    "MAX_READ",
    "Temporaries",
    "make_directories",
    "open_beneath",
    "open_directory",
    "open_directory_beneath",
    "read_file",
    "replace_file",
    "walk_beneath",
]

MAX_READ: Final = 64 * 2**20
"""Bytes that one `read_file` returns at most."""

_SYS_OPENAT2: Final = 437
_RESOLVE: Final = 0x02 | 0x04 | 0x08  # NO_MAGICLINKS | NO_SYMLINKS | BENEATH
_DIRECTORY: Final = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_CLOEXEC
_TRIES: Final = 32
"""A rename elsewhere makes ``openat2`` answer EAGAIN; a directory made meanwhile, EEXIST."""
_SWEPT: Final = 4096
"""Directories that one `Temporaries` remembers."""

Opener = Callable[[int, str, int, int], int]


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def _components(path: str) -> list[str]:
    """The names of a relative path, ``[]`` for the directory itself.

    Raises:
        ValueError: it is absolute, or has a NUL or a ``..``.
    """
    if path.startswith("/") or "\0" in path:
        raise ValueError(f"{path!r} is not a relative path")
    names = [each for each in path.split("/") if each not in ("", ".")]
    if ".." in names:
        raise ValueError(f"{path!r} leads upwards")
    return names


@functools.cache
def _openat2() -> Opener | None:
    """The system call, or None where the kernel (or a sandbox around us) has none."""
    if not sys.platform.startswith("linux"):
        return None
    syscall = ctypes.CDLL(None, use_errno=True).syscall
    syscall.restype = ctypes.c_long

    def call(directory: int, path: str, flags: int, mode: int) -> int:
        how = _OpenHow(flags | os.O_CLOEXEC, mode, _RESOLVE)
        for _ in range(_TRIES):
            fd = syscall(
                ctypes.c_long(_SYS_OPENAT2),
                ctypes.c_int(directory),
                ctypes.c_char_p(os.fsencode(path)),
                ctypes.byref(how),
                ctypes.c_size_t(ctypes.sizeof(how)),
            )
            if fd >= 0:
                return int(fd)
            number = ctypes.get_errno()
            if number not in (errno.EAGAIN, errno.EINTR):
                raise OSError(number, os.strerror(number), path)
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN), path)

    root = os.open("/", _DIRECTORY)
    try:
        os.close(call(root, ".", _DIRECTORY, 0))
    except OSError:
        return None
    finally:
        os.close(root)
    return call


def walk_beneath(directory: int, path: str, flags: int, mode: int = 0) -> int:
    """What `open_beneath` does where there is no ``openat2``: one component at a time."""
    *above, last = _components(path) or ["."]
    here = directory
    try:
        for name in above:
            below = _step(here, name)
            if here != directory:
                os.close(here)
            here = below
        if flags & _DIRECTORY == _DIRECTORY:
            return _step(here, last)
        return os.open(last, flags | os.O_NOFOLLOW | os.O_CLOEXEC, mode, dir_fd=here)
    finally:
        if here != directory:
            os.close(here)


def _step(directory: int, name: str) -> int:
    try:
        return os.open(name, _DIRECTORY | os.O_NOFOLLOW, dir_fd=directory)
    except NotADirectoryError:
        # What an O_PATH open says of a link; tell it apart from a file as openat2 does.
        if stat.S_ISLNK(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode):
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), name) from None
        raise


def open_beneath(directory: int, path: str, flags: int, mode: int = 0) -> int:
    """Open ``path``, relative to the descriptor ``directory``; returns a descriptor.

    Args:
        directory: a descriptor of a directory.
        path: relative, without ``..``.
        flags: as for ``os.open``; ``O_CLOEXEC`` is added.
        mode: permissions of a file that is made.

    Raises:
        ValueError: the path is not relative, or leads upwards.
        OSError: ``ELOOP`` or ``ENOTDIR`` for a symbolic link in it; whatever else ``open`` says.
    """
    names = _components(path) or ["."]
    openat2 = _openat2()
    if openat2 is None:
        return walk_beneath(directory, path, flags, mode)
    # O_PATH | O_NOFOLLOW would open a final link itself; without it RESOLVE_NO_SYMLINKS refuses that too.
    return openat2(directory, "/".join(names), flags & ~os.O_NOFOLLOW, mode)


def open_directory(path: str = "/") -> int:
    """A descriptor to resolve from, for a directory that is trusted by its name."""
    return os.open(path, _DIRECTORY)


def open_directory_beneath(directory: int, path: str) -> int:
    """The same for a directory beneath another. Raises as `open_beneath` does."""
    return open_beneath(directory, path, _DIRECTORY)


@contextmanager
def _closing(fd: int) -> Iterator[int]:
    try:
        yield fd
    finally:
        os.close(fd)


def make_directories(directory: int, path: str, mode: int = 0o777) -> int:
    """Open the directory ``path`` beneath ``directory``, making what is missing of it.

    Returns its descriptor. ``mode`` is subject to the umask. Raises as `open_beneath` does.
    """
    names = _components(path)
    try:
        return open_directory_beneath(directory, path)
    except FileNotFoundError:
        # Not there, or not all of it: make it step by step.
        pass
    here = os.dup(directory)
    for name in names:
        with _closing(here):
            here = _enter(here, name, mode)
    return here


def _enter(directory: int, name: str, mode: int) -> int:
    for _ in range(_TRIES):
        try:
            return open_directory_beneath(directory, name)
        except FileNotFoundError:
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, mode, dir_fd=directory)
    raise FileNotFoundError(errno.ENOENT, "it vanishes as often as it is made", name)


def read_file(directory: int, path: str, *, limit: int = MAX_READ) -> bytes:
    """The content of a regular file beneath ``directory``.

    Raises:
        ValueError: not a regular file, or more than ``limit`` bytes.
        OSError: as `open_beneath`.
    """
    with _closing(open_beneath(directory, path, os.O_RDONLY | os.O_NONBLOCK)) as fd:
        found = os.fstat(fd)
        if stat.S_ISDIR(found.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        if not stat.S_ISREG(found.st_mode):
            raise ValueError(f"{path!r} is not a regular file")
        with open(fd, "rb", closefd=False) as file:
            data = file.read(limit + 1)
        if len(data) > limit:
            raise ValueError(f"{path!r} has more than {limit} bytes")
        return data


class Temporaries:
    """How the temporary files of one owner are named, so that its next life knows and removes them.

    ``.<owner>-<pid>-<16 hex digits>.tmp``; those of dead processes are removed from a directory when it is
    first written to. Any thread may use it.
    """

    def __init__(self, owner: str, is_dead: Callable[[int], bool]) -> None:
        """``owner`` is a part of a file's name; ``is_dead`` tells whether no process has that pid."""
        self._owner = owner
        self._is_dead = is_dead
        self._pattern = re.compile(rf"\.{re.escape(owner)}-([0-9]{{1,10}})-[0-9a-f]{{16}}\.tmp", re.ASCII)
        self._swept: set[tuple[int, int]] = set()

    def name(self) -> str:
        """One that nothing has."""
        return f".{self._owner}-{os.getpid()}-{secrets.token_hex(8)}.tmp"

    def sweep(self, directory: int) -> None:
        """Remove what dead processes left there, once for each directory; links are left alone.

        What cannot be listed or removed stays: that is no reason not to write.
        """
        found = os.fstat(directory)
        where = (found.st_dev, found.st_ino)
        if where in self._swept:
            return
        if len(self._swept) >= _SWEPT:
            self._swept.clear()
        self._swept.add(where)
        with contextlib.suppress(OSError), _closing(_readable(directory)) as fd, os.scandir(fd) as entries:
            left = [each.name for each in entries if self._is_left(each)]
            for name in left:
                os.unlink(name, dir_fd=fd)

    def _is_left(self, entry: os.DirEntry[str]) -> bool:
        match = self._pattern.fullmatch(entry.name)
        return match is not None and self._is_dead(int(match[1])) and entry.is_file(follow_symlinks=False)


def _readable(directory: int) -> int:
    return open_beneath(directory, ".", os.O_RDONLY | os.O_DIRECTORY)


def replace_file(
    directory: int,
    path: str,
    data: bytes,
    *,
    mode: int | None = None,
    parents: bool = True,
    sync: bool = False,
    temporaries: Temporaries | None = None,
) -> None:
    """Put ``data`` at ``path`` beneath ``directory``, all or nothing.

    A temporary file beside it is written and renamed over it: a reader sees the old content or the
    new one, and a file elsewhere that shares the old one's inode is not touched.

    Args:
        directory: a descriptor of a directory.
        path: relative, without ``..``; its last component may be missing.
        data: the whole content.
        mode: permission bits; None keeps those of the file that is replaced, or takes the umask's.
        parents: make missing directories on the way.
        sync: be sure that the content is on disk before the name points to it.
        temporaries: names the temporary file, and removes those of earlier lives; None: by chance alone.

    Raises:
        ValueError: the path names no file.
        OSError: as `open_beneath`; ``ELOOP`` where ``path`` is a symbolic link. Nothing has changed then.
    """
    *above, name = _components(path) or [""]
    if not name:
        raise ValueError("a directory cannot be replaced by a file")
    way = "/".join(above)
    opened = make_directories(directory, way) if parents else open_directory_beneath(directory, way)
    with _closing(opened) as parent:
        kept = _mode_of(parent, name)
        temporary = f".{secrets.token_hex(8)}.tmp"
        if temporaries is not None:
            temporaries.sweep(parent)
            temporary = temporaries.name()
        _write_new(parent, temporary, data, mode if mode is not None else kept, sync)
        try:
            os.rename(temporary, name, src_dir_fd=parent, dst_dir_fd=parent)
        except BaseException:
            os.unlink(temporary, dir_fd=parent)
            raise


def _mode_of(parent: int, name: str) -> int | None:
    """The permission bits of what stands at ``name``; None where there is nothing."""
    try:
        found = os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode
    except FileNotFoundError:
        return None
    if stat.S_ISLNK(found):
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), name)
    if stat.S_ISDIR(found):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), name)
    return stat.S_IMODE(found) & 0o777


def _write_new(parent: int, name: str, data: bytes, mode: int | None, sync: bool) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    # Private until it has its mode; without one, the umask decides as for any new file.
    fd = os.open(name, flags, 0o666 if mode is None else 0o600, dir_fd=parent)
    try:
        with _closing(fd):
            left = memoryview(data)
            while left:
                left = left[os.write(fd, left) :]
            if mode is not None:
                os.fchmod(fd, mode)
            if sync:
                os.fsync(fd)
    except BaseException:
        os.unlink(name, dir_fd=parent)
        raise
