"""Who an operator says that it is: the bearer and the body of a login."""

from __future__ import annotations

import pytest

from trio_swarm.errors import BadTokenError
from trio_swarm.operators.login import bearer_of


@pytest.mark.parametrize("value", ["Bearer abc123", "Bearer  abc123", "Bearer abc123 "])
def test_a_bearer_is_accepted(value) -> None:
    """L1: what is behind the one space is trimmed."""
    assert bearer_of((value,)) == "abc123"


@pytest.mark.parametrize(
    "values",
    [
        (),
        ("",),
        ("Bearer",),
        ("Bearer ",),
        ("Bearer   ",),
        ("bearer abc123",),
        ("BEARER abc123",),
        ("Bearer\tabc123",),
        ("Basic YTpi",),
        ("abc123",),
        ("Bearer \u00e9",),
        ("Bearer a", "Bearer a"),
    ],
)
def test_anything_else_is_none(values) -> None:
    """L2 to L4: no header, nothing in it, another scheme; and two, of which nobody can say which counts."""
    with pytest.raises(BadTokenError, match=r"^missing or empty Bearer token$"):
        bearer_of(values)
