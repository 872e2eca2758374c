"""Mutations of bytes and of JSON, all from one `random.Random`: the same seed, the same inputs."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

INTERESTING = (
    0, 1, -1, 2**31, 2**32 - 1, 2**32, 2**63, 2**64 - 1, 2**64, 10**400, 1e308, -0.0, 0.5,
)  # fmt: skip
TEXTS = ("", " ", "\0", "é", "\u2028", "\ud800", "\U0001f600", "a" * 3000, "../..", "%00", "null", "\r\n")


def mutated(rng: random.Random, data: bytes, words: Sequence[bytes], *, most: int = 8) -> bytes:
    """``data`` with 1 to ``most`` small changes: bits, cuts, copies, and words of the dictionary."""
    out = bytearray(data)
    for _ in range(rng.randrange(1, most + 1)):
        at = rng.randrange(len(out) + 1)
        what = rng.randrange(7)
        if what == 0 and at < len(out):
            out[at] ^= 1 << rng.randrange(8)
        elif what == 1:
            out[at:at] = rng.randbytes(rng.randrange(1, 6))
        elif what == 2:
            del out[at : at + rng.randrange(1, 12)]
        elif what == 3:
            out[at:at] = out[at : at + 40]
        elif what == 4:
            del out[at:]
        elif what == 5:
            word = rng.choice(words)
            out[at : at + len(word)] = word
        else:
            out[at:at] = rng.choice(words)
    return bytes(out)


def mutated_json(rng: random.Random, value: Any, words: Sequence[str], depth: int = 0) -> Any:
    """``value`` with something in it changed, dropped, added or of another type."""
    what = rng.randrange(8)
    if isinstance(value, dict) and value and what < 6:
        changed = dict(value)
        key = rng.choice(list(changed))
        if what < 3:
            changed[key] = mutated_json(rng, changed[key], words, depth + 1)
        elif what == 3:
            del changed[key]
        elif what == 4:
            changed[rng.choice([*words, *TEXTS])] = changed.pop(key)
        else:
            changed[rng.choice([*words, *TEXTS])] = junk(rng, words)
        return changed
    if isinstance(value, list) and value and what < 5:
        at = rng.randrange(len(value))
        return [
            *value[:at],
            mutated_json(rng, value[at], words, depth + 1),
            *value[at + 1 :] * rng.randrange(3),
        ]
    return junk(rng, words)


def junk(rng: random.Random, words: Sequence[str]) -> Any:
    """Any JSON value."""
    some = (
        None,
        True,
        False,
        [],
        {},
        [[]],
        {"": {}},
        rng.choice(INTERESTING),
        rng.choice(TEXTS),
        rng.choice(words),
    )
    value = rng.choice(some)
    for _ in range(rng.choice((0, 0, 0, 0, 0, 1, 3, 200))):
        value = [value]
    return value
