"""Signals before the job has begun: one line and the status of a later one, never a traceback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from tests.pipes import full_pipe, unread_terminal
from trio_swarm.cli import main
from trio_swarm.cli.early import EarlySignals

WAITS = """\
import signal
print("importing", flush=True)
while True:
    try:
        signal.pause()
    except BaseException:
        raise ImportError("an import that takes every exception for its own")
"""


@pytest.fixture
def importing(tmp_path):
    """The command, in the middle of the import of a module."""
    started = []

    def start(module, **kwargs):
        (tmp_path / f"{module}.py").write_text(WAITS)
        (tmp_path / "tree").mkdir()
        (tmp_path / "tree/a.py").write_text("x = 1\n")
        path = os.pathsep.join([str(tmp_path), os.getcwd()])
        process = subprocess.Popen(
            [sys.executable, "-m", "trio_swarm", "run", "codemod", "--tree", "tree", "--out", "out"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": path},
            stdout=subprocess.PIPE,
            text=True,
            **{"stderr": subprocess.PIPE, **kwargs},
        )
        started.append(process)
        assert process.stdout.readline() == "importing\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("module", ["argparse", "attrs", "trio"])
def test_a_signal_during_the_imports(importing, module, signum):
    """Of the first module as well as of the last, and whatever those do about exceptions."""
    process = importing(module)
    process.send_signal(signum)
    _, errors = process.communicate(timeout=20)

    assert process.returncode == 128 + signum
    assert errors == f"stopped by {signum.name}; nothing of it is running\n"


def test_a_signal_that_was_ignored_stays_ignored(importing):
    """As under nohup."""
    process = importing("argparse", preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    # Of two that wait, the lower number is heeded first.
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)

    assert process.returncode == 143


def test_a_line_that_nobody_reads_keeps_no_process(importing):
    """Standard error is a pipe that is full."""
    with full_pipe() as (_, writer):
        process = importing("argparse", stderr=writer)
        process.send_signal(signal.SIGTERM)

        assert process.wait(20) == 143


def test_a_terminal_that_nobody_reads_keeps_no_process():
    """It has room for less than the line, perhaps."""
    code = "from trio_swarm.cli.early import say\nfor n in range(3000): say('x' * (n % 97) + '\\n')"
    code = f"from trio_swarm.cli import early; early._PATIENCE = 0\n{code}\nprint('over')"
    with unread_terminal() as terminal:
        done = subprocess.run(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=terminal.writer, timeout=60
        )

        assert done.stdout == b"over\n"
        assert not terminal.rescued


def test_the_signals_are_given_back():
    """Whoever calls `main` has its own handlers afterwards, and before the job that of SIGINT."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]

    with EarlySignals() as early:
        inside = [signal.getsignal(number) for number in numbers]
        early.loaded()
        assert signal.getsignal(signal.SIGINT) is before[0]
    assert main(["--version"]) == 0

    assert [signal.getsignal(number) for number in numbers] == before
    assert not set(inside) & set(before)


def test_little_is_imported_before_the_signals_are_heeded():
    """Not argparse, and nothing that is installed."""
    code = (
        "import sys; before = set(sys.modules); import trio_swarm.cli;"
        "print(sorted({n for n in set(sys.modules) - before if not n.startswith('trio_swarm')}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    for name in eval(done.stdout):
        assert name.split(".")[0] in sys.stdlib_module_names
        assert name not in ("argparse", "importlib.metadata", "traceback")
