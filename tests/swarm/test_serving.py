"""What `Swarm.serve_operators` refuses before it serves."""

from __future__ import annotations

import math

import pytest
import trio

from trio_swarm import open_swarm
from trio_swarm.swarm import check_base_url

NO_ROOTS = [
    "nonsense",
    "http://h:7777/v1",
    "http://h?",
    "http://h#",
    "HTTP://h:7777",
    "http://h/a'b",
    "http://h/`x`",
    "http://h/<x>",
    "http://user@h",
    "http://h:99999",
    "http://é.example",
    "",
    5,
]


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        *(({"base_url": url}, "base_url: ") for url in NO_ROOTS),
        ({"default_kind": "boss"}, "default_kind: 'boss' is none of"),
        ({"default_kind": []}, r"default_kind: \[\] is none of"),
        ({"sync_ceiling": 0}, "sync_ceiling: expected a number above 0"),
        ({"sync_ceiling": math.nan}, "sync_ceiling: expected a number above 0"),
        ({"max_running": 0}, "max_running: expected a number above 0"),
        ({"max_waiting": -1}, "max_waiting: expected a number from 0"),
        ({"max_connections": "5"}, "max_connections: expected a number above 0, not '5'"),
        ({"admin_token": 5}, "admin_token: expected printable ASCII"),
    ],
)
async def test_a_setting_that_cannot_work_is_refused(settings, text) -> None:
    """It is named, and the listeners that were given are closed."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with open_swarm() as swarm:
        with pytest.raises(ValueError, match=f"^{text}"):
            async with swarm.serve_operators(listeners=[listener], **{"admin_token": "t", **settings}):
                pytest.fail("it serves")
    assert listener.socket.fileno() == -1


@pytest.mark.parametrize("url", NO_ROOTS)
def test_the_check_is_there_for_others(url) -> None:
    with pytest.raises(ValueError, match=r"^base_url: "):
        check_base_url(url)


@pytest.mark.parametrize("url", ["http://h:7777", "https://swarm.example/a", "http://[::1]:80"])
def test_a_root_may_have_a_prefix_and_needs_no_slash(url) -> None:
    assert check_base_url(url) == url
    assert check_base_url(f"{url}/") == url
