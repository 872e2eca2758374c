"""The log of what an operator was given to do (contract: operators 7.3)."""

from __future__ import annotations

import pytest

from trio_swarm.operators.observed import Observed, observation


def test_an_entry_says_who_and_what() -> None:
    entry = observation("ST-1", "coder", "do it", at=1.9, work_dir="/w", metadata={"a": 1})
    assert entry == {
        "run_id": "ST-1",
        "slot": "coder",
        "goal": "do it",
        "project_root": None,
        "work_dir": "/w",
        "task_metadata": {"a": 1},
        "task_metadata_omitted": False,
        "text_truncated": False,
        "at_secs": 1,
    }


@pytest.mark.parametrize("letter", ["x", "ü", "€", "😀"])
def test_texts_are_cut_at_one_kib(letter) -> None:
    """Of UTF-8, between two characters, and said so."""
    size = len(letter.encode())
    whole = letter * (1024 // size)
    assert observation("r", "s", whole, at=0)["goal"] == whole
    cut = observation("r", "s", whole + letter, at=0)
    assert cut["text_truncated"]
    assert cut["goal"] == letter * ((1024 - 3) // size) + "…"


@pytest.mark.parametrize(("size", "omitted"), [(4096, False), (4097, True)])
def test_large_metadata_is_left_out(size, omitted) -> None:
    """And said so; the entry itself stays."""
    metadata = {"a": "x" * (size - len('{"a": ""}'))}
    entry = observation("r", "s", "g", at=0, metadata=metadata)
    assert entry["task_metadata_omitted"] is omitted
    assert entry["task_metadata"] == (None if omitted else metadata)


def test_an_entry_is_as_it_was_when_it_was_made() -> None:
    """What the task's metadata becomes later is not in it."""
    metadata = {"ctx": {"a": [1]}}
    entry = observation("r", "s", "g", at=0, metadata=metadata)
    metadata["ctx"]["a"].append(2)
    assert entry["task_metadata"] == {"ctx": {"a": [1]}}


def test_what_is_not_on_disk_yet_is_told_once() -> None:
    """With its number; what the ring has forgotten before it could be written is not told."""
    log = Observed()
    for number in range(1, 4):
        log.add({"run_id": str(number)})
    assert log.unstored() == [(number, {"run_id": str(number)}) for number in (1, 2, 3)]
    log.add({"run_id": "4"})  # while the others are being written
    log.stored(3)
    assert log.unstored() == [(4, {"run_id": "4"})]
    log.stored(4)
    assert log.unstored() == []
    for number in range(5, 100):
        log.add({"run_id": str(number)})
    assert [number for number, _ in log.unstored()] == list(range(68, 100))


def test_a_log_from_disk_goes_on_where_it_was() -> None:
    log = Observed.restored([(7, {"run_id": "7"}), (9, {"run_id": "9"})])
    assert log.unstored() == []
    log.add({"run_id": "10"})
    assert log.about() == {"observed": [{"run_id": each} for each in ("7", "9", "10")], "observed_total": 10}
    assert log.unstored() == [(10, {"run_id": "10"})]


def test_the_log_is_a_ring_and_its_count_only_grows() -> None:
    log = Observed()
    assert log.about() == {"observed": [], "observed_total": 0}
    for number in range(100):
        log.add({"run_id": str(number)})
    known = log.about()
    assert [each["run_id"] for each in known["observed"]] == [str(number) for number in range(68, 100)]
    assert known["observed_total"] == 100
