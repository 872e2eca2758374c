"""Opening below a directory: nothing leads out, whatever is done to the path meanwhile."""

from __future__ import annotations

import errno
import os
import stat
import threading
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trio_swarm._io import beneath


@pytest.fixture(params=["openat2", "walk"])
def way(request, monkeypatch):
    """Both ways of resolving: the kernel's, and ours where it has none."""
    if request.param == "walk":
        monkeypatch.setattr(beneath, "_openat2", lambda: None)
    elif beneath._openat2() is None:
        monkeypatch.setattr(beneath, "_openat2", lambda: beneath.walk_beneath)
    return request.param


@pytest.fixture
def tree(tmp_path):
    """``inside`` with a file, a directory and links that lead out, and a secret outside."""
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    (inside / "dir").mkdir(parents=True)
    outside.mkdir()
    (outside / "secret").write_text("secret")
    (inside / "file").write_text("file")
    (inside / "dir" / "deep").write_text("deep")
    (inside / "out").symlink_to(outside)
    (inside / "leak").symlink_to(outside / "secret")
    (inside / "here").symlink_to("file")
    (inside / "dirlink").symlink_to("dir")
    return tmp_path


@pytest.fixture
def root(tree):
    fd = beneath.open_directory(str(tree / "inside"))
    yield fd
    os.close(fd)


def test_files_are_read(way, root):
    """The ordinary case; ``.`` and doubled slashes are nothing special."""
    assert beneath.read_file(root, "file") == b"file"
    assert beneath.read_file(root, "./dir//deep") == b"deep"


@pytest.mark.parametrize("path", ["out/secret", "leak", "here", "dirlink/deep", "dirlink"])
def test_a_link_anywhere_is_an_error(way, root, path):
    """Also one that would stay inside: the caller resolved links before, so this one is new."""
    with pytest.raises(OSError, match="symbolic links") as caught:
        beneath.read_file(root, path)
    assert caught.value.errno == errno.ELOOP


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "..", "../outside/secret", "dir/../../outside/secret", "a\0b"]
)
def test_paths_that_lead_upwards_are_refused(way, root, path):
    """Before the kernel is asked."""
    with pytest.raises(ValueError, match=r"relative|upwards"):
        beneath.read_file(root, path)


def test_what_is_no_regular_file_does_not_block(way, tree, root):
    """A pipe that somebody planted is refused at once, a directory is told as one."""
    os.mkfifo(tree / "inside" / "pipe")

    with pytest.raises(ValueError, match="regular"):
        beneath.read_file(root, "pipe")
    with pytest.raises(IsADirectoryError):
        beneath.read_file(root, "dir")
    with pytest.raises(NotADirectoryError):
        beneath.read_file(root, "file/x")


def test_reading_is_bounded(way, root):
    """At the limit, and one over it."""
    assert beneath.read_file(root, "file", limit=4) == b"file"
    with pytest.raises(ValueError, match="more than 3"):
        beneath.read_file(root, "file", limit=3)


def test_writing_replaces_whole_and_makes_directories(way, tree, root):
    """A reader that has the old file open keeps it; no temporary file is left."""
    with open(tree / "inside" / "file", "rb") as before:
        beneath.replace_file(root, "file", b"new")
        assert before.read() == b"file"
    beneath.replace_file(root, "a/b/c", b"deep", sync=True)

    assert (tree / "inside" / "file").read_bytes() == b"new"
    assert (tree / "inside" / "a" / "b" / "c").read_bytes() == b"deep"
    assert not list((tree / "inside").rglob("*.tmp"))


def test_modes(way, tree, root):
    """The replaced file's mode is kept, a given one holds, else the umask decides."""
    (tree / "inside" / "file").chmod(0o750)
    before = os.umask(0o027)
    try:
        beneath.replace_file(root, "file", b"x")
        beneath.replace_file(root, "given", b"x", mode=0o600)
        beneath.replace_file(root, "fresh", b"x")
    finally:
        os.umask(before)

    modes = [stat.S_IMODE((tree / "inside" / name).stat().st_mode) for name in ("file", "given", "fresh")]
    assert modes == [0o750, 0o600, 0o640]


@pytest.mark.parametrize("path", ["out/new", "leak", "dirlink/new", "out/sub/new"])
def test_writing_through_a_link_is_refused(way, tree, root, path):
    """And nothing is made or changed outside."""
    with pytest.raises(OSError, match="symbolic links"):
        beneath.replace_file(root, path, b"x")

    assert (tree / "outside" / "secret").read_text() == "secret"
    assert os.listdir(tree / "outside") == ["secret"]
    assert not list(tree.rglob("*.tmp"))


@pytest.mark.parametrize("path", ["dir", "", "."])
def test_a_directory_is_not_replaced(way, root, path):
    """Whatever it is called."""
    with pytest.raises((ValueError, IsADirectoryError)):
        beneath.replace_file(root, path, b"x")


def test_hard_links_elsewhere_keep_their_content(way, tree, root):
    """Writing makes a new inode."""
    os.link(tree / "outside" / "secret", tree / "inside" / "hard")

    beneath.replace_file(root, "hard", b"x")

    assert (tree / "outside" / "secret").read_text() == "secret"


def test_a_full_disk_leaves_the_old_file(way, tree, root, monkeypatch):
    """And no temporary one."""

    def full(fd, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(beneath.os, "write", full)
    with pytest.raises(OSError, match="No space"):
        beneath.replace_file(root, "file", b"new")
    monkeypatch.undo()

    assert (tree / "inside" / "file").read_text() == "file"
    assert not list((tree / "inside").rglob("*.tmp"))


names = st.lists(
    st.sampled_from(
        ["..", ".", "", "dir", "file", "out", "leak", "dirlink", "secret", "outside", "a\0", "new", "é"]
    ),
    max_size=6,
)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parts=names, lead=st.sampled_from(["", "/", "//", "./"]))
def test_no_name_leads_out(way, tree, root, parts, lead):
    """Fuzzed names: the secret is never read and the outside never written."""
    path = lead + "/".join(parts)
    try:
        assert beneath.read_file(root, path) != b"secret"
    except (OSError, ValueError):
        # Refused is as good.
        assert path is not None
    try:
        beneath.replace_file(root, path, b"mine")
    except (OSError, ValueError):
        assert path is not None

    assert sorted(os.listdir(tree)) == ["inside", "outside"]
    assert os.listdir(tree / "outside") == ["secret"]
    assert (tree / "outside" / "secret").read_text() == "secret"


def flip(inside, outside, stop):
    """Make ``inside/d`` a directory and a link to the outside in turn, as fast as it goes."""
    real, link, place = inside / "real", inside / "link", inside / "d"
    real.mkdir()
    (real / "secret").write_text("harmless")
    link.symlink_to(outside)
    while not stop.is_set():
        os.rename(real, place)
        os.rename(place, real)
        os.rename(link, place)
        os.rename(place, link)


def test_a_flipping_link_never_leaks(way, tree, root):
    """Raced from a thread: many tries, no escape in either direction.

    Until enough of both were seen: how often the racer comes to run is the system's affair.
    """
    stop = threading.Event()
    racer = threading.Thread(target=flip, args=(tree / "inside", tree / "outside", stop))
    racer.start()
    harmless = refused = 0
    give_up = time.monotonic() + 60.0
    try:
        while harmless + refused < 6000 or (min(harmless, refused) < 50 and time.monotonic() < give_up):
            try:
                assert beneath.read_file(root, "d/secret") == b"harmless"
                beneath.replace_file(root, "d/mine", b"mine", parents=False)
                harmless += 1
            except OSError:
                refused += 1
    finally:
        stop.set()
        racer.join()

    assert harmless >= 50
    assert refused >= 50
    assert os.listdir(tree / "outside") == ["secret"]
    assert (tree / "outside" / "secret").read_text() == "secret"


def test_what_a_dead_owner_left_is_removed_and_nothing_else(way, tree, root):
    """By its exact name, a regular file, of a dead process; once for each directory."""
    inside, tail = tree / "inside", "0123456789abcdef.tmp"
    left = inside / f".p-4-{tail}"
    kept = [
        f".p-5-{tail}",
        f".p-x-4-{tail}",
        f".q-4-{tail}",
        f".p-4-{tail}.x",
        f"x.p-4-{tail}",
        f".pp-4-{tail}",
    ]
    for path in (left, *(inside / name for name in kept)):
        path.write_text("")
    (inside / f".p-44-{tail}").symlink_to("file")
    (inside / f".p-444-{tail}").mkdir()
    before = set(os.listdir(inside))
    temporaries = beneath.Temporaries("p", lambda pid: pid != 5)

    beneath.replace_file(root, "file", b"new", temporaries=temporaries)
    assert before - set(os.listdir(inside)) == {left.name}
    assert (inside / "file").read_bytes() == b"new"

    left.write_text("")
    beneath.replace_file(root, "dir/f", b"new", temporaries=temporaries)
    beneath.replace_file(root, "file", b"newer", temporaries=temporaries)
    assert left.exists()


def test_a_directory_that_cannot_be_listed_is_written_to(way, tree, root, monkeypatch):
    """Tidying up is no reason to fail."""

    def refuse(fd):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(beneath.os, "scandir", refuse)
    beneath.replace_file(root, "file", b"new", temporaries=beneath.Temporaries("p", lambda pid: True))
    assert (tree / "inside" / "file").read_bytes() == b"new"
