"""The flags: each mistake is one clear line and touches nothing."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from trio_swarm.jobs.codemod.chaos import Strike
from trio_swarm.jobs.codemod.options import OptionError, default_workers, parse_options


@pytest.fixture
def here(tmp_path):
    """A directory to stand in, with a tree and some things in the way."""
    (tmp_path / "tree/sub").mkdir(parents=True)
    (tmp_path / "tree/a.py").write_text("x = 1\n")
    (tmp_path / "tree/sub/b.py").write_text("try: pass\nexcept: pass\n")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").write_text("")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to("tree/sub")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "bare").mkdir()
    return tmp_path


def snapshot(root: Path) -> dict[str, tuple[int, int]]:
    found = {}
    for directory, names, files in os.walk(root):
        for name in [*names, *files, "."]:
            about = os.lstat(os.path.join(directory, name))
            found[os.path.join(directory, name)] = (about.st_mtime_ns, about.st_size)
    return found


def parse(here: Path, *argv: str, **more):
    return parse_options(argv, cwd=here, **more)


def test_defaults(here):
    """The tree alone is enough; the output directory is a new one here."""
    options = parse(here, "--tree", "tree")

    assert options.tree.files == ("a.py", "sub/b.py")
    assert options.tree.name == "tree"
    assert options.out == here.resolve() / "codemod-out"
    assert (options.rule, options.operator, options.chaos) == ("bare-except", "policy", ())
    assert (options.verify, options.report) == (False, None)
    assert options.workers == default_workers() >= 2
    assert not options.out.exists()


def test_the_default_output_directory_is_a_fresh_one(here):
    """What is there stays as it is, and is not asked about."""
    (here / "codemod-out").mkdir()
    (here / "codemod-out-2").symlink_to("nowhere")

    assert parse(here, "--tree", "tree").out.name == "codemod-out-3"


def test_all_flags(here):
    """The README's line, more or less."""
    options = parse(
        here,
        "--rule=bare-except",
        "--tree=tree",
        "--out=deep/er/out",
        "--workers=64",
        "--operator=tty",
        "--chaos=kill-worker@30%,drop-operator@50%",
        "--verify",
        "--report=report.json",
        is_terminal=lambda: True,
    )

    assert options.out == here.resolve() / "deep/er/out"
    assert options.workers == 64
    assert options.chaos == (Strike("kill-worker", 30), Strike("drop-operator", 50))
    assert options.verify
    assert options.report == here.resolve() / "report.json"
    assert not (here / "deep").exists()


def test_an_empty_directory_is_a_fine_output_and_one_file_a_fine_tree(here):
    """An output beside the one file is not inside the tree."""
    assert parse(here, "--tree", "tree", "--out", "empty").out == here.resolve() / "empty"
    assert parse(here, "--tree", "tree/a.py", "--out", "tree/out").out == here.resolve() / "tree/out"


@pytest.mark.parametrize(
    ("argv", "part"),
    [
        (["--nonsense"], "unrecognized arguments: --nonsense"),
        (["stray"], "unrecognized arguments: stray"),
        (["--work", "2"], "unrecognized arguments"),
        (["--rule", "x"], "--rule: invalid choice"),
        (["--workers", "0"], "not a number from 1 to 64"),
        (["--workers", "65"], "not a number from 1 to 64"),
        (["--workers", "two"], "not a number from 1 to 64"),
        (["--workers", "٣"], "not a number from 1 to 64"),
        (["--workers", "9" * 5000], "not a number from 1 to 64"),
        (["--workers"], "expected one argument"),
        (["--operator", "x"], "--operator: invalid choice"),
        (["--operator", "tty"], "needs a terminal"),
        (["--chaos", "x@1%"], "--chaos: unknown kind"),
        (["--chaos", "kill-child"], "is not KIND@NN%"),
        (["--tree", "missing"], "cannot read the tree"),
        (["--tree", ""], "--tree needs a path"),
        (["--tree", "bare"], "no Python files"),
        (["--tree", "file"], "not a Python file"),
        (["--out", ""], "--out needs a path"),
        (["--out", "full"], "is not empty"),
        (["--out", "file"], "is not a directory"),
        (["--out", "file/out"], "not a directory"),
        (["--out", "dangling"], "is not a directory"),
        (["--out", "tree"], "is not empty"),
        (["--out", "tree/out"], "lies inside the tree"),
        (["--out", "tree/sub/../x/y"], "lies inside the tree"),
        (["--out", "link/out"], "lies inside the tree"),
        (["--tree", ".", "--out", "out"], "lies inside the tree"),
        (["--tree", "tree/a.py", "--out", "tree/a.py"], "is not a directory"),
        (["--out", "."], "is not empty"),
        (["--out", "/dev/null/out"], "below /dev/null: not a directory"),
        (["--report", "missing/report.json"], "cannot write the report"),
        (["--report", "empty"], "is a directory"),
        (["--report", "file/x"], "cannot"),
        (["--report", "tree/report.json"], "inside the tree"),
        (["--out", "empty", "--report", "empty/report.json"], "inside the output directory"),
    ],
)
def test_each_mistake_is_one_line_and_touches_nothing(here, argv, part):
    """Status 2, and the disk is as it was."""
    before = snapshot(here)
    if "--tree" not in argv:
        argv = ["--tree", "tree", *argv]

    with pytest.raises(OptionError) as caught:
        parse(here, *argv, is_terminal=lambda: False)

    assert part in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 6000
    assert caught.value.status == 2
    assert snapshot(here) == before


def test_a_disk_without_room_is_found_before_anything_is_written(here):
    """It has a status of its own."""
    before = snapshot(here)

    with pytest.raises(OptionError, match="no room on the disk") as caught:
        parse(here, "--tree", "tree", free_bytes=lambda directory: 5)

    assert caught.value.status == 6
    assert snapshot(here) == before


def test_no_permission_is_found_before_anything_is_written(here, monkeypatch):
    """For the output directory and for the report's."""
    monkeypatch.setattr(os, "access", lambda path, mode: False)

    with pytest.raises(OptionError, match="no permission"):
        parse(here, "--tree", "tree")


@pytest.mark.parametrize("make", ["device", "link"])
def test_a_report_that_is_no_regular_file_is_refused(tmp_path, make):
    """A device or a link would be replaced, not written to."""
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "a.py").write_text("x = 1\n")
    report = "/dev/null"
    if make == "link":
        report = str(tmp_path / "link")
        os.symlink(tmp_path / "elsewhere", report)

    with pytest.raises(OptionError, match="no regular file"):
        parse_options(["--tree", "tree", "--report", report], cwd=tmp_path)


@pytest.mark.parametrize(
    ("argv", "part"),
    [
        (["--out", "o" * 300], "--out cannot be used: the output directory"),
        (["--out", "new/" + "o" * 300 + "/sub"], "File name too long"),
        (["--out", "/".join(["o" * 200] * 30)], "File name too long"),
        (["--report", "r" * 300], "cannot write the report"),
    ],
)
def test_a_name_that_no_disk_takes_is_found_at_once(here, argv, part):
    """And not when the directory is to be made, or the report to be written."""
    before = snapshot(here)
    with pytest.raises(OptionError, match=part) as caught:
        parse(here, "--tree", "tree", *argv)

    assert caught.value.status == 2
    assert snapshot(here) == before


@pytest.mark.parametrize("fault", ["missing", "file", "long"])
def test_a_tmpdir_of_no_use_is_told_at_once(here, monkeypatch, fault):
    """One line that names it; with a good XDG_RUNTIME_DIR it is not needed."""
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    named = {"missing": here / "missing", "file": here / "file", "long": here / ("t" * 120)}[fault]
    if fault == "long":
        named.mkdir()
    monkeypatch.setenv("TMPDIR", str(named))
    before = sorted(snapshot(here))
    with pytest.raises(OptionError, match=r"no directory for the swarm's sockets: .*TMPDIR") as caught:
        parse(here, "--tree", "tree")

    assert caught.value.status == 2
    assert "Errno" not in str(caught.value)
    # Python tries the place, and takes its file away.
    assert sorted(snapshot(here)) == before
    with tempfile.TemporaryDirectory(dir="/tmp") as good:
        monkeypatch.setenv("XDG_RUNTIME_DIR", good)
        assert parse(here, "--tree", "tree")
