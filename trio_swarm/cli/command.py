"""One function per verb; what a verb needs is imported when it is asked for."""

from __future__ import annotations

import argparse
import importlib.metadata
import re
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final, NoReturn

from trio_swarm.cli.early import end_at_once, say

__all__ = ["run"]

PROG: Final = "trio-swarm"
USAGE: Final = 2
INTERRUPTED: Final = 130

_TARGET: Final = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)*:[^\W\d]\w*(?:\.[^\W\d]\w*)*")


class _UsageError(Exception):
    """Wrong words on the command line; the text is one line."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise _UsageError(message)


def run(argv: Sequence[str] | None, loaded: Callable[[], None]) -> int:
    """See `trio_swarm.cli.main`; ``loaded()`` is called when all is imported and the job is to begin."""
    try:
        return _dispatch(sys.argv[1:] if argv is None else list(argv), loaded)
    except _UsageError as error:
        return _fail(str(error), USAGE)
    except KeyboardInterrupt:
        return _interrupted()
    except BaseExceptionGroup as group:
        # Trio reports Ctrl-C as one leaf among what it interrupted.
        if group.subgroup(KeyboardInterrupt) is None:
            raise
        return _interrupted()


def _dispatch(argv: list[str], loaded: Callable[[], None]) -> int:
    if argv[:1] == ["serve"]:
        return _run_serve(argv[1:], loaded)
    if argv[:1] == ["operator"]:
        return _run_operator(argv[1:], loaded)
    parser = _parser()
    try:
        args = parser.parse_args(argv)
    except SystemExit as stop:  # --help and --version
        return int(stop.code or 0)
    if args.verb is None:
        parser.print_help(sys.stderr)
        return USAGE
    if args.job == "codemod":
        return _run_codemod(args.args, loaded)
    if _TARGET.fullmatch(args.job):
        return _run_user_job(args.job, args.args, loaded)
    raise _UsageError(f"unknown job {args.job!r}: codemod, or module:function")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog=PROG,
        allow_abbrev=False,
        description="A structured-concurrency runtime for agent swarms on Trio.",
        epilog=f"`{PROG} run codemod --help` lists the job's flags and exit statuses.",
    )
    parser.add_argument("--version", action="version", version=f"{PROG} {_version()}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", parser_class=_Parser)
    run = verbs.add_parser(
        "run",
        allow_abbrev=False,
        help="run a job: codemod, or module:function",
        description=(
            "Run a job in a swarm. `codemod` is the one that ships with the package; `module:function`"
            " is your own `async def job(swarm, argv) -> int | None`, its result the exit status."
        ),
    )
    run.add_argument("job", metavar="JOB", help="codemod, or module:function")
    rest = run.add_argument("args", metavar="ARGS", nargs=argparse.REMAINDER, help="what the job is given")
    rest.required = False  # Else Python 3.11 names it as missing, too.
    # Parsed by parsers of their own; here for the list of verbs alone.
    verbs.add_parser("operator", add_help=False, help="be an operator, at a terminal, of a server")
    verbs.add_parser("serve", add_help=False, help="serve operators, workers and steps over HTTP")
    return parser


def _run_serve(argv: list[str], loaded: Callable[[], None]) -> int:
    from trio_swarm.cli.serve import ServeError, parse_options, serve
    from trio_swarm.jobs.runner import STOP_SIGNALS

    try:
        options = parse_options(argv)
        loaded()
        try:
            return serve(options, stopping=_heed_one(STOP_SIGNALS))
        finally:
            # The interpreter takes handlers away as it ends, and lets be what is ignored.
            for number in STOP_SIGNALS:
                signal.signal(number, signal.SIG_IGN)
    except ServeError as error:
        return _fail(str(error), error.status)
    except SystemExit as stop:  # --help
        return int(stop.code or 0)


def _heed_one(signals: Sequence[signal.Signals]) -> Callable[[], None]:
    """Until what this returns is called, a signal that nobody heeds ends the process; later ones do nothing.

    The first one is the server's, which then ends in order. What comes behind that, and be it after the last
    of its handlers is gone, must not change what the process says of its end.
    """
    ending = False

    def stopping() -> None:
        nonlocal ending
        ending = True

    def handle(signum: int, frame: object) -> None:
        if not ending:
            end_at_once(signum, frame)

    for number in signals:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handle)
    return stopping


def _run_operator(argv: list[str], loaded: Callable[[], None]) -> int:
    from trio_swarm.cli.operator import run
    from trio_swarm.cli.operator_options import OperatorCommandError, parse_options

    try:
        options = parse_options(argv)
        loaded()
        return run(options)
    except OperatorCommandError as error:
        return _fail(str(error), error.status)
    except SystemExit as stop:  # --help
        return int(stop.code or 0)


def _run_codemod(argv: list[str], loaded: Callable[[], None]) -> int:
    from trio_swarm.jobs.codemod.options import OptionError, parse_options

    try:
        options = parse_options(argv)
    except OptionError as error:
        return _fail(str(error), error.status)
    except SystemExit as stop:  # --help
        return int(stop.code or 0)
    from trio_swarm.errors import SwarmError
    from trio_swarm.jobs.codemod.job import run
    from trio_swarm.jobs.codemod.report import status_of_error

    loaded()
    try:
        return run(options)
    except (SwarmError, OSError) as error:
        return _fail(f"{type(error).__name__}: {error}", status_of_error(error))
    except ExceptionGroup as group:  # several things went wrong: all of them are shown
        traceback.print_exception(group)
        return int(status_of_error(group))


def _run_user_job(target: str, argv: list[str], loaded: Callable[[], None]) -> int:
    from trio_swarm.jobs.runner import JobError, run_user_job

    loaded()
    try:
        return run_user_job(target, argv)
    except JobError as error:
        return _fail(str(error), USAGE)


def _version() -> str:
    try:
        return importlib.metadata.version("trio-swarm")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


def _fail(message: str, status: int) -> int:
    _say(f"{PROG}: error: {' '.join(message.split())}\n")
    return int(status)


def _interrupted() -> int:
    _say(f"{PROG}: interrupted\n")
    return INTERRUPTED


def _say(line: str) -> None:
    if sys.stderr is sys.__stderr__:
        say(line)
    elif sys.stderr is not None:  # Somebody put another one in its place.
        with suppress(OSError):
            print(line, end="", file=sys.stderr, flush=True)
