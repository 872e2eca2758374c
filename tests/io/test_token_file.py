"""A secret in a file: made once, for its owner alone, and never through a link."""

from __future__ import annotations

import os
import stat
import threading
from traceback import TracebackException

import pytest

from trio_swarm._io.token_file import keep_token

FRESH = "0123456789abcdef"


def shown(raised: pytest.ExceptionInfo[ValueError]) -> str:
    """The traceback with all variables, but for the test's own."""
    assert raised.tb.tb_next is not None
    text = TracebackException(raised.type, raised.value, raised.tb.tb_next, capture_locals=True)
    return "".join(text.format())


def test_it_is_made_and_used_again(tmp_path) -> None:
    """Mode 0600, whatever the umask; the second time what is there counts."""
    path = tmp_path / "token"
    before = os.umask(0)
    try:
        assert keep_token(path, FRESH) == (FRESH, True)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert keep_token(path, "f" * 32) == (FRESH, False)
    assert list(tmp_path.iterdir()) == [path]


def test_of_many_that_make_it_all_use_the_same(tmp_path) -> None:
    """One made it."""
    path, barrier = tmp_path / "token", threading.Barrier(8)
    found: list[tuple[str, bool]] = []

    def make(number: int) -> None:
        barrier.wait()
        found.append(keep_token(path, f"{number:032x}"))

    threads = [threading.Thread(target=make, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({token for token, _ in found}) == 1
    assert sum(made for _, made in found) == 1
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_is_not_followed(tmp_path) -> None:
    """Neither to something nor to nothing."""
    (tmp_path / "real").write_text(FRESH)
    (tmp_path / "real").chmod(0o600)
    for target in ("real", "nothing"):
        link = tmp_path / f"to-{target}"
        link.symlink_to(tmp_path / target)
        with pytest.raises(ValueError, match="not a regular file"):
            keep_token(link, FRESH)
    assert not (tmp_path / "nothing").exists()
    with pytest.raises(ValueError, match="not a regular file"):
        keep_token(tmp_path, FRESH)


def test_what_others_may_read_is_no_secret(tmp_path) -> None:
    """It is refused, not repaired: somebody may have read it."""
    path = tmp_path / "token"
    path.write_text(FRESH)
    path.chmod(0o640)
    with pytest.raises(ValueError, match="its mode is 640, it must be 600") as refused:
        keep_token(path, "f" * 32)
    assert FRESH not in shown(refused)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_anothers_is_refused(tmp_path) -> None:
    """Who owns it knows it."""
    path = tmp_path / "token"
    keep_token(path, FRESH)
    os.chown(path, 12345, -1)
    with pytest.raises(ValueError, match="belongs to uid 12345"):
        keep_token(path, FRESH)


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"short", b"hunter2 and more words", b"\xff" * 20, b"x" * 5000, b"hunter2;" * 4]
)
def test_what_is_no_token_is_refused_and_not_shown(tmp_path, content) -> None:
    """It may be another program's secret."""
    path = tmp_path / "token"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(ValueError, match="token") as refused:
        keep_token(path, FRESH)
    assert "hunter2" not in shown(refused)
    assert path.read_bytes() == content


def test_a_directory_that_is_not_there(tmp_path) -> None:
    """What the system said; nothing is left."""
    with pytest.raises(FileNotFoundError):
        keep_token(tmp_path / "no" / "token", FRESH)
    assert list(tmp_path.iterdir()) == []
