"""What a pod process is told on its standard input: one JSON document."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import attrs

from trio_swarm._io.unix import check_socket_path
from trio_swarm._state.scope import Grant
from trio_swarm.frames._frame import Frame, array
from trio_swarm.frames.pod import ScopeRule

__all__ = ["MAX_SPEC", "PodSpec", "check_pod_name"]

MAX_SPEC: Final = 2**20
"""Bytes of the document; it holds paths and rules only."""

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", re.ASCII)


def check_pod_name(name: str) -> str:
    """Return ``name`` if it may name a pod (and so a directory), else raise ``ValueError``.

    A letter or a digit, then up to 99 of letters, digits, dots, underscores and hyphens.
    """
    if _NAME.fullmatch(name) is None:
        raise ValueError(f"{name[:120]!r} cannot name a pod: it must match {_NAME.pattern}")
    return name


@attrs.frozen
class PodSpec(Frame):
    """One pod."""

    pod_name: str
    """See `check_pod_name`."""
    base_dir: str
    """An existing private directory; the pod makes ``<base_dir>/<pod_name>/`` and removes it at its end."""
    target: str
    """The engine, ``package.module:function``."""
    scope_allow: tuple[ScopeRule, ...] = attrs.field(converter=array)
    """What it may read and write; at least one rule, targets absolute and resolved."""
    scope_deny: tuple[ScopeRule, ...] = attrs.field(default=(), converter=array)
    """Caps on that."""
    cwd: str = "/"
    """Where relative paths of its file tools start; absolute."""
    scope_lock: str | None = None
    """The scope lock's file in which its name is entered already: it puts its own pid there."""
    provider: str = "anthropic"
    """For the greeting; the original's readers know four names."""
    model: str = "engine"
    """For the greeting."""

    def check(self) -> PodSpec:
        """Return itself, or raise ``ValueError`` where a value cannot be worked with."""
        check_pod_name(self.pod_name)
        if self.target.count(":") != 1 or self.target.startswith(":") or self.target.endswith(":"):
            raise ValueError(f"the engine {self.target!r} is not of the form module:function")
        for path in (self.base_dir, self.cwd):
            if not path.startswith("/") or "\0" in path:
                raise ValueError(f"{path!r} is not an absolute path")
        self.grant()
        check_socket_path(self.socket)
        return self

    def grant(self) -> Grant:
        """Its scope. Raises ``ValueError`` where a rule is not usable."""
        return Grant(self.scope_allow, self.scope_deny)

    @property
    def directory(self) -> Path:
        """Its runtime directory (B3.1)."""
        return Path(self.base_dir, self.pod_name)

    @property
    def socket(self) -> Path:
        """Its socket."""
        return self.directory / "sock"
