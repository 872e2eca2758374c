"""The fuzz target of the HTTP edge: bytes of one connection, and what makes interesting ones.

`one` is a target for atheris (``atheris.Setup(argv, one, custom_mutator=custom_mutator)``), and
for any loop; `request` makes requests for a server on a socket (see `tests.fuzz.campaign`).
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from tests.fuzz import memory
from tests.fuzz.memory import pour, run_one
from tests.fuzz.mutate import junk, mutated, mutated_json

STATUS = re.compile(
    rb"HTTP/1\.1 (\d{3}) [^\r\n]*\r\n(?=cache-control: no-store\r\n|upgrade: |Sec-WebSocket)", re.I
)
"""Where an answer of ours begins."""

DICTIONARY: tuple[bytes, ...] = (
    b"GET ", b"POST ", b"DELETE ", b"HEAD ", b"OPTIONS * ", b"CONNECT ", b"TRACE ", b" HTTP/1.1\r\n",
    b" HTTP/1.0\r\n", b" HTTP/2.0\r\n", b"\r\n", b"\r\n\r\n", b"\n", b"\n\n", b"\r", b"\0", b"\t", b" ",
    b"Host: localhost\r\n", b"Host: evil.example\r\n", b"Host:\r\n", b"Origin: null\r\n",
    b"Origin: https://evil.example\r\n", b"Sec-Fetch-Site: cross-site\r\n", b"Content-Length: 0\r\n",
    b"Content-Length: 1\r\n", b"Content-Length: -1\r\n", b"Content-Length: 1, 1\r\n",
    b"Content-Length: 99999999999999999999\r\n", b"Content-Length: +5\r\n", b"Content-Length: 0x10\r\n",
    b"Content-Length: \xb2\r\n", b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: identity\r\n",
    b"Transfer-Encoding: gzip, chunked\r\n", b"Transfer-Encoding: xchunked\r\n", b"0\r\n\r\n",
    b"ffffffffffffffff\r\n", b"5;ext=1\r\nhello\r\n", b"Expect: 100-continue\r\n", b"Expect: \r\n",
    b"Connection: close\r\n", b"Connection: keep-alive, Upgrade\r\n", b"Connection: Upgrade\r\n",
    b"Upgrade: websocket\r\n", b"Upgrade: h2c\r\n", b"Sec-WebSocket-Version: 13\r\n",
    b"Sec-WebSocket-Version: 8\r\n", b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
    b"Sec-WebSocket-Protocol: a, b\r\n", b"Sec-WebSocket-Extensions: permessage-deflate\r\n",
    b"Authorization: Bearer \r\n", b"Authorization: bearer x\r\n", b"Authorization: Bearer \xff\xfe\r\n",
    b"Content-Type: application/json\r\n", b"Content-Type: application/x+json;\r\n",
    b"Content-Type: text/plain\r\n",
    b"Idempotency-Key: k\r\n", b"X-A: " + b"a" * 9000 + b"\r\n", b"X-A: b\r\n c\r\n", b"\xff\xfe", b"%00",
    b"%2F",
    b"%", b"%zz", b"//", b"/../", b"?", b"#", b"&", b"=", b"http://localhost/", b"*", b"{", b"}", b"[" * 200,
    b'"', b"\\u0000", b"\\ud800", b"1e999", b"NaN", b"\xef\xbb\xbf",
)  # fmt: skip

_SID, _ID = "{sid}", "{task}"
ROUTES: tuple[tuple[str, str, str, str], ...] = (
    ("GET", "/v1/healthz", "", ""),
    ("GET", "/v1/status", "", ""),
    ("POST", "/v1/operators", "", "login"),
    ("GET", "/v1/operators", "operator", ""),
    ("GET", "/v1/operators/{sid}", "operator", ""),
    ("DELETE", "/v1/operators/unknown", "operator", ""),
    ("GET", "/v1/operators/{sid}/ws", "operator", "upgrade"),
    ("POST", "/v1/tasks", "admin", "task"),
    ("GET", "/v1/tasks", "admin", ""),
    ("GET", "/v1/tasks/{task}", "admin", ""),
    ("DELETE", "/v1/tasks/{task}0", "admin", ""),
    ("GET", "/v1/runs/{task}", "admin", ""),
    ("GET", "/v1/worker/prompt?task_id={task}", "worker", ""),
    ("GET", "/v1/worker/prompt/system?task_id={task}&attempt=1", "worker", ""),
    ("POST", "/v1/worker/result", "worker", "result"),
    ("POST", "/v1/worker/submit?ok=true", "worker", "text"),
    ("POST", "/v1/worker/artifact?name=part", "worker", "text"),
    ("POST", "/v1/worker/degradation", "worker", "report"),
    ("POST", "/v1/worker/stats", "worker", "report"),
    ("POST", "/v1/data/emit", "worker", "emit"),
    ("POST", "/v1/data/coder", "worker", "emit"),
    ("POST", "/v1/data/coder?raw=1&task_id={task}&attempt=1", "worker", "text"),
    ("GET", "/v1/data/coder", "worker", ""),
    ("POST", "/v1/sessions", "", "session"),
    ("DELETE", "/v1/sessions", "worker", ""),
)
METHODS = (
    "GET",
    "POST",
    "DELETE",
    "HEAD",
    "PUT",
    "PATCH",
    "OPTIONS",
    "TRACE",
    "CONNECT",
    "get",
    "G\x7fT",
    "X" * 40,
)
QUERY = (
    "task_id",
    "attempt",
    "ok",
    "verdict",
    "name",
    "raw",
    "public",
    "parent_refs",
    "token",
    "limit",
    "receipts",
)
WORDS = (
    "roles", "desc", "agent", "prompt", "system", "operator", "operator_sid", "layers", "timeout_secs",
    "detach",
    "task_metadata", "attempts", "task_id", "attempt", "value", "ok", "event", "type", "kind", "content",
    "inline",
    "file_ref", "path", "final", "partial", "artifact", "progress", "public", "parent_refs", "agent_id",
    "role",
    "ttl_secs", "worker", "true", "-1", "1", "99999999999999999999", "main_ai", "operator_delegate",
)  # fmt: skip


def known_words(**known: str) -> dict[str, str]:
    """What `request` fills in: sid, token, admin, task, capability, handle, host."""
    words = {"sid": "S-0000000000000000", "token": "t", "admin": "a", "task": "ST-0000000000000000"}
    return {**words, "capability": "c", "handle": "wh-00000000", "host": "localhost", **known}


IN_MEMORY = known_words(**memory.known())
"""For the server of `memory.run_one`."""


def request(rng: random.Random, known: Mapping[str, str]) -> bytes:
    """One request with a true length: mostly right, with a few things wrong."""
    method, target, credential, kind = rng.choice(ROUTES)
    target = target.format(**known)
    if rng.random() < 0.1:
        method = rng.choice(METHODS)
    if rng.random() < 0.15:
        target = _elsewhere(rng, target, known)
    headers = [("Host", known["host"])]
    headers += _credentials(rng, credential, known)
    body = _body(rng, kind, known)
    if kind == "upgrade":
        headers += [("Connection", "Upgrade"), ("Upgrade", "websocket"), ("Sec-WebSocket-Version", "13")]
        headers += [("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==")]
    elif kind and (kind != "text" or rng.random() < 0.3):
        headers.append(("Content-Type", "application/json"))
    for _ in range(rng.choice((0, 0, 0, 1, 2))):
        headers = _other_headers(rng, headers)
    chunked = bool(body) and rng.random() < 0.15
    if chunked:
        headers.append(("Transfer-Encoding", "chunked"))
        body = _chunks(rng, body)
    elif body or method not in ("GET", "HEAD"):
        headers.append(("Content-Length", str(len(body))))
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers)
    return f"{method} {target} HTTP/1.1\r\n{lines}\r\n".encode("latin-1", "replace") + body


def wild(rng: random.Random, known: Mapping[str, str]) -> bytes:
    """A request with damaged bytes: where it ends, if anywhere, nobody knows."""
    return mutated(rng, request(rng, known), DICTIONARY)


def custom_mutator(data: bytes, max_size: int, seed: int) -> bytes:
    """For atheris: the same mutations, or another request in front or behind."""
    rng = random.Random(seed)
    if not data or rng.random() < 0.2:
        data = data + request(rng, IN_MEMORY) if rng.random() < 0.5 else request(rng, IN_MEMORY) + data
    return mutated(rng, data, DICTIONARY)[:max_size]


def corpus(seed: int = 0, size: int = 50) -> list[bytes]:
    """Where a fuzzer may begin."""
    rng = random.Random(seed)
    return [request(rng, IN_MEMORY) for _ in range(size)]


def one(data: bytes) -> bytes:
    """Serve one connection that sends ``data`` and ends; returns the answers.

    Raises ``AssertionError`` for an answer of 500, a reported error or a task that was left.
    """

    async def converse(stream: Any, server: Any, board: Any) -> None:
        await pour(stream, data)

    answers = run_one(converse)
    assert b"500" not in STATUS.findall(answers), answers
    return answers


def _elsewhere(rng: random.Random, target: str, known: Mapping[str, str]) -> str:
    what = rng.randrange(5)
    if what == 0:
        value = rng.choice([*WORDS, *known.values(), "%00", "\xff", "%ff", "a" * 300])
        return f"{target}{'&' if '?' in target else '?'}{rng.choice(QUERY)}={value}"
    if what == 1:
        return target + rng.choice(("/", "//", "/x", "?", "#f", "%", ";a=b", "/%2e%2e", "%2F"))
    if what == 2:
        return target.replace(
            "/v1", rng.choice(("", "/", "/v2", "/V1", "http://localhost/v1", "*", "//v1")), 1
        )
    if what == 3:
        return target.partition("?")[0]
    return "/v1/data/" + quote("".join(chr(rng.randrange(256)) for _ in range(rng.randrange(1, 20))))


def _credentials(rng: random.Random, kind: str, known: Mapping[str, str]) -> list[tuple[str, str]]:
    right = {"operator": known["token"], "admin": known["admin"], "": "", "worker": known["capability"]}[kind]
    if kind == "worker" and rng.random() < 0.4:
        right = known["handle"]
    if rng.random() < 0.12:
        right = rng.choice(
            (right[:-1], right + "0", right.upper(), "x", "", "\xe9", known["token"], known["handle"])
        )
    if not right:
        return []
    return [
        ("Authorization", rng.choice(("Bearer ",) * 12 + ("bearer ", "Basic ", "Bearer", "Bearer  ")) + right)
    ]


def _body(rng: random.Random, kind: str, known: Mapping[str, str]) -> bytes:
    event = {"type": "partial", "chunk": {"kind": "inline", "value": 1}}
    said = {"task_id": known["task"], "attempt": 1}
    shapes: dict[str, Any] = {
        "login": {"desc": "fuzz"},
        "task": {"agent": "a", "prompt": "p", "timeout_secs": 1, "operator_sid": known["sid"]},
        "result": {**said, "value": {"x": 1}, "ok": True},
        "report": {"kind": "slow", "note": "n"},
        "emit": {**said, "producer_agent": "coder", "event": event, "parent_refs": []},
        "session": {"agent_id": "a", "role": "worker", "ttl_secs": 1},
    }
    if kind in ("", "upgrade"):
        return b"" if rng.random() < 0.95 else b"{}"
    if kind == "text":
        return rng.randbytes(rng.randrange(200))
    value = shapes[kind]
    for _ in range(rng.choice((0, 0, 1, 1, 2, 3))):
        value = mutated_json(rng, value, WORDS)
    if rng.random() < 0.03:
        value = junk(rng, WORDS)
    if isinstance(value, dict) and isinstance(value.get("timeout_secs"), int | float):
        value["timeout_secs"] = min(value["timeout_secs"], 1)  # Who asks for years is given them.
    body = json.dumps(value).encode()
    return mutated(rng, body, DICTIONARY, most=2) if rng.random() < 0.15 else body


_HEADERS = (
    ("Origin", "https://evil.example"), ("Origin", "null"), ("Sec-Fetch-Site", "cross-site"), ("Host",
    "evil.example"),
    ("Expect", "100-continue"), ("Expect", "200-ok"), ("Content-Type", "text/plain"), ("Content-Type",
    "application/"),
    ("Idempotency-Key", "k"), ("Idempotency-Key", "k" * 300), ("Accept", "*/*"), ("X-Long", "a" * 3000),
    ("Content-Type", "application/x+json; charset=\x01"), ("Cookie", "\xff\xfe"), ("X-Y", "a\tb"),
    ("Connection", "x"),
    ("Upgrade", "websocket"), ("Connection", "Upgrade"), ("Sec-WebSocket-Protocol", "a,b"),
    ("Sec-WebSocket-Extensions", "permessage-deflate; client_max_window_bits"), ("Authorization",
    "Bearer two"),
    ("Trio-Swarm-Receipts", "1"), ("Accept-Encoding", "gzip"), ("Content-Encoding", "gzip"),
)  # fmt: skip


def _other_headers(rng: random.Random, headers: list[tuple[str, str]]) -> list[tuple[str, str]]:
    at = rng.randrange(max(1, len(headers)))
    what = rng.randrange(6) if headers else 5
    if what == 0:
        return headers[:at] + headers[at + 1 :]
    if what == 1:
        return [*headers, headers[at]]
    if what == 2:
        return [*headers[:at], (headers[at][0].swapcase(), headers[at][1]), *headers[at + 1 :]]
    return [*headers, rng.choice(_HEADERS)]


def _chunks(rng: random.Random, body: bytes) -> bytes:
    pieces = []
    while body:
        size = rng.choice((1, 3, 16, 1000))
        piece, body = body[:size], body[size:]
        extension = rng.choice((b"", b"", b";a=b", b" "))
        pieces.append(b"%x%b\r\n%b\r\n" % (len(piece), extension, piece))
    return b"".join([*pieces, b"0\r\n", rng.choice((b"", b"", b"X-Trailer: 1\r\n")), b"\r\n"])
