"""The report: its keys, its exit statuses, and how it is written."""

from __future__ import annotations

import errno
import json
import os

import attrs
import pytest

from trio_swarm.errors import RestartIntensityExceeded, SwarmError, Terminated, Unreaped
from trio_swarm.jobs.codemod.report import (
    EXIT_STATUSES,
    Report,
    Status,
    exit_status,
    status_of_error,
    write_report,
)

GOOD = Report(
    files=10,
    settled_once=10,
    changed=2,
    edits=3,
    unparseable=1,
    manifest="aa",
    serial_manifest="aa",
    wall_s=2.0,
    serial_s=5.0,
    processes=({"name": "worker", "pid": 1, "how": "exited 0", "seconds": 1.5},),
)


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({}, 0),
        ({"serial_manifest": None, "serial_s": None}, 0),
        ({"denied": 1, "skipped": 1, "unreadable": 1, "restarts": 3, "redelivered": 2}, 0),
        ({"settled_once": 9}, 3),
        ({"settled_once": 11}, 3),
        ({"serial_manifest": "bb"}, 4),
        ({"problems": ("a.py: differs",)}, 4),
        ({"survivors": (17,)}, 5),
        ({"disk_error": "No space left on device"}, 6),
        ({"gave_up": "pool"}, 7),
        ({"errors": ("broken",)}, 8),
        ({"errors": ("broken",), "settled_once": 9}, 3),
        ({"gave_up": "pool", "settled_once": 9, "serial_manifest": "bb"}, 7),
        ({"disk_error": "full", "settled_once": 9, "serial_manifest": "bb"}, 6),
    ],
)
def test_each_failure_has_its_status(change, status):
    """0 only if all holds; a cause comes before what follows from it."""
    assert exit_status(attrs.evolve(GOOD, **change)) == status


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (KeyboardInterrupt(), 130),
        (Terminated(15), 143),
        (Unreaped([1], waited=1), 5),
        (RestartIntensityExceeded("pool", max_restarts=3, within=60), 7),
        (OSError(errno.ENOSPC, "full"), 6),
        (OSError(errno.ENOENT, "gone"), 8),
        (SwarmError("x"), 8),
        (ExceptionGroup("g", [SwarmError("x"), ExceptionGroup("h", [OSError(errno.EDQUOT, "full")])]), 8),
        (BaseExceptionGroup("g", [SwarmError("x"), KeyboardInterrupt()]), 130),
    ],
)
def test_an_error_that_ended_the_run_has_a_status(error, status):
    """Signals win over whatever else they brought about."""
    assert status_of_error(error) == status


def test_the_statuses_are_distinct_and_all_explained():
    """What --help lists is what there is."""
    assert set(EXIT_STATUSES) == set(Status)
    assert len({int(s) for s in Status}) == len(Status)


def test_the_json_has_the_keys_that_are_promised():
    """Counts are numbers; what follows from them is there too."""
    document = GOOD.to_json()

    promised = (
        "files changed edits unparseable restarts redelivered settled_once "
        "manifest serial_manifest survivors wall_s serial_s"
    )
    assert set(promised.split()) < set(document)
    assert document["survivors"] == 0
    assert document["speedup"] == 2.5
    assert document["manifests_equal"] is True
    assert document["exit_status"] == 0
    assert document["python"]
    assert json.loads(json.dumps(document)) == document


def test_a_report_without_verification_says_so():
    """Nothing is made up."""
    document = Report(files=1, settled_once=1).to_json()

    assert document["serial_manifest"] is document["serial_s"] is document["speedup"] is None
    assert document["manifests_equal"] is None


def test_the_report_is_written_whole_and_replaces_an_old_one(tmp_path):
    """No scratch file stays."""
    path = tmp_path / "report.json"
    path.write_text("old")

    write_report(path, GOOD)

    assert json.loads(path.read_text()) == GOOD.to_json()
    assert list(tmp_path.iterdir()) == [path]


def test_a_report_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    """All or nothing, and the error comes out."""
    path = tmp_path / "report.json"
    path.write_text("old")

    def no_room(fd):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_room)

    with pytest.raises(OSError, match="No space left"):
        write_report(path, GOOD)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_stopped_the_job_comes_before_what_it_left_undone():
    """A job that was ended is not one that lost files."""
    stopped = attrs.evolve(GOOD, settled_once=GOOD.files - 1, stopped=("the operator's process ended",))

    assert exit_status(stopped) == Status.FAILED
    assert exit_status(attrs.evolve(stopped, stopped=())) == Status.NOT_ONCE
    assert "the operator's process ended" in stopped.to_json()["errors"]
