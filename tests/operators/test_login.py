"""Who an operator says that it is: the bearer and the body of a login."""

from __future__ import annotations

import json

import pytest

from trio_swarm.errors import BadTokenError
from trio_swarm.operators.login import MAX_LOGIN_BODY, LoginRequest, bearer_of


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


@pytest.mark.parametrize("role", ["S-0123456789abcdef", "S-0123456789ABCDEF"])
def test_a_role_is_no_sid(role) -> None:
    """Sids are no secret: whoever took one for a role would get what is meant for that session."""
    with pytest.raises(ValueError, match=rf"^roles: '{role}' looks like the sid of a session"):
        LoginRequest.parse({"roles": ["main", role]})


@pytest.mark.parametrize(
    "role",
    ["S-", "S-0123456789abcde", "S-0123456789abcdef0", "S-0123456789abcdeg", "s-0123456789abcdef", "S-1\n"],
)
def test_any_other_role_is_free(role) -> None:
    """1.3: any text."""
    assert LoginRequest.parse({"roles": [role]}).roles == (role,)


def test_the_largest_login_fits_into_a_body() -> None:
    """Written as Python does it, all of it escaped."""
    roles = [chr(0x1F600 + number) * 256 for number in range(64)]
    body = {"roles": roles, "desc": "\u20ac" * 10_900}
    assert LoginRequest.parse(body).roles == tuple(roles)
    assert 250 * 2**10 < len(json.dumps(body)) < MAX_LOGIN_BODY
