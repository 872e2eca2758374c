"""Files that other processes read while we write them."""

from __future__ import annotations

import os
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_swarm._io import files


def test_replace_writes_a_private_file(tmp_path):
    """Mode 0600 whatever the umask, and nothing else is left."""
    old = os.umask(0)
    try:
        files.replace(tmp_path / "a.json", b"one")
    finally:
        os.umask(old)
    files.replace(tmp_path / "a.json", b"two")

    assert (tmp_path / "a.json").read_bytes() == b"two"
    assert stat.S_IMODE((tmp_path / "a.json").stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["a.json"]


def test_replace_replaces_a_link_and_not_what_it_points_to(tmp_path):
    """A planted symbolic link is not followed."""
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "a").symlink_to(tmp_path / "victim")
    files.replace(tmp_path / "a", b"new")

    assert (tmp_path / "victim").read_text() == "precious"
    assert not (tmp_path / "a").is_symlink()


@pytest.mark.parametrize("call", ["write", "fsync", "rename"])
def test_a_failed_replacement_leaves_the_old_file_alone(tmp_path, monkeypatch, call):
    """A full disk at any step: the old content, no temporary file, no descriptor."""
    files.replace(tmp_path / "a", b"old")

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, call, full)
    with pytest.raises(OSError, match="No space"):
        files.replace(tmp_path / "a", b"new")
    monkeypatch.undo()

    assert (tmp_path / "a").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


def test_short_writes_are_continued(tmp_path, monkeypatch):
    """The operating system may take less than it is given."""
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:3]))
    files.replace(tmp_path / "a", b"0123456789")

    assert (tmp_path / "a").read_bytes() == b"0123456789"


def test_read_small_takes_regular_files_alone(tmp_path):
    """No link, no directory, no pipe that would block, nothing large."""
    (tmp_path / "file").write_bytes(b"x" * 10)
    (tmp_path / "link").symlink_to(tmp_path / "file")
    (tmp_path / "dir").mkdir()
    os.mkfifo(tmp_path / "pipe")

    assert files.read_small(tmp_path / "file", limit=10)[0] == b"x" * 10
    for name in ("link", "dir", "pipe"):
        with pytest.raises(ValueError, match="regular"):
            files.read_small(tmp_path / name)
    with pytest.raises(ValueError, match="10 bytes"):
        files.read_small(tmp_path / "file", limit=9)
    with pytest.raises(FileNotFoundError):
        files.read_small(tmp_path / "none")


def test_remove_says_whether_there_was_something(tmp_path):
    """Not found counts as success."""
    (tmp_path / "a").touch()

    assert files.remove(tmp_path / "a")
    assert not files.remove(tmp_path / "a")


@pytest.mark.parametrize("name", ["child-7", "svc-1a2b", "a", "A.b_c-d", "x" * 200, "grün", "two words"])
def test_names_that_may_be(name):
    """Upstream's ids are free text; what is harmless stays allowed."""
    assert files.check_name(name) == name


BAD = ["", ".", "..", ".x", "a/b", "/a", "a..b", "a\0b", "a\nb", "a\\b", "x" * 201, "ü" * 101, "\ud800"]


@pytest.mark.parametrize("name", BAD)
def test_names_that_may_not(name):
    """No slash, NUL, two dots, leading dot, or more than 200 bytes (A3)."""
    with pytest.raises(ValueError, match="agent_id"):
        files.check_name(name, "agent_id")


@given(st.text(alphabet=st.characters(), max_size=30) | st.text(alphabet="./\\\0a", max_size=8))
def test_an_accepted_name_stays_in_its_directory(name):
    """Whatever is accepted is one component, and not hidden."""
    try:
        files.check_name(name)
    except ValueError:
        return
    path = os.path.normpath(os.path.join("/fabric", f"{name}.json"))

    assert os.path.dirname(path) == "/fabric"
    assert not os.path.basename(path).startswith(".")
