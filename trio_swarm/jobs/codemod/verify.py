"""``--verify``: what the swarm wrote, held against the serial reference and against the originals."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import attrs

from trio_swarm.jobs.codemod.manifest import differences, digest, manifest_id, read_outputs
from trio_swarm.jobs.codemod.proof import prove
from trio_swarm.jobs.codemod.serial import SerialResult, run_serial
from trio_swarm.jobs.codemod.syntax import Unreadable, read_source
from trio_swarm.jobs.codemod.tree import Tree

__all__ = ["Verification", "check_outputs", "verify"]

_SHOWN = 20


@attrs.frozen
class Verification:
    """Whether the outputs hold, and the serial run that they were compared with."""

    problems: tuple[str, ...]
    """What does not hold, a line each; empty when all does."""
    manifest: str
    """The id of the manifest of what is on disk."""
    serial_manifest: str
    """The id of the serial run's manifest, less the files that the operator denied."""
    serial: SerialResult

    @property
    def ok(self) -> bool:
        """All outputs hold and the two manifests are equal."""
        return not self.problems and self.manifest == self.serial_manifest


def verify(
    tree: Tree,
    out_dir: Path,
    *,
    rule: str = "bare-except",
    claimed: Mapping[str, str] | None = None,
    denied: Collection[str] = (),
    scratch: Path | None = None,
    checkpoint: Callable[[], object] = lambda: None,
) -> Verification:
    """Run the serial reference in a fresh temporary directory (in *scratch*) and compare *out_dir* with it.

    *claimed* is the manifest that the swarm reported (path to digest): it must be what is on
    disk. Paths in *denied* must be absent from the output. Each output is also proved against
    its original: it compiles, its tree is the normalised original's, no bare handler is left.

    *checkpoint* is called between files and ends the run by raising, the temporary directory
    removed (see :func:`run_serial`). Raises OSError when the reference or the outputs cannot be
    written or read. Blocks; not async.
    """
    with tempfile.TemporaryDirectory(prefix="codemod-serial-", dir=scratch) as directory:
        serial = run_serial(tree, Path(directory), rule=rule, checkpoint=checkpoint)
    on_disk = read_outputs(out_dir)
    expected = {path: sha for path, sha in serial.entries.items() if path not in denied}
    problems = [
        *serial.rejected,
        *differences(on_disk, expected),
        *check_outputs(tree, out_dir, on_disk, checkpoint=checkpoint),
    ]
    if claimed is not None and dict(claimed) != on_disk:
        problems.append("what is on disk is not what the job reported")
    return Verification(_bounded(problems), manifest_id(on_disk), manifest_id(expected), serial)


def check_outputs(
    tree: Tree,
    out_dir: Path,
    entries: Mapping[str, str],
    *,
    checkpoint: Callable[[], object] = lambda: None,
) -> list[str]:
    """Prove each output of *entries* against its original; what does not hold, a line each."""
    problems = []
    known = frozenset(tree.files)
    for path, sha in sorted(entries.items()):
        checkpoint()
        if path not in known:
            problems.append(f"{path}: not a file of the tree")
            continue
        try:
            original, output = read_source(tree.root, path), read_source(out_dir, path)
        except Unreadable as error:
            problems.append(f"{path}: {error.reason}")
            continue
        proof = prove(original, output)
        if not proof.ok:
            problems.append(f"{path}: {proof.reason}")
        elif not proof.edits:
            problems.append(f"{path}: written without an edit")
        if digest(output) != sha:
            problems.append(f"{path}: changed while it was checked")
    return problems


def _bounded(problems: list[str]) -> tuple[str, ...]:
    if len(problems) <= _SHOWN:
        return tuple(problems)
    return (*problems[:_SHOWN], f"... and {len(problems) - _SHOWN} more")
