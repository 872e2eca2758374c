"""Engines that the pods of these tests run, each in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import trio

_rename = os.rename


def _die_renaming(source, *args, **kwargs):
    """The pod renames its own state files as well, meanwhile."""
    if os.path.basename(source).startswith(".p-"):
        os.kill(os.getpid(), signal.SIGKILL)
    _rename(source, *args, **kwargs)


async def echo(turn):
    await turn.text(f"you said {turn.input}")


async def write(turn):
    """``{"path", "content"}`` -> a file."""
    job = json.loads(turn.input)
    await turn.files.write_bytes(job["path"], job["content"].encode())
    return "written"


async def tool(turn):
    await turn.text("first")
    await turn.tool("Write", json.loads(turn.input))
    await turn.usage(3, None)
    await turn.usage(4, 5)
    return "second"


async def do(turn):
    """``verb [argument]``, whatever a test needs."""
    verb, _, argument = (turn.input or "").partition(" ")
    match verb:
        case "sleep":
            await turn.text("sleeping")
            await trio.sleep_forever()
        case "block":
            await turn.text("blocking")
            await turn.files.write_bytes("blocked", b"")
            time.sleep(60)
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
        case "die-once":
            if not Path(argument).exists():
                Path(argument).touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return "survived"
        case "die-writing":
            # Between the temporary file and its renaming.
            with mock.patch("os.rename", side_effect=_die_renaming):
                await turn.files.write_bytes(argument, b"x")
        case "write":
            await turn.files.write_bytes(argument, b"x")
        case "many":
            for n in range(int(argument)):
                await turn.text(f"{n} ")
        case "grandchild":
            started = subprocess.Popen(
                [sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True
            )
            return str(started.pid)
        case "pause":
            turn.pause()
        case "alert":
            await turn.alert("error", argument)
        case "stderr":
            print(argument, file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        case _:
            return f"{turn.input} {len(turn.history)} {list(turn.notifications)}"
    return None


not_callable = 3


async def fork(turn):
    """Forks; the copy goes on with the turn, or returns."""
    pid = os.fork()
    if pid == 0:
        if turn.input == "text":
            await turn.text("the copy")
        return "the copy"
    await trio.to_thread.run_sync(os.waitpid, pid, 0)
    return "the original"
