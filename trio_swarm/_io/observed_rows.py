"""The log of what each operator was given to do, beside its session on disk.

One row for each entry, numbered as they came; they go with their session, in the same transaction.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import attrs

from trio_swarm.errors import FrameError
from trio_swarm.frames import parse_json

__all__ = ["INSERT", "SCHEMA", "SELECT", "TRIM", "ObservedRow", "entry_of", "values_of"]

SCHEMA: Final = """
CREATE TABLE observed (
    sid TEXT NOT NULL,
    number INTEGER NOT NULL,
    entry_json TEXT NOT NULL,
    PRIMARY KEY (sid, number)
) WITHOUT ROWID;
CREATE TRIGGER observed_goes AFTER DELETE ON sessions
    BEGIN DELETE FROM observed WHERE sid = OLD.sid; END;
"""

SELECT: Final = "SELECT sid, number, entry_json FROM observed ORDER BY sid, number"

INSERT: Final = """
INSERT OR REPLACE INTO observed (sid, number, entry_json)
    SELECT ?1, ?2, ?3 WHERE EXISTS (SELECT 1 FROM sessions WHERE sid = ?1)
"""
"""Nothing for a session that has ended meanwhile."""

_HIGHEST: Final = 2**53
"""No log comes that far. The entries to come are counted on from here, and SQLite ends at 2^63 - 1."""

TRIM: Final = "DELETE FROM observed WHERE sid = ?1 AND number <= ?2"


@attrs.frozen
class ObservedRow:
    """One entry of the log of one session."""

    sid: str
    number: int
    """Counts from 1 for each session, and never again."""
    entry: Mapping[str, Any] = attrs.field(repr=False)


def values_of(rows: Iterable[ObservedRow]) -> Iterator[tuple[str, int, str]]:
    """For `INSERT`."""
    for row in rows:
        yield row.sid, row.number, json.dumps(row.entry)


def entry_of(values: tuple[Any, ...]) -> ObservedRow:
    """From a row of `SELECT`, its texts as bytes. Raises ``ValueError``, which names the column."""
    sid, number, entry = values
    if not isinstance(number, int) or not 1 <= number <= _HIGHEST:
        raise ValueError("observed.number: not a number from 1 to 2^53")
    try:
        found = parse_json(entry)
        name = sid.decode()
    except (FrameError, UnicodeDecodeError, AttributeError, TypeError):
        raise ValueError("observed.entry_json: not JSON of a session") from None
    if not isinstance(found, dict):
        raise ValueError("observed.entry_json: not an object")
    return ObservedRow(name, number, found)
