"""``trio-swarm serve`` by hand: a real process, real signals, real files."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import shlex
import signal
import socket
import ssl
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import attrs
import httpx2
import pytest
from websockets.sync.client import connect

from tests.pipes import full_pipe
from trio_swarm.cli import main
from trio_swarm.cli.serve import EXIT_STATUSES, ServeOptions, parse_options

WITHIN = 30

MAKE_CERTIFICATE = """
openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost
-addext subjectAltName=DNS:localhost,IP:127.0.0.1 -out cert.pem -keyout key.pem
"""


@attrs.frozen
class Serving:
    process: subprocess.Popen[str]
    lines: list[str]

    @property
    def url(self) -> str:
        return self.lines[0].removeprefix("listening on ").partition(" ")[0]

    def end(self, number: signal.Signals) -> tuple[int, str, str]:
        """Status, and what it still wrote."""
        self.process.send_signal(number)
        out, err = self.process.communicate(timeout=WITHIN)
        return self.process.returncode, out, err


@contextmanager
def serving(
    *flags: str | Path, expect: int = 2, cwd: Path | None = None, stderr: int = subprocess.PIPE
) -> Iterator[Serving]:
    """A server process; ``expect`` lines are read first."""
    argv = [sys.executable, "-m", "trio_swarm", "serve", "--port", "0", *map(str, flags)]
    if "--unix" in flags:
        del argv[4:6]
    pipe = subprocess.PIPE
    with subprocess.Popen(argv, stdout=pipe, stderr=stderr, text=True, cwd=cwd, env=_env()) as process:
        try:
            assert process.stdout is not None
            lines = [process.stdout.readline().rstrip("\n") for _ in range(expect)]
            yield Serving(process, lines)
        finally:
            process.kill()


def refused(*flags: str | Path) -> tuple[int, str]:
    """Status and the one line of a server that does not come to be."""
    argv = [sys.executable, "-m", "trio_swarm", "serve", *map(str, flags)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=WITHIN, env=_env())
    assert done.stdout == ""
    assert done.stderr.startswith("trio-swarm: error: ")
    assert done.stderr.count("\n") == 1, done.stderr
    return done.returncode, done.stderr


def _env() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}


def log_in(at: Serving, **body: object) -> dict[str, str]:
    answer = httpx2.post(f"{at.url}/v1/operators", json=body, trust_env=False)
    assert answer.status_code == 200
    return answer.json()


def known(at: Serving, login: dict[str, str]) -> int:
    headers = {"Authorization": f"Bearer {login['token']}"}
    return httpx2.get(f"{at.url}/v1/operators/{login['sid']}", headers=headers, trust_env=False).status_code


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_in_order(number, tmp_path) -> None:
    """Status 0; says where it listens and its admin token once; leaves nothing but what was asked for."""
    with serving(cwd=tmp_path) as at:
        assert re.fullmatch(r"http://127\.0\.0\.1:[0-9]+", at.url)
        assert re.fullmatch(r"admin token [0-9a-f]{32}", at.lines[1])
        assert httpx2.get(f"{at.url}/v1/healthz", trust_env=False).text == "ok"
        assert at.end(number) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


def test_sessions_survive_its_restart_and_its_kill(tmp_path) -> None:
    """--state: the same sid and token, and the token file's token too."""
    flags = ("--state", tmp_path / "state", "--token-file", tmp_path / "token")
    with serving(*flags) as at:
        assert at.lines[1] == f"admin token in {tmp_path / 'token'}"
        first = log_in(at, roles=["a"])
        token = (tmp_path / "token").read_text()
        assert at.end(signal.SIGTERM) == (0, "", "")
    with serving(*flags) as at:
        assert known(at, first) == 200
        second = log_in(at, roles=["b"])
        at.process.kill()
    with serving(*flags) as at:
        assert (known(at, first), known(at, second)) == (200, 200)
        assert (tmp_path / "token").read_text() == token
        assert at.end(signal.SIGINT)[0] == 0
    modes = {each.name: stat.S_IMODE(each.stat().st_mode) for each in tmp_path.rglob("*")}
    assert modes == {"state": 0o700, "sessions.sqlite": 0o600, "token": 0o600}


def test_the_admin_token_opens_the_admin_routes(tmp_path) -> None:
    """And nothing else does."""
    with serving("--token-file", tmp_path / "token") as at:
        token = (tmp_path / "token").read_text().strip()
        assert token not in "\n".join(at.lines)
        statuses = [
            httpx2.get(f"{at.url}/v1/tasks", headers={"Authorization": f"Bearer {each}"}, trust_env=False)
            for each in (token, "wrong" * 8)
        ]
        assert [answer.status_code for answer in statuses] == [200, 401]


def test_a_terminal_is_shown_the_token(tmp_path) -> None:
    """With --token-file too: who sits there may know it."""
    ours, its = pty.openpty()
    argv = [sys.executable, "-m", "trio_swarm", "serve", "--port", "0", "--token-file", str(tmp_path / "t")]
    with subprocess.Popen(argv, stdout=its, stderr=its, env=_env()) as process:
        os.close(its)
        text = b""
        try:
            while text.count(b"\n") < 3:
                assert select.select([ours], [], [], WITHIN)[0], f"only this was shown: {text!r}"
                text += os.read(ours, 4096)
        finally:
            process.terminate()
            process.wait(WITHIN)
            os.close(ours)
    assert (tmp_path / "t").read_text().strip() in text.decode()


def test_a_unix_socket(tmp_path) -> None:
    """Mode 0600; removed at the end; a second server is refused while it is there."""
    path = tmp_path / "socket"
    with serving("--unix", path) as at:
        assert at.lines[0] == f"listening on http://localhost at {path}"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with httpx2.Client(transport=httpx2.HTTPTransport(uds=str(path)), base_url=at.url) as client:
            assert client.get("/v1/healthz").text == "ok"
        assert refused("--unix", path)[0] == 3
        assert at.end(signal.SIGTERM) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def certificate(tmp_path_factory) -> tuple[Path, Path]:
    where = tmp_path_factory.mktemp("tls")
    made = subprocess.run(
        shlex.split(MAKE_CERTIFICATE),
        cwd=where,
        capture_output=True,
        check=False,
    )
    if made.returncode:
        pytest.skip("no openssl command")
    return where / "cert.pem", where / "key.pem"


def test_tls(certificate, tmp_path) -> None:
    """https, and no warning then, wherever it listens; a Host that is allowed by name."""
    cert, key = certificate
    flags: tuple[str | Path, ...] = ("--host", "0.0.0.0", "--tls-cert", cert, "--tls-key", key)
    flags += ("--allow-host", "swarm.example", "--base-url", "https://swarm.example")
    with serving(*flags) as at:
        assert at.url.startswith("https://127.0.0.1:")
        context = ssl.create_default_context(cafile=str(cert))
        with httpx2.Client(verify=context, base_url=at.url, trust_env=False) as client:
            assert client.get("/v1/healthz").text == "ok"
            assert client.get("/v1/healthz", headers={"Host": "swarm.example"}).status_code == 200
            assert client.get("/v1/healthz", headers={"Host": "evil.example"}).status_code == 421
        assert at.end(signal.SIGTERM) == (0, "", "")
    status, line = refused("--port", "0", "--tls-cert", key, "--tls-key", cert)
    assert status == 5
    assert "cannot use the certificate" in line
    locked = tmp_path / "locked.pem"
    encrypt = ["openssl", "rsa", "-aes256", "-passout", "pass:secret", "-in", key, "-out", locked]
    subprocess.run(encrypt, check=True, capture_output=True)
    status, line = refused("--port", "0", "--tls-cert", cert, "--tls-key", locked)
    assert (status, "the key is encrypted" in line) == (5, True)


def test_beyond_loopback_without_tls_is_warned_of() -> None:
    """And of the address that workers are told; it serves all the same."""
    with serving("--host", "0.0.0.0") as at:
        assert httpx2.get(f"{at.url}/v1/healthz", trust_env=False).text == "ok"
        status, _, err = at.end(signal.SIGTERM)
    assert status == 0
    no_tls, elsewhere = err.splitlines()
    assert no_tls.startswith("trio-swarm: warning: it listens beyond this machine without TLS")
    assert elsewhere.startswith(f"trio-swarm: warning: workers are told to come to {at.url}: give --base-url")


def test_workers_are_told_the_base_url(tmp_path) -> None:
    """What the operator hands to its worker names it, and nothing is warned of."""
    flags = ("--host", "0.0.0.0", "--base-url", "https://swarm.example/a", "--token-file", tmp_path / "token")
    with serving(*flags) as at:
        login = log_in(at, roles=["op"])
        admin = {"Authorization": f"Bearer {(tmp_path / 'token').read_text().strip()}"}
        step = {"agent": "a", "prompt": "p", "operator_sid": "op", "layers": ["operator_delegate"]}
        socket_url = f"{at.url.replace('http', 'ws')}/v1/operators/{login['sid']}/ws"
        bearer = {"Authorization": f"Bearer {login['token']}"}
        with connect(socket_url, additional_headers=bearer, proxy=None) as peer:
            url = f"{at.url}/v1/tasks"
            started = httpx2.post(url, json={**step, "detach": True}, headers=admin, trust_env=False)
            assert started.status_code == 202, started.text
            directive = json.loads(peer.recv(timeout=WITHIN))["directive"]
        _, _, err = at.end(signal.SIGTERM)
    assert "base_url: https://swarm.example/a\n" in directive
    assert err.count("warning") == 1
    for wrong in ("swarm.example", "http://h:7777/v1", "http://h?", "HTTP://h:7777", "http://h/`x`"):
        status, line = refused("--base-url", wrong)
        assert (status, f"--base-url: {wrong!r}: expected" in line) == (2, True)


def test_a_full_pipe_holds_nothing_up(tmp_path) -> None:
    """Nobody reads where it listens: it serves all the same, and heeds the signal."""
    path = tmp_path / "socket"
    argv = [sys.executable, "-m", "trio_swarm", "serve", "--unix", path, "--token-file", tmp_path / "token"]
    with (
        full_pipe() as (_, writer),
        subprocess.Popen(argv, stdout=writer, stderr=subprocess.PIPE, text=True, env=_env()) as process,
    ):
        try:
            assert b" 200 " in _answered(path)
            process.send_signal(signal.SIGTERM)
            assert process.wait(WITHIN) == 0
        finally:
            process.kill()


def _answered(path: Path) -> bytes:
    """The answer of a server at a Unix socket, as soon as there is one."""
    until = time.monotonic() + WITHIN
    while True:
        with socket.socket(socket.AF_UNIX) as peer, suppress(FileNotFoundError, ConnectionRefusedError):
            peer.settimeout(WITHIN)
            peer.connect(str(path))
            peer.sendall(b"GET /v1/healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            return peer.recv(4096)
        assert time.monotonic() < until
        select.select([], [], [], 0.02)


def test_browsers_come_from_where_they_may() -> None:
    """--origin."""
    with serving("--origin", "https://app.example") as at:
        statuses = [
            httpx2.get(f"{at.url}/v1/healthz", headers={"Origin": origin}, trust_env=False).status_code
            for origin in ("https://app.example", "https://evil.example")
        ]
    assert statuses == [200, 403]


def test_what_cannot_be_listened_on_is_one_line(tmp_path) -> None:
    """Status 3; no file was made on the way."""
    state, token = tmp_path / "state", tmp_path / "token"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        status, line = refused("--port", port, "--state", state, "--token-file", token)
        assert (status, "in use" in line, port in line) == (3, True, True)
    assert refused("--host", "no.such.host.invalid")[0] == 3
    assert refused("--host", "x" * 300)[0] == 3
    (tmp_path / "file").write_text("")
    assert refused("--unix", tmp_path / "file")[0] == 3
    assert refused("--unix", tmp_path / ("x" * 200))[0] == 3
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_a_state_that_cannot_be_used_is_one_line(tmp_path) -> None:
    """Status 4: not a directory, not private, somebody else's; the token file is not left behind."""
    token = tmp_path / "token"
    (tmp_path / "file").write_text("")
    (tmp_path / "open").mkdir()
    for state in (tmp_path / "file", tmp_path / "open", tmp_path / "no" / "parent"):
        status, line = refused("--port", "0", "--state", state, "--token-file", token)
        assert (status, str(state) in line) == (4, True)
    with serving("--state", tmp_path / "state"):
        status, line = refused("--port", "0", "--state", tmp_path / "state", "--token-file", token)
        assert (status, "another server is using it" in line) == (4, True)
    assert not token.exists()


def test_a_token_file_that_was_there_outlives_a_start_that_fails(tmp_path) -> None:
    """Only one that was made for this server goes with it."""
    token = tmp_path / "token"
    token.write_text("a-token-of-my-own\n")
    token.chmod(0o600)
    (tmp_path / "state").write_text("no directory")
    assert refused("--port", "0", "--state", tmp_path / "state", "--token-file", token)[0] == 4
    assert token.read_text() == "a-token-of-my-own\n"


def test_a_token_file_that_cannot_be_used_is_one_line(tmp_path) -> None:
    """Status 5; nothing of its content is shown."""
    (tmp_path / "open").write_text("0123456789abcdef")
    (tmp_path / "open").chmod(0o644)
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    for token in (tmp_path / "open", tmp_path / "link", tmp_path / "no" / "parent", tmp_path):
        status, line = refused("--port", "0", "--state", tmp_path / "state", "--token-file", token)
        assert (status, str(token) in line, "0123456789" in line) == (5, True, False)
    assert not (tmp_path / "state").exists()
    assert not (tmp_path / "nothing").exists()


def test_without_standard_output(tmp_path) -> None:
    """As after ``>&-``: refused, since nobody would learn the token; with a file for that it serves."""
    argv = f"exec {sys.executable} -m trio_swarm serve --port 0"
    shell = ["/bin/sh", "-c", f"{argv} >&-"]
    done = subprocess.run(shell, capture_output=True, text=True, check=False, timeout=WITHIN, env=_env())
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("trio-swarm: error: standard output is closed")

    token, sock = tmp_path / "token", tmp_path / "socket"
    argv = f"exec {sys.executable} -m trio_swarm serve --unix {sock} --token-file {token} >&-"
    with subprocess.Popen(["/bin/sh", "-c", argv], stderr=subprocess.PIPE, text=True, env=_env()) as process:
        try:
            answered = answers(sock, process)
            process.terminate()
            assert (answered, process.communicate(timeout=WITHIN)[1]) == (True, "")
        finally:
            process.kill()
    assert process.returncode == 0


def answers(path: Path, process: subprocess.Popen[str]) -> bool:
    """A server says on standard output when it is ready; this one has none, and is asked until it is."""
    until = time.monotonic() + WITHIN
    while time.monotonic() < until and process.poll() is None:
        with socket.socket(socket.AF_UNIX) as client:
            try:
                client.connect(str(path))
            except OSError:
                time.sleep(0.02)
                continue
            client.sendall(b"GET /v1/healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            return client.recv(4096).startswith(b"HTTP/1.1 200")
    return False


def test_more_signals_do_not_cut_its_end_short(tmp_path) -> None:
    """Ctrl-C twice and a SIGTERM: the same status, and nothing more is written."""
    with serving("--state", tmp_path / "state") as at:
        login = log_in(at)
        for number in (signal.SIGINT, signal.SIGTERM):
            at.process.send_signal(number)
        assert at.end(signal.SIGINT) == (0, "", "")
    with serving("--state", tmp_path / "state") as at:
        assert known(at, login) == 200


def test_a_reader_that_is_gone_is_one_line() -> None:
    """Standard output that cannot be written to."""
    with open("/dev/full", "w") as full:
        argv = [sys.executable, "-m", "trio_swarm", "serve", "--port", "0"]
        done = subprocess.run(argv, stdout=full, stderr=subprocess.PIPE, text=True, check=False, env=_env())
    assert done.returncode == 8
    assert done.stderr == ("trio-swarm: error: cannot write to standard output: No space left on device\n")


@pytest.mark.parametrize(
    ("argv", "part"),
    [
        (["--nonsense"], "unrecognized arguments: --nonsense"),
        (["x"], "unrecognized arguments: x"),
        (["--port", "x"], "argument --port: 'x' is not a port (0 to 65535)"),
        (["--port", "65536"], "is not a port"),
        (["--port", "-1"], "is not a port"),
        (["--port", "\u0661"], "is not a port"),
        (["--por", "1"], "unrecognized arguments"),
        (["--host", ""], "argument --host"),
        (["--state", ""], "argument --state"),
        (["--token-file", "a\0b"], "argument --token-file"),
        (["--origin", "app.example"], "is not an origin like https://app.example"),
        (["--origin", "https://app.example/x"], "is not an origin"),
        (["--origin", "null"], "is not an origin"),
        (["--origin", "*"], "is not an origin"),
        (["--allow-host", "http://x"], "is not a name"),
        (["--allow-host", "a b"], "is not a name"),
        (["--tls-cert", "x"], "--tls-cert and --tls-key go together"),
        (["--tls-key", "x"], "--tls-cert and --tls-key go together"),
        (["--unix", "s", "--port", "1"], "--unix and --port exclude each other"),
        (["--unix", "s", "--host", "h"], "--unix and --host exclude each other"),
        (["--unix", "s", "--tls-cert", "c", "--tls-key", "k"], "--unix and --tls-cert exclude each other"),
    ],
)
def test_wrong_flags_are_one_line_and_status_2(capsys, argv, part) -> None:
    """Nothing is touched."""
    assert main(["serve", *argv]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("trio-swarm: error: ")
    assert part in err
    assert err.count("\n") == 1


def test_the_defaults() -> None:
    """The contract's bind, and nothing kept."""
    assert parse_options([]) == ServeOptions("127.0.0.1", 7777)
    assert parse_options(["--origin", "http://[::1]:3000", "--allow-host", "[::1]"]).origins == (
        "http://[::1]:3000",
    )


def test_the_help_lists_flags_and_statuses(capsys) -> None:
    """Each with what it means; the verb is in the command's own help."""
    assert main(["serve", "--help"]) == 0
    text = capsys.readouterr().out
    for flag in (
        "--host",
        "--port",
        "--state",
        "--origin",
        "--allow-host",
        "--token-file",
        "--tls-key",
        "--unix",
    ):
        assert f"  {flag} " in text
    for status in EXIT_STATUSES:
        assert f"\n  {status:>3}  " in text
    assert main(["--help"]) == 0
    assert "serve" in capsys.readouterr().out
