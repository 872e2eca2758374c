"""RFC 3339 instants, written as chrono writes them (children contract, A3)."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any, Final

from trio_swarm.frames._faults import wrong

_WANTED: Final = "an RFC 3339 instant with offset"
# fromisoformat alone takes week dates, missing offsets and commas too.
_RFC3339: Final = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2})[Tt ]([0-9]{2}:[0-9]{2}:[0-9]{2})"
    r"(?:\.([0-9]+))?(?:[Zz]|([+-][0-9]{2}:[0-9]{2}))"
)


def read_instant(value: Any) -> datetime:
    """The aware UTC instant; digits beyond the microsecond are cut off."""
    matched = _RFC3339.fullmatch(value) if type(value) is str else None
    if matched is None:
        raise wrong("", _WANTED, value)
    date, time, fraction, offset = matched.groups()
    try:
        instant = datetime.fromisoformat(f"{date}T{time}{offset or '+00:00'}").astimezone(UTC)
    except (ValueError, OverflowError):
        raise wrong("", _WANTED, value) from None
    return instant.replace(microsecond=int((fraction or "")[:6].ljust(6, "0")))


def write_instant(value: Any) -> str:
    """UTC with ``Z`` and as few of 0, 3 or 6 fractional digits as hold the instant."""
    if not isinstance(value, datetime) or value.utcoffset() is None:
        raise wrong("", "an aware datetime", value)
    try:
        instant = value.astimezone(UTC).replace(tzinfo=None)
    except OverflowError:
        raise wrong("", "an aware datetime within the years 1 to 9999", value) from None
    if instant.microsecond == 0:
        precision = "seconds"
    elif instant.microsecond % 1000 == 0:
        precision = "milliseconds"
    else:
        precision = "microseconds"
    return instant.isoformat(timespec=precision) + "Z"
