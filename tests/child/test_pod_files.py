"""The scoped file tools: what the scope says holds, whatever happens to the path meanwhile."""

from __future__ import annotations

import ctypes
import os
import threading
import time

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trio_swarm._child.pod_files import ScopedFiles
from trio_swarm._child.pod_spec import PodSpec, check_pod_name
from trio_swarm._io import beneath
from trio_swarm._io.paths import resolve
from trio_swarm._state.scope import Grant
from trio_swarm.errors import GrantError
from trio_swarm.frames.pod import ScopeRule


@pytest.fixture
def tree(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "secret").write_text("secret")
    return tmp_path


@pytest.fixture
def files(tree):
    return ScopedFiles(Grant((ScopeRule(str(tree / "out"), "write"),)), str(tree / "out"))


async def test_reads_and_writes_within(files, tree):
    """Absolute or relative to the working directory; missing directories are made."""
    await files.write_bytes("a/b/c.txt", b"one")
    await files.write_bytes(tree / "out" / "d", b"two", mode=0o640, sync=True)

    assert await files.read_bytes(tree / "out" / "a" / "b" / "c.txt") == b"one"
    assert await files.read_bytes("d") == b"two"


@pytest.mark.parametrize(
    "path", ["../else/secret", "/etc/passwd", "a/../../else/secret", "link", "dirlink/secret", ".."]
)
async def test_outside_is_refused_by_name(files, tree, path):
    """The text names the path and the grant."""
    (tree / "out" / "link").symlink_to(tree / "else" / "secret")
    (tree / "out" / "dirlink").symlink_to(tree / "else")

    for act in (files.read_bytes(path), files.write_bytes(path, b"x")):
        with pytest.raises(GrantError) as caught:
            await act
        assert path in str(caught.value)
        assert f"outside the grant: write:{tree / 'out'}" in str(caught.value)
    assert (tree / "else" / "secret").read_text() == "secret"
    assert os.listdir(tree / "else") == ["secret"]


async def test_a_link_that_stays_inside_is_as_good_as_its_target(files, tree):
    """Resolved first, opened without links after."""
    await files.write_bytes("real/f", b"1")
    (tree / "out" / "alias").symlink_to("real")

    await files.write_bytes("alias/f", b"2")
    assert (tree / "out" / "real" / "f").read_bytes() == b"2"
    assert (tree / "out" / "alias").is_symlink()


async def test_deny_and_delegated_rules_hold(tree):
    """Deny caps; what was delegated is read-only."""
    out = tree / "out"
    grant = Grant(
        (ScopeRule(str(out), "write"),),
        (ScopeRule(str(out / "hidden"), "read"), ScopeRule(str(out / "fixed"), "write")),
    ).delegating([ScopeRule(str(out / "given"), "write")])
    for name in ("hidden", "fixed", "given"):
        (out / name).mkdir()
        (out / name / "f").write_text(name)
    files = ScopedFiles(grant, str(out))

    for name in ("fixed", "given"):
        assert await files.read_bytes(f"{name}/f") == name.encode()
    with pytest.raises(GrantError):
        await files.read_bytes("hidden/f")
    for name in ("hidden", "fixed", "given"):
        with pytest.raises(GrantError):
            await files.write_bytes(f"{name}/f", b"x")


async def test_directories_outside_the_scope_are_not_made(tree):
    """The scope's own target is, its missing parents are not."""
    made = ScopedFiles(Grant((ScopeRule(str(tree / "fresh"), "write"),)), "/")
    deep = ScopedFiles(Grant((ScopeRule(str(tree / "no" / "such"), "write"),)), "/")

    await made.write_bytes(tree / "fresh" / "f", b"x")
    with pytest.raises(FileNotFoundError):
        await deep.write_bytes(tree / "no" / "such" / "f", b"x")
    assert (tree / "fresh" / "f").read_bytes() == b"x"
    assert not (tree / "no").exists()


async def test_a_non_recursive_rule_ends_below_its_children(tree):
    """B4.2: the target and what is directly in it."""
    files = ScopedFiles(Grant((ScopeRule(str(tree / "out"), "write", False),)), str(tree / "out"))

    await files.write_bytes("f", b"x")
    with pytest.raises(GrantError):
        await files.write_bytes("d/f", b"x")


async def test_ordinary_errors_stay_what_they_are(files, tree):
    """No such file, a file in the place of a directory, a directory, a NUL, a circle."""
    (tree / "out" / "f").write_text("x")
    (tree / "out" / "loop").symlink_to("loop")

    with pytest.raises(FileNotFoundError):
        await files.read_bytes("none")
    with pytest.raises(NotADirectoryError):
        await files.write_bytes("f/x", b"")
    with pytest.raises((IsADirectoryError, ValueError)):
        await files.write_bytes(".", b"")
    for bad in ("a\0b", "loop", "loop/x", "", "\ud800x\0"):
        with pytest.raises(ValueError, match=r"path|link|file name"):
            await files.read_bytes(bad)


pieces = st.lists(
    st.sampled_from(["..", ".", "", "out", "else", "secret", "link", "dirlink", "x", "..."]), max_size=7
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pieces=pieces, absolute=st.booleans())
def test_no_name_escapes(files, tree, pieces, absolute):
    """Fuzzed names over a tree with links: the secret is neither read nor written."""
    for name, to in (("link", "../else/secret"), ("dirlink", "../else")):
        if not os.path.lexists(tree / "out" / name):
            (tree / "out" / name).symlink_to(to)
    path = (f"{tree}/" if absolute else "") + "/".join(pieces)
    for act in (lambda: files._read(path, 100), lambda: files._write(path, b"mine", None, False)):
        try:
            assert act() != b"secret"
        except (OSError, ValueError):
            assert act is not None

    assert sorted(os.listdir(tree)) == ["else", "out"]
    assert os.listdir(tree / "else") == ["secret"]
    assert (tree / "else" / "secret").read_text() == "secret"


@pytest.mark.parametrize("kernel", [True, False])
async def test_a_flipping_link_never_leads_out(files, tree, monkeypatch, kernel):
    """Raced for about a second through the whole of the tool: 0 escapes."""
    if not kernel:
        monkeypatch.setattr(beneath, "_openat2", lambda: None)
    out, stop = tree / "out", threading.Event()
    (out / "real").mkdir()
    (out / "real" / "secret").write_text("harmless")
    (out / "d").symlink_to(tree / "else")
    libc = ctypes.CDLL(None, use_errno=True)

    def flip():
        one, two = os.fsencode(out / "real"), os.fsencode(out / "d")
        while not stop.is_set():
            # Both change places in one step, so that "d" is there at any moment.
            assert libc.renameat2(-100, one, -100, two, 2) == 0

    def attack():
        good = bad = 0
        until = time.monotonic() + 1.0
        while time.monotonic() < until:
            try:
                assert files._read("d/secret", 100) == b"harmless"
                files._write("d/mine", b"mine", None, False)
                good += 1
            except OSError:
                bad += 1
        return good, bad

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, flip)
        try:
            good, bad = await trio.to_thread.run_sync(attack)
        finally:
            stop.set()

    assert good
    assert bad
    assert os.listdir(tree / "else") == ["secret"]
    assert (tree / "else" / "secret").read_text() == "secret"


# -- names and paths -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a", "A-1.b_c", "0", "x" * 100])
def test_pod_names_that_are_fine(name):
    """They become directories."""
    assert check_pod_name(name) == name


@pytest.mark.parametrize("name", ["", ".", "..", ".a", "-a", "a/b", "a b", "a\n", "é", "x" * 101, "a\0"])
def test_pod_names_that_are_not(name):
    """None of them leaves the base directory or confuses a log."""
    with pytest.raises(ValueError, match="cannot name a pod"):
        check_pod_name(name)


@pytest.mark.parametrize(
    "change",
    [
        {"pod_name": "../x"},
        {"target": "nocolon"},
        {"target": ":f"},
        {"base_dir": "relative"},
        {"cwd": "relative"},
        {"scope_allow": ()},
        {"scope_allow": (ScopeRule("rel", "read"),)},
        {"scope_deny": (ScopeRule("/a/..", "read"),)},
        {"base_dir": "/" + "x" * 100},
    ],
)
def test_a_specification_is_checked(change):
    """Before anything is made."""
    fields = {"pod_name": "p", "base_dir": "/tmp", "target": "m:f", "scope_allow": (ScopeRule("/a", "read"),)}
    assert PodSpec(**fields).check()
    with pytest.raises(ValueError, match=r"\w"):
        PodSpec(**fields | change).check()


def test_resolving_goes_through_the_nearest_existing_ancestor(tmp_path):
    """What is not there yet keeps its name."""
    (tmp_path / "dir").mkdir()
    (tmp_path / "to").symlink_to("dir")

    assert resolve(f"{tmp_path}/to/new/deep") == f"{tmp_path}/dir/new/deep"
    assert resolve("to/../x", cwd=str(tmp_path)) == f"{tmp_path}/x"
    assert resolve("//etc") == "/etc"
    with pytest.raises(ValueError, match="absolute"):
        resolve("x")
