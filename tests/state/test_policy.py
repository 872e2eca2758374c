"""Who may knock: the matrix of Host, Origin and Sec-Fetch-Site."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_swarm._state.policy import EdgePolicy, loopback_hosts

POLICY = EdgePolicy(loopback_hosts(7777, ["swarm.test", "other.test:1"]), frozenset({"https://App.example"}))

HOSTS = {
    "127.0.0.1:7777": True,
    "localhost:7777": True,
    "LocalHost:7777": True,
    "[::1]:7777": True,
    " 127.0.0.1:7777 ": True,
    "swarm.test": True,
    "swarm.test:7777": True,
    "other.test:1": True,
    "other.test": False,
    "other.test:7777": False,
    "127.0.0.1": False,
    "127.0.0.1:80": False,
    "localhost.:7777": False,
    "localhost:7777.evil.example": False,
    "evil.example": False,
    "evil.example:7777": False,
    "user@127.0.0.1:7777": False,
    "127.0.0.1:7777@evil.example": False,
    "127.0.0.1:07777": False,
    "0x7f000001:7777": False,
    "127.1:7777": False,
    "": False,
}
ORIGINS = {
    (): True,
    ("https://app.example",): True,
    ("HTTPS://APP.EXAMPLE",): True,
    ("http://app.example",): False,
    ("https://app.example:443",): False,
    ("https://app.example.evil.example",): False,
    ("https://evil.example",): False,
    ("null",): False,
    ("",): False,
    ("http://127.0.0.1:7777",): False,
    ("https://app.example", "https://app.example"): False,
}


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("origins", ORIGINS)
def test_the_matrix(host, origins) -> None:
    """A wrong host is 421 whatever else is right; a wrong origin is 403."""
    verdict = POLICY.judge(hosts=[host], origins=origins)
    if not HOSTS[host]:
        assert verdict is not None
        assert verdict.status == 421
    elif not ORIGINS[origins]:
        assert verdict is not None
        assert verdict.status == 403
    else:
        assert verdict is None


@pytest.mark.parametrize("hosts", [[], ["127.0.0.1:7777"] * 2])
def test_exactly_one_host_is_needed(hosts) -> None:
    """RFC 9112, 3.2."""
    verdict = POLICY.judge(hosts=hosts, origins=[])
    assert verdict is not None
    assert verdict.status == 400


@pytest.mark.parametrize(
    ("sites", "status"),
    [([], None), (["none"], None), (["same-origin"], None), (["cross-site"], 403), (["same-site"], 403)],
)
def test_a_browser_without_an_origin_still_tells_where_it_comes_from(sites, status) -> None:
    """Images and links send no Origin."""
    verdict = POLICY.judge(hosts=["127.0.0.1:7777"], origins=[], fetch_sites=sites)
    assert (verdict and verdict.status) == status


def test_an_origin_cannot_be_null_even_if_listed() -> None:
    """Any page can have the origin null."""
    policy = EdgePolicy(["h"], ["null"])
    assert policy.judge(hosts=["h"], origins=["null"]) is not None


def test_names_without_a_port_are_for_the_schemes_own_port_or_for_none() -> None:
    """A browser leaves the port 80 out; a Unix socket has none."""
    assert "localhost" in loopback_hosts(80)
    assert "localhost" not in loopback_hosts(8080)
    assert loopback_hosts(None, ["x"]) >= {"localhost", "127.0.0.1", "x"}


@given(st.text(max_size=30), st.lists(st.text(max_size=30), max_size=2))
def test_nothing_else_passes(host, origins) -> None:
    """Any text for a host and an origin: only what is listed is let in."""
    verdict = POLICY.judge(hosts=[host], origins=origins)
    listed = host.strip().lower() in POLICY.hosts
    known = not origins or (len(origins) == 1 and origins[0].strip().lower() == "https://app.example")
    assert (verdict is None) == (listed and known)
