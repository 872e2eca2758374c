"""What a run came to: its numbers, its exit status, its JSON."""

from __future__ import annotations

import contextlib
import enum
import errno
import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import attrs

from trio_swarm.errors import RestartIntensityExceeded, Terminated, Unreaped

__all__ = [
    "EXIT_STATUSES",
    "Report",
    "Status",
    "exit_status",
    "is_disk_error",
    "status_of_error",
    "write_report",
]


class Status(enum.IntEnum):
    """Exit statuses of ``run codemod``."""

    HOLDS = 0
    USAGE = 2
    NOT_ONCE = 3
    NOT_VERIFIED = 4
    SURVIVORS = 5
    CANNOT_WRITE = 6
    GAVE_UP = 7
    FAILED = 8
    HUNG_UP = 129
    INTERRUPTED = 130
    TERMINATED = 143


EXIT_STATUSES: Final[Mapping[Status, str]] = MappingProxyType(
    {
        Status.HOLDS: "all holds: every file settled exactly once, outputs verified, no survivors",
        Status.USAGE: "wrong flags, or a tree or directory that cannot be used; nothing was touched",
        Status.NOT_ONCE: "a file was lost, or settled more than once",
        Status.NOT_VERIFIED: "a manifest differs, or an output does not hold",
        Status.SURVIVORS: "a process of the swarm was left behind",
        Status.CANNOT_WRITE: "an output or the report cannot be written (disk full)",
        Status.GAVE_UP: "gave up: processes crashed more often than the restart intensity allows",
        Status.FAILED: "the job failed in another way",
        Status.HUNG_UP: "hung up (SIGHUP)",
        Status.INTERRUPTED: "interrupted (Ctrl-C)",
        Status.TERMINATED: "terminated (SIGTERM)",
    }
)

_DISK_ERRNOS: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG})


def _interpreter() -> str:
    return f"{platform.python_implementation()} {platform.python_version()}"


@attrs.frozen(kw_only=True)
class Report:
    """One run. Counts are of files unless said otherwise."""

    files: int
    """Files of the tree: each must settle exactly once."""
    settled_once: int
    """Files that did. Less than ``files`` when one was lost or settled twice."""
    changed: int = 0
    """Patched, proved, let through and written."""
    edits: int = 0
    """Handlers rewritten in them."""
    unparseable: int = 0
    skipped: int = 0
    """Left alone because the rewrite would not be equivalent there."""
    unreadable: int = 0
    denied: int = 0
    """Patches that the operator refused."""
    restarts: int = 0
    """Processes started again after a crash."""
    redelivered: int = 0
    """Requests sent again after a dropped connection, and jobs run again after a crash."""
    manifest: str = ""
    """Id of the manifest of the output directory."""
    serial_manifest: str | None = None
    """Id of the serial reference's; None without ``--verify``."""
    problems: tuple[str, ...] = ()
    """What the verification found, and proofs that refused a patch."""
    survivors: tuple[int, ...] = ()
    """Process ids left behind when the swarm had closed."""
    wall_s: float = 0.0
    """Seconds, from the first process to the last one gone."""
    serial_s: float | None = None
    """Seconds of the serial reference; None without ``--verify``."""
    disk_error: str = ""
    """Why an output could not be written; empty when all could."""
    gave_up: str = ""
    """Which supervisor gave up and why; empty when none did."""
    stopped: tuple[str, ...] = ()
    """What else ended the job before its time, a line each; files are then unsettled because of it."""
    errors: tuple[str, ...] = ()
    """Anything else that went wrong, a line each."""
    workers: int = 0
    chaos: tuple[str, ...] = ()
    """The strikes that fell."""
    processes: tuple[Mapping[str, Any], ...] = ()
    """Of each process: name, pid, how it ended, seconds."""
    python: str = attrs.field(factory=_interpreter)

    @property
    def speedup(self) -> float | None:
        """Serial wall time over the swarm's; None when either is unknown."""
        return self.serial_s / self.wall_s if self.serial_s and self.wall_s > 0 else None

    @property
    def manifests_equal(self) -> bool | None:
        """Whether the swarm's and the serial manifest are the same; None without ``--verify``."""
        return None if self.serial_manifest is None else self.manifest == self.serial_manifest

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values: every field, and what follows from them.

        ``survivors`` is their number; their ids are ``survivor_pids``.
        """
        document = attrs.asdict(self, recurse=False)
        document |= {
            "survivors": len(self.survivors),
            "survivor_pids": list(self.survivors),
            "problems": list(self.problems),
            "stopped": list(self.stopped),
            "errors": [*self.stopped, *self.errors],
            "chaos": list(self.chaos),
            "processes": [dict(process) for process in self.processes],
            "wall_s": round(self.wall_s, 3),
            "serial_s": None if self.serial_s is None else round(self.serial_s, 3),
            "speedup": None if self.speedup is None else round(self.speedup, 2),
            "manifests_equal": self.manifests_equal,
            "exit_status": int(exit_status(self)),
        }
        return document


def exit_status(report: Report) -> Status:
    """The status of a run that came to its end; the first of these that applies, as a cause comes first."""
    failed = (
        (bool(report.disk_error), Status.CANNOT_WRITE),
        (bool(report.gave_up), Status.GAVE_UP),
        (bool(report.survivors), Status.SURVIVORS),
        (bool(report.stopped), Status.FAILED),
        (report.settled_once != report.files, Status.NOT_ONCE),
        (bool(report.problems) or report.manifests_equal is False, Status.NOT_VERIFIED),
        (bool(report.errors), Status.FAILED),
    )
    return next((status for holds, status in failed if holds), Status.HOLDS)


def status_of_error(error: BaseException) -> int:
    """The status of a run that an exception ended; of a group, its gravest leaf's."""
    if isinstance(error, BaseExceptionGroup):
        return max(map(status_of_error, error.exceptions))
    if isinstance(error, KeyboardInterrupt):
        return Status.INTERRUPTED
    if isinstance(error, Terminated):
        return 128 + error.signum
    if isinstance(error, Unreaped):
        return Status.SURVIVORS
    if isinstance(error, RestartIntensityExceeded):
        return Status.GAVE_UP
    if is_disk_error(error):
        return Status.CANNOT_WRITE
    return Status.FAILED


def is_disk_error(error: BaseException) -> bool:
    """Whether a write failed for the disk's sake: full, over quota, read-only or broken."""
    return isinstance(error, OSError) and error.errno in _DISK_ERRNOS


def write_report(path: Path, report: Report) -> None:
    """Write *report* as JSON: the old file or the whole new one, never a part. Raises OSError."""
    data = (json.dumps(report.to_json(), indent=2, ensure_ascii=True) + "\n").encode("ascii")
    scratch = path.with_name(f".{path.name[:100]}.{os.getpid()}.tmp")
    try:
        with open(scratch, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(scratch)
        raise
