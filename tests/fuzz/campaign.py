"""Fuzzing over sockets, of any size: ``python -m tests.fuzz.campaign --requests 100000 --frames 1000000``.

The server is a process of its own, with a good operator beside the hostile ones; its figures at
the start are taken after a warm-up, when caches and bounded tables are what they stay.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import time
from collections import Counter
from typing import Any

import attrs
import trio

from tests.fuzz import http_edge, ws_edge
from tests.fuzz.harness import FuzzedServer, fuzzed_server, good_operator, unharmed

LIMITS = {"head_deadline": 2.0, "body_deadline": 2.0, "idle_deadline": 2.0}
OPTIONS: dict[str, Any] = {
    "limits": LIMITS,
    "max_sessions": 64,
    "max_malformed": 10**9,
    "join_within": 600.0,
    "sync_ceiling": 1.0,
}
GROWTH_KIB = 16 * 1024
"""What the server's memory may be more after all than after the warm-up. A leak of 200 bytes for
each frame of the full size would be 200 MB."""

_ENDED_WITHIN = 15.0
_REQ_ID = re.compile(rb'"req_id":"([^"\\]{1,200})"')


@attrs.define
class Tally:
    """What was done, and what came of it."""

    inputs: int = 0
    connections: int = 0
    statuses: Counter[int] = attrs.field(factory=Counter)
    unanswered: int = 0
    """Connections without any answer."""
    waiting: int = 0
    """Connections that waited for a step whose time a damaged request had made longer."""

    def about(self) -> dict[str, Any]:
        counts = {str(status): count for status, count in sorted(self.statuses.items())}
        return {**attrs.asdict(self), "statuses": counts}


async def fuzz_http(server: FuzzedServer, tally: Tally, size: int, seed: int, *, tasks: int = 6) -> None:
    """``size`` requests, over ``tasks`` connections at a time."""
    login, work = server.log_in(), await server.order("task")
    known = http_edge.known_words(
        sid=login["sid"], token=login["token"], admin=server.admin, task=work["task_id"],
        capability=work["capability"], handle=work["handle"], host=server.host,
    )  # fmt: skip
    end = tally.inputs + size

    async def pour(number: int) -> None:
        rng = random.Random(seed * 1000 + number)
        while tally.inputs < end:
            requests = [http_edge.request(rng, known) for _ in range(rng.choice((0, 1, 5, 20)))]
            requests.append(http_edge.wild(rng, known))
            try:
                answers = await exchange(server, b"".join(requests))
            except trio.TooSlowError:
                assert any(b"/v1/tasks " in sent for sent in requests), requests
                tally.waiting += 1
                continue
            found = [int(status) for status in http_edge.STATUS.findall(answers)]
            tally.statuses.update(found)
            tally.inputs += max(1, len(found))
            tally.unanswered += not found
            tally.connections += 1
            if 500 in found:  # It is answered first and told of then.
                figures = await server.order("stats")
                raise AssertionError((figures["errors"], server.said()[-3000:], requests))

    await _in_parallel(pour, tasks)


async def fuzz_ws(server: FuzzedServer, tally: Tally, size: int, seed: int, *, tasks: int = 4) -> None:
    """``size`` frames, from ``tasks`` operators at a time; each connection ends by what it sent."""
    end = tally.inputs + size

    async def pour(number: int) -> None:
        rng = random.Random(seed * 1000 + number)
        login = server.log_in(f"hostile-{seed}-{number}")
        opening = ws_edge.handshake(server.host, login["sid"], login["token"], receipts=number % 2 == 0)
        req_ids: list[str] = []
        while tally.inputs < end:
            made = [ws_edge.whole(rng, req_ids) for _ in range(rng.choice((0, 3, 30, 200, 600)))]
            batch = b"".join([data for data, _ in made] + [ws_edge.last(rng, req_ids)])
            answers = await exchange(server, opening + batch if rng.random() < 0.5 else batch, opening)
            head, _, rest = answers.partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 101 "), head
            req_ids = [found.decode() for found in _REQ_ID.findall(rest)][-8:] or req_ids
            tally.statuses[close_code(rest)] += 1
            tally.inputs += sum(count for _, count in made) + 1
            tally.connections += 1

    await _in_parallel(pour, tasks)


def close_code(received: bytes) -> int:
    """Of the close frame at the end; 1005 for one without a code, 1006 for none (RFC 6455, 7.1.5)."""
    for size in range(126):
        if received[-size - 2 :].startswith(bytes((0x88, size))):
            return int.from_bytes(received[-size:][:2], "big") if size else 1005
    return 1006


async def exchange(server: FuzzedServer, data: bytes, opening: bytes = b"") -> bytes:
    """Send it and no more; all answers until the server ends, which it must do in bounded time."""
    got = bytearray()
    async with await server.open() as stream:
        if opening and not data.startswith(opening):
            await stream.send_all(opening)
            while b"\r\n\r\n" not in got:
                got += await stream.receive_some() or b"\r\n\r\n"
        with trio.fail_after(_ENDED_WITHIN):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_send, stream, data)
                try:
                    async for piece in stream:
                        got += piece
                except trio.BrokenResourceError:
                    pass  # It ends with bytes of ours unread.
                nursery.cancel_scope.cancel()
    return bytes(got)


async def _send(stream: trio.SocketStream, data: bytes) -> None:
    try:
        await stream.send_all(data)
        await stream.send_eof()
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass


async def _in_parallel(pour: Any, tasks: int) -> None:
    async with trio.open_nursery() as nursery:
        for number in range(tasks):
            nursery.start_soon(pour, number)


async def run(
    *, requests: int = 0, frames: int = 0, seed: int = 0, warm_up: float = 0.1, growth_kib: int = GROWTH_KIB
) -> dict[str, Any]:
    """Fuzz a server of its own, and check that it is unharmed. Returns the figures.

    ``warm_up`` is the share of each size that comes, in addition, before the first figures.
    """
    http, ws, before_http, before_ws = Tally(), Tally(), Tally(), Tally()
    with fuzzed_server(**OPTIONS) as server:
        async with good_operator(server) as good:
            await server.order("baseline")
            await fuzz_http(server, before_http, int(requests * warm_up), seed + 500)
            await server.order("settle")
            await fuzz_ws(server, before_ws, int(frames * warm_up), seed + 500)
            before = await server.order("settle")
            began = time.perf_counter()
            if requests:
                await fuzz_http(server, http, requests, seed)
            middle = time.perf_counter()
            await server.order("settle")
            if frames:
                await fuzz_ws(server, ws, frames, seed + 1)
            ended = time.perf_counter()
            after = await unharmed(server, before, growth_kib=growth_kib)
            return {
                "http": http.about(),
                "http_seconds": round(middle - began, 1),
                "ws": ws.about(),
                "ws_seconds": round(ended - middle, 1),
                "before": before,
                "after": after,
                "good": attrs.asdict(good),
            }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--frames", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    print(
        json.dumps(
            trio.run(lambda: run(requests=given.requests, frames=given.frames, seed=given.seed)), indent=2
        )
    )
