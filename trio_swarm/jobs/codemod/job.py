"""``trio-swarm run codemod``: the pipeline in a swarm, then the verification, then the report."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator

import attrs
import trio

from trio_swarm import RestartIntensityExceeded, Subscription, Swarm, SwarmError, Unreaped
from trio_swarm.jobs.codemod.chaos import ChaosPlan
from trio_swarm.jobs.codemod.display import Display, open_display, print_summary, say
from trio_swarm.jobs.codemod.manifest import manifest_id, read_outputs
from trio_swarm.jobs.codemod.options import Options
from trio_swarm.jobs.codemod.pipeline import CannotWrite, Pipeline
from trio_swarm.jobs.codemod.report import Report, Status, exit_status, is_disk_error, write_report
from trio_swarm.jobs.codemod.serial import SerialResult
from trio_swarm.jobs.codemod.strikes import Strikes
from trio_swarm.jobs.codemod.verify import Verification, verify
from trio_swarm.jobs.runner import run_in_swarm

__all__ = ["run"]

_EVENTS = 65536
"""Buffered for the display: it reads all the time, but every settled file is to be counted."""

_NOTED = ("chaos", "worker_crashed", "child_crashed", "pod_crashed", "operator_away", "operator_back")


def run(options: Options) -> int:
    """Do the job as the options say; prints the summary and returns the exit status.

    KeyboardInterrupt goes through, after the swarm is gone.
    """
    pipeline = Pipeline(
        root=options.tree.root,
        files=options.tree.files,
        out=options.out,
        rule=options.rule,
        workers=options.workers,
        operator=options.operator,
        strikes=Strikes(ChaosPlan(options.chaos)),
    )
    return trio.run(_run, options, pipeline)


async def _run(options: Options, pipeline: Pipeline) -> int:
    report = Report(files=len(options.tree.files), settled_once=0, workers=options.workers)
    person = options.operator == "tty"
    status: int | None = None
    with open_display(len(options.tree.files), plain=person) as display:
        try:
            await trio.to_thread.run_sync(lambda: options.out.mkdir(parents=True, exist_ok=not options.fresh))
            status, report = await _swarm(pipeline, display, report)
        except OSError as error:
            report = _blamed(report, error)
    if status is None:
        report = _count(pipeline, report)
        if options.verify and exit_status(report) is Status.HOLDS:
            say("verifying against a serial run ...")
            status, report = await _verified(options, pipeline, report)
    if status is not None:
        say(f"stopped by {signal.Signals(status - 128).name}; nothing of it is running")
        return status
    return _told(options, report)


async def _swarm(pipeline: Pipeline, display: Display, report: Report) -> tuple[int | None, Report]:
    async def job(swarm: Swarm) -> None:
        async with swarm.subscribe(capacity=_EVENTS) as events, trio.open_nursery() as nursery:
            nursery.start_soon(_show, events, display)
            await pipeline.run(swarm)
            nursery.cancel_scope.cancel()

    started = time.perf_counter()
    run = await run_in_swarm("codemod", job)
    report = attrs.evolve(
        report,
        wall_s=time.perf_counter() - started,
        survivors=run.report.survivors,
        processes=tuple(attrs.asdict(process) for process in run.report.processes),
    )
    return run.status, report if run.error is None else _blamed(report, run.error)


def _blamed(report: Report, error: Exception) -> Report:
    """The report with what ended the job in it; raises what is a bug rather than an outcome."""
    if isinstance(error, ExceptionGroup):
        # Lanes fail together: the second to find the disk full, or a part closed, says nothing new.
        news = error.subgroup(lambda leaf: not isinstance(leaf, ExceptionGroup | trio.ClosedResourceError))
        for each in error.exceptions:
            if news is None or not isinstance(each, trio.ClosedResourceError):
                report = _blamed(report, each)
        return report
    if isinstance(error, CannotWrite) or is_disk_error(error):
        return attrs.evolve(report, disk_error=str(error))
    if isinstance(error, RestartIntensityExceeded):
        return attrs.evolve(report, gave_up=str(error))
    if isinstance(error, Unreaped):
        return attrs.evolve(report, survivors=tuple({*report.survivors, *error.pids}))
    if isinstance(error, SwarmError | OSError):
        return attrs.evolve(report, stopped=(*report.stopped, str(error)))
    raise error


async def _show(events: Subscription, display: Display) -> None:
    async for event in events:
        if event.kind == "file_settled":
            display.settled(str(event.data["kind"]))
        elif event.kind in _NOTED:
            display.note(f"{event.kind}: " + ", ".join(f"{key} {value}" for key, value in event.data.items()))


def _count(pipeline: Pipeline, report: Report) -> Report:
    """What the ledger says; the manifest is of what is on disk."""
    ledger = pipeline.ledger
    kinds = ledger.count()
    outcomes = ledger.settled.values()
    faults = tuple(f"{o.path}: {o.reason}" for o in outcomes if o.kind in ("failed", "crashed"))
    return attrs.evolve(
        report,
        settled_once=len(ledger.settled) - len(set(ledger.twice)),
        changed=kinds["patched"],
        edits=sum(o.edits for o in outcomes if o.kind == "patched"),
        unparseable=kinds["unparseable"],
        skipped=kinds["skipped"],
        unreadable=kinds["unreadable"],
        denied=kinds["denied"],
        restarts=pipeline.restarts,
        redelivered=pipeline.redelivered,
        manifest=manifest_id(read_outputs(pipeline.out)) if pipeline.out.is_dir() else "",
        errors=(
            *report.errors,
            *faults,
            *(f"chaos: {kind} found nothing to hit" for kind in pipeline.strikes.missed),
        ),
        chaos=tuple(pipeline.strikes.struck),
    )


async def _verified(options: Options, pipeline: Pipeline, report: Report) -> tuple[int | None, Report]:
    """The report with the verification's findings.

    It runs in a swarm of no processes, for the sake of its directory: that is gone even if this process
    is killed meanwhile.
    """
    outcomes = pipeline.ledger.settled.values()
    # The policy lets everything pass: what is not there for its sake is not excused.
    refused = (
        [o.path for o in outcomes if o.kind in ("denied", "skipped")] if options.operator == "tty" else []
    )
    found: Verification | None = None

    async def job(swarm: Swarm) -> None:
        def work() -> Verification:
            return verify(
                options.tree,
                options.out,
                rule=options.rule,
                claimed={o.path: o.sha256 for o in outcomes if o.kind == "patched"},
                denied=refused,
                scratch=swarm.directory,
                checkpoint=trio.from_thread.check_cancelled,
            )

        nonlocal found
        found = await trio.to_thread.run_sync(work)

    try:
        run = await run_in_swarm("verify", job)
    except OSError as error:
        return None, _blamed(report, error)
    if found is None:
        return run.status, report
    return run.status, attrs.evolve(
        report,
        manifest=found.manifest,
        serial_manifest=found.serial_manifest,
        problems=(*found.problems, *_differing(report, found.serial, refused=bool(refused))),
        serial_s=found.serial.seconds,
    )


def _differing(report: Report, serial: SerialResult, *, refused: bool) -> Iterator[str]:
    """Counts that are not the serial run's, a line each; all but those that a person's refusals change."""
    names = ["unparseable", "unreadable"]
    if not refused:
        names += ["changed", "edits", "skipped"]
    for name in names:
        ours, theirs = getattr(report, name), getattr(serial, name)
        if ours != theirs:
            yield f"{name}: {ours}, but {theirs} in the serial run"


def _told(options: Options, report: Report) -> int:
    """Print and write the report; a report that cannot be written is a status of its own."""
    status = exit_status(report)
    if options.report is not None:
        try:
            write_report(options.report, report)
        except OSError as error:
            report = attrs.evolve(report, disk_error=f"the report: {error}")
            status = exit_status(report)
    print_summary(report)
    say(f"output: {options.out}", stream=sys.stdout)
    return int(status)
