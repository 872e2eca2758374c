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
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
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
from trio_swarm.jobs.codemod.operator import ROLE
from trio_swarm.jobs.codemod.strikes import Strikes

__all__ = ["CannotWrite", "Failed", "Ledger", "Pipeline", "Settled"]

T = TypeVar("T")

AGENT = "codemod"
BATCH = 8
"""Files of one worker's job, at most."""
BATCH_BYTES = 2**18
"""Bytes of them, unless it is one file."""
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
    strikes: Strikes
    """The chaos on the way."""
    ledger: Ledger = field(factory=Ledger)
    restarts: int = 0
    redelivered: int = 0
    """Requests sent to the operator again after it came back, and jobs given to another worker."""
    swarm: Swarm = field(init=False)
    _task_ids: dict[str, str] = field(factory=dict)
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
            self.strikes.aim(swarm, self._server, self._seat, self._pool, self._provers)
            watch.start_soon(self._start_pod)
            for number in range(self.workers):
                watch.start_soon(self._start_prover, number + 1)
            try:
                await self._all_files()
                if self.strikes.needs_a_child:
                    # They may still be coming up, if no file needed one.
                    self._offer_prover.send_nowait(await self._take_prover.receive())
                await self.strikes.fall_on_the_idle()
            finally:
                self._take_stock()
            watch.cancel_scope.cancel()
        async with trio.open_nursery() as leaving:
            for part in self._parts():
                leaving.start_soon(self.swarm.stop, part)
            await self._server.remove(self._seat.sid, "the job is done")
            with trio.move_on_after(LEAVE_DEADLINE):
                await operator.wait()

    def _parts(self) -> list[Pool | Pod | Child]:
        return [self._pool, *self._provers, *([] if self._pod is None else [self._pod])]

    def _take_stock(self) -> None:
        self.restarts = sum(part.statistics().restarts for part in self._parts())
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
        return str(await self.strikes.at_operator(partial(self._seat.ask, patch, task_id=task_id)))

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
        batches = iter(await trio.to_thread.run_sync(self._batches))
        async with trio.open_nursery() as lanes:
            self.strikes.nursery = lanes
            for _ in range(2 * self.workers + 2):
                lanes.start_soon(self._lane, batches)

    def _batches(self) -> list[list[str]]:
        """Jobs for the workers: several files each, so that their pipes do not decide the pace.

        Large files come first: what is worked on at last is small, and everybody ends at one time.
        """
        most = max(1, min(BATCH, len(self.files) // (8 * self.workers)))
        batches: list[list[str]] = [[]]
        room = BATCH_BYTES
        for size, path in sorted(((_size(self.root / path), path) for path in self.files), reverse=True):
            if len(batches[-1]) >= most or room < size:
                batches.append([])
                room = BATCH_BYTES
            batches[-1].append(path)
            room -= size
        return [batch for batch in batches if batch]

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
        self.strikes.fall(done, len(self.files))

    async def _gate(self, path: str, allowed: list[str]) -> None:
        task_id = self._task_ids[path] = f"ST-{secrets.token_hex(8)}"
        try:
            ask = partial(self._seat.hook_before, task_id=task_id, agent=AGENT, attempt=1)
            await self.strikes.at_operator(ask)
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
            job = {"root": str(self.root), "path": path, "at": scan["at"], "text": scan["text"]}
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


def _failure(path: str, error: RemoteError) -> Settled:
    if "No space left on device" in str(error):
        raise CannotWrite(f"cannot write {path}: {error.message}") from error
    return Settled(path, "failed", reason=str(error))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0  # reading it will tell
