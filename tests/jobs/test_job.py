"""The main job, run as a user runs it: whole, under chaos, and ended at bad moments."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from tests.jobs.job_support import (
    Workplace,
    command,
    gone_within,
    make_tree,
    run_codemod,
    strike,
    workplace,
)

ALL = "kill-worker@30%,drop-operator@50%,kill-child@70%"


@pytest.fixture
def short() -> Iterator[Path]:
    """A directory with a short path: the sockets lie below it."""
    with tempfile.TemporaryDirectory(prefix="ts") as directory:
        yield Path(directory)


@pytest.fixture
def place(short) -> Workplace:
    return workplace(short)


def assert_whole(facts: dict, *, files: int, changed: int) -> None:
    assert facts["files"] == facts["settled_once"] == files
    assert facts["changed"] == facts["edits"] == changed
    assert facts["unparseable"] == 1
    assert facts["manifest"] == facts["serial_manifest"]
    assert facts["survivors"] == 0
    assert facts["problems"] == facts["errors"] == []


@pytest.mark.parametrize(
    ("spec", "restarts", "redelivered"),
    [
        ("", 0, 0),
        ("kill-worker@30%", 1, 0),
        ("drop-operator@1%", 0, 1),
        ("kill-child@70%", 1, 0),
        # How much of so small a tree is still to be asked for at its middle is luck.
        (ALL, 2, 0),
        (
            "kill-worker@0%,kill-worker@50%,kill-worker@99%,kill-child@1%,drop-operator@1%,drop-operator@80%",
            3,
            1,
        ),
    ],
)
def test_the_job_holds_under_chaos(place, tmp_path, spec, restarts, redelivered) -> None:
    """Whatever is killed or cut: each file settles once, the manifest is the serial one, nothing is left."""
    tree = make_tree(tmp_path / "tree")
    status, facts, text = run_codemod(
        place, tree, tmp_path / "out", "--chaos", spec, "--workers", "2", "--verify"
    )

    assert status == 0, text
    assert_whole(facts, files=61, changed=20)
    assert facts["restarts"] >= restarts
    assert facts["redelivered"] >= redelivered
    assert place.survivors() == []
    assert place.left() == []


@pytest.mark.slow
def test_all_chaos_twenty_times_in_a_row(place, tmp_path) -> None:
    """The result does not depend on luck."""
    tree = make_tree(tmp_path / "tree")
    for n in range(20):
        status, facts, text = run_codemod(place, tree, tmp_path / f"out{n}", "--chaos", ALL, "--verify")

        assert status == 0, f"run {n}: {text}"
        assert_whole(facts, files=61, changed=20)
        assert place.survivors() == []


async def _rounds(directory: Path, tree: Path, signum: int, rounds: int, seed: int) -> list[str]:
    """Faults found in so many runs, each ended by a signal at a random moment of its life."""
    chosen, limit, faults = random.Random(seed), trio.CapacityLimiter(2), []

    async def one(number: int, after: float) -> None:
        async with limit:
            place = workplace(directory)
            out = directory / f"out{number}"
            argv = command("codemod", "--tree", str(tree), "--out", str(out), "--workers", "2")
            status = await strike(place, argv, signum, after)
            if left := await gone_within(place, 1.0):
                faults.append(f"round {number}, after {after:.3f} s: survivors {left}")
            if left_files := place.left():
                faults.append(f"round {number}, after {after:.3f} s: left {left_files}")
            # Before that the interpreter itself is starting, and what it says then is its own.
            if after > 0.3 and status not in (0, -signum, 128 + signum):
                faults.append(f"round {number}, after {after:.3f} s: exit status {status}")

    async with trio.open_nursery() as nursery:
        for number in range(rounds):
            nursery.start_soon(one, number, chosen.uniform(0.0, 3.0))
    return faults


@pytest.mark.slow
@pytest.mark.parametrize(
    "signum", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM], ids=["kill", "ctrl-c", "term"]
)
async def test_a_signal_at_any_moment_leaves_nothing(tmp_path, short, signum) -> None:
    """Fifty runs each: SIGKILL, Ctrl-C and SIGTERM at random moments leave no process and no file."""
    tree = make_tree(tmp_path / "tree", 400)
    faults = await _rounds(short, tree, signum, 50, seed=int(signum))

    assert faults == []


def test_chaos_that_waits_for_somebody_falls_at_the_end(place, tmp_path) -> None:
    """With nothing to patch no prover works: the strike falls on an idle one, and is reported."""
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "a.py").write_text("x = 1\n")
    spec = "kill-child@10%,kill-worker@100%,drop-operator@100%"
    status, facts, text = run_codemod(place, tree, tmp_path / "out", "--chaos", spec)

    assert status == 0, text
    assert sorted(facts["chaos"]) == ["drop-operator", "kill-child", "kill-worker"]
    assert place.survivors() == []


def test_two_runs_at_once_do_not_share_an_output(place, tmp_path) -> None:
    """Without --out each takes a directory of its own, or says that it cannot."""
    tree = make_tree(tmp_path / "tree", 6)
    runs = [
        subprocess.Popen(
            command("codemod", "--tree", str(tree)),
            cwd=tmp_path,
            env={**place.env, "PYTHONPATH": os.pathsep.join(filter(None, [os.getcwd(), *sys.path]))},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    said = [run.communicate(timeout=60) for run in runs]

    good = [out for run, (out, _) in zip(runs, said, strict=True) if run.returncode == 0]
    assert good, said
    assert len({out.splitlines()[-1] for out in good}) == len(good)


def test_wrong_use_is_one_line_and_touches_nothing(place, tmp_path) -> None:
    """A non-empty output directory: one clear line, status 2, nothing written."""
    tree, out = make_tree(tmp_path / "tree", 3), tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("precious")
    status, facts, text = run_codemod(place, tree, out)

    assert status == 2
    assert text.count("\n") == 1
    assert "not empty" in text
    assert facts == {}
    assert os.listdir(out) == ["mine"]


def test_an_operator_at_a_terminal_decides(place, tmp_path) -> None:
    """--operator tty asks for each patch at the terminal: yes to one, no to the next, quit."""
    tree, out = make_tree(tmp_path / "tree", 12), tmp_path / "out"
    master, slave = os.openpty()
    try:
        argv = command(
            "codemod", "--tree", str(tree), "--out", str(out), "--operator", "tty", "--workers", "1"
        )
        with subprocess.Popen(argv, env=place.env, stdin=slave, stdout=slave, stderr=slave) as process:
            os.write(master, b"y\nmaybe\nn\nq\n")
            os.close(slave)
            shown = b""
            while True:
                try:
                    chunk = os.read(master, 65536)
                except OSError:
                    break
                if not chunk:
                    break
                shown += chunk
        assert process.returncode == 0, shown.decode()
    finally:
        os.close(master)

    assert len(list(out.rglob("*.py"))) == 1
    assert b"except BaseException" in shown
    assert b"skipped" in shown
