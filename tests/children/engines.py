"""Engines that the tests run in real actor processes."""

from __future__ import annotations

import json
import os
import signal
import sys
import time

import trio


async def greet(run):
    await run.emit({"type": "token", "content": run.assignment})
    return f"hello {run.assignment}"


async def describe(run):
    return {
        "messages": list(run.messages),
        "effort": run.reasoning_effort,
        "number": run.number,
        "pid": os.getpid(),
    }


def plain(run):
    """A sync engine; it says which thread it runs in by not blocking the loop."""
    trio.from_thread.run(run.emit, {"type": "token", "content": "from a thread"})
    return run.assignment.upper()


async def fail(run):
    raise LookupError(f"no such thing: {run.assignment}")


async def leave(run):
    sys.exit(3)


async def nothing(run):
    return None


async def not_json(run):
    return {1, 2}


async def gate(run):
    approved = await run.request_approval("Bash", "execute", run.assignment, "May I?")
    return "yes" if approved else "no"


async def gate_many(run):
    async def one(n):
        answers[n] = await run.request_approval("Bash", "execute", str(n))

    answers: dict[int, bool] = {}
    async with trio.open_nursery() as nursery:
        for n in range(int(run.assignment)):
            nursery.start_soon(one, n)
    return {str(n): answers[n] for n in sorted(answers)}


async def steered(run):
    await run.emit({"type": "ready"})
    return await run.inbox.receive()


async def hang(run):
    await run.emit({"type": "ready"})
    await trio.sleep_forever()


async def stubborn(run):
    await run.emit({"type": "ready"})
    with trio.CancelScope(shield=True):
        await trio.sleep_forever()


def stuck(run):
    trio.from_thread.run(run.emit, {"type": "ready"})
    time.sleep(600)


async def flood(run):
    for n in range(int(run.assignment)):
        await run.emit({"n": n})
    return run.assignment


async def die(run):
    os.kill(os.getpid(), signal.SIGKILL)


async def die_once(run):
    """SIGKILL in the first process that gets here, told by a file; the assignment names it."""
    try:
        os.close(os.open(run.assignment, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        await run.emit({"type": "second"})
        return "survived"
    await run.emit({"type": "first"})
    with trio.CancelScope(shield=True):
        await trio.sleep(0.05)
    return os.kill(os.getpid(), signal.SIGKILL)


async def deadline(run):
    left = trio.current_effective_deadline() - trio.current_time()
    return json.dumps(left < 1e6 and round(left))


async def fork(run):
    """Forks; what the copy does then is the assignment."""
    pid = os.fork()
    if pid == 0:
        _raise_or_exit(run.assignment)
        if run.assignment == "emit":
            await run.emit({"type": "the copy"})
        return "the copy"
    return _original(await trio.to_thread.run_sync(os.waitpid, pid, 0))


def fork_in_thread(run):
    pid = os.fork()
    if pid == 0:
        _raise_or_exit(run.assignment)
        return "the copy"
    return _original(os.waitpid(pid, 0))


def _raise_or_exit(assignment):
    if assignment == "raise":
        raise LookupError("the copy")
    if assignment == "exit":
        sys.exit(3)


def _original(waited):
    return f"the original of one that ended with {os.waitstatus_to_exitcode(waited[1])}"
