"""A pool worker's socket: bound privately, found stale or alive, read line by line.

Blocking sockets on purpose: the worker does one thing at a time (pools.md C3.2).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
from collections.abc import Iterator
from typing import Final

import attrs

from trio_swarm.limits import MAX_POOL_LINE, RECEIVE_BUFFER

__all__ = ["Bound", "LineTooLong", "Lines", "bind_private", "is_alive"]

_BACKLOG: Final = 16
"""Clients that may queue while one is served; each is served in its turn."""


@attrs.frozen(eq=False)
class Bound:
    """A listening socket, and the identity of the file that stands for it."""

    listener: socket.socket
    path: str
    inode: tuple[int, int]

    def unlink(self) -> None:
        """Remove the socket file, unless another worker's stands there by now."""
        with contextlib.suppress(OSError):
            found = os.lstat(self.path)
            if (found.st_dev, found.st_ino) == self.inode:
                os.unlink(self.path)

    def close(self) -> None:
        self.unlink()
        self.listener.close()


def bind_private(path: str) -> Bound:
    """Listen on *path*, mode 0600; a stale socket there is replaced, a live one respected.

    Of any number of workers that try at the same time exactly one succeeds: looking,
    removing and binding happen under a lock on the directory itself, which needs no file
    that somebody would have to clean up.

    Raises:
        OSError: the path is in use by a live listener or by something that is no socket,
            too long, or not writable.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with _directory_locked(os.path.dirname(path) or "."):
            _bind(listener, path)
            listener.listen(_BACKLOG)
            found = os.lstat(path)
    except BaseException:
        listener.close()
        raise
    return Bound(listener, path, (found.st_dev, found.st_ino))


def is_alive(path: str) -> bool:
    """Whether some process has the socket at *path* open, listening or about to.

    A datagram socket cannot be connected to a stream socket: the kernel says EPROTOTYPE
    when somebody is there and ECONNREFUSED when nobody is, and the one who is there never
    notices. (A real connection would look to an idle worker like a client that left.)
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(path)
        except OSError as error:
            return error.errno not in (errno.ECONNREFUSED, errno.ENOENT)
    return True


@contextlib.contextmanager
def _directory_locked(directory: str) -> Iterator[None]:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _bind(listener: socket.socket, path: str) -> None:
    # The mode is right from the first moment; nothing else runs in this process yet
    # that the process-wide umask could disturb.
    before = os.umask(0o177)
    try:
        try:
            listener.bind(path)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or not _is_stale(path):
                raise
            os.unlink(path)
            listener.bind(path)
    finally:
        os.umask(before)
    os.chmod(path, 0o600)


def _is_stale(path: str) -> bool:
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return True
    return stat.S_ISSOCK(mode) and not is_alive(path)


class LineTooLong(Exception):
    """A line passed the limit; it was skipped up to its end and the framing is intact."""


@attrs.define(eq=False)
class Lines:
    """Lines of one connection, without their newline."""

    connection: socket.socket
    max_line: int = MAX_POOL_LINE
    _buffer: bytearray = attrs.field(factory=bytearray, init=False)
    _searched: int = attrs.field(default=0, init=False)
    _skipping: bool = attrs.field(default=False, init=False)

    def next(self) -> bytes | None:
        """The next line, or None at the end of the stream.

        Raises:
            LineTooLong: the line was longer than ``max_line`` bytes.
            OSError: the connection failed.
        """
        while True:
            end = self._buffer.find(b"\n", self._searched)
            if end >= 0:
                return self._cut(end)
            self._searched = len(self._buffer)
            if self._searched > self.max_line:
                # Memory stays bounded: what is known to be too long is not kept.
                self._buffer.clear()
                self._searched = 0
                self._skipping = True
            chunk = self.connection.recv(RECEIVE_BUFFER)
            if not chunk:
                return self._rest()
            self._buffer += chunk

    def _rest(self) -> bytes | None:
        """A last line without its newline counts if it can be whole, as with the original."""
        rest = bytes(self._buffer)
        self._buffer.clear()
        self._searched = 0
        return rest if rest.rstrip().endswith(b"}") and not self._skipping else None

    def _cut(self, end: int) -> bytes:
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        self._searched = 0
        if self._skipping or end > self.max_line:
            self._skipping = False
            raise LineTooLong
        return line
