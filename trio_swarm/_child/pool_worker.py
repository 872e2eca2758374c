"""``python -m trio_swarm._child.pool_worker --sid <p-sid> --sock <path>``: one pool worker.

Contract: pools.md C3. Light on purpose: no Trio, no room. Standard output is never
written to: once the socket listens, its descriptor stands for standard error, so whoever
holds the other end of a pipe there sees it end exactly when connecting makes sense.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import Final

from trio_swarm._child import lifeline
from trio_swarm._child.pool_deadline import Alarm
from trio_swarm._child.pool_job import JobRunner
from trio_swarm._child.pool_server import PoolServer, session_id
from trio_swarm._child.pool_socket import bind_private
from trio_swarm._state.pool_worker import PoolWorker
from trio_swarm.limits import POOL_IDLE

__all__ = ["WARM", "idle_limit", "main"]

WARM: Final = ()
"""That it may be forked off the stem, and what is to be imported there besides; see ``stem.py``."""

_ENDING: Final = (signal.SIGTERM, signal.SIGINT)


def idle_limit(given: float | None, environ: Mapping[str, str]) -> float:
    """Seconds: the argument, else ALC_POOL_IDLE_TIMEOUT, else the contract's 1800; 0 is never."""
    if given is not None:
        return max(0.0, given)
    text = environ.get("ALC_POOL_IDLE_TIMEOUT")
    if text is None:
        return POOL_IDLE
    if text.isascii() and text.isdigit() and len(text) < 10:
        return float(text)
    print(f"pool worker: ALC_POOL_IDLE_TIMEOUT={text!r} is no number of seconds", file=sys.stderr)
    return POOL_IDLE


def _own_version() -> str:
    # Only when nobody said which version to be: it costs a fifth of the whole start.
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("trio-swarm")
    except PackageNotFoundError:
        return "0"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="pool-worker", allow_abbrev=False)
    parser.add_argument("--sid", required=True, help="the worker's id (p-...)")
    parser.add_argument("--sock", required=True, help="where to listen")
    parser.add_argument("--version", help="what a handshake must name; default: the package's version")
    parser.add_argument("--reusable", action="store_true", help="take another job after one has ended")
    parser.add_argument("--idle", type=float, help="end after this many seconds without a client; 0: never")
    return parser


def _redirect_stdout() -> None:
    sys.stdout.flush()
    os.dup2(2, 1)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(line_buffering=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until asked to end, idle for too long, or left alone; 0, or 1 if the socket could not be had."""
    args = _parser().parse_args(argv)
    machine = PoolWorker(
        version=args.version or _own_version(), new_session_id=session_id, reusable=args.reusable
    )
    lifeline.watch()
    # From the first moment of the socket file to its last, a signal either waits or
    # finds somebody who removes the file.
    signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    try:
        bound = bind_private(args.sock)
    except OSError as error:
        print(f"pool worker: {args.sock}: {error}", file=sys.stderr)
        return 1
    server = PoolServer(bound, machine, idle_limit(args.idle, os.environ))
    try:
        server.install_signals()
        server.part_from_copies()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)
        alarm = Alarm()
        alarm.install()
        _redirect_stdout()
        JobRunner(server, alarm).forever()
    finally:
        signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
        server.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
