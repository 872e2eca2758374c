"""The algebra of delegated file scope: which rules meet, which contain which, who owns a path.

Paths are absolute, compared component by component (``/a/bc`` is not below ``/a/b``) and
*resolved*: whoever calls has followed symbolic links and ``..`` before (`trio_swarm._io.paths`),
and a path that still has a ``..`` is refused here, since nothing true could be said of it.

A recursive rule stands for its target and all below it; a rule that is not stands for its target
and what is directly in it. Write includes read. Pods contract, B4.2 to B4.4.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final, Literal, TypeAlias

import attrs

from trio_swarm.frames._frame import U32, Frame, array
from trio_swarm.frames.pod import ScopeRule

__all__ = [
    "Allocation",
    "AllocationTable",
    "Grant",
    "Permission",
    "children_of",
    "conflict_owner",
    "covers",
    "describe",
    "matches",
    "overlap",
    "parts",
    "rules_overlap",
    "within",
]

Permission: TypeAlias = Literal["none", "read", "write"]
"""What may be done with one path."""

_LEVELS: Final[tuple[Permission, ...]] = ("none", "read", "write")


def parts(path: str) -> tuple[str, ...]:
    """The components of an absolute, resolved path; ``()`` for the root.

    Raises:
        ValueError: it is relative, or has a ``..`` or a NUL.
    """
    if not path.startswith("/"):
        raise ValueError(f"{path!r} is not an absolute path")
    if "\0" in path:
        raise ValueError(f"{path!r} holds a NUL")
    found = tuple(each for each in path.split("/") if each not in ("", "."))
    if ".." in found:
        raise ValueError(f"{path!r} is not resolved: it has a '..'")
    return found


def _below(path: tuple[str, ...], top: tuple[str, ...]) -> bool:
    """Whether ``path`` is ``top`` or something below it."""
    return path[: len(top)] == top


def _directly_in(path: tuple[str, ...], directory: tuple[str, ...]) -> bool:
    return len(path) == len(directory) + 1 and path[:-1] == directory


def matches(rule: ScopeRule, path: str) -> bool:
    """Whether ``rule`` stands for ``path``."""
    target, asked = parts(rule.target), parts(path)
    return _below(asked, target) if rule.recursive else asked == target or _directly_in(asked, target)


def overlap(a: ScopeRule, b: ScopeRule) -> bool:
    """Whether some path belongs to both targets, whatever the permissions.

    A rule that is not recursive and lies below another such rule meets it only where one
    is directly in the other; two siblings never meet.
    """
    one, two = parts(a.target), parts(b.target)
    if a.recursive and b.recursive:
        return _below(one, two) or _below(two, one)
    if a.recursive:
        return _below(two, one) or _directly_in(one, two)
    if b.recursive:
        return _below(one, two) or _directly_in(two, one)
    return one == two or _directly_in(one, two) or _directly_in(two, one)


def covers(outer: ScopeRule, inner: ScopeRule) -> bool:
    """Whether ``outer`` allows at least all that ``inner`` does."""
    if inner.permission == "write" and outer.permission != "write":
        return False
    one, two = parts(outer.target), parts(inner.target)
    if outer.recursive:
        return _below(two, one)
    return one == two and not inner.recursive


def _writes(rules: Iterable[ScopeRule]) -> Iterator[ScopeRule]:
    return (rule for rule in rules if rule.permission == "write")


def rules_overlap(rule: ScopeRule, rules: Iterable[ScopeRule]) -> bool:
    """Whether ``rule`` meets any *write* rule of ``rules``."""
    return any(overlap(rule, each) for each in _writes(rules))


@attrs.frozen
class Allocation(Frame):
    """What one pod holds, as the scope lock's file tells it (B4.1)."""

    pod_name: str
    """Unique in the file."""
    pid: U32
    """The pod's process, or its spawner's while it is being started."""
    socket: str
    """The pod's socket."""
    scope_allow: tuple[ScopeRule, ...] = attrs.field(converter=array)
    """What it was given; what it gave away in turn is not taken off here."""
    delegated_from: str | None = None
    """The pod that it was delegated by; None for one that was registered at the top."""


@attrs.frozen
class AllocationTable(Frame):
    """The whole file."""

    allocations: tuple[Allocation, ...] = attrs.field(default=(), converter=array)
    """In the order in which they were made."""


def children_of(table: Iterable[Allocation], name: str) -> tuple[Allocation, ...]:
    """The allocations that ``name`` delegated itself."""
    return tuple(each for each in table if each.delegated_from == name)


def within(table: Iterable[Allocation], spawner: Allocation, rule: ScopeRule) -> bool:
    """Whether ``rule`` lies in what ``spawner`` still has to give.

    Some allow rule of its own covers it, and, for a write rule, no pod that it
    delegated to already holds a write rule that meets it. Reads are shared freely.
    """
    if not any(covers(held, rule) for held in spawner.scope_allow):
        return False
    if rule.permission == "read":
        return True
    return not any(rules_overlap(rule, child.scope_allow) for child in children_of(table, spawner.pod_name))


def conflict_owner(table: Iterable[Allocation], rule: ScopeRule, exempt: str | None = None) -> str | None:
    """The pod whose writing ``rule`` would share, or None; reads never conflict.

    Of a chain of delegations it is the last that still meets the rule, since that one
    has the say there. ``exempt`` is skipped: a spawner may share with what it delegates.
    """
    if rule.permission == "read":
        return None
    meeting = [each for each in table if rules_overlap(rule, each.scope_allow)]
    passed_on = {each.delegated_from for each in meeting}
    for each in meeting:
        if each.pod_name not in passed_on and each.pod_name != exempt:
            return each.pod_name
    return None


def describe(rules: Iterable[ScopeRule]) -> str:
    """One line for people: ``read:/srv, write:/srv/out [non-recursive]``, or ``(none)`` (B6)."""
    told = [
        f"{rule.permission}:{rule.target}" + ("" if rule.recursive else " [non-recursive]") for rule in rules
    ]
    return ", ".join(told) or "(none)"


@attrs.frozen
class Grant:
    """What one pod may touch (B4.4)."""

    allow: tuple[ScopeRule, ...]
    """At least one."""
    deny: tuple[ScopeRule, ...] = ()
    """Caps: where a ``read`` rule matches nothing is allowed, where a ``write`` rule does only reading."""
    delegated: tuple[ScopeRule, ...] = ()
    """Given to pods of its own: where a write rule of these matches, only reading is left."""

    def __attrs_post_init__(self) -> None:
        """Refuse what could not be compared later."""
        if not self.allow:
            raise ValueError("a scope needs at least one allow rule")
        for rule in (*self.allow, *self.deny, *self.delegated):
            parts(rule.target)

    def permission(self, path: str) -> Permission:
        """What may be done with ``path``, which is absolute and resolved."""
        level = max((_LEVELS.index(rule.permission) for rule in self.allow if matches(rule, path)), default=0)
        for rule in (*self.deny, *_writes(self.delegated)):
            if matches(rule, path):
                level = min(level, _LEVELS.index(rule.permission) - 1)
        return _LEVELS[level]

    def allows(self, path: str, wanted: Permission) -> bool:
        """Whether ``path`` may be used for ``wanted`` (``"none"`` always)."""
        return _LEVELS.index(self.permission(path)) >= _LEVELS.index(wanted)

    def delegating(self, rules: Iterable[ScopeRule]) -> Grant:
        """This grant after ``rules`` were given away too."""
        return attrs.evolve(self, delegated=(*self.delegated, *rules))

    def summary(self) -> str:
        """The greeting's ``scope_summary``: one line per allow rule, deny rules not shown (B2.2)."""
        lines = ["Readable:", *(self._line(rule) for rule in self.allow), "Writable:"]
        return "\n".join([*lines, *(self._line(rule) for rule in _writes(self.allow))])

    def __str__(self) -> str:
        denied = f"; denied: {describe(self.deny)}" if self.deny else ""
        given = f"; delegated: {describe(self.delegated)}" if self.delegated else ""
        return describe(self.allow) + denied + given

    @staticmethod
    def _line(rule: ScopeRule) -> str:
        return f"  - {rule.target}" + ("" if rule.recursive else " [non-recursive]")
