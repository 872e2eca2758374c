"""Which files a run works on, and how one file is read."""

from __future__ import annotations

import os
import sysconfig
from pathlib import Path

import pytest

from trio_swarm.jobs.codemod import tree as tree_module
from trio_swarm.jobs.codemod.syntax import MAX_SOURCE, Unreadable, read_source
from trio_swarm.jobs.codemod.tree import OptionError, resolve_tree


def make(root: Path, *paths: str) -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"x = 1\n")


def test_a_directory_is_its_python_files_sorted(tmp_path):
    """Hidden directories, caches, environments and modules of node are left out; so are other files."""
    make(
        tmp_path,
        "b.py",
        "a/z.py",
        "a.py",
        "site-packages/kept.py",
        ".hidden.py",
        "a/readme.txt",
        "w.pyw",
        "c.pyc",
        ".git/x.py",
        "__pycache__/x.py",
        "node_modules/x.py",
        "env/pyvenv.cfg",
        "env/lib/x.py",
    )

    tree = resolve_tree(str(tmp_path))

    assert tree.files == (".hidden.py", "a.py", "a/z.py", "b.py", "site-packages/kept.py")
    assert tree.root == tmp_path.resolve()
    assert tree.size == 5 * 6


def test_the_root_is_walked_whatever_it_is(tmp_path):
    """The user named it."""
    make(tmp_path, ".hidden/pyvenv.cfg", ".hidden/x.py")

    assert resolve_tree(str(tmp_path / ".hidden")).files == ("x.py",)


def test_links_to_directories_are_not_followed_and_links_to_files_are_files(tmp_path):
    """No loop, no file outside by a directory; a dangling link is an outcome later."""
    make(tmp_path, "t/a.py", "other/b.py")
    (tmp_path / "t/loop").symlink_to(tmp_path / "t")
    (tmp_path / "t/dir.py").symlink_to(tmp_path / "other")
    (tmp_path / "t/c.py").symlink_to(tmp_path / "other/b.py")
    (tmp_path / "t/gone.py").symlink_to("nowhere")

    assert resolve_tree(str(tmp_path / "t")).files == ("a.py", "c.py", "gone.py")


def test_one_file_is_a_tree(tmp_path):
    """Its directory is the root, but holds nothing else of the tree."""
    make(tmp_path, "a.py", "b.py")

    tree = resolve_tree(str(tmp_path / "a.py"))

    assert (tree.files, tree.root) == (("a.py",), tmp_path.resolve())
    assert not tree.holds(tree.root / "out")
    assert tree.holds(tree.root / "a.py")


def test_the_standard_library_is_this_interpreters():
    """Without installed packages and caches."""
    tree = resolve_tree("stdlib")

    assert tree.root == Path(sysconfig.get_path("stdlib")).resolve()
    assert "os.py" in tree.files
    assert len(tree.files) > 1000
    assert not any("site-packages" in path or "__pycache__" in path for path in tree.files)


def test_names_that_no_frame_can_carry_are_told_apart(tmp_path):
    """They are listed, escaped, and not worked on."""
    make(tmp_path, "a.py")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/b\xff.py")).write_bytes(b"")

    tree = resolve_tree(str(tmp_path))

    assert tree.files == ("a.py",)
    assert tree.misnamed == ("b\\xff.py",)


def test_trees_that_cannot_be_used_are_one_line(tmp_path):
    """Missing, not a directory, no Python, a loop of links, a device."""
    make(tmp_path, "empty/readme.txt", "file.txt")
    (tmp_path / "loop").symlink_to("loop")
    for spec, part in (
        ("missing", "No such file"),
        ("empty", "no Python files"),
        ("file.txt", "not a Python file"),
        ("loop", "loop"),
        ("/dev/null", "neither a directory"),
        ("a\0b", "null"),
        ("x" * 5000, "too long"),
    ):
        with pytest.raises(OptionError) as caught:
            resolve_tree(str(tmp_path / spec))
        text = str(caught.value)
        assert part.lower() in text.lower(), spec
        assert "\n" not in text
        assert "\0" not in text
        assert caught.value.status == 2


def test_a_directory_that_cannot_be_read_ends_it(tmp_path, monkeypatch):
    """Files are not left out silently."""
    make(tmp_path, "a.py", "sub/b.py")
    real = os.scandir

    def scandir(path):
        if Path(path).name == "sub":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(tree_module.os, "scandir", scandir)

    with pytest.raises(OptionError, match=r"cannot read the directory .*sub: Permission denied"):
        resolve_tree(str(tmp_path))


def test_files_are_read_only_below_the_root_and_only_when_regular(tmp_path):
    """A FIFO does not block, a directory and a huge file are outcomes, a path outside is refused."""
    make(tmp_path, "a.py")
    os.mkfifo(tmp_path / "fifo.py")
    (tmp_path / "dir.py").mkdir()
    with open(tmp_path / "huge.py", "wb") as file:
        file.truncate(MAX_SOURCE + 1)

    assert read_source(tmp_path, "a.py") == b"x = 1\n"
    for path in ("fifo.py", "dir.py", "huge.py", "gone.py", "../x.py", "/etc/passwd", "a\0.py"):
        with pytest.raises(Unreadable):
            read_source(tmp_path, path)


def test_a_link_to_itself_is_one_file_that_cannot_be_read(tmp_path):
    """It does not make the tree unusable."""
    (tmp_path / "a.py").write_text("x = 1\n")
    (tmp_path / "self.py").symlink_to("self.py")

    assert resolve_tree(str(tmp_path)).files == ("a.py", "self.py")
