"""The conformance cases of the operator contract's section 8, each with the tests that hold us to it.

One table a list in `cases`; a case without a test says why nothing here could be tested.
"""

from __future__ import annotations

import ast
import csv
import re
from functools import cache
from pathlib import Path

import pytest

HERE = Path(__file__).parent / "cases"
ROOT = Path(__file__).parents[2]
LISTS = {
    "8_1": {"D": 4, "L": 4, "T": 3, "C": 21, "K": 11, "V": 5, "O": 7, "R": 10, "X": 3},
    "8_2": {"S": 50},
    "8_3": {"J": 49},
    "8_4": {"A": 20, "I": 39},
    "8_5": {"W": 53},
    "8_6": {"E": 93, "M": 14},
    "8_7": {"N": 18},
}
"""The ids of each list: a letter, and how many."""
LEAST_REASON = 15
WHERE = re.compile(r"(tests/[\w/]+/test_\w+\.py)::(\w+(?:::\w+)?)")


def rows(name: str) -> list[dict[str, str]]:
    with (HERE / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        found = list(reader)
    assert reader.fieldnames == ["case", "asserts", "where"]
    return found


@cache
def collected_in(path: str) -> frozenset[str]:
    """What pytest would collect there: functions, methods, and state machines by their assignment."""
    found: set[str] = set()
    for node in ast.parse((ROOT / path).read_text("utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
            found.add(node.name)
        elif isinstance(node, ast.ClassDef) and node.name.startswith("Test"):
            methods = (each for each in node.body if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef))
            found |= {f"{node.name}::{each.name}" for each in methods if each.name.startswith("test_")}
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Attribute):
            names = [each.id for each in node.targets if isinstance(each, ast.Name)]
            if node.value.attr == "TestCase":
                found |= {each for name in names for each in (name, f"{name}::runTest")}
    return frozenset(found)


def test_there_is_a_table_for_each_list_and_no_other_file() -> None:
    assert {path.name for path in HERE.iterdir()} == {f"{name}.csv" for name in LISTS}


@pytest.mark.parametrize("name", LISTS)
def test_each_case_stands_once(name) -> None:
    expected = [f"{letter}{n}" for letter, count in LISTS[name].items() for n in range(1, count + 1)]
    assert sorted(row["case"] for row in rows(name)) == sorted(expected)


@pytest.mark.parametrize("name", LISTS)
def test_each_case_says_what_it_asserts_and_names_tests_that_there_are(name) -> None:
    wrong = []
    for row in rows(name):
        if not row["asserts"].strip():
            wrong.append(f"{row['case']}: asserts nothing")
        if row["where"].startswith("none:"):
            if len(row["where"].removeprefix("none:").strip()) < LEAST_REASON:
                wrong.append(f"{row['case']}: no reason")
            continue
        for where in row["where"].split() or [""]:
            match = WHERE.fullmatch(where)
            if match is None or not (ROOT / match[1]).is_file() or match[2] not in collected_in(match[1]):
                wrong.append(f"{row['case']}: there is no test {where!r}")
    assert wrong == []


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("async def test_a(): ...\ndef helper(): ...", {"test_a"}),
        ("class TestB:\n    def test_c(self): ...\n    def other(self): ...", {"TestB::test_c"}),
        ("TestD = Walk.TestCase\nTestE = 3", {"TestD", "TestD::runTest"}),
        ("class Helper:\n    def test_f(self): ...", set()),
    ],
)
def test_what_counts_as_a_test(tmp_path, source, names) -> None:
    """A table that named anything else would pass for ever."""
    (tmp_path / "test_x.py").write_text(source)
    assert collected_in(str(tmp_path / "test_x.py")) == names
