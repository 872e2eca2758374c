"""The README says what is so."""

from __future__ import annotations

import configparser
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.rst").read_text()


def _example() -> str:
    block = README.partition(".. code-block:: python\n\n")[2]
    lines = []
    for line in block.splitlines():
        if line and not line.startswith("    "):
            break
        lines.append(line[4:])
    return "\n".join(lines).strip() + "\n"


def test_the_example_is_the_file_that_is_tested() -> None:
    """The code in the README is examples/pool.py, word for word."""
    assert _example() == (ROOT / "examples" / "pool.py").read_text()


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.name)
def test_each_example_runs(example, tmp_path) -> None:
    """An example runs as a script from anywhere, ends well, and says what its last line promises."""
    done = subprocess.run(
        [sys.executable, str(example)],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.rstrip().endswith("survivors: ()")


def test_the_two_lines_use_extras_that_exist() -> None:
    """The README's lines install the extras cli and test, which setup.cfg has."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    lines = [line.strip() for line in README.splitlines() if line.startswith("    python3 -m venv")]

    assert len(lines) == 2
    assert ".[cli]" in lines[0]
    assert "trio-swarm run codemod" in lines[0]
    assert ".[test]" in lines[1]
    assert {"cli", "test", "lint"} <= set(setup["options.extras_require"])


def test_the_modules_keep_their_size() -> None:
    """No module is over 400 lines: one subject each."""
    long = {
        str(path.relative_to(ROOT)): count
        for path in (ROOT / "trio_swarm").rglob("*.py")
        if (count := len(path.read_text().splitlines())) > 400
    }

    assert long == {}
