"""The warden's end of the control socket; the standard library only."""

from __future__ import annotations

import array
import json
import os
import select
import socket
import sys
from collections.abc import Iterator

__all__ = ["Control"]

MAX_FDS = 253  # of one message; the kernel's own limit


class Control:
    """JSON lines, each with the number of the descriptors that come beside it."""

    def __init__(self, control: socket.socket, poll: select.poll) -> None:
        control.setblocking(False)
        control.set_inheritable(False)  # it came over exec; nobody else may hold it open
        self.fd = control.fileno()
        self.ended = False
        self._socket = control
        self._poll = poll
        self._received = bytearray()
        self._descriptors: list[int] = []
        self._unsent = bytearray()
        poll.register(control, select.POLLIN)

    def send(self, message: dict[str, object]) -> None:
        """Never blocks: a coordinator that is stopped must not stop its warden."""
        if not self.ended:
            self._unsent += json.dumps(message, separators=(",", ":")).encode() + b"\n"
            self.flush()

    def flush(self) -> None:
        """Hand over what the socket takes now, and ask to be told when it takes more."""
        if self.ended:
            return
        wanted = select.POLLIN
        try:
            while self._unsent:
                del self._unsent[: self._socket.send(self._unsent)]
        except BlockingIOError:
            wanted |= select.POLLOUT
        except OSError:
            self._unsent.clear()
        self._poll.modify(self._socket, wanted)

    def flush_at_last(self, patience: float) -> None:
        """The last words; a coordinator that does not read them does without."""
        self._socket.settimeout(patience)
        try:
            if not self.ended:
                self._socket.sendall(self._unsent)
        except OSError:
            self._unsent.clear()

    def receive(self) -> Iterator[tuple[dict[str, object], list[int]]]:
        """Take what is there, and hand out each whole order with its descriptors.

        A descriptor comes with the first byte of its line, so the order of the one is the
        order of the other. Descriptors that the kernel dropped (none were free) cannot be told
        from those that it kept: the socket counts as ended then, and everything is stopped.
        """
        room = socket.CMSG_SPACE(MAX_FDS * array.array("i").itemsize)
        cloexec = socket.MSG_CMSG_CLOEXEC if sys.platform == "linux" else 0
        try:
            data, beside, flags, _ = self._socket.recvmsg(2**16, room, cloexec)
        except BlockingIOError:
            return
        except OSError:
            data, beside, flags = b"", [], 0
        for level, kind, packed in beside:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                self._keep(packed)
        if not data or flags & socket.MSG_CTRUNC:
            self.ended = True
            self._poll.unregister(self._socket)
            return
        self._received += data
        if b"\n" not in data:
            return
        *lines, self._received = self._received.split(b"\n")
        for line in lines:
            order = json.loads(line)
            count = order["fds"]
            fds, self._descriptors = self._descriptors[:count], self._descriptors[count:]
            yield order, fds

    def _keep(self, packed: bytes) -> None:
        fds = array.array("i")
        fds.frombytes(packed[: len(packed) - len(packed) % fds.itemsize])
        for fd in fds:
            os.set_inheritable(fd, False)
        self._descriptors += fds
