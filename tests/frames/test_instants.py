"""Timestamps of discovery records: RFC 3339 in, chrono's form out."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone

import pytest

from trio_swarm.frames import AgentRecord, FrameError, decode, encode

BASE = datetime(2026, 6, 22, 9, 15, tzinfo=UTC)


def record(started_at):
    return {
        "agent_id": "c",
        "role": "r",
        "endpoint": "ws://127.0.0.1:1",
        "pid": 1,
        "started_at": started_at,
        "lease_expires_at": "2026-06-22T09:16:00Z",
    }


def read(text):
    return decode(json.dumps(record(text)), AgentRecord).started_at


def written(started_at):
    frame = AgentRecord(**record(started_at) | {"lease_expires_at": BASE})
    return json.loads(encode(frame))["started_at"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-06-22T09:15:00Z", BASE),
        ("2026-06-22T09:15:00+00:00", BASE),
        ("2026-06-22T09:15:00-00:00", BASE),
        ("2026-06-22t09:15:00z", BASE),
        ("2026-06-22 09:15:00Z", BASE),
        ("2026-06-22T11:45:00+02:30", BASE),
        ("2026-06-22T09:15:00.125Z", BASE.replace(microsecond=125000)),
        ("2026-06-22T09:15:00.000001Z", BASE.replace(microsecond=1)),
        ("2026-06-22T09:15:00.123456789Z", BASE.replace(microsecond=123456)),
        ("2026-06-22T09:15:00.9999999999+00:00", BASE.replace(microsecond=999999)),
        ("2026-06-22T09:15:00.5Z", BASE.replace(microsecond=500000)),
    ],
)
def test_instants_are_read(text, expected):
    """Any offset, any number of digits; the result is aware and in UTC."""
    assert read(text) == expected
    assert read(text).tzinfo is UTC


@pytest.mark.parametrize(
    "text",
    [
        *(
            "2026-06-22T09:15:00",
            "2026-06-22",
            "20260622T091500Z",
            "2026-W26-1T09:15:00Z",
            "2026-06-22T09:15Z",
        ),
        *(
            "2026-06-22T09:15:00,5Z",
            "2026-06-22T09:15:00.Z",
            "2026-06-22T09:15:00+0200",
            "2026-06-22T24:00:00Z",
        ),
        *(
            "2026-13-01T00:00:00Z",
            "2026-02-30T00:00:00Z",
            "2026-06-22T09:15:00+25:00",
            " 2026-06-22T09:15:00Z",
        ),
        *(
            "2026-06-22T09:15:00Z\n",
            "٢٠٢٦-06-22T09:15:00Z",
            "0001-01-01T00:00:00+23:59",
            "9999-12-31T23:59:59-23:59",
        ),
        *("", "now", 1776500000, None, True, ["2026-06-22T09:15:00Z"]),
    ],
)
def test_what_is_not_an_instant_is_refused(text):
    """No offset, no instant; and none that the calendar does not have."""
    with pytest.raises(FrameError) as caught:
        read(text)

    assert caught.value.key == "started_at"


@pytest.mark.parametrize(
    ("instant", "text"),
    [
        (BASE, "2026-06-22T09:15:00Z"),
        (BASE.replace(microsecond=125000), "2026-06-22T09:15:00.125Z"),
        (BASE.replace(microsecond=125001), "2026-06-22T09:15:00.125001Z"),
        (BASE.replace(microsecond=500), "2026-06-22T09:15:00.000500Z"),
        (BASE.astimezone(timezone(timedelta(hours=-7))), "2026-06-22T09:15:00Z"),
        (datetime(1, 1, 1, tzinfo=UTC), "0001-01-01T00:00:00Z"),
    ],
)
def test_instants_are_written_as_chrono_writes_them(instant, text):
    """Z, and 0, 3 or 6 digits."""
    assert written(instant) == text


@pytest.mark.parametrize(
    "instant",
    [
        BASE.replace(tzinfo=None),
        BASE.date(),
        "2026-06-22T09:15:00Z",
        datetime.max.replace(tzinfo=timezone(timedelta(hours=-1))),
    ],
    ids=["naive", "date", "text", "beyond"],
)
def test_only_an_aware_datetime_is_written(instant):
    """A naive one would be read as another instant elsewhere."""
    with pytest.raises(FrameError) as caught:
        written(instant)

    assert caught.value.key == "started_at"
