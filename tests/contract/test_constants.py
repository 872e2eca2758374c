"""The operator contract's constants (8.9): a peer may rely on them."""

from __future__ import annotations

import inspect

import pytest

from trio_swarm import limits
from trio_swarm.cli.serve import DEFAULT_PORT
from trio_swarm.operators import expiry, listing, observed, serve_operators, sessions


@pytest.mark.parametrize(
    ("ours", "contract"),
    [
        (DEFAULT_PORT, 7777),
        (limits.WORKER_TOKEN_TTL, 1800),
        (limits.SYNC_CEILING, 300),
        (limits.MAX_SPAWN_DEPTH, 4),
        (limits.PING_EVERY, 30),
        (limits.PEER_SILENCE, 150),
        (sessions.IDLE_WITHIN, 24 * 3600),
        (expiry.SWEEP_EVERY, 300),
        (expiry.WRITE_EVERY, 60),
        (limits.RENEWAL_MARGIN, 60),
        ((listing._LIMIT, listing._MAX_LIMIT), (50, 200)),
        ((observed.MAX_LOGGED, observed.MAX_LOGGED_TEXT, observed.MAX_LOGGED_METADATA), (32, 1024, 4096)),
        (limits.MAX_BODY, 2 * 2**20),
        (limits.SYSTEM_INLINE, 25 * 2**10),
        (limits.MAX_FRAME, 16 * 2**20),
    ],
)
def test_a_constant_is_the_contracts(ours, contract) -> None:
    assert ours == contract


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ping_every", 30),
        ("silence", 150),
        ("idle_within", 86400),
        ("sweep_every", 300),
        ("bind", "127.0.0.1"),
    ],
)
def test_a_servers_default_is_the_contracts(name, value) -> None:
    assert inspect.signature(serve_operators).parameters[name].default == value
