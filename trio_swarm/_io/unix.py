"""Unix sockets that only this user can reach.

A socket's mode is whatever the umask says for a moment after ``bind``, so the *directory* is the
guard: mode 0700, ours, held by its descriptor and locked for as long as the listener lives. Of any
number of processes that start at the same place one gets the lock; it looks whether somebody else
still has the old socket open before it removes it. Peers are checked by uid on top of that.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Final

import trio

from trio_swarm._io.runtime import MAX_SOCKET_PATH

__all__ = [
    "check_socket_path",
    "connect_unix",
    "is_alive",
    "locked_directory",
    "open_unix_listener",
    "peer_is_ours",
    "peer_uid",
]

_BACKLOG: Final = 64


def check_socket_path(path: str | Path) -> str:
    """Return ``path`` as text if it is short enough for a socket.

    Raises:
        ValueError: it is not, or holds a NUL; names the limit.
    """
    text = os.fspath(path)
    size = len(os.fsencode(text))
    if "\0" in text:
        raise ValueError("a socket's path cannot hold a NUL")
    if size > MAX_SOCKET_PATH:
        raise ValueError(
            f"the socket's path has {size} bytes, more than {MAX_SOCKET_PATH}: {text!r} "
            "(use a shorter name or a runtime directory nearer to the root)"
        )
    return text


def is_alive(path: str | Path) -> bool:
    """Whether some process still has the socket at ``path`` open.

    A datagram socket cannot be connected to a stream socket: the kernel says so when somebody is
    there, and refuses when nobody is; whoever is there never notices.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(os.fspath(path))
        except OSError as error:
            return error.errno not in (errno.ECONNREFUSED, errno.ENOENT)
    return True


@contextmanager
def locked_directory(path: Path) -> Iterator[int]:
    """Make or take the private directory ``path`` and keep it locked for the block.

    Yields its descriptor. Its parent must exist. Blocks for a moment at most: it never waits for
    the lock.

    Raises:
        OSError: ``EBUSY`` while another process holds it; ``EPERM`` where it is not ours, or others may
            enter it; ``ENOTDIR`` where it is a symbolic link.
    """
    while True:
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, 0o700)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            # Its last holder removed it since: make a new one. Without a parent mkdir had raised.
            continue
        try:
            _check_private(fd, path)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise OSError(errno.EBUSY, "another process is at work in it", str(path)) from None
            if _is_still(fd, path):
                yield fd
                return
            # Its last holder removed it between our open and our lock: make a new one.
        finally:
            os.close(fd)


def _check_private(fd: int, path: Path) -> None:
    found = os.fstat(fd)
    if found.st_uid != os.geteuid():
        raise PermissionError(errno.EPERM, f"it belongs to uid {found.st_uid}, not to us", str(path))
    if stat.S_IMODE(found.st_mode) & 0o077:
        raise PermissionError(
            errno.EPERM, f"its mode is {stat.S_IMODE(found.st_mode):o}, it must be 700", str(path)
        )


def _is_still(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False


@asynccontextmanager
async def open_unix_listener(path: str | Path) -> AsyncIterator[trio.SocketListener]:
    """Listen on ``path``, mode 0600, in a directory that `locked_directory` keeps for us.

    A socket there that nobody has open any more is replaced. On leaving, the listener is closed and
    the socket's file removed, unless somebody else's stands there by then.

    Raises:
        ValueError: the path is too long.
        OSError: ``EADDRINUSE`` where somebody listens there, or where something stands that is no socket.
    """
    text = check_socket_path(path)
    _remove_stale(text)
    sock = trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM)
    try:
        await sock.bind(text)
        os.chmod(text, 0o600)
        made = os.lstat(text)
        sock.listen(_BACKLOG)
        listener = trio.SocketListener(sock)
    except BaseException:
        sock.close()
        raise
    try:
        yield listener
    finally:
        sock.close()
        with contextlib.suppress(OSError):
            if os.path.samestat(os.lstat(text), made):
                os.unlink(text)


def _remove_stale(path: str) -> None:
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise OSError(errno.EADDRINUSE, "something that is no socket stands there", path)
    if is_alive(path):
        raise OSError(errno.EADDRINUSE, "somebody listens there", path)
    os.unlink(path)


async def connect_unix(path: str | Path) -> trio.SocketStream:
    """Connect to the socket at ``path``. When cancelled, nothing is left open.

    Raises:
        ValueError: the path is too long.
        OSError: nobody is there; ``BlockingIOError``: the queue of who listens is full just now.
    """
    text = check_socket_path(path)
    await trio.lowlevel.checkpoint()
    with ExitStack() as closing:
        sock = closing.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        sock.setblocking(False)
        # Of a full queue Linux says EAGAIN, and has begun nothing. ``trio.open_unix_socket`` takes that
        # for a connection under way, and what it sees next for its success: a stream to nobody.
        sock.connect(text)
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
        closing.pop_all()  # The stream's from here on.
        return stream


def peer_uid(stream: trio.SocketStream) -> int | None:
    """The uid of the process that made the other end; None where the system does not tell."""
    option = getattr(socket, "SO_PEERCRED", None)
    if option is None:
        return None
    layout = struct.Struct("3i")
    raw = stream.socket.getsockopt(socket.SOL_SOCKET, option, layout.size)
    assert isinstance(raw, bytes)
    _, uid, _ = layout.unpack(raw)
    return int(uid)


def peer_is_ours(stream: trio.abc.Stream) -> bool:
    """Whether the other end is a process of our own user; where nothing tells, the directory decided."""
    if not isinstance(stream, trio.SocketStream):
        return False
    uid = peer_uid(stream)
    return uid is None or uid == os.geteuid()
