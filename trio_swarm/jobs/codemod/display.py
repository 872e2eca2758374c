"""What the user sees: progress on standard error, the summary on standard output.

On a terminal, with rich installed (the extra ``cli``), progress is a bar; everywhere else it is
a line for each tenth of the work. Nothing here starts a thread or waits: drawing happens inside
:meth:`Display.settled`, at most twice a second.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, Final, Protocol, TextIO

import attrs

from trio_swarm.jobs.codemod.report import EXIT_STATUSES, Report, exit_status

__all__ = ["Display", "open_display", "print_summary", "say", "summary_rows"]

REDRAW_EVERY: Final = 0.5
"""Seconds between two drawings: a bar is read by people, and the loop has other work."""

_SHOWN: Final = 10


class _Canvas(Protocol):
    def draw(self, done: int, total: int, text: str) -> None: ...

    def note(self, text: str) -> None: ...

    def close(self) -> None: ...


@attrs.define(eq=False)
class Display:
    """Counts settled files and shows them. All calls are synchronous and quick."""

    total: int
    _canvas: _Canvas = attrs.field(alias="canvas", repr=False)
    _clock: Callable[[], float] = attrs.field(alias="clock", repr=False)
    _every: float = attrs.field(alias="every", repr=False)
    _counts: Counter[str] = attrs.field(factory=Counter, init=False)
    _next_draw: float = attrs.field(default=0.0, init=False, repr=False)

    @property
    def done(self) -> int:
        """Files settled so far."""
        return self._counts.total()

    def settled(self, kind: str) -> None:
        """One more file has settled, as *kind* (``patched``, ``unchanged``, ...)."""
        self._counts[kind] += 1
        now = self._clock()
        if now >= self._next_draw or self.done == self.total:
            self._next_draw = now + self._every
            self._draw()

    def note(self, text: str) -> None:
        """Show one line that is no count: a strike of the chaos, a restart."""
        with contextlib.suppress(OSError, ValueError):  # a closed stderr ends no job
            self._canvas.note(" ".join(text.split()))

    def _draw(self) -> None:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(self._counts.items()))
        with contextlib.suppress(OSError, ValueError):
            self._canvas.draw(self.done, self.total, kinds)

    def _close(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._canvas.close()


@contextlib.contextmanager
def open_display(
    total: int,
    *,
    stream: TextIO | None = None,
    plain: bool = False,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Display]:
    """A display of *total* files on *stream* (standard error), taken off the screen at the end.

    *plain* asks for lines also on a terminal: for when a person is asked there meanwhile.
    """
    out = sys.stderr if stream is None else stream
    canvas = None if plain or not _is_terminal(out) else _rich_canvas(out, total)
    # Lines need no time limit of their own: there are eleven at most.
    display = Display(total, canvas or _Lines(out), clock, REDRAW_EVERY if canvas else 0.0)
    try:
        yield display
    finally:
        display._close()


def summary_rows(report: Report) -> list[tuple[str, str]]:
    """The summary as (name, value), in the order in which it is shown."""
    rows = [
        ("files", str(report.files)),
        ("changed", str(report.changed)),
        ("unparseable", str(report.unparseable)),
        ("edits", str(report.edits)),
        ("restarts", str(report.restarts)),
        ("redelivered", str(report.redelivered)),
        ("settled exactly once", f"{report.settled_once} of {report.files}"),
        ("manifests equal", _yes_no(report.manifests_equal)),
        ("survivors", str(len(report.survivors))),
        ("wall time", _times(report)),
    ]
    extra = (("skipped", report.skipped), ("denied", report.denied), ("unreadable", report.unreadable))
    rows[3:3] = [(name, str(count)) for name, count in extra if count]
    return rows


def print_summary(report: Report, *, stream: TextIO | None = None) -> None:
    """Print the summary, what does not hold, and the verdict, to *stream* (standard output).

    A stream that is closed, full or has nobody at its end is not written to: that changes nothing of
    what the run came to.
    """
    out = sys.stdout if stream is None else stream
    if out is None:
        return
    with contextlib.suppress(OSError, ValueError):
        _print_summary(report, out)


def say(text: str, *, stream: TextIO | None = None) -> None:
    """One line on *stream* (standard error), if that can be written to."""
    out = sys.stderr if stream is None else stream
    if out is not None:
        with contextlib.suppress(OSError, ValueError):
            print(text, file=out, flush=True)


def _print_summary(report: Report, out: TextIO) -> None:
    rows = summary_rows(report)
    if not (_is_terminal(out) and _print_table(out, rows)):
        width = max(len(name) for name, _ in rows)
        for name, value in rows:
            print(f"{name:<{width}}  {value}", file=out)
    for line in _bounded([text for text in (report.disk_error, report.gave_up) if text], report):
        print(f"  ! {' '.join(line.split())}", file=out)
    print(EXIT_STATUSES[exit_status(report)], file=out, flush=True)


def _bounded(first: list[str], report: Report) -> list[str]:
    lines = [*first, *report.stopped, *report.problems, *report.errors]
    more = [f"... and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
    return lines[:_SHOWN] + more


def _yes_no(value: bool | None) -> str:
    return "not checked" if value is None else "yes" if value else "NO"


def _times(report: Report) -> str:
    text = f"{report.wall_s:.1f} s"
    if report.serial_s is not None:
        text += f", serial {report.serial_s:.1f} s"
    if report.speedup is not None:
        text += f" (x {report.speedup:.2f})"
    return text


@attrs.define(eq=False)
class _Lines:
    """A line for each tenth."""

    _out: TextIO | None
    _shown: int = 0

    def draw(self, done: int, total: int, text: str) -> None:
        tenths = done * 10 // total if total else 10
        if tenths > self._shown:
            self._shown = tenths
            self.note(f"{tenths * 10:>3} %  {done} of {total} files: {text}")

    def note(self, text: str) -> None:
        if self._out is not None:
            print(text, file=self._out, flush=True)

    def close(self) -> None:
        if self._out is not None:
            self._out.flush()


@attrs.define(eq=False)
class _Bar:
    """A bar drawn by rich, and redrawn only when it is told to: no thread of rich's own."""

    _progress: Any
    _task: Any

    def draw(self, done: int, total: int, text: str) -> None:
        self._progress.update(self._task, completed=done, total=total, description=text)
        self._progress.refresh()

    def note(self, text: str) -> None:
        self._progress.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        self._progress.refresh()
        self._progress.stop()


def _rich_canvas(out: TextIO, total: int) -> _Bar | None:
    try:
        shapes: Any = importlib.import_module("rich.progress")
        console: Any = importlib.import_module("rich.console").Console(file=out)
    except ImportError:
        return None
    progress = shapes.Progress(
        shapes.BarColumn(),
        shapes.MofNCompleteColumn(),
        shapes.TimeElapsedColumn(),
        shapes.TextColumn("{task.description}", markup=False),
        console=console,
        auto_refresh=False,
        redirect_stdout=False,
        redirect_stderr=False,
    )
    task = progress.add_task("", total=total)
    progress.start()
    return _Bar(progress, task)


def _print_table(out: TextIO, rows: list[tuple[str, str]]) -> bool:
    try:
        table: Any = importlib.import_module("rich.table").Table(show_header=False)
        console: Any = importlib.import_module("rich.console").Console(file=out)
    except ImportError:
        return False
    table.add_column(style="bold")
    table.add_column(justify="right")
    for name, value in rows:
        table.add_row(name, value)
    console.print(table)
    return True


def _is_terminal(out: TextIO | None) -> bool:
    try:
        return out is not None and out.isatty()
    except ValueError:
        return False
