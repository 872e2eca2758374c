"""The four lines that a sub-agent is started with (contract: operators 4.2)."""

from __future__ import annotations

import re
from typing import Final

import attrs

from trio_swarm._io.http_client import Address
from trio_swarm.limits import MAX_TOKEN

__all__ = ["WorkerBrief", "check_bearer"]

_KEYS: Final = ("agent_id", "worker_handle", "base_url", "task_id")
_MAX_LINE: Final = MAX_TOKEN + 256
_BEARER: Final = re.compile(r"[A-Za-z0-9._~+/-]+=*")
"""What may stand behind ``Bearer`` (RFC 6750, 2.1)."""


@attrs.frozen
class WorkerBrief:
    """Who a worker is, and where it finds its task."""

    agent_id: str
    worker_handle: str = attrs.field(repr=False)
    """The bearer of every request; secret."""
    base_url: str
    task_id: str

    @classmethod
    def parse(cls, text: str) -> WorkerBrief:
        """Find the four lines in a prompt: these keys, in this order, one after the other.

        Indentation and other lines before and after are passed over, since an operator may add a
        hint. Raises ``ValueError`` that names what is wrong: no such block, two different ones,
        an empty value, a URL that is still a placeholder.
        """
        found = set(_blocks(text))
        if not found:
            raise ValueError(f"the prompt has no four lines {', '.join(f'{key}: ...' for key in _KEYS)}")
        if len(found) > 1:
            raise ValueError("the prompt has the four lines twice, and they differ")
        brief = cls(*found.pop())
        check_bearer("worker_handle", brief.worker_handle)
        try:
            Address.parse(brief.base_url)
        except ValueError as error:
            raise ValueError(f"base_url {brief.base_url[:100]!r}: {error}") from None
        return brief

    @property
    def text(self) -> str:
        """The four lines; with the secret."""
        return "\n".join(f"{key}: {getattr(self, key)}" for key in _KEYS)


def _blocks(text: str) -> list[tuple[str, ...]]:
    lines = [line.strip() for line in text.splitlines()]
    starts = [at for at, line in enumerate(lines) if line.startswith("agent_id:")]
    found = []
    for at in starts:
        pairs = [line.partition(":") for line in lines[at : at + len(_KEYS)]]
        if tuple(key for key, _, _ in pairs) != _KEYS:
            continue
        values = tuple(value.strip() for _, _, value in pairs)
        for key, value in zip(_KEYS, values, strict=True):
            if not value or len(value) > _MAX_LINE or not value.isprintable():
                raise ValueError(f"{key} has no value, or one that cannot be used")
        found.append(values)
    return found


def check_bearer(name: str, value: str) -> None:
    """Raises ``ValueError``, without the value, for what cannot stand in a header."""
    if len(value) > MAX_TOKEN or _BEARER.fullmatch(value) is None:
        raise ValueError(f"{name} is not a bearer credential")
