"""Fuzzed bytes at the HTTP and the WebSocket edge: nothing crashes, grows, leaks or harms another.

``tests.fuzz.campaign`` is the same with sizes as arguments; the full size of it is the slow test.
"""

from __future__ import annotations

import random

import pytest

from tests.fuzz import http_edge, ws_edge
from tests.fuzz.campaign import close_code, run


@pytest.mark.parametrize("seed", range(2))
def test_one_http_connection_at_a_time(seed) -> None:
    """In memory: what the seed makes is the same on each machine."""
    rng = random.Random(seed)
    statuses = set()
    for number, data in enumerate(http_edge.corpus(seed, 300)):
        if number % 2:
            data = http_edge.custom_mutator(data, 4000, rng.randrange(2**32))
        statuses |= set(http_edge.STATUS.findall(http_edge.one(data)))
    assert statuses >= {b"200", b"400", b"401", b"404", b"405", b"415", b"422"}, statuses


@pytest.mark.parametrize("seed", range(2))
def test_one_websocket_at_a_time(seed) -> None:
    rng = random.Random(seed)
    codes = set()
    for number, data in enumerate(ws_edge.corpus(seed, 200)):
        if number % 2:
            data = ws_edge.custom_mutator(data, 4000, rng.randrange(2**32))
        codes.add(close_code(ws_edge.one(data)))
    assert {1002, 1006} <= codes, codes


def test_the_same_seed_makes_the_same_inputs() -> None:
    known = http_edge.known_words()
    for make in (http_edge.request, http_edge.wild):
        assert make(random.Random(7), known) == make(random.Random(7), known)
    assert ws_edge.corpus(3) == ws_edge.corpus(3)
    assert ws_edge.custom_mutator(b"x", 9, 1) == ws_edge.custom_mutator(b"x", 9, 1)


@pytest.mark.parametrize(
    ("received", "code"),
    [(b"", 1006), (b"\x88\x00", 1005), (b"x\x88\x02\x03\xe8", 1000), (b"\x81\x01a\x88\x05\x03\xeabye", 1002)],
)
def test_the_close_code_is_that_of_the_last_frame(received, code) -> None:
    assert close_code(received) == code


async def test_thousands_of_requests_and_frames_over_sockets() -> None:
    """With a good operator beside them; see `campaign.run` for what is checked."""
    figures = await run(requests=1500, frames=12_000, warm_up=0.2)
    assert figures["http"]["inputs"] >= 1500
    assert figures["ws"]["inputs"] >= 12_000
    assert {"101", "200", "204", "400", "401", "404", "405", "422"} <= set(figures["http"]["statuses"])
    assert {"1002", "1006", "1007"} <= set(figures["ws"]["statuses"])


@pytest.mark.slow
async def test_a_hundred_thousand_requests() -> None:
    figures = await run(requests=100_000, warm_up=0.05)
    assert figures["http"]["inputs"] >= 100_000


@pytest.mark.slow
async def test_a_million_frames() -> None:
    figures = await run(frames=1_000_000, warm_up=0.05)
    assert figures["ws"]["inputs"] >= 1_000_000
