"""What cannot work is refused before anything is done."""

from __future__ import annotations

import math

import pytest
import trio

from tests.operators.support import serving


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
@pytest.mark.parametrize("value", [0, -1, math.nan])
async def test_a_setting_that_cannot_work_is_refused(tmp_path, name, value) -> None:
    """It is named; no directory is made, and the listeners that were given are closed."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    with pytest.raises(ValueError, match=f"^{name}: expected a number above 0, not {value}"):
        async with serving(listeners=[listener], state=tmp_path / "state", **{name: value}):
            pytest.fail("it serves")
    assert listener.socket.fileno() == -1
    assert not (tmp_path / "state").exists()


async def test_for_ever_is_a_time() -> None:
    async with serving(join_within=math.inf, idle_within=math.inf):
        pass
