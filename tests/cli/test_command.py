"""The command: one line for an error, a status for each way to end."""

from __future__ import annotations

import errno
import subprocess
import sys
import types

import pytest

from trio_swarm.cli import main
from trio_swarm.errors import RestartIntensityExceeded, SwarmError


@pytest.fixture
def jobs(monkeypatch):
    """What the command hands on, without a swarm."""
    called = types.SimpleNamespace(options=None, user=None, result=0)

    class JobError(Exception):
        pass

    def run(options):
        called.options = options
        if isinstance(called.result, BaseException):
            raise called.result
        return called.result

    def run_user_job(target, argv):
        called.user = (target, argv)
        if isinstance(called.result, BaseException):
            raise called.result
        return called.result

    job = types.ModuleType("trio_swarm.jobs.codemod.job")
    job.run = run
    runner = types.ModuleType("trio_swarm.jobs.runner")
    runner.run_user_job = run_user_job
    runner.JobError = called.JobError = JobError
    monkeypatch.setitem(sys.modules, job.__name__, job)
    monkeypatch.setitem(sys.modules, runner.__name__, runner)
    return called


@pytest.fixture
def tree(tmp_path, monkeypatch):
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/a.py").write_text("x = 1\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_codemod_gets_checked_options(jobs, tree):
    """And its status is the command's."""
    jobs.result = 4

    assert main(["run", "codemod", "--tree", "tree", "--workers", "3", "--verify"]) == 4
    assert jobs.options.workers == 3
    assert jobs.options.verify
    assert jobs.options.out == tree.resolve() / "codemod-out"


def test_a_users_job_gets_the_rest_of_the_line(jobs):
    """Flags of its own included."""
    jobs.result = 17

    assert main(["run", "pkg.mod:job", "--flag", "x", "--help", "--", "-y"]) == 17
    assert jobs.user == ("pkg.mod:job", ["--flag", "x", "--help", "--", "-y"])


@pytest.mark.parametrize(
    ("argv", "part"),
    [
        (["--nonsense"], "unrecognized arguments"),
        (["walk"], "invalid choice: 'walk'"),
        (["run"], "the following arguments are required: JOB"),
        (["run", "nonsense"], "unknown job 'nonsense'"),
        (["run", ":x"], "unknown job"),
        (["run", "a b:x"], "unknown job"),
        (["run", "codemod", "--workers", "0"], "not a number"),
        (["run", "codemod", "--tree", "missing"], "cannot read the tree"),
        (["run", "codemod", "--tree", "mis\nsing"], "cannot read the tree"),
    ],
)
def test_an_error_is_one_line_and_status_2(jobs, tree, capsys, argv, part):
    """On standard error, with the program's name."""
    assert main(argv) == 2

    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("trio-swarm: error: ")
    assert part in err
    assert err.count("\n") == 1
    assert jobs.options is jobs.user is None


def test_a_job_that_cannot_be_loaded_is_one_line(jobs, capsys):
    """The runner says why."""
    jobs.result = jobs.JobError("cannot import\n'pkg'")

    assert main(["run", "pkg:job"]) == 2
    assert capsys.readouterr().err == "trio-swarm: error: cannot import 'pkg'\n"


@pytest.mark.parametrize(
    "stop", [KeyboardInterrupt(), BaseExceptionGroup("g", [ValueError(), KeyboardInterrupt()])]
)
def test_ctrl_c_is_one_line_and_status_130(jobs, capsys, stop):
    """Alone, or among what it interrupted."""
    jobs.result = stop

    assert main(["run", "pkg:job"]) == 130
    assert capsys.readouterr().err == "trio-swarm: interrupted\n"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (SwarmError("lost\nit"), 8),
        (OSError(errno.ENOSPC, "No space left on device"), 6),
        (RestartIntensityExceeded("pool", max_restarts=3, within=60), 7),
    ],
)
def test_an_error_that_leaves_the_codemod_is_one_line(jobs, tree, capsys, error, status):
    """With the status that the help lists for it."""
    jobs.result = error

    assert main(["run", "codemod", "--tree", "tree"]) == status

    err = capsys.readouterr().err
    assert err.startswith(f"trio-swarm: error: {type(error).__name__}: ")
    assert err.count("\n") == 1


def test_a_group_that_leaves_the_codemod_is_shown_whole(jobs, tree, capsys):
    """The status is its gravest leaf's."""
    jobs.result = ExceptionGroup("g", [SwarmError("one"), OSError(errno.ENOSPC, "two")])

    assert main(["run", "codemod", "--tree", "tree"]) == 8
    assert "one" in (err := capsys.readouterr().err)
    assert "two" in err


def test_other_errors_of_a_job_come_out_as_they_are(jobs):
    """A bug is a traceback."""
    jobs.result = ExceptionGroup("g", [ValueError("x")])

    with pytest.raises(ExceptionGroup):
        main(["run", "pkg:job"])


@pytest.mark.parametrize(("argv", "part"), [(["--version"], "trio-swarm "), (["--help"], "run")])
def test_version_and_help_are_status_0(capsys, argv, part):
    """On standard output."""
    assert main(argv) == 0
    assert part in capsys.readouterr().out


def test_no_verb_shows_the_help(capsys):
    """And is not a success."""
    assert main([]) == 2
    assert "usage: trio-swarm" in capsys.readouterr().err


def test_the_jobs_help_lists_the_exit_statuses(capsys):
    """Each with what it means."""
    assert main(["run", "codemod", "--help"]) == 0

    text = capsys.readouterr().out
    for status in (0, 2, 3, 4, 5, 6, 7, 8, 129, 130, 143):
        assert f"\n  {status:>3}  " in text
    assert "KIND@NN%" in text


def test_the_module_is_the_command():
    """`python -m trio_swarm`."""
    done = subprocess.run(
        [sys.executable, "-m", "trio_swarm", "run", "codemod", "--workers", "x"],
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("trio-swarm: error: argument --workers: 'x' is not a number")
