"""The swarm of the codemod: what each file goes through, and the chaos on the way.

One file, from left to right; each column is another process::

    operator        pool worker            child actor      pod
    hook_before ->  scan, propose
    ask         <-  (pauses on a query)
                    patched            ->  prove        ->  write
    hook_after

A fixed number of *lanes* take a few files at a time from one list, so that at any time some files wait
for the operator or the proof while the workers are busy with others. The ledger sees each file settle
exactly once: it refuses a second settlement, and the report counts those that have one.
"""

from __future__ import annotations

import json
import secrets
import signal
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import attrs
import trio
from attrs import field

from trio_swarm import (
    ApprovalDenied,
    Child,
    ChildCrashed,
    JobQuery,
    ManagedProcess,
    OperatorServer,
    Pod,
    Pool,
    RemoteError,
    RestartIntensityExceeded,
    ScopeRule,
    Seat,
    Swarm,
    SwarmError,
    python_argv,
)
from trio_swarm.jobs.codemod.chaos import ChaosPlan
from trio_swarm.jobs.codemod.operator import ROLE

__all__ = ["CannotWrite", "Failed", "Ledger", "Pipeline", "Settled"]

T = TypeVar("T")

AGENT = "codemod"
BATCH = 8
"""Files of one worker's job, at most."""
BATCH_DEADLINE = 300.0
"""Seconds for one such job, all retries included; with a person at the terminal there is none."""
LEAVE_DEADLINE = 5.0
"""Seconds for the operator's process to end once it was let go; then it is made to."""
JOIN_DEADLINE = 60.0
"""Seconds for the operator to log in and take its seat."""


class Failed(SwarmError):
    """The job cannot go on; the text is for the user."""


class CannotWrite(SwarmError):
    """The outputs cannot be written; the text is for the user."""


@attrs.frozen
class Settled:
    """What became of one file."""

    path: str
    kind: str
    """patched, unchanged, unparseable, skipped, unreadable, denied, crashed or failed."""
    edits: int = 0
    reason: str = ""
    sha256: str = ""
    """Of the file that was written; empty if none was."""


@attrs.define
class Ledger:
    """Each file settles exactly once."""

    settled: dict[str, Settled] = field(factory=dict)
    twice: list[str] = field(factory=list)

    def settle(self, outcome: Settled) -> None:
        """Record an outcome; a second one for the same file is kept as a fault."""
        if outcome.path in self.settled:
            self.twice.append(outcome.path)
        else:
            self.settled[outcome.path] = outcome

    def count(self) -> Counter[str]:
        """Files by kind of outcome."""
        return Counter(outcome.kind for outcome in self.settled.values())


@attrs.define(eq=False)
class Pipeline:
    """One run of the codemod in a swarm."""

    root: Path
    files: tuple[str, ...]
    out: Path
    rule: str
    workers: int
    operator: str
    chaos: ChaosPlan
    ledger: Ledger = field(factory=Ledger)
    restarts: int = 0
    redelivered: int = 0
    """Requests sent to the operator again after it came back, and jobs given to another worker."""
    struck: list[str] = field(factory=list)
    """The chaos that fell."""
    missed: list[str] = field(factory=list)
    """The chaos that found nothing to hit."""
    swarm: Swarm = field(init=False)
    _task_ids: dict[str, str] = field(factory=dict)
    _due: list[str] = field(factory=list)
    _cut_due: int = 0
    _killed: set[int | None] = field(factory=set)
    _lanes: trio.Nursery = field(init=False)
    _server: OperatorServer = field(init=False)
    _seat: Seat = field(init=False)
    _provers: list[Child] = field(factory=list)
    _offer_prover: trio.MemorySendChannel[Child] = field(init=False)
    _take_prover: trio.MemoryReceiveChannel[Child] = field(init=False)
    _pod: Pod | None = None
    _pod_is_up: trio.Event = field(factory=trio.Event)
    _pool: Pool = field(init=False)

    async def run(self, swarm: Swarm) -> None:
        """Do it all; the ledger holds the outcome.

        Raises:
            Failed: the operator is gone.
            CannotWrite: the disk is full.
            RestartIntensityExceeded: processes crash faster than they may.
        """
        self.swarm = swarm
        self._offer_prover, self._take_prover = trio.open_memory_channel[Child](self.workers)
        self._server = await self.swarm.start_operators()
        async with trio.open_nursery() as watch:
            operator = await self._start_operator()
            watch.start_soon(self._watch_operator, operator)
            # Each takes a fraction of a second to come up: first those that the first file meets.
            async with trio.open_nursery() as first:
                first.start_soon(self._start_pool)
                first.start_soon(self._join)
            watch.start_soon(self._start_pod)
            for number in range(self.workers):
                watch.start_soon(self._start_prover, number + 1)
            try:
                await self._all_files()
                await self._strike_the_rest()
            finally:
                self._take_stock()
            watch.cancel_scope.cancel()
        self._server.remove(self._seat.sid, "the job is done")
        with trio.move_on_after(LEAVE_DEADLINE):
            await operator.wait()

    def _take_stock(self) -> None:
        parts: list[Pool | Pod | Child] = [self._pool, *self._provers]
        if self._pod is not None:
            parts.append(self._pod)
        self.restarts = sum(part.statistics().restarts for part in parts)
        self.redelivered = self._seat.statistics().redelivered

    # -- the operator ----------------------------------------------------------------

    async def _start_operator(self) -> ManagedProcess:
        person = self.operator == "tty"
        return await self.swarm.start_process(
            python_argv("trio_swarm.jobs.codemod.operator", self._server.url, self.operator),
            name="operator",
            stdin="inherit" if person else "null",
            stdout="inherit" if person else "null",
        )

    async def _watch_operator(self, operator: ManagedProcess) -> None:
        how = await operator.wait()
        raise Failed(f"the operator's process {how} before the job was done: {operator.stderr_tail.strip()}")

    async def _join(self) -> None:
        with trio.move_on_after(JOIN_DEADLINE):
            self._seat = await self._server.wait_seat(ROLE)
            return
        raise Failed(f"no operator joined within {JOIN_DEADLINE:g} s")

    async def _decide(self, query: JobQuery) -> str:
        patch = json.loads(query.prompt)
        task_id = self._task_ids[patch["path"]]
        return str(await self._at_operator(partial(self._seat.ask, patch, task_id=task_id)))

    # -- the other processes ---------------------------------------------------------

    async def _start_prover(self, number: int) -> None:
        child = await self.swarm.start_child(
            "trio_swarm.jobs.codemod.child:prove_run", name=f"prover-{number}"
        )
        self._provers.append(child)
        self._offer_prover.send_nowait(child)

    async def _start_pod(self) -> None:
        self._pod = await self.swarm.start_pod(
            "trio_swarm.jobs.codemod.pod:write_turn",
            name="writer",
            scope=[ScopeRule(target=str(self.out), permission="write", recursive=True)],
        )
        self._pod_is_up.set()

    async def _start_pool(self) -> None:
        self._pool = await self.swarm.start_pool(
            "trio_swarm.jobs.codemod.worker:scan", size=self.workers, on_query=self._decide
        )

    # -- the lanes -------------------------------------------------------------------

    async def _all_files(self) -> None:
        # Several files make one job of a worker, so that its pipe does not decide the pace; but not
        # so many that the last job keeps one worker busy while the others have nothing left.
        size = max(1, min(BATCH, len(self.files) // (8 * self.workers)))
        batches = iter([self.files[n : n + size] for n in range(0, len(self.files), size)])
        async with trio.open_nursery() as self._lanes:
            for _ in range(2 * self.workers + 2):
                self._lanes.start_soon(self._lane, batches)

    async def _lane(self, batches: Iterator[Sequence[str]]) -> None:
        for batch in batches:
            with trio.CancelScope() as scope:
                if self.operator != "tty":
                    scope.deadline = trio.current_time() + BATCH_DEADLINE
                await self._one_batch(batch)
            if scope.cancelled_caught:
                reason = f"not done within {BATCH_DEADLINE:g} s"
                for path in batch:
                    if path not in self.ledger.settled:
                        self._settle(Settled(path, "failed", reason=reason))

    async def _one_batch(self, batch: Sequence[str]) -> None:
        allowed: list[str] = []
        async with trio.open_nursery() as gates:
            for path in batch:
                gates.start_soon(self._gate, path, allowed)
        for path, scan in await self._scan(allowed):
            if isinstance(scan, Settled):
                outcome = scan
            else:
                outcome = await self._prove_and_write(path, scan)
            task_id = self._task_ids.pop(path)
            if outcome.kind not in ("unchanged", "unparseable"):
                self._seat.hook_after(task_id=task_id, agent=AGENT, attempt=1, result=attrs.asdict(outcome))
            self._settle(outcome)

    def _settle(self, outcome: Settled) -> None:
        self.ledger.settle(outcome)
        done = len(self.ledger.settled)
        self.swarm.emit("file_settled", {"path": outcome.path, "kind": outcome.kind, "done": done})
        self._due += self.chaos.due(done, len(self.files))
        # What finds nobody at work waits for the next file: idle, nobody would miss the dead.
        self._due = [kind for kind in self._due if not self._strike(kind)]

    async def _gate(self, path: str, allowed: list[str]) -> None:
        task_id = self._task_ids[path] = f"ST-{secrets.token_hex(8)}"
        try:
            ask = partial(self._seat.hook_before, task_id=task_id, agent=AGENT, attempt=1)
            await self._at_operator(ask)
            allowed.append(path)
        except ApprovalDenied as denied:
            del self._task_ids[path]
            self._settle(Settled(path, "denied", reason=str(denied)))

    async def _scan(self, paths: list[str]) -> list[tuple[str, Settled | Mapping[str, Any]]]:
        """What a worker found in each file; an outcome for one that it could not look at."""
        if not paths:
            return []
        ctx = {"root": str(self.root), "paths": paths, "rule": self.rule, "agent": AGENT}
        try:
            return list(zip(paths, await self._pool.run(ctx), strict=True))
        except (RestartIntensityExceeded, trio.ClosedResourceError):
            raise
        except Exception as error:
            if len(paths) == 1:
                kind = "crashed" if isinstance(error, ChildCrashed) else "failed"
                return [(paths[0], Settled(paths[0], kind, reason=f"{type(error).__name__}: {error}"))]
        # One of them took it down: alone, each answers for itself.
        return [found for path in paths for found in await self._scan([path])]

    async def _writer(self) -> Pod:
        await self._pod_is_up.wait()
        assert self._pod is not None
        return self._pod

    async def _prove_and_write(self, path: str, scan: Mapping[str, Any]) -> Settled:
        kind, edits = scan["kind"], scan["edits"]
        if kind != "patched":
            return Settled(path, kind, edits, scan.get("reason") or "")
        try:
            job = {"root": str(self.root), "path": path, "output_b64": scan["output_b64"]}
            child = await self._take_prover.receive()
            try:
                proof = json.loads(await child.run(json.dumps(job)))
            finally:
                self._offer_prover.send_nowait(child)
            if not proof["ok"]:
                return Settled(path, "failed", edits, f"the proof failed: {proof['reason']}")
            if (proof["edits"], proof["sha256"]) != (edits, scan["sha256"]):
                return Settled(path, "failed", edits, "what was proved is not what was proposed")
            order = {key: scan[key] for key in ("output_b64", "sha256")} | {"path": str(self.out / path)}
            turn = await (await self._writer()).run(json.dumps(order), idempotent=True)
        except ChildCrashed as crash:
            return Settled(path, "crashed", edits, str(crash))
        except RemoteError as error:
            return _failure(path, error)
        if json.loads(turn.text)["sha256"] != scan["sha256"]:
            return Settled(path, "failed", edits, "what was written is not what was proved")
        return Settled(path, "patched", edits, sha256=scan["sha256"])

    # -- chaos -----------------------------------------------------------------------

    async def _at_operator(self, request: Callable[[], Awaitable[T]]) -> T:
        """Make a request of the operator, and cut its socket under it if that is due."""
        if not self._cut_due:
            return await request()
        self._cut_due -= 1
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._cut_when_pending)
            answer = await request()
        return answer  # noqa: RET504 - not out of the middle of a nursery

    async def _cut_when_pending(self) -> None:
        # The call beside us registers its request before it first waits: that is a step or two
        # of the scheduler away, and the answer comes too soon to wait for anything else.
        for _ in range(100):
            if self._seat.statistics().replies.pending:
                break
            await trio.lowlevel.checkpoint()
        await self._cut()

    async def _cut(self) -> None:
        await self._server.disconnect(self._seat.sid)
        self._fell("drop-operator")

    def _strike(self, kind: str, *, idle_too: bool = False) -> bool:
        """Let it fall; False if there is nothing for it to hit yet."""
        if kind == "drop-operator":
            self._cut_due += 1
            return True
        pids = self._pids_of_children(idle_too) if kind == "kill-child" else self._pids_of_workers(idle_too)
        # Through its owner, which reaps it: a pid that we remember may be another's by now.
        victims = [process for process in self.swarm.processes() if process.pid in pids]
        if victims:
            self._killed.add(victims[0].pid)
            self._lanes.start_soon(self._kill, victims[0], kind)
        return bool(victims)

    async def _kill(self, victim: ManagedProcess, kind: str) -> None:
        await victim.signal(signal.SIGKILL)
        self._fell(kind)

    def _fell(self, kind: str) -> None:
        self.struck.append(kind)
        self.swarm.emit("chaos", {"kind": kind, "done": len(self.ledger.settled)})

    async def _strike_the_rest(self) -> None:
        """After the last file: what waited for somebody at work hits the idle."""
        async with trio.open_nursery() as self._lanes:
            for _ in range(self._cut_due):
                self._lanes.start_soon(self._cut)
            if "kill-child" in self._due:
                # They may still be coming up, if no file needed one.
                self._offer_prover.send_nowait(await self._take_prover.receive())
            self.missed = [kind for kind in self._due if not self._strike(kind, idle_too=True)]

    def _pids_of_children(self, idle_too: bool) -> set[int | None]:
        running = {child.pid for child in self._provers if idle_too or child.state == "running"}
        return running - self._killed

    def _pids_of_workers(self, idle_too: bool) -> set[int | None]:
        busy: set[int | None] = {one.pid for one in self._pool.workers() if idle_too or one.state == "busy"}
        return busy - self._killed


def _failure(path: str, error: RemoteError) -> Settled:
    if "No space left on device" in str(error):
        raise CannotWrite(f"cannot write {path}: {error.message}") from error
    return Settled(path, "failed", reason=str(error))
