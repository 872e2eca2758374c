"""Raw peers for the tests of the WebSocket edge: bytes in hand, no library in the way."""

from __future__ import annotations

import struct

import trio

KEY = b"dGhlIHNhbXBsZSBub25jZQ=="

GOOD_HEAD = (
    b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " + KEY + b"\r\n\r\n"
)
ANSWER_HEAD = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: %b\r\n\r\n"
)

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10


def header(
    opcode: int, length: int, *, fin: bool = True, mask: bytes | None = b"\1\2\3\4", bits: int = 0
) -> bytes:
    """The header of a frame that declares ``length``, whatever comes after it."""
    first = (0x80 if fin else 0) | bits | opcode
    flag = 0 if mask is None else 0x80
    if length < 126:
        size = bytes([flag | length])
    elif length < 2**16:
        size = bytes([flag | 126]) + struct.pack("!H", length)
    else:
        size = bytes([flag | 127]) + struct.pack("!Q", length)
    return bytes([first]) + size + (mask or b"")


def frame(
    opcode: int, payload: bytes = b"", *, fin: bool = True, mask: bytes | None = b"\1\2\3\4", bits: int = 0
) -> bytes:
    """One frame, as a client sends it; ``mask=None`` as a server does."""
    data = payload
    if mask is not None:
        data = bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))
    return header(opcode, len(payload), fin=fin, mask=mask, bits=bits) + data


def with_header(name: bytes, value: bytes) -> bytes:
    """The good head with one header replaced, or added."""
    return without_header(name)[:-2] + name + b": " + value + b"\r\n\r\n"


def without_header(name: bytes) -> bytes:
    lines = [
        line for line in GOOD_HEAD.split(b"\r\n") if line and not line.lower().startswith(name.lower() + b":")
    ]
    return b"\r\n".join([*lines, b"", b""])


async def drain(stream: trio.abc.ReceiveStream, limit: float = 5.0) -> bytes:
    """Everything until the other end closes or resets; fails the test when it does not."""
    got = bytearray()
    with trio.fail_after(limit):
        try:
            async for data in stream:
                got += data
        except trio.BrokenResourceError:
            pass
    return bytes(got)


async def read_answer(stream: trio.abc.ReceiveStream) -> tuple[bytes, bytes]:
    """The head of the answer to a handshake, and what came with it."""
    got = bytearray()
    while b"\r\n\r\n" not in got:
        data = await stream.receive_some()
        assert data, bytes(got)
        got += data
    head, _, rest = bytes(got).partition(b"\r\n\r\n")
    return head, rest


async def read_until(stream: trio.abc.ReceiveStream, wanted: bytes) -> bytes:
    """Everything up to and with ``wanted``."""
    got = bytearray()
    while wanted not in got:
        data = await stream.receive_some()
        assert data, bytes(got)
        got += data
    return bytes(got)
