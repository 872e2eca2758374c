"""The warden from outside: raw lines and descriptors on its socket, and what ends it."""

from __future__ import annotations

import array
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import trio_swarm._child.warden

SCRIPT = trio_swarm._child.warden.__file__


class RawWarden:
    """A warden, and the other end of its socket."""

    def __init__(self, *directories: Path, coordinator: int | None = None) -> None:
        pid = coordinator or os.getpid()
        self.socket, its = socket.socketpair()
        self.socket.settimeout(20)
        with its:
            self.process = subprocess.Popen(
                [sys.executable, "-I", "-S", SCRIPT, *map(str, (its.fileno(), pid, 5.0, *directories))],
                pass_fds=[its.fileno()],
                start_new_session=True,
            )
        self._lines = self.socket.makefile("rb")

    def __enter__(self) -> RawWarden:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        self.process.wait(20)

    def close(self) -> None:
        self._lines.close()
        self.socket.close()

    def hear(self, event: str) -> dict:
        """The next word of one kind."""
        return next(word for word in map(json.loads, self._lines) if word["event"] == event)

    def hear_all(self) -> list[dict]:
        """Every word until its end."""
        return [json.loads(line) for line in self._lines]

    def say(self, data: bytes, fds: list[int] | None = None) -> None:
        beside = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        assert self.socket.sendmsg([data], beside) == len(data)


def start(name: str, argv: list[str], targets: tuple[int, ...] = (), **more: object) -> bytes:
    order = {"op": "start", "id": name, "argv": argv, "env": ["PATH", os.environ["PATH"]], "cwd": "/"}
    order |= {"targets": list(targets), "lifeline": 9, "fds": len(targets), **more}
    return json.dumps(order).encode() + b"\n"


def order(op: str, **more: object) -> bytes:
    return json.dumps({"op": op, "fds": 0, **more}).encode() + b"\n"


def test_one_byte_at_a_time():
    """However a line is cut, it is the same line; its descriptors come with its first byte."""
    reader, writer = os.pipe()
    with RawWarden() as warden, open(reader, "rb") as output:
        data = start("it", ["echo", "hello"], (1,))
        warden.say(data[:1], [writer])
        os.close(writer)
        for n in range(1, len(data)):
            warden.say(data[n : n + 1])
        assert output.read() == b"hello\n"
        assert warden.hear("exit")["code"] == 0


def test_many_lines_at_once():
    """Lines with and without descriptors, all sent before the first is read: each gets its own."""
    with RawWarden() as warden:
        warden.hear("ready")
        os.kill(warden.process.pid, signal.SIGSTOP)
        outputs = []
        for n in range(10):
            one, two = os.pipe(), os.pipe()
            warden.say(start(f"plain{n}", ["true"]) + order("stop", id="nobody", grace=0))
            script = f"echo out{n}; echo err{n} >&2"
            warden.say(start(f"{n}", ["sh", "-c", script], (1, 2)), [one[1], two[1]])
            os.close(one[1])
            os.close(two[1])
            outputs.append((one[0], two[0]))
        os.kill(warden.process.pid, signal.SIGCONT)
        for n, (out, err) in enumerate(outputs):
            with open(out) as out_file, open(err) as err_file:
                assert (out_file.read(), err_file.read()) == (f"out{n}\n", f"err{n}\n")


def test_descriptors_that_trade_places():
    """A source under the number of another's target is copied before it is overwritten."""
    with RawWarden() as warden:
        pipes = [os.pipe() for _ in range(20)]
        targets = tuple(range(3, 9)) + tuple(range(10, 24))
        code = f"import os\nfor n in {targets}: os.write(n, str(n).encode())"
        argv = [sys.executable, "-I", "-S", "-c", code]
        warden.say(start("it", argv, targets), [writer for _, writer in pipes])
        for (reader, writer), target in zip(pipes, targets, strict=True):
            os.close(writer)
            with open(reader) as file:
                assert file.read() == str(target)
        assert warden.hear("exit")["code"] == 0


def test_an_order_that_fails_leaves_no_descriptor():
    """Those that came with it are closed."""
    with RawWarden() as warden:
        reader, writer = os.pipe()
        warden.say(start("it", ["/no/such"], (1,)), [writer])
        os.close(writer)
        assert "No such file" in warden.hear("started")["error"]
        with open(reader, "rb") as file:
            assert file.read() == b""


def test_end_of_the_socket(tmp_path):
    """Everybody is killed without grace, the directories go, the exit code says that all is well."""
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").touch()
    with RawWarden(tmp_path / "kept", tmp_path / "missing") as warden:
        warden.say(start("it", ["sh", "-c", "trap '' TERM; sleep 100 & sleep 100"]))
        pid = warden.hear("started")["pid"]
        warden.close()
        assert warden.process.wait(5) == 0
    with pytest.raises(ProcessLookupError):
        os.killpg(pid, 0)
    assert list(tmp_path.iterdir()) == []


def test_end_of_the_coordinator(tmp_path):
    """A coordinator that is not the parent (any more) is gone, before the first word."""
    (tmp_path / "kept").mkdir()
    with RawWarden(tmp_path / "kept", coordinator=1) as warden:
        assert warden.hear("final")["left"] == []
        assert warden.process.wait(5) == 0
    assert list(tmp_path.iterdir()) == []


def test_sigterm():
    """As if the coordinator were gone, but it is told; nothing is started any more."""
    with RawWarden() as warden:
        warden.say(start("it", ["sleep", "100"]))
        warden.hear("started")
        warden.process.terminate()
        assert warden.hear("exit") == {"event": "exit", "id": "it", "code": -9, "sent": 9}
        assert warden.hear("final")["left"] == []
        assert warden.process.wait(5) == 0


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGHUP, signal.SIGPIPE])
def test_other_signals_change_nothing(signum):
    """Ctrl-C is the coordinator's to hear."""
    with RawWarden() as warden:
        warden.hear("ready")
        warden.process.send_signal(signum)
        warden.say(start("it", ["true"]))
        assert warden.hear("exit")["code"] == 0


def test_shutdown_in_order():
    """Those that end in time are not killed; exits and all-clears come before the last word."""
    with RawWarden() as warden:
        warden.say(start("a", ["sleep", "100"]) + start("b", ["sh", "-c", "trap '' TERM; echo; cat"]))
        warden.hear("started")
        warden.hear("started")
        warden.say(order("shutdown", grace=0.3) + start("late", ["true"]))
        words = warden.hear_all()
        assert [w["event"] for w in words][-1] == "final"
        assert {w["id"] for w in words if w["event"] == "gone"} == {"a", "b"}
        assert [w["error"] for w in words if w["event"] == "started"] == ["the warden is ending"]
        sent = {w["id"]: w["sent"] for w in words if w["event"] == "exit"}
        assert sent["a"] == signal.SIGTERM


def test_a_mute_coordinator_does_not_stop_it():
    """Nobody reads its words: it goes on all the same, and ends when the socket does."""
    with RawWarden() as warden:
        warden.hear("ready")
        warden.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        for n in range(1500):
            warden.say(start(f"{n}" + "x" * 500, ["/no/such"]))
        warden.close()
        assert warden.process.wait(20) == 0


def test_it_needs_the_standard_library_alone():
    """Neither Trio nor attrs is in it: it starts in a fraction of the time."""
    code = (
        "import sys; sys.path.append(sys.argv[1])\n"
        "import trio_swarm._child.warden, trio_swarm._child.warden_loop, trio_swarm._child.lifeline\n"
        "found = {name.partition('.')[0] for name in sys.modules} - {'__main__'}\n"
        "print(*sorted(found - sys.stdlib_module_names))"
    )
    root = str(Path(SCRIPT).parents[2])
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, root], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["trio_swarm"]
