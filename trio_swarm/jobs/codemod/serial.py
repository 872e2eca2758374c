"""The reference: the same work in one process and one thread, with no swarm.

It is what the swarm's result is compared with (``--verify``) and what its wall time is
measured against.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import attrs

from trio_swarm.jobs.codemod.manifest import digest, manifest_id
from trio_swarm.jobs.codemod.proof import prove
from trio_swarm.jobs.codemod.rule import rewrite
from trio_swarm.jobs.codemod.syntax import Unparseable, Unreadable, read_source
from trio_swarm.jobs.codemod.tree import Tree

__all__ = ["SerialResult", "run_serial", "write_output"]


@attrs.frozen
class SerialResult:
    """What the serial run came to."""

    files: int
    changed: int
    edits: int
    unparseable: int
    skipped: int
    """Left alone because the rewrite would not be equivalent there."""
    unreadable: int
    rejected: tuple[str, ...]
    """Patches that the proof refused (not written), a line each; none unless the rule is wrong."""
    entries: Mapping[str, str] = attrs.field(repr=False)
    """Output path to SHA-256."""
    manifest: str
    """The manifest's id."""
    seconds: float
    """Wall time of it all."""


def _go_on() -> None:
    """Nobody wants to stop the run."""


def run_serial(
    tree: Tree, out_dir: Path, *, rule: str = "bare-except", checkpoint: Callable[[], object] = _go_on
) -> SerialResult:
    """Scan, prove and write each file of *tree*, in order, below the existing directory *out_dir*.

    *checkpoint* is called between files and ends the run by raising: a caller that runs this in
    a thread passes ``trio.from_thread.check_cancelled``. Raises OSError when an output cannot
    be written (a full disk). Blocks; not async.
    """
    started = time.perf_counter()
    counts: Counter[str] = Counter()
    rejected: list[str] = []
    entries: dict[str, str] = {}
    for path in tree.files:
        checkpoint()
        try:
            data = read_source(tree.root, path)
            result = rewrite(data, rule)
        except Unreadable:
            counts["unreadable"] += 1
            continue
        except Unparseable:
            counts["unparseable"] += 1
            continue
        if result.output is None:
            counts["skipped"] += bool(result.reason)
            continue
        proof = prove(data, result.output, compiles=False)
        if not proof.ok:
            rejected.append(f"{path}: {proof.reason}")
            continue
        write_output(out_dir, path, result.output)
        entries[path] = digest(result.output)
        counts["edits"] += result.edits
    return SerialResult(
        files=len(tree.files),
        changed=len(entries),
        edits=counts["edits"],
        unparseable=counts["unparseable"],
        skipped=counts["skipped"],
        unreadable=counts["unreadable"],
        rejected=tuple(rejected),
        entries=entries,
        manifest=manifest_id(entries),
        seconds=time.perf_counter() - started,
    )


def write_output(out_dir: Path, path: str, data: bytes) -> None:
    """Write one output below *out_dir*, making its directories. Raises OSError."""
    target = out_dir / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(data)
