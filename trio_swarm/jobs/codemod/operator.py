"""The operator's process: ``python -m trio_swarm.jobs.codemod.operator URL policy|tty``.

It logs in over REST, takes its seat over WebSocket, and is asked two things: whether a file may be
worked on (``hook_before``), and whether a proposed patch may be applied (``ask``).

``policy`` allows every file and applies every patch. ``tty`` allows every file to be read, shows each
patch and asks the person at the terminal: yes, no, all the rest, or quit (no to all the rest).
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Mapping
from typing import Any, Final

import trio

from trio_swarm import AskRequest, GateRequest, SpawnRequest, SwarmError, connect_operator

__all__ = ["ROLE", "WARM", "main"]

WARM: Final = ()
"""That it may be forked off the stem, as the package's own processes are."""

ROLE = "codemod-reviewer"
"""The role that the job waits for."""

_HELP = "y: apply   n: skip   a: apply this and all the rest   q: skip this and all the rest"


class Policy:
    """Applies every patch."""

    async def decide(self, patch: Mapping[str, Any]) -> str:
        return "apply"


class Terminal:
    """Asks the person at the terminal."""

    def __init__(self) -> None:
        self._rest: str | None = None

    async def decide(self, patch: Mapping[str, Any]) -> str:
        """``apply``, or ``skip: <reason>``. End of input means no to this and all the rest."""
        if self._rest is not None:
            return self._rest
        lines = [f"\n{patch.get('path')}: {patch.get('edits')} edit(s)"]
        for number, before, after in patch.get("lines", []):
            lines += [f"  {number:>5} - {before.rstrip()}", f"        + {after.rstrip()}"]
        print("\n".join(lines), flush=True)
        while True:
            choice = await trio.to_thread.run_sync(_read_choice, abandon_on_cancel=True)
            if choice in ("y", "a"):
                self._rest = "apply" if choice == "a" else None
                return "apply"
            if choice in ("n", "q"):
                self._rest = "skip: the reviewer stopped" if choice == "q" else None
                return "skip: the reviewer said no"
            print(_HELP, flush=True)


def _read_choice() -> str:
    print("apply? [y/n/a/q] ", end="", flush=True)
    line = sys.stdin.readline()
    return line.strip().lower()[:1] if line else "q"


async def serve(url: str, reviewer: Policy | Terminal) -> None:
    """Answer what the job asks until it takes the seat away or this process is told to end."""
    async with connect_operator(url, roles=[ROLE], desc="codemod reviewer") as client:
        async for request in client:
            match request:
                case GateRequest():
                    request.ack()
                case AskRequest():
                    request.answer(await reviewer.decide(request.question))
                case SpawnRequest():
                    request.fail("this operator does not run agents")
                case _:
                    continue


async def _until_told(url: str, reviewer: Policy | Terminal) -> None:
    async def stop_on_signal() -> None:
        await anext(aiter(signals))
        nursery.cancel_scope.cancel()

    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stop_on_signal)
            await serve(url, reviewer)
            nursery.cancel_scope.cancel()


def main() -> int:
    """Run the operator; the exit status says how it ended."""
    argv = sys.argv[1:]
    if len(argv) != 2 or argv[1] not in ("policy", "tty"):
        print("usage: python -m trio_swarm.jobs.codemod.operator URL policy|tty", file=sys.stderr)
        return 2
    status = 0
    try:
        trio.run(_until_told, argv[0], Policy() if argv[1] == "policy" else Terminal())
    except* SwarmError as group:
        print(f"operator: {group.exceptions[0]}", file=sys.stderr)
        status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
