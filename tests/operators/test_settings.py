"""What cannot work is refused before anything is done."""

from __future__ import annotations

import math

import pytest
import trio

from tests.operators.support import rest, serving


@pytest.mark.parametrize(
    "name",
    [
        "max_sessions",
        "max_pending",
        "max_connections",
        "max_unproven",
        "max_frame",
        "ping_every",
        "silence",
        "join_within",
        "idle_within",
    ],
)
@pytest.mark.parametrize("value", [0, -1, math.nan, True])
async def test_a_setting_that_cannot_work_is_refused(tmp_path, name, value) -> None:
    """It is named; no directory is made, and the listeners that were given are closed."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    with pytest.raises(ValueError, match=f"^{name}: expected a number above 0, not {value}"):
        async with serving(listeners=[listener], state=tmp_path / "state", **{name: value}):
            pytest.fail("it serves")
    assert listener.socket.fileno() == -1
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"max_notices": -1}, "max_notices: expected a number from 0, not -1"),
        ({"max_malformed": math.nan}, "max_malformed: expected a number from 0, not nan"),
        ({"sweep_every": math.nan}, "sweep_every: expected a number from 0, not nan"),
        ({"sweep_every": -5}, "sweep_every: expected a number from 0, not -5"),
        ({"silence": "5"}, "silence: expected a number above 0, not '5'"),
        ({"limits": 5}, "limits: expected FrontLimits, not int"),
        ({"allowed_hosts": "a.example"}, r"allowed_hosts: expected several texts, such as \['a.example'\]"),
        ({"allowed_hosts": 5}, "allowed_hosts: expected several texts"),
        ({"allowed_origins": "https://a.example"}, "allowed_origins: expected several texts"),
        ({"allowed_origins": [None]}, "allowed_origins: expected texts, not None"),
    ],
)
async def test_a_setting_of_another_kind_that_cannot_work_is_refused(tmp_path, settings, text) -> None:
    """A single text would be taken as its characters, each of them a name."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    with pytest.raises(ValueError, match=f"^{text}"):
        async with serving(listeners=[listener], state=tmp_path / "state", **settings):
            pytest.fail("it serves")
    assert listener.socket.fileno() == -1
    assert not (tmp_path / "state").exists()


async def test_names_may_come_from_anything_that_gives_several() -> None:
    """Also from what can be read once."""
    async with serving(allowed_hosts=(name for name in ["a.example"])) as server, rest(server) as http:
        answers = [
            (await http.get("/v1/healthz", headers={"Host": host})).status_code
            for host in ("a.example", "a", "b.example")
        ]
    assert answers == [200, 421, 421]


async def test_for_ever_is_a_time() -> None:
    async with serving(join_within=math.inf, idle_within=math.inf):
        pass
