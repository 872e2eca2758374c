"""The lifeline: its end is the process's end, and nothing else is."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from trio_swarm._child.lifeline import EXIT_ABANDONED, VARIABLE, watch

CODE = """
import sys, time
from trio_swarm._child import lifeline
print(lifeline.watch(), flush=True)
time.sleep(100)
"""


@pytest.mark.parametrize("leader", [True, False])
def test_its_end_is_the_end(leader):
    """A leader takes its group along; another process only itself."""
    reader, writer = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-c", CODE],
        env={**os.environ, VARIABLE: str(reader), "PYTHONPATH": os.getcwd()},
        pass_fds=[reader],
        stdout=subprocess.PIPE,
        start_new_session=leader,
    )
    os.close(reader)
    with process:
        assert process.stdout.readline() == b"True\n"
        os.write(writer, b"x")  # says nothing
        assert process.poll() is None
        os.close(writer)
        assert process.wait(10) == (-9 if leader else EXIT_ABANDONED)


@pytest.mark.parametrize("number", ["", "no", "-1", "987654"])
def test_without_one(number, monkeypatch):
    """Started by hand, or closed on the way: there is nothing to watch."""
    monkeypatch.setenv(VARIABLE, number)
    assert watch() is False
