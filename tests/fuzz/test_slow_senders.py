"""Who sends slowly, or not at all, or comes in hundreds, is cut off; the good operator does not notice."""

from __future__ import annotations

from collections import Counter

import httpx2
import pytest
import trio

from tests.fuzz.harness import FuzzedServer, fuzzed_server, good_operator, unharmed
from tests.fuzz.ws_edge import handshake

DEADLINE = 0.5
LIMITS = {
    "head_deadline": DEADLINE,
    "body_deadline": DEADLINE,
    "idle_deadline": DEADLINE,
    "send_deadline": DEADLINE,
}
MARGIN = 4.0
"""For a busy machine, and for the courtesy of `CLOSE_DEADLINE` to who was refused."""


async def drip(server: FuzzedServer, begin: bytes, drop: bytes, every: float = 0.1) -> tuple[bytes, float]:
    """Send ``begin``, then ``drop`` again and again, until the server ends; its answer, and the seconds."""
    got = bytearray()
    began = trio.current_time()

    async def drops() -> None:
        try:
            await stream.send_all(begin)
            while drop:
                await trio.sleep(every)
                await stream.send_all(drop)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass

    async with await server.open() as stream, trio.open_nursery() as nursery:
        nursery.start_soon(drops)
        with trio.fail_after(DEADLINE + MARGIN + 10):
            try:
                async for piece in stream:
                    got += piece
            except trio.BrokenResourceError:
                pass
        nursery.cancel_scope.cancel()
    return bytes(got), trio.current_time() - began


def head_of(server: FuzzedServer, line: str, *headers: str) -> bytes:
    return "\r\n".join([line, f"Host: {server.host}", *headers, "", ""]).encode()


def senders(
    server: FuzzedServer, login: dict[str, str], work: dict[str, str]
) -> dict[str, tuple[bytes, bytes, bytes]]:
    """Of each kind: how it begins, how it goes on, and the status that it is told in the end."""
    worker = f"Authorization: Bearer {work['handle']}"
    token = f"Authorization: Bearer {work['capability']}"
    json, long = "Content-Type: application/json", "Content-Length: 100000"
    raw = f"POST /v1/data/x?raw=1&task_id={work['task_id']}&attempt=1 HTTP/1.1"
    opening = handshake(server.host, login["sid"], login["token"])
    return {
        "nothing at all": (b"", b"", b"408"),
        "the first bytes of a head": (b"GET / HT", b"", b"408"),
        "a head, header by header": (b"GET /v1/healthz HTTP/1.1\r\n", b"X-A: b\r\n", b"408"),
        "a head, byte by byte": (b"GET /v1/healthz HTTP/1.1\r\nX: ", b"a", b"408"),
        "a handshake, byte by byte": (opening[:-2] + b"X: ", b"a", b"408"),
        "a handshake without its end": (opening[:-2], b"", b"408"),
        "a body of which nothing comes": (
            head_of(server, "POST /v1/operators HTTP/1.1", json, long),
            b"",
            b"408",
        ),
        "a body, byte by byte": (head_of(server, "POST /v1/operators HTTP/1.1", json, long), b" ", b"408"),
        "a submission, byte by byte": (
            head_of(server, "POST /v1/worker/submit HTTP/1.1", worker, long),
            b" ",
            b"408",
        ),
        "an upload, byte by byte": (head_of(server, raw, token, long), b" ", b"408"),
        "chunks of one byte": (
            head_of(server, raw, token, "Transfer-Encoding: chunked"),
            b"1\r\na\r\n",
            b"408",
        ),
        "the size of a chunk": (
            head_of(server, raw, token, "Transfer-Encoding: chunked") + b"1",
            b"",
            b"408",
        ),
        "a body announced, and a 100 asked for": (
            head_of(server, "POST /v1/operators HTTP/1.1", json, long, "Expect: 100-continue"),
            b"",
            b"408",
        ),
        "a second request that does not come": (head_of(server, "GET /v1/healthz HTTP/1.1"), b"", b"200"),
    }


async def test_slow_senders_are_cut_off() -> None:
    with fuzzed_server(limits=LIMITS) as server:
        async with good_operator(server):
            before = await server.order("baseline")
            login, work = server.log_in(), await server.order("task")
            kinds = senders(server, login, work)
            seen: dict[str, tuple[bytes, float]] = {}

            async def send(kind: str, begin: bytes, drop: bytes) -> None:
                seen[kind] = await drip(server, begin, drop)

            async with trio.open_nursery() as nursery:
                for kind, (begin, drop, _) in kinds.items():
                    nursery.start_soon(send, kind, begin, drop)
            for kind, (_, _, status) in kinds.items():
                answer, seconds = seen[kind]
                assert answer.removeprefix(b"HTTP/1.1 100 \r\n\r\n").split(b" ")[1] == status, (
                    kind,
                    answer,
                    server.said()[-3000:],
                )
                assert DEADLINE * 0.9 <= seconds <= DEADLINE + MARGIN, (kind, seconds)
            await unharmed(server, before, growth_kib=16 * 1024)


async def test_an_upload_that_makes_progress_is_not_cut_off() -> None:
    """Also when it takes several times the deadline in all."""
    with fuzzed_server(limits=LIMITS) as server:
        work = await server.order("task")
        query = f"raw=1&task_id={work['task_id']}&attempt=1"
        size = 4096 * 12
        head = head_of(
            server,
            f"POST /v1/data/x?{query} HTTP/1.1",
            f"Authorization: Bearer {work['capability']}",
            f"Content-Length: {size}",
            "Connection: close",
        )
        async with await server.open() as stream:
            await stream.send_all(head)
            for _ in range(12):
                await trio.sleep(DEADLINE / 5)
                await stream.send_all(b"x" * 4096)
            got = b"".join([piece async for piece in stream])
        assert got.startswith(b"HTTP/1.1 200 "), got


async def test_a_client_that_does_not_read_its_answers_is_cut_off() -> None:
    """Its requests come, and no answer can be sent: the write has a deadline."""
    with fuzzed_server(limits=LIMITS) as server:
        async with good_operator(server):
            work = await server.order("task")
            bearer = {"Authorization": f"Bearer {work['capability']}"}
            upload = f"{server.url}/v1/data/x?raw=1&task_id={work['task_id']}&attempt=1"
            async with httpx2.AsyncClient(trust_env=False) as client:
                answer = await client.post(upload, headers=bearer, content=b"x" * 2**24)
                assert answer.status_code == 200, answer.text
            before = await server.order("baseline")
            wanted = head_of(server, "GET /v1/data/x HTTP/1.1", f"Authorization: Bearer {work['capability']}")
            async with await server.open() as stream:
                await stream.send_all(wanted)
                with trio.fail_after(DEADLINE + MARGIN + 5):
                    while (await server.order("stats"))["fds"] != before["fds"]:
                        await trio.sleep(0.05)
            await unharmed(server, before, growth_kib=16 * 1024)


async def test_half_open_operators_are_found_by_their_silence() -> None:
    """A WebSocket whose peer is gone without a word, and one that stops in the middle of a frame."""
    with fuzzed_server(limits=LIMITS, ping_every=0.2, silence=1.0) as server:
        async with good_operator(server):
            before = await server.order("baseline")

            async def stop_after(login: dict[str, str], rest: bytes) -> None:
                opening = handshake(server.host, login["sid"], login["token"]) + rest
                answer, seconds = await drip(server, opening, b"")
                assert answer.startswith(b"HTTP/1.1 101 ")
                assert 0.9 <= seconds <= 1.0 + MARGIN, (rest, seconds)

            async with trio.open_nursery() as nursery:
                for rest in (b"", b"\x81", b"\x81\xfe\xff\xff\0\0\0\0abc", b"\x01\x81\0\0\0\0a"):
                    nursery.start_soon(stop_after, server.log_in(), rest)
            await unharmed(server, before, growth_kib=16 * 1024)


async def test_a_flood_of_connections() -> None:
    """Its share is served, the rest is told to go as soon as others come; then there is room again."""
    limit, share = 40, 16
    with fuzzed_server(limits=LIMITS, max_connections=limit, max_unproven=share) as server:
        async with good_operator(server) as good:
            before = await server.order("baseline")
            ended: list[tuple[bytes, float]] = []

            async def idle() -> None:
                ended.append(await drip(server, b"", b""))

            async with trio.open_nursery() as nursery:
                for _ in range(5 * limit):
                    nursery.start_soon(idle)
            statuses = Counter(answer.split(b" ")[1] for answer, _ in ended if answer)
            assert statuses.total() == 5 * limit
            # The good operator looks at its session on a connection that need not be known.
            assert share - 1 <= statuses[b"408"] <= share
            assert statuses[b"429"] == 5 * limit - statuses[b"408"]
            assert max(seconds for _, seconds in ended) <= DEADLINE + MARGIN
            looked = good.looked
            async with httpx2.AsyncClient(base_url=server.url, trust_env=False) as client:
                assert (await client.get("/v1/healthz")).text == "ok"
            with trio.fail_after(5):
                while good.looked <= looked:
                    await trio.sleep(0.01)
            after = await unharmed(server, before, growth_kib=16 * 1024)
            assert after["fds"] == before["fds"]


@pytest.mark.parametrize("waiting", [1, 4])
async def test_a_new_client_gets_in_after_the_deadline_of_a_flood(waiting) -> None:
    """The places that idle connections hold are free again after their deadline, without anybody's help."""
    limit = 8
    with fuzzed_server(limits=LIMITS, max_connections=limit) as server:
        streams = [await server.open() for _ in range(limit * waiting)]
        try:
            async with httpx2.AsyncClient(base_url=server.url, trust_env=False) as client:
                with trio.fail_after(DEADLINE + MARGIN):
                    while True:
                        try:
                            answer = await client.get("/v1/healthz")
                        except httpx2.TransportError:
                            await trio.sleep(0.05)
                            continue
                        break
                assert answer.text == "ok"
        finally:
            for stream in streams:
                await trio.aclose_forcefully(stream)
