"""WebSocket frames as bytes: messages out of a peer's stream, and messages into ours.

trio-websocket does the handshake, the pings and the closing; the messages themselves do
not pass through it. It costs three task switches and a pass of pure Python over each frame,
which is most of a small message's time, and it looks at a message's size and at its
fragments only when it keeps them already: 2^62 declared bytes and 200,000 empty fragments
are stopped here, at the header.

Pure: bytes in, messages, control frames and a violation out. RFC 6455, section 5.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Sequence
from typing import Final

import attrs

from trio_swarm.limits import MAX_FRAGMENTS

__all__ = ["FrameReader", "Goodbye", "Violation", "ping_frame", "text_frames"]

_FIN, _RESERVED, _OPCODE, _MASK, _LENGTH = 0x80, 0x70, 0x0F, 0x80, 0x7F
_CONTINUATION, _TEXT, _BINARY, _CLOSE, _PING, _PONG = 0, 1, 2, 8, 9, 10
_OPCODES: Final = frozenset((_CONTINUATION, _TEXT, _BINARY, _CLOSE, _PING, _PONG))
_MAX_CONTROL: Final = 125
_MASK_SIZE: Final = 4

PROTOCOL_ERROR: Final = 1002
NO_CODE: Final = 1005
NOT_UTF8: Final = 1007
TOO_BIG: Final = 1009
_NEVER_SENT: Final = frozenset((1004, 1005, 1006, 1015))


@attrs.frozen
class Violation:
    """What the peer did, and the close code for it."""

    code: int
    text: str


@attrs.frozen
class Goodbye:
    """The peer's close frame: its code (1005 where it gave none) and its reason."""

    code: int
    reason: str


@attrs.define(eq=False)
class FrameReader:
    """What one peer sends, from the end of the handshake on.

    ``masked`` says whether its frames must be masked: a client's must, a server's must not.
    """

    masked: bool
    max_message: int
    max_fragments: int = MAX_FRAGMENTS
    messages: deque[str] = attrs.field(factory=deque)
    """Whole text messages that nobody took yet."""
    unread: int = 0
    """The sum of their sizes, in bytes of payload."""
    ignored: int = 0
    """Binary messages; none is kept, also not in part."""
    violation: Violation | None = None
    """What the peer did wrong; nothing after it is looked at."""
    goodbye: Goodbye | None = None
    """The peer's close frame; nothing after it is looked at."""
    closing: bool = False
    """We are closing: pings are not answered any more."""
    deaf: bool = False
    """Nobody takes messages any more: of interest is only the peer's close frame."""
    _buffer: bytearray = attrs.field(factory=bytearray)
    _needed: int = 2
    _kind: int | None = None
    _parts: list[bytes] = attrs.field(factory=list)
    _size: int = 0
    _fragments: int = 0

    def feed(self, data: bytes) -> list[bytes]:
        """Take in ``data``; what of it is for trio-websocket: whole control frames."""
        if self._is_over():
            return []
        buffer = self._buffer
        buffer += data
        control: list[bytes] = []
        position, end = 0, len(buffer)
        while end - position >= self._needed:
            used = self._short_text(buffer, position, end) or self._one_frame(buffer, position, end, control)
            position += used
            if not used:
                break
        if self._is_over():
            buffer.clear()
        else:
            del buffer[:position]
        return control

    def take_all(self) -> list[str]:
        """The messages that have come, which are the caller's from here on."""
        taken = list(self.messages)
        self.messages.clear()
        self.unread = 0
        return taken

    def _short_text(self, buffer: bytearray, position: int, end: int) -> int:
        """The usual frame, in a few steps: a whole text of up to 125 bytes, or 65,535; else 0."""
        second = buffer[position + 1]
        length, start = second & _LENGTH, position + 2
        if buffer[position] != _FIN | _TEXT or second >> 7 != self.masked or self._kind is not None:
            return 0
        if length == 126 and end - position >= 4:
            length, start = buffer[position + 2] << 8 | buffer[position + 3], position + 4
        elif length > 125:
            return 0
        body = start + _MASK_SIZE if self.masked else start
        stop = body + length
        if stop > end or length > self.max_message or self.deaf:
            return 0
        payload = bytes(buffer[body:stop])
        if self.masked:
            payload = _masked(payload, bytes(buffer[start:body]))
        try:
            self.messages.append(payload.decode())
        except UnicodeDecodeError:
            return 0
        self.unread += length
        self._needed = 2
        return stop - position

    def _one_frame(self, buffer: bytearray, position: int, end: int, control: list[bytes]) -> int:
        """Deal with the frame at ``position``; its length, or 0 while it is not all there."""
        first, second = buffer[position], buffer[position + 1]
        length, start = second & _LENGTH, position + 2
        if length >= 126:
            wide = 2 if length == 126 else 8
            start += wide
            if end < start:
                self._needed = start - position
                return 0
            length = int.from_bytes(buffer[start - wide : start], "big")
        self.violation = self._check(first, length, masked=bool(second & _MASK))
        if self.violation is not None:
            return 0
        body = start + _MASK_SIZE if second & _MASK else start
        stop = body + length
        if end < stop:
            # At least the mask: an empty masked frame has nothing else left to wait for.
            self._needed = stop - position
            return 0
        self._needed = 2
        payload = bytes(buffer[body:stop])
        if body > start and length:
            payload = _masked(payload, bytes(buffer[start:body]))
        if first & _OPCODE >= _CLOSE:
            if self._is_for_them(first & _OPCODE, payload):
                control.append(bytes(buffer[position:stop]))
        else:
            self._add(first, payload)
        return 0 if self._is_over() else stop - position

    def _is_over(self) -> bool:
        return self.violation is not None or self.goodbye is not None

    def _check(self, first: int, length: int, *, masked: bool) -> Violation | None:
        opcode = first & _OPCODE
        if first & _RESERVED or opcode not in _OPCODES:
            return Violation(PROTOCOL_ERROR, f"frame header {first:#04x} means nothing here")
        if masked != self.masked:
            return Violation(PROTOCOL_ERROR, "masked frame" if masked else "frame without a mask")
        if opcode >= _CLOSE:
            if length > _MAX_CONTROL or not first & _FIN:
                return Violation(PROTOCOL_ERROR, "control frame too long or in fragments")
            return None
        if (self._kind is not None) != (opcode == _CONTINUATION):
            return Violation(PROTOCOL_ERROR, "fragment out of place")
        if self._size + length > self.max_message:
            return Violation(TOO_BIG, f"message larger than {self.max_message} bytes")
        if self._fragments >= self.max_fragments:
            return Violation(TOO_BIG, f"message in more than {self.max_fragments} fragments")
        return None

    def _is_for_them(self, opcode: int, payload: bytes) -> bool:
        if opcode != _CLOSE:
            return not self.closing
        if not payload:
            self.goodbye = Goodbye(NO_CODE, "")
            return True
        code = int.from_bytes(payload[:2], "big")
        if len(payload) < 2 or not 1000 <= code <= 4999 or code in _NEVER_SENT:
            self.violation = Violation(PROTOCOL_ERROR, "close frame without a valid code")
            return False
        try:
            self.goodbye = Goodbye(code, payload[2:].decode())
        except UnicodeDecodeError:
            self.violation = Violation(NOT_UTF8, "close frame not in UTF-8")
            return False
        return True

    def _add(self, first: int, payload: bytes) -> None:
        """A frame of data: a message, or a part of one."""
        if self._kind is None:
            self._kind = first & _OPCODE
        self._size += len(payload)
        self._fragments += 1
        if self._kind == _TEXT:
            self._parts.append(payload)
        if not first & _FIN:
            return
        if self._kind == _BINARY:
            self.ignored += 1
        elif not self.deaf:
            try:
                self.messages.append((payload if self._fragments == 1 else b"".join(self._parts)).decode())
            except UnicodeDecodeError:
                self.violation = Violation(NOT_UTF8, "text not in UTF-8")
            else:
                self.unread += self._size
        self._kind = None
        self._parts.clear()
        self._size = self._fragments = 0


def text_frames(messages: Sequence[str], *, mask: bool) -> bytes:
    """One text frame for each of ``messages``, joined; masked as a client's must be."""
    pieces: list[bytes] = []
    # From a strong source, another for each frame: section 5.3.
    keys = os.urandom(_MASK_SIZE * len(messages)) if mask else b""
    for number, message in enumerate(messages):
        payload = message.encode()
        length = len(payload)
        flag = _MASK if mask else 0
        if length < 126:
            pieces.append(bytes((_FIN | _TEXT, flag | length)))
        elif length < 2**16:
            pieces.append(bytes((_FIN | _TEXT, flag | 126)) + length.to_bytes(2, "big"))
        else:
            pieces.append(bytes((_FIN | _TEXT, flag | 127)) + length.to_bytes(8, "big"))
        if mask:
            key = keys[number * _MASK_SIZE : (number + 1) * _MASK_SIZE]
            pieces.append(key)
            payload = _masked(payload, key)
        pieces.append(payload)
    return b"".join(pieces)


def ping_frame(payload: bytes, *, mask: bool) -> bytes:
    """A ping with up to 125 bytes; masked as a client's must be."""
    if not mask:
        return bytes((_FIN | _PING, len(payload))) + payload
    key = os.urandom(_MASK_SIZE)
    return bytes((_FIN | _PING, _MASK | len(payload))) + key + _masked(payload, key)


def _masked(payload: bytes, key: bytes) -> bytes:
    """``payload`` XOR ``key`` over and over: as one large integer, which C does at once."""
    length = len(payload)
    stream = (key * (length // _MASK_SIZE + 1))[:length]
    return (int.from_bytes(payload, "little") ^ int.from_bytes(stream, "little")).to_bytes(length, "little")
