"""Why there is no connection is said as the system said it, and no more than is known."""

from __future__ import annotations

import os
import shutil
import sys

import pytest
import trio

from tests.io.test_dialing import ROOT, SAY
from trio_swarm._io import dialing
from trio_swarm._io.dialing import connect_uds
from trio_swarm._io.unix import connect_unix
from trio_swarm.errors import HandshakeError


async def test_what_is_gone_by_then_is_not_said_to_be_no_socket(tmp_path, monkeypatch) -> None:
    """Nobody listens, and its file is removed before it is looked at."""
    path = tmp_path / "s"
    with trio.socket.socket(trio.socket.AF_UNIX) as bound:
        await bound.bind(str(path))

    async def removed_meanwhile(at: str) -> trio.SocketStream:
        try:
            return await connect_unix(at)
        finally:
            os.unlink(at)

    monkeypatch.setattr(dialing, "connect_unix", removed_meanwhile)
    with pytest.raises(HandshakeError) as caught:
        await connect_uds(str(path))
    assert str(caught.value) == f"cannot connect to {path}: Connection refused"


@pytest.mark.skipif(
    os.geteuid() == 0 and shutil.which("setpriv") is None, reason="no setpriv, and root may do anything"
)
async def test_a_file_that_we_may_not_use(tmp_path) -> None:
    """That it is no socket is not why: nobody was asked."""
    may_not = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.geteuid() == 0 else []
    (tmp_path / "file").write_text("")
    (tmp_path / "file").chmod(0)
    done = await trio.run_process(
        [*may_not, sys.executable, "-c", SAY, str(tmp_path / "file")],
        capture_stdout=True,
        env={"PYTHONPATH": ROOT, "PATH": "/usr/bin:/bin"},
    )
    assert done.stdout.decode() == f"cannot connect to {tmp_path}/file: Permission denied\n"
