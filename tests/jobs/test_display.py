"""The display: a bar on a terminal, a line for each tenth elsewhere, a summary at the end."""

from __future__ import annotations

import io
import sys
import threading

import attrs
import pytest

from tests.jobs.test_report import GOOD
from trio_swarm.jobs.codemod.display import open_display, print_summary, summary_rows


class Terminal(io.StringIO):
    """A stream that says it is a terminal, and counts the writes."""

    def isatty(self):
        return True


class Closed(io.StringIO):
    """A stream whose reader went away."""

    def write(self, text):
        raise BrokenPipeError(32, "Broken pipe")


@pytest.fixture
def without_rich(monkeypatch):
    """As if the extra was not installed."""
    for name in ("rich", "rich.progress", "rich.console", "rich.table"):
        monkeypatch.setitem(sys.modules, name, None)


def test_plain_progress_is_a_line_for_each_tenth():
    """However many files there are."""
    out = io.StringIO()

    with open_display(1000, stream=out) as display:
        for i in range(1000):
            display.settled("patched" if i % 10 == 0 else "unchanged")

    lines = out.getvalue().splitlines()
    assert len(lines) == 10
    assert lines[0] == " 10 %  100 of 1000 files: 10 patched, 90 unchanged"
    assert lines[-1].startswith("100 %  1000 of 1000")


def test_few_files_make_few_lines():
    """A line for each step."""
    out = io.StringIO()

    with open_display(3, stream=out) as display:
        for _ in range(3):
            display.settled("unchanged")

    assert [line[:5] for line in out.getvalue().splitlines()] == [" 30 %", " 60 %", "100 %"]


def test_notes_are_lines_of_their_own():
    """One line, whatever is in it."""
    out = io.StringIO()

    with open_display(3, stream=out) as display:
        display.note("killed\nworker [1]")

    assert out.getvalue() == "killed worker [1]\n"


def test_the_bar_is_drawn_twice_a_second_at_most_and_without_a_thread():
    """The time comes from the clock that is given."""
    out, now = Terminal(), [0.0]
    threads = threading.active_count()

    with open_display(1000, stream=out, clock=lambda: now[0]) as display:
        sizes = set()
        for _ in range(999):
            now[0] += 0.001
            display.settled("unchanged")
            sizes.add(len(out.getvalue()))
        assert threading.active_count() == threads
        assert 2 <= len(sizes) <= 3
        display.settled("patched")
        display.note("[bold]not markup[/bold]")

    assert "1000/1000" in out.getvalue()
    assert "[bold]not markup[/bold]" in out.getvalue()


def test_a_terminal_gets_lines_where_rich_is_missing(without_rich):
    """Or where plain lines are asked for."""
    out = Terminal()

    with open_display(1, stream=out) as display:
        display.settled("unchanged")
    print_summary(GOOD, stream=out)

    assert "\x1b" not in out.getvalue()
    assert out.getvalue().startswith("100 %")


def test_plain_can_be_asked_for_on_a_terminal():
    """While a person is being asked there."""
    out = Terminal()

    with open_display(1, stream=out, plain=True) as display:
        display.settled("unchanged")

    assert "\x1b" not in out.getvalue()


@pytest.mark.parametrize("stream", [Closed, io.StringIO])
def test_a_stream_that_is_gone_ends_no_job(stream):
    """Progress is not worth a failure."""
    out = stream()
    if stream is io.StringIO:
        out.close()

    with open_display(2, stream=out) as display:
        display.settled("unchanged")
        display.note("x")

    assert display.done == 1


def test_the_summary_names_what_is_promised():
    """In this order; kinds that did not occur are left out."""
    names = [name for name, _ in summary_rows(GOOD)]

    assert names == [
        "files",
        "changed",
        "unparseable",
        "edits",
        "restarts",
        "redelivered",
        "settled exactly once",
        "manifests equal",
        "survivors",
        "wall time",
    ]
    assert dict(summary_rows(GOOD))["wall time"] == "2.0 s, serial 5.0 s (x 2.50)"
    assert "denied" in dict(summary_rows(attrs.evolve(GOOD, denied=1)))


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_the_summary_ends_with_the_verdict(stream):
    """On a terminal and elsewhere; what does not hold is listed, cut where it is long."""
    out = stream()
    bad = attrs.evolve(GOOD, serial_manifest="bb", problems=tuple(f"file {i}" for i in range(15)))

    print_summary(GOOD, stream=out)
    print_summary(bad, stream=out)

    text = out.getvalue()
    assert "settled exactly once" in text
    assert "10 of 10" in text
    assert "all holds" in text
    assert "! file 9" in text
    assert "file 10" not in text
    assert "... and 5 more" in text
    assert text.endswith("a manifest differs, or an output does not hold\n")
