"""The README says what is so."""

from __future__ import annotations

import configparser
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

import trio_swarm
from trio_swarm.workers import WorkerBrief

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


def _command(start: str) -> str:
    """One of the README's commands, its continued lines joined."""
    (command,) = re.findall(rf"^    ({re.escape(start)}(?:.*\\\n)*.*)$", README, re.MULTILINE)
    return command.replace("\\\n", " ")


@contextmanager
def _running(command: list[str], cwd: Path) -> Iterator[subprocess.Popen[str]]:
    pipe = subprocess.PIPE
    env = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_STATE_HOME": str(cwd)}
    with subprocess.Popen(command, cwd=cwd, env=env, stdin=pipe, stdout=pipe, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl command")
def test_serve_operator_and_curl_work_together(tmp_path) -> None:
    """The README's three commands, but for the port: the operator's value is in the answer."""
    run = [sys.executable, "-m", "trio_swarm"]
    serve, operator = (shlex.split(_command(f"trio-swarm {verb}"))[1:] for verb in ("serve", "operator"))
    with _running([*run, *serve, "--port", "0"], tmp_path) as server:
        url = server.stdout.readline().split()[-1]
        assert server.stdout.readline() == "admin token in swarm-token\n"
        there = [word.replace("http://127.0.0.1:7777", url) for word in operator]
        with _running([*run, *there], tmp_path) as person:
            assert person.stdout.readline().startswith("-- joined as lead")
            person.stdin.write('done "parsed"\n')
            person.stdin.flush()
            curl = _command("curl").replace("http://127.0.0.1:7777", url)
            done = subprocess.run(
                ["/bin/sh", "-c", f"{curl} -sS --noproxy '*'"],
                cwd=tmp_path,
                capture_output=True,
                text=True,
                timeout=30,
                check=False,
            )
            person.communicate("leave\n", timeout=30)
        assert person.returncode == 0
        server.terminate()
        assert server.wait(30) == 0

    assert done.stderr == ""
    answer = json.loads(done.stdout)
    assert (answer["status"], answer["value"]) == ("pass", "parsed")


async def test_the_worker_with_four_lines() -> None:
    """The README's second block of code, run as the body of a function that has ``text``."""
    block = README.split(".. code-block:: python\n\n")[2].partition("\n\n(")[0]
    names: dict[str, Any] = {}
    exec("async def worker(text):\n" + block, names)

    async def execute(step: trio_swarm.Step) -> dict[str, Any]:
        lines = WorkerBrief(step.agent, step.worker_handle, step.base_url, step.task_id).text
        await names["worker"](lines)
        return {}

    async with trio_swarm.open_swarm() as swarm:
        await swarm.start_operators()
        with trio.fail_after(30):
            result = await swarm.dispatch("coder", "fix the parser", execute=execute)

    assert result.value == "done: fix the parser"


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
