"""The rule algebra of delegated scope, by the contract's words and against a brute-force model."""

from __future__ import annotations

import itertools

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trio_swarm._state.scope import (
    Allocation,
    Grant,
    conflict_owner,
    covers,
    describe,
    matches,
    overlap,
    parts,
    within,
)
from trio_swarm.frames.pod import ScopeRule


def rule(target, permission="write", recursive=True):
    return ScopeRule(target, permission, recursive)


def pod(name, *rules, parent=None):
    return Allocation(name, 1, f"/run/{name}/sock", rules, parent)


# -- paths -----------------------------------------------------------------------------------


def test_paths_are_compared_by_component():
    """``/a/bc`` is not below ``/a/b``."""
    assert matches(rule("/a/b"), "/a/b/c")
    assert not matches(rule("/a/b"), "/a/bc")
    assert parts("//a/./b/") == ("a", "b")


@pytest.mark.parametrize("path", ["", "a", "a/b", "./a", "/a/../b", "/..", "/a\0b"])
def test_what_is_not_resolved_is_refused(path):
    """Nothing true can be said of a relative path, or of one with ``..``."""
    with pytest.raises(ValueError, match=r"path|resolved|NUL"):
        parts(path)


def test_non_recursive_matches_target_and_direct_children():
    """B4.4."""
    flat = rule("/a", recursive=False)

    assert matches(flat, "/a")
    assert matches(flat, "/a/b")
    assert not matches(flat, "/a/b/c")
    assert not matches(flat, "/")


# -- B4.2, as upstream tests it ----------------------------------------------------------------


def test_rules_overlap_prefix_relation():
    """Two recursive rules meet where one target is a prefix of the other."""
    assert overlap(rule("/a"), rule("/a/b"))
    assert overlap(rule("/a/b"), rule("/a"))
    assert not overlap(rule("/a/b"), rule("/a/bc"))


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        (rule("/a", recursive=False), rule("/a", recursive=False), True),
        (rule("/a", recursive=False), rule("/a/b", recursive=False), True),
        (rule("/a", recursive=False), rule("/a/b/c", recursive=False), False),
        (rule("/a/x", recursive=False), rule("/a/y", recursive=False), False),
        (rule("/a"), rule("/a/b/c", recursive=False), True),
        (rule("/a/b"), rule("/a", recursive=False), True),
        (rule("/a/b/c"), rule("/a", recursive=False), False),
    ],
)
def test_rules_overlap_non_recursive(a, b, expected):
    """Each of the contract's mixed cases, both ways round."""
    assert overlap(a, b) is expected
    assert overlap(b, a) is expected


def test_write_covers_read_and_not_the_other_way():
    """``write`` implies ``read``."""
    assert covers(rule("/a", "write"), rule("/a", "read"))
    assert not covers(rule("/a", "read"), rule("/a", "write"))


def test_non_recursive_covers_only_its_own_target_non_recursively():
    """B4.2."""
    flat = rule("/a", recursive=False)

    assert covers(flat, flat)
    assert not covers(flat, rule("/a"))
    assert not covers(flat, rule("/a/b", recursive=False))


def test_delegate_must_be_subset():
    """A rule outside what the spawner holds is not within it."""
    root = pod("root", rule("/srv/repo"))

    assert within([root], root, rule("/srv/repo/tests"))
    assert not within([root], root, rule("/srv"))
    assert not within([root], root, rule("/srv/repository"))


def test_what_was_delegated_cannot_be_delegated_again():
    """Effective scope is the spawner's minus the write rules of its direct children."""
    root = pod("root", rule("/srv"))
    child = pod("child", rule("/srv/a"), parent="root")

    assert not within([root, child], root, rule("/srv/a/b"))
    assert not within([root, child], root, rule("/srv"))
    assert within([root, child], root, rule("/srv/b"))
    assert within([root, child], root, rule("/srv/a", "read"))


def test_conflict_detection_descends_to_real_owner():
    """The deepest pod of a chain that still meets the rule is the one that conflicts."""
    table = [
        pod("root", rule("/srv")),
        pod("mid", rule("/srv/a"), parent="root"),
        pod("leaf", rule("/srv/a/b"), parent="mid"),
    ]

    assert conflict_owner(table, rule("/srv/a/b/c")) == "leaf"
    assert conflict_owner(table, rule("/srv/a/x")) == "mid"
    assert conflict_owner(table, rule("/srv/x")) == "root"
    assert conflict_owner(table, rule("/srv/x"), exempt="root") is None
    assert conflict_owner(table, rule("/other")) is None


def test_reads_never_conflict():
    """Neither a read rule with anything nor anything with a read rule."""
    assert conflict_owner([pod("a", rule("/srv"))], rule("/srv", "read")) is None
    assert conflict_owner([pod("a", rule("/srv", "read"))], rule("/srv")) is None


# -- against a model -------------------------------------------------------------------------

NAMES = ("a", "b")
UNIVERSE = ["/"] + [
    "/" + "/".join(each) for n in range(1, 5) for each in itertools.product((*NAMES, "ab"), repeat=n)
]
# One level less than the universe: so that "everything below" is told from "directly in".
TARGETS = [path for path in UNIVERSE if path.count("/") <= 2]
rules = st.builds(ScopeRule, st.sampled_from(TARGETS), st.sampled_from(["read", "write"]), st.booleans())
grants = st.builds(
    Grant,
    st.lists(rules, min_size=1, max_size=4).map(tuple),
    st.lists(rules, max_size=3).map(tuple),
    st.lists(rules, max_size=2).map(tuple),
)


def model_paths(each):
    """Every path of the universe that a rule stands for, by text alone."""
    top = each.target.rstrip("/") + "/"
    below = {path for path in UNIVERSE if path.startswith(top) and path != "/"}
    if not each.recursive:
        below = {path for path in below if "/" not in path[len(top) :]}
    return below | {each.target}


@given(rules, rules)
def test_overlap_is_a_common_path(a, b):
    """Two rules overlap exactly where some path belongs to both."""
    assert overlap(a, b) == bool(model_paths(a) & model_paths(b))
    assert overlap(a, b) == overlap(b, a)


@given(rules, rules)
def test_covers_is_sound(outer, inner):
    """What covers another allows all that the other does."""
    if covers(outer, inner):
        assert model_paths(inner) <= model_paths(outer)
        assert (outer.permission, inner.permission) != ("read", "write")


@given(rules)
def test_matches_is_the_model(each):
    """Path by path."""
    assert {path for path in UNIVERSE if matches(each, path)} == model_paths(each)


def model_permission(grant, path):
    """B4.4, one rule at a time, by set membership."""
    order = ["none", "read", "write"]
    level = 0
    for each in grant.allow:
        if path in model_paths(each):
            level = max(level, order.index(each.permission))
    for each in grant.deny:
        if path in model_paths(each):
            level = min(level, 0 if each.permission == "read" else 1)
    for each in grant.delegated:
        if each.permission == "write" and path in model_paths(each):
            level = min(level, 1)
    return order[level]


@given(grants, st.sampled_from(UNIVERSE))
def test_permission_is_the_model(grant, path):
    """Maximum over the allow rules, then the caps."""
    assert grant.permission(path) == model_permission(grant, path)


@given(grants, rules, st.sampled_from(UNIVERSE))
def test_a_grant_never_widens(grant, given_away, path):
    """Denying or delegating more only ever takes away."""
    before = grant.permission(path)

    for narrower in (grant.delegating([given_away]), attrs.evolve(grant, deny=(*grant.deny, given_away))):
        assert not narrower.allows(path, "write") or before == "write"
        assert not narrower.allows(path, "read") or before != "none"


tables = st.lists(st.tuples(st.lists(rules, min_size=1, max_size=2), st.integers(0, 5)), max_size=6)


def build(raw):
    """Allocations as the lock's own operations would have let them in."""
    table = []
    for index, (wanted, place) in enumerate(raw):
        spawner = table[place] if place < len(table) else None
        exempt = spawner.pod_name if spawner else None
        if spawner and not all(within(table, spawner, each) for each in wanted):
            continue
        if any(conflict_owner(table, each, exempt) for each in wanted):
            continue
        table.append(Allocation(f"p{index}", 1, "/s", tuple(wanted), exempt))
    return table


@settings(max_examples=300)
@given(tables)
def test_no_two_pods_may_write_the_same_path(raw):
    """Whatever the operations let in: of all who hold write on a path, each but one passed it on."""
    table = build(raw)
    for path in UNIVERSE:
        holders = [
            each
            for each in table
            if any(rule.permission == "write" and path in model_paths(rule) for rule in each.scope_allow)
        ]
        last = {each.pod_name for each in holders} - {each.delegated_from for each in holders}
        assert len(last) <= 1, (path, table)


# -- texts -----------------------------------------------------------------------------------


def test_scope_summary_is_the_contracts():
    """Readable lists every allow rule, writable the write rules; deny rules are not shown (B2.2)."""
    grant = Grant((rule("/srv", "read"), rule("/out", recursive=False)), (rule("/srv/secret", "read"),))

    assert grant.summary() == (
        "Readable:\n  - /srv\n  - /out [non-recursive]\nWritable:\n  - /out [non-recursive]"
    )
    assert str(grant) == "read:/srv, write:/out [non-recursive]; denied: read:/srv/secret"
    assert describe(()) == "(none)"


def test_a_grant_needs_an_allow_rule():
    """B4.4."""
    with pytest.raises(ValueError, match="at least one"):
        Grant(())
    with pytest.raises(ValueError, match="resolved"):
        Grant((rule("/a/../b"),))
