"""The fuzz target of the WebSocket edge: what a seated operator sends, byte by byte.

`one` is a target for atheris, and for any loop; `frames` makes frames for a server on a socket.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from typing import Any

import trio

from tests.fuzz.memory import pour, run_one
from tests.fuzz.mutate import junk, mutated, mutated_json
from tests.io.hostile import BINARY, CLOSE, PING, PONG, TEXT, frame, header
from trio_swarm.operators.login import LoginRequest

CONTINUATION = 0

DICTIONARY: tuple[bytes, ...] = (
    b"\x81\x80\0\0\0\0", b"\x01\x80\0\0\0\0", b"\x80\x80\0\0\0\0", b"\x00\x80\0\0\0\0", b"\x82\x80\0\0\0\0",
    b"\x88\x80\0\0\0\0", b"\x88\x82\0\0\0\0\x03\xe8", b"\x88\x82\0\0\0\0\x03\xee", b"\x88\x81\0\0\0\0\x03",
    b"\x89\x80\0\0\0\0", b"\x8a\x80\0\0\0\0", b"\x89\xfe\0\x7e\0\0\0\0", b"\x09\x80\0\0\0\0",
    b"\x81\x05hello",
    b"\xc1\x80\0\0\0\0", b"\xf1\x80\0\0\0\0", b"\x83\x80\0\0\0\0", b"\x8b\x80\0\0\0\0",
    b"\x81\xfe\xff\xff\0\0\0\0",
    b"\x81\xff\0\0\0\0\x01\0\0\0\0\0\0\0", b"\x81\xff\xff\xff\xff\xff\xff\xff\xff\xff\0\0\0\0",
    b"\x81\xff\0\0\0\0\0\0\0\x01\0\0\0\0x", b"\xff\xfe", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\0", b"{}",
    b"[]",
    b'"type":', b'"req_id":', b'"answer"', b'"hook_ack"', b'"spawn_ack"', b'"spawn_halt"', b'"receipt"',
    b'"value":',
)  # fmt: skip

WORDS = (
    "type", "req_id", "value", "ok", "reason", "error", "stats", "answer", "hook_ack", "spawn_ack",
    "spawn_halt", "ask",
    "withdraw", "receipt", "parent_req_id", "task_id", "usage", "total_tokens", "model", "num_turns",
    "unknown_kind",
)  # fmt: skip

_BASES: tuple[dict[str, Any], ...] = (
    {"type": "answer", "value": {"decision": "accept"}},
    {"type": "hook_ack", "ok": True, "reason": None},
    {"type": "hook_ack", "ok": False, "reason": "no"},
    {"type": "spawn_ack", "value": {}, "ok": True, "stats": {"model": "m", "usage": {"total_tokens": 1}}},
    {"type": "spawn_ack", "error": "crashed"},
    {"type": "spawn_halt", "value": {}, "reason": "agreed"},
)
_ODD = ("", "not json at all", "[]", '{"req_id":"x"}', '{"type":"unknown_kind","req_id":"x"}',
'["answer","x",1]',
        '{"type":"answer","req_id":"x"}', '{"type":"spawn_ack","req_id":7}', "null", "1", '"x"', "{",
        "[" * 500,
        '{"type":"answer","type":"hook_ack","req_id":"x"}', '{"a":NaN}', '{"a":1e999}',
        "\ufeff{}")  # fmt: skip


def text(rng: random.Random, req_ids: Sequence[str]) -> bytes:
    """One message: nearly right, odd, or damaged; not always UTF-8."""
    if rng.random() < 0.1:
        return rng.choice(_ODD).encode()
    req_id = rng.choice(req_ids) if req_ids and rng.random() < 0.7 else "S-0-ask-0"
    value: Any = {**rng.choice(_BASES), "req_id": req_id}
    for _ in range(rng.choice((0, 1, 1, 2))):
        value = mutated_json(rng, value, WORDS)
    if rng.random() < 0.02:
        value = junk(rng, WORDS)
    data = json.dumps(value, ensure_ascii=rng.random() < 0.9).encode("utf-8", "surrogatepass")
    return mutated(rng, data, DICTIONARY, most=2) if rng.random() < 0.1 else data


def whole(rng: random.Random, req_ids: Sequence[str]) -> tuple[bytes, int]:
    """Frames that keep to the protocol (RFC 6455), whatever is in them, and how many."""
    what = rng.randrange(20)
    mask = b"\0\0\0\0" if what < 16 else rng.randbytes(4)
    if what == 0:
        return frame(PING, rng.randbytes(rng.choice((0, 4, 125))), mask=mask), 1
    if what == 1:
        return frame(PONG, rng.randbytes(rng.choice((0, 4, 125))), mask=mask), 1
    if what == 2:
        return frame(BINARY, rng.randbytes(rng.choice((0, 1, 126, 300))), mask=mask), 1
    message = text(rng, req_ids)
    try:
        message.decode()
    except UnicodeDecodeError:
        return frame(BINARY, message, mask=mask), 1
    if what == 3 and len(message) > 2:
        cut = rng.randrange(len(message))
        ping = frame(PING, b"between", mask=mask)
        parts = [
            frame(TEXT, message[:cut], fin=False, mask=mask),
            ping,
            frame(CONTINUATION, message[cut:], mask=mask),
        ]
        return b"".join(parts), 3
    if what >= 16:
        return frame(TEXT, message, mask=mask), 1
    return header(TEXT, len(message), mask=mask) + message, 1


def last(rng: random.Random, req_ids: Sequence[str]) -> bytes:
    """Something that ends the connection, or may: one damaged frame, a close frame, or silence."""
    what = rng.randrange(6)
    if what == 0:
        return frame(
            CLOSE, rng.choice((b"", b"\x03\xe8", b"\x03\xe8bye", b"\x03", b"\x03\xed", b"\x03\xe8\xff"))
        )
    if what == 1:
        return rng.choice(DICTIONARY)
    if what == 2:
        return frame(TEXT, b"\xff" + text(rng, req_ids))
    return mutated(rng, whole(rng, req_ids)[0], DICTIONARY, most=4)


def custom_mutator(data: bytes, max_size: int, seed: int) -> bytes:
    """For atheris: the same mutations, or another frame in front or behind."""
    rng = random.Random(seed)
    if not data or rng.random() < 0.3:
        more = whole(rng, ["S-0-ask-0"])[0]
        data = data + more if rng.random() < 0.5 else more + data
    return mutated(rng, data, DICTIONARY)[:max_size]


def corpus(seed: int = 0, size: int = 50) -> list[bytes]:
    """Where a fuzzer may begin."""
    rng = random.Random(seed)
    return [b"".join(whole(rng, ["S-0-ask-0"])[0] for _ in range(3)) for _ in range(size)]


def handshake(host: str, sid: str, token: str, *, receipts: bool = False) -> bytes:
    """A good one."""
    query = "?receipts=1" if receipts else ""
    return (
        f"GET /v1/operators/{sid}/ws{query} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {token}\r\n"
        "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        f"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    ).encode()


def one(data: bytes) -> bytes:
    """Seat an operator that sends ``data`` and ends; returns what it was told.

    Raises ``AssertionError`` for a reported error or a task that was left.
    """

    async def converse(stream: Any, server: Any, board: Any) -> None:
        minted = await server._sessions.mint(LoginRequest.parse({"roles": ["fuzz"]}))
        await stream.send_all(handshake("localhost", minted.session.sid, minted.token))
        seat = await server.wait_seat("fuzz")
        await pour(stream, data)
        await seat_is_away(seat)

    answers = run_one(converse)
    assert b" 101 " in answers, answers
    return answers


async def seat_is_away(seat: Any) -> None:
    with trio.fail_after(3600):
        while seat.connected:
            await trio.sleep(0.1)
