"""The flags of ``run codemod``, parsed and checked before anything is touched."""

from __future__ import annotations

import argparse
import errno
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NoReturn

import attrs

from trio_swarm.jobs.codemod.chaos import KINDS, Strike, parse_chaos
from trio_swarm.jobs.codemod.report import EXIT_STATUSES, Status
from trio_swarm.jobs.codemod.rule import RULES
from trio_swarm.jobs.codemod.tree import STDLIB, OptionError, Tree, resolve_tree, shown

__all__ = ["MAX_WORKERS", "OptionError", "Options", "build_parser", "default_workers", "parse_options"]

MAX_WORKERS: Final = 64
"""Pool workers of one run. Each is a process; more than cores only costs memory."""

OPERATORS: Final = ("policy", "tty")
DEFAULT_OUT: Final = "codemod-out"


@attrs.frozen
class Options:
    """A checked run."""

    rule: str
    tree: Tree
    out: Path
    """Absolute; it does not exist, or is an empty directory."""
    fresh: bool
    """It was not named: it must not exist, so that two runs at once do not share one."""
    workers: int
    """1 to MAX_WORKERS."""
    operator: str
    """``policy`` (a process that says yes by rule) or ``tty`` (the person at the terminal)."""
    chaos: tuple[Strike, ...]
    verify: bool
    report: Path | None
    """Absolute; its directory exists and can be written."""


class _Parser(argparse.ArgumentParser):
    """Errors are raised, so that the command prints them in its one form."""

    def error(self, message: str) -> NoReturn:
        raise OptionError(message)


def build_parser(prog: str = "trio-swarm run codemod") -> argparse.ArgumentParser:
    """The parser alone: it checks each flag by itself and knows nothing of the disk."""
    parser = _Parser(
        prog=prog,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=(
            "Rewrite a Python source tree with a swarm: pool workers propose, a child actor proves,\n"
            "an operator gates, a pod writes. Only the files that change are written, below --out."
        ),
        epilog="exit status:\n" + "\n".join(f"  {int(s):>3}  {text}" for s, text in EXIT_STATUSES.items()),
    )
    add = parser.add_argument
    add("--rule", choices=RULES, default=RULES[0], help="what to rewrite (default: %(default)s)")
    add("--tree", default=STDLIB, metavar="PATH", help="a directory, a .py file, or stdlib (the default)")
    add("--out", metavar="DIR", help=f"new or empty directory (default: {DEFAULT_OUT}, {DEFAULT_OUT}-2, ...)")
    add("--workers", type=_workers, default=default_workers(), metavar="N", help=f"1 to {MAX_WORKERS}")
    add("--operator", choices=OPERATORS, default=OPERATORS[0], help="who gates (default: %(default)s)")
    add(
        "--chaos",
        type=_chaos,
        default=(),
        metavar="SPEC",
        help=f"KIND@NN%%[,KIND@NN%%...] with KIND one of {', '.join(KINDS)}",
    )
    add("--verify", action="store_true", help="compare with a serial run and check each output")
    add("--report", metavar="FILE", help="write the outcome there as JSON")
    return parser


def parse_options(
    argv: Sequence[str],
    *,
    cwd: Path | None = None,
    free_bytes: Callable[[Path], int] | None = None,
    is_terminal: Callable[[], bool] | None = None,
) -> Options:
    """Parse and check *argv* (without the program's name). Touches nothing.

    *free_bytes(directory)* is the room on its disk and *is_terminal()* whether a person can be
    asked; both default to the real ones. Raises OptionError with one clear line (status 6 for
    a disk without room, else 2) and SystemExit(0) after ``--help``.
    """
    flags = build_parser().parse_args(argv)
    try:
        here = (cwd or Path.cwd()).resolve()
    except OSError as error:
        raise OptionError(f"the working directory cannot be used: {error.strerror}") from error
    if flags.operator == "tty" and not (is_terminal or _stdin_is_terminal)():
        raise OptionError("--operator tty needs a terminal to ask at")
    spec = flags.tree if flags.tree == STDLIB else str(here / _path(flags.tree, "--tree"))
    tree = attrs.evolve(resolve_tree(spec), name=flags.tree)
    out = _default_out(here) if flags.out is None else _check_out(here / _path(flags.out, "--out"))
    _check_apart(out, tree)
    report = (
        None if flags.report is None else _check_report(here / _path(flags.report, "--report"), out, tree)
    )
    _check_room(out, tree, free_bytes or _free_bytes)
    _check_runtime()
    return Options(
        rule=flags.rule,
        tree=tree,
        out=out,
        fresh=flags.out is None,
        workers=flags.workers,
        operator=flags.operator,
        chaos=flags.chaos,
        verify=flags.verify,
        report=report,
    )


def default_workers() -> int:
    """One for each core this process may use, between 2 and 8."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(2, min(8, cores))


def _workers(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 4 and 1 <= int(text) <= MAX_WORKERS):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to {MAX_WORKERS}")
    return int(text)


def _chaos(text: str) -> tuple[Strike, ...]:
    try:
        return parse_chaos(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _path(text: str, flag: str) -> str:
    if not text or "\0" in text:
        raise OptionError(f"{flag} needs a path")
    return text


def _default_out(here: Path) -> Path:
    name, number = here / DEFAULT_OUT, 1
    while os.path.lexists(name):
        number += 1
        name = here / f"{DEFAULT_OUT}-{number}"
    return _check_out(name)


def _check_out(path: Path) -> Path:
    """The output directory, resolved: absent or empty, and writable as far as that can be known."""
    try:
        out = path.resolve()
        if os.path.lexists(path):
            _check_empty(out)
        _check_names(out)
        _check_writable(_existing(out), "the output directory")
    except (OSError, RuntimeError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise OptionError(f"--out cannot be used: the output directory {shown(path)}: {why}") from error
    return out


def _check_empty(out: Path) -> None:
    if not out.is_dir():
        raise OptionError(f"the output directory {shown(out)} is not a directory")
    with os.scandir(out) as entries:
        if next(entries, None) is not None:
            raise OptionError(f"the output directory {shown(out)} is not empty")


def _existing(path: Path) -> Path:
    """*path*, or its nearest parent that is there."""
    while not os.path.lexists(path):
        path = path.parent
    return path


def _check_names(path: Path) -> None:
    """What is not there yet can be made under that name. Raises OSError."""
    there = _existing(path)
    longest = max((len(os.fsencode(part)) for part in path.relative_to(there).parts), default=0)
    whole = len(os.fsencode(path))
    if longest > os.pathconf(there, "PC_NAME_MAX") or whole >= os.pathconf(there, "PC_PATH_MAX"):
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))


def _check_writable(directory: Path, what: str) -> None:
    if not directory.is_dir():
        raise OptionError(f"{what} cannot lie below {shown(directory)}: not a directory")
    if not os.access(directory, os.W_OK | os.X_OK):
        raise OptionError(f"{what} cannot be written: no permission for {shown(directory)}")


def _check_apart(out: Path, tree: Tree) -> None:
    if tree.holds(out):
        raise OptionError(
            f"the output directory {shown(out)} lies inside the tree {shown(tree.root)}; give --out"
        )
    if tree.root.is_relative_to(out):
        raise OptionError(f"the output directory {shown(out)} holds the tree {shown(tree.root)}")


def _check_report(path: Path, out: Path, tree: Tree) -> Path:
    try:
        report = path.parent.resolve(strict=True) / path.name
        if not path.name or report.is_dir():
            raise OptionError(f"the report {shown(path)} is a directory")
        if os.path.lexists(report) and (report.is_symlink() or not report.is_file()):
            raise OptionError(f"the report {shown(path)} is there and is no regular file")
        _check_names(report)
        _check_writable(report.parent, "the report")
    except (OSError, RuntimeError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise OptionError(f"cannot write the report {shown(path)}: {why}") from error
    if report.is_relative_to(out):
        raise OptionError(f"the report {shown(report)} lies inside the output directory {shown(out)}")
    if tree.holds(report):
        raise OptionError(f"the report {shown(report)} lies inside the tree {shown(tree.root)}")
    return report


def _check_room(out: Path, tree: Tree, free_bytes: Callable[[Path], int]) -> None:
    """Room for every file of the tree, the most that the run can write: a full disk is found now."""
    directory = _existing(out)
    free = free_bytes(directory)
    if free < tree.size:
        raise OptionError(
            f"no room on the disk of {shown(directory)}: {free} bytes free, up to {tree.size} needed",
            status=Status.CANNOT_WRITE,
        )


def _check_runtime() -> None:
    """A place for the sockets: without one the run would end when the output directory is made already."""
    from trio_swarm.swarm import check_place  # the rooms, which --help does not need

    try:
        check_place()
    except OSError as error:
        raise OptionError(f"no directory for the swarm's sockets: {error.strerror}") from error


def _free_bytes(directory: Path) -> int:
    return shutil.disk_usage(directory).free


def _stdin_is_terminal() -> bool:
    return sys.stdin is not None and sys.stdin.isatty()
