"""Limits of the HTTP front that cannot work."""

from __future__ import annotations

import math

import attrs
import pytest

from trio_swarm._io.http_limits import FrontLimits


@pytest.mark.parametrize("name", [field.name for field in attrs.fields(FrontLimits)])
@pytest.mark.parametrize("value", [0, -1, math.nan, "5", None, True])
def test_what_is_no_number_above_0_is_refused(name, value) -> None:
    """At its making, and named."""
    with pytest.raises(ValueError, match=f"^{name}: expected a number above 0, not "):
        FrontLimits(**{name: value})


def test_for_ever_is_a_time() -> None:
    assert FrontLimits(idle_deadline=math.inf).idle_deadline == math.inf
