"""The serial reference, the manifest, and the verification that stands on them."""

from __future__ import annotations

import errno
import hashlib
import os
import tempfile
from pathlib import Path

import pytest

from trio_swarm.jobs.codemod.manifest import differences, manifest_id, manifest_text, read_outputs
from trio_swarm.jobs.codemod.serial import run_serial
from trio_swarm.jobs.codemod.syntax import Unparseable
from trio_swarm.jobs.codemod.tree import resolve_tree
from trio_swarm.jobs.codemod.verify import verify

TRY = b"try: pass\nexcept: pass\n"
DONE = b"try: pass\nexcept BaseException: pass\n"


@pytest.fixture
def tree(tmp_path):
    root = tmp_path / "tree"
    (root / "sub").mkdir(parents=True)
    (root / "a.py").write_bytes(TRY)
    (root / "sub/b.py").write_bytes(b"\xef\xbb\xbf" + TRY * 2)
    (root / "plain.py").write_bytes(b"x = 1\n")
    (root / "bad.py").write_bytes(b"x = (\n")
    (root / "own.py").write_bytes(b"BaseException = OSError\n" + TRY)
    (root / "gone.py").symlink_to("nowhere")
    return resolve_tree(str(root))


@pytest.fixture
def out(tmp_path):
    directory = tmp_path / "out"
    directory.mkdir()
    return directory


def test_each_file_of_a_small_tree_has_its_outcome(tree, out):
    """Only changed files are written, under their own paths."""
    result = run_serial(tree, out)

    assert (result.files, result.changed, result.edits) == (6, 2, 3)
    assert (result.unparseable, result.skipped, result.unreadable, result.rejected) == (1, 1, 1, ())
    assert read_outputs(out) == dict(result.entries)
    assert (out / "a.py").read_bytes() == DONE
    assert (out / "sub/b.py").read_bytes() == b"\xef\xbb\xbf" + DONE * 2
    assert result.manifest == manifest_id(result.entries)
    assert result.seconds > 0


def test_the_run_is_ended_between_files(tree, out):
    """By whatever the caller's checkpoint raises."""
    left = iter([None, None])

    with pytest.raises(StopIteration):
        run_serial(tree, out, checkpoint=lambda: next(left))


def test_a_full_disk_is_an_os_error(tree, out, monkeypatch):
    """Not an outcome of one file: the run cannot go on."""

    def no_room(self, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", no_room)

    with pytest.raises(OSError, match="No space left"):
        run_serial(tree, out)


def test_the_manifest_is_canonical():
    """Sorted, one line each, names escaped as sha256sum does; its digest is the id."""
    entries = {"b.py": "2" * 64, "a\nb\\.py": "1" * 64}

    text = manifest_text(entries)

    assert text == "\\" + "1" * 64 + "  a\\nb\\\\.py\n" + "2" * 64 + "  b.py\n"
    assert manifest_id(entries) == hashlib.sha256(text.encode()).hexdigest()
    assert manifest_id(dict(reversed(entries.items()))) == manifest_id(entries)


def test_differences_are_named():
    """Missing, unexpected and different; what is ignored is not compared."""
    assert differences({"a": "1", "b": "2", "x": "0"}, {"b": "3", "c": "4", "x": "1"}, ignore=["x"]) == [
        "a: unexpected in the output",
        "b: differs from the serial reference",
        "c: missing from the output",
    ]


def test_a_right_output_verifies_and_leaves_no_scratch_behind(tree, out, tmp_path, monkeypatch):
    """The reference ran in a directory of its own, which is gone."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    claimed = run_serial(tree, out).entries

    result = verify(tree, out, claimed=claimed)

    assert result.ok
    assert result.problems == ()
    assert result.manifest == result.serial_manifest == manifest_id(claimed)
    assert list(scratch.iterdir()) == []


def test_an_ended_verification_leaves_no_scratch_behind(tree, out, tmp_path, monkeypatch):
    """Also when it is stopped in the middle."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    left = iter([None, None])

    with pytest.raises(StopIteration):
        verify(tree, out, checkpoint=lambda: next(left))
    assert list(scratch.iterdir()) == []


def test_denied_files_are_not_missed(tree, out):
    """The operator's word stands: such a file must be absent, and is not compared."""
    run_serial(tree, out)
    (out / "a.py").unlink()

    assert verify(tree, out, denied={"a.py"}).ok
    assert not verify(tree, out).ok
    assert "sub/b.py: unexpected in the output" in verify(tree, out, denied={"a.py", "sub/b.py"}).problems


@pytest.mark.parametrize(
    ("spoil", "part"),
    [
        (lambda out: (out / "a.py").unlink(), "a.py: missing from the output"),
        (lambda out: (out / "a.py").write_bytes(TRY), "a.py: a bare handler is left"),
        (lambda out: (out / "a.py").write_bytes(DONE + b"#\n"), "lines became"),
        (lambda out: (out / "a.py").write_bytes(b"x = ("), "does not parse"),
        (lambda out: (out / "extra.py").write_bytes(b""), "extra.py: not a file of the tree"),
        (lambda out: (out / "plain.py").write_bytes(b"x = 1\n"), "plain.py: written without an edit"),
        (lambda out: (out / "sub/b.py.tmp").write_bytes(b""), "sub/b.py.tmp: unexpected"),
        (lambda out: ((out / "a.py").unlink(), (out / "a.py").symlink_to("sub/b.py")), "a.py: differs"),
    ],
)
def test_a_spoiled_output_does_not_verify(tree, out, spoil, part):
    """Whatever is on disk is held against the reference and the originals."""
    run_serial(tree, out)
    spoil(out)

    result = verify(tree, out)

    assert not result.ok
    assert any(part in problem for problem in result.problems), result.problems
    assert result.manifest != result.serial_manifest or part.startswith("plain")


def test_what_the_job_claims_must_be_on_disk(tree, out):
    """A right directory with a wrong account of it does not verify."""
    run_serial(tree, out)

    assert verify(tree, out, claimed={}).problems == ("what is on disk is not what the job reported",)


@pytest.mark.slow
def test_the_standard_library_is_rewritten_whole(out):
    """Each patch of this interpreter's own library is proved; nearly all of it parses."""
    tree = resolve_tree("stdlib")

    result = run_serial(tree, out)

    assert result.rejected == ()
    assert result.changed > 100
    assert result.edits > result.changed
    assert result.unparseable < 50
    assert result.unreadable == 0
    for path in result.entries:
        text = (out / path).read_bytes()
        try:
            compile(text, path, "exec", dont_inherit=True)
        except SyntaxError:  # then the original's own
            with pytest.raises((SyntaxError, Unparseable)):
                compile((tree.root / path).read_bytes(), path, "exec", dont_inherit=True)
