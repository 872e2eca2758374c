"""``trio-swarm operator`` where a URL alone does not lead: a Unix socket, a certificate of one's own."""

from __future__ import annotations

import os
import signal
import ssl
import subprocess
import sys
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

import httpx2
import pytest
import trio
import trustme

import trio_swarm
from tests.cli.test_operator import environment, person, said_on_stderr
from tests.operators.support import Result, serving
from trio_swarm._io.unix import open_unix_listener
from trio_swarm.cli import main
from trio_swarm.cli.operator_options import parse_options
from trio_swarm.cli.operator_state import KeptSession


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def pem(authority: trustme.CA, path):
    authority.cert_pem.write_to_path(str(path))
    return str(path)


@asynccontextmanager
async def serving_tls(authority):
    """A swarm's server whose only listener speaks TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    plain = await trio.open_tcp_listeners(0, host="127.0.0.1")
    listeners = [trio.SSLListener(each, context, https_compatible=True) for each in plain]
    async with trio_swarm.open_swarm() as swarm, swarm.serve_operators(listeners=listeners) as server:
        yield swarm, server


async def works(swarm, server, *flags, env, again=()) -> None:
    """A person there is asked, reads what a step is about, does it, leaves, comes back and logs out."""
    known = (*flags, "--role", "main", "--keep")
    async with trio.open_nursery() as nursery:
        async with person(*known, env=env) as who:
            await who.sees("-- joined as main")
            seat, result = await server.wait_seat("main"), Result()
            nursery.start_soon(result.run, partial(seat.ask, "how much?", task_id="t"))
            await who.sees("how much?")
            await who.says("answer 42")
            await result.done.wait()
            assert result.value == 42
            binding, result = trio_swarm.OperatorBinding(backend=seat), Result()
            nursery.start_soon(
                result.run, partial(swarm.dispatch, "coder", "write it", system="be brief", operator=binding)
            )
            await who.sees("prompt | done VALUE")
            await who.says("prompt")
            assert "  | be brief" in await who.sees("  | write it")
            await who.says("done 5")
            await result.done.wait()
            assert result.value.value == 5
            await who.says("leave")
            assert await who.process.wait() == 0
        async with person(*known, *again, env=env) as who:
            await who.sees("-- back as main")
            await who.says("logout")
            assert await who.process.wait() == 0
    # Else it was not told, or not by the way that leads there.
    assert server.seats() == ()


async def test_a_person_at_a_unix_socket(tmp_path) -> None:
    """Everything goes there: no URL is needed, and the one that stands for it is the same server."""
    path = tmp_path / "s"
    async with (
        open_unix_listener(path) as listener,
        trio_swarm.open_swarm() as swarm,
        swarm.serve_operators(listeners=[listener]) as server,
    ):
        known = {"env": environment(tmp_path), "again": ["http://localhost/"]}
        await works(swarm, server, "--unix", str(path), **known)


async def test_a_person_at_the_socket_of_serve(tmp_path) -> None:
    """Both commands as they are; the server comes back at the same path, and the person does not leave."""
    path, env = tmp_path / "s", environment(tmp_path)
    serve = [sys.executable, "-m", "trio_swarm", "serve", "--unix", str(path)]
    serve += ["--state", str(tmp_path / "state"), "--token-file", str(tmp_path / "token")]

    @asynccontextmanager
    async def server():
        process = await trio.lowlevel.open_process(serve, stdout=subprocess.PIPE, env=env)
        try:
            async with process.stdout:
                said = b""
                while b"admin token in" not in said:
                    more = await process.stdout.receive_some()
                    assert more, said
                    said += more
                yield
            process.send_signal(signal.SIGTERM)
            assert await process.wait() == 0
        finally:
            with trio.CancelScope(shield=True):
                if process.returncode is None:
                    process.kill()
                await process.wait()

    step = {"agent": "coder", "prompt": "do it", "operator_sid": "main"}
    async with AsyncExitStack() as first:
        await first.enter_async_context(server())
        async with person("--unix", str(path), "--role", "main", env=env) as who:
            await who.sees("-- joined as main")
            await first.aclose()
            await who.sees("-- the connection is lost")
            async with server():
                await who.sees("-- connected again")
                bearer = {"Authorization": f"Bearer {(tmp_path / 'token').read_text().strip()}"}
                transport = httpx2.AsyncHTTPTransport(uds=str(path))
                async with (
                    httpx2.AsyncClient(base_url="http://localhost", transport=transport, timeout=30) as http,
                    trio.open_nursery() as nursery,
                ):
                    result = Result()
                    nursery.start_soon(partial(result.run, http.post, "/v1/tasks", json=step, headers=bearer))
                    await who.sees("done VALUE")
                    await who.says("prompt")
                    await who.sees("  | do it")
                    await who.says("done 7")
                    await result.done.wait()
                    assert result.value.json()["value"] == 7, result.value.text
                await who.says("leave")
                assert await who.process.wait() == 0


async def test_nobody_at_a_unix_socket_is_one_line(tmp_path) -> None:
    """Status 1, and why."""
    (tmp_path / "file").write_text("")
    for name, why in (
        ("none", "No such file or directory"),
        ("file", "Connection refused: it is not a socket"),
    ):
        async with person("--unix", str(tmp_path / name), env=environment(tmp_path)) as who:
            said = await said_on_stderr(who)
            assert await who.process.wait() == 1
        assert said == f"trio-swarm: error: cannot connect to {tmp_path}/{name}: {why}\n"


async def test_a_person_over_tls(tmp_path, authority) -> None:
    """With the authority that --cafile names; also to fetch a prompt and to log out."""
    async with serving_tls(authority) as (swarm, server):
        cafile = pem(authority, tmp_path / "ca.pem")
        await works(swarm, server, "--cafile", cafile, server.url, env=environment(tmp_path))


async def test_tls_at_a_unix_socket(tmp_path, authority) -> None:
    """Both at once."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    flags = ("--unix", str(tmp_path / "s"), "--cafile", pem(authority, tmp_path / "ca.pem"))
    async with open_unix_listener(tmp_path / "s") as listener:
        async with serving(listeners=[trio.SSLListener(listener, context, https_compatible=True)]) as server:
            async with person(*flags, "https://localhost", env=environment(tmp_path)) as who:
                await who.sees("-- joined")
                await who.says("leave")
                assert await who.process.wait() == 0
            assert server.seats() == ()


async def test_nobody_but_those_in_the_file_is_trusted(tmp_path, authority) -> None:
    """Not who the system trusts either."""
    other = pem(trustme.CA(), tmp_path / "other.pem")
    env = environment(tmp_path, SSL_CERT_FILE=pem(authority, tmp_path / "ca.pem"))
    async with serving_tls(authority) as (_, server):
        async with person("--cafile", other, server.url, env=env) as who:
            said = await said_on_stderr(who)
            assert await who.process.wait() == 1
        assert said.startswith("trio-swarm: error: no TLS with 127.0.0.1: ")
        assert "certificate verify failed" in said
        assert said.count("\n") == 1
        async with person(server.url, env=env) as who:
            await who.sees("-- joined")
            await who.says("leave")
            assert await who.process.wait() == 0


async def test_a_self_signed_certificate_may_be_the_file(tmp_path) -> None:
    """As it is made by `openssl req -x509`: a server's own, of no authority."""
    make = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=s -out cert.pem -keyout key.pem"
    try:
        await trio.run_process(
            [*make.split(), "-addext", "subjectAltName=IP:127.0.0.1"], cwd=tmp_path, capture_stderr=True
        )
    except FileNotFoundError:
        pytest.skip("no openssl command")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    (plain,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with serving(listeners=[trio.SSLListener(plain, context, https_compatible=True)]) as server:
        cafile = str(tmp_path / "cert.pem")
        async with person("--cafile", cafile, server.url, env=environment(tmp_path)) as who:
            await who.sees("-- joined")
            await who.says("leave")
            assert await who.process.wait() == 0


NO_CERTIFICATE = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"


@pytest.mark.parametrize(
    ("argv", "part"),
    [
        (["--unix", ""], "argument --unix: '' is not the path of a socket"),
        (["--unix", "x" * 104], "argument --unix: the socket's path has 104 bytes, more than 103"),
        (["--unix", "s", "ftp://x"], "argument URL: expected a URL"),
        (["--unix", "s", "--cafile", "plain"], "--cafile is for an https URL"),
        (["--cafile", "plain", "http://h"], "--cafile is for an https URL"),
        (["--cafile", "plain"], "the following arguments are required: URL"),
        (["--cafile", "", "https://h"], "--cafile: the path is empty"),
        (["--cafile", "none", "https://h"], "--cafile: 'none' cannot be read: No such file or directory"),
        (["--cafile", ".", "https://h"], "--cafile: '.' "),
        (["--cafile", "plain", "https://h"], "--cafile: 'plain' holds no certificate"),
        (["--cafile", "bad", "https://h"], "--cafile: 'bad' holds no certificate"),
        (["--cafile", "empty", "https://h"], "--cafile: 'empty' holds no certificate"),
    ],
)
def test_what_is_wrong_with_the_command_line(argv, part, tmp_path, monkeypatch, capsys) -> None:
    """One line and status 2; nothing is connected to."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plain").write_text("secret words\n")
    (tmp_path / "bad").write_text(NO_CERTIFICATE)
    (tmp_path / "empty").write_text("")
    assert main(["operator", *argv]) == 2
    said = capsys.readouterr().err
    assert said.startswith("trio-swarm: error: ")
    assert part in said
    assert said.count("\n") == 1
    assert "secret" not in said


def test_revocations_are_no_certificates(tmp_path, capsys) -> None:
    """The ssl module takes a file of those alone, and would trust nobody."""
    config = "[ca]\ndefault_ca=d\n[d]\ndatabase=index\ndefault_md=sha256\ndefault_crl_days=2\n"
    (tmp_path / "conf").write_text(config)
    (tmp_path / "index").touch()
    key = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=a -out cert.pem -keyout key.pem"
    crl = "openssl ca -gencrl -config conf -cert cert.pem -keyfile key.pem -out crl.pem"
    try:
        for command in (key, crl):
            subprocess.run(command.split(), cwd=tmp_path, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("no openssl command")
    assert main(["operator", "--cafile", str(tmp_path / "crl.pem"), "https://h"]) == 2
    assert capsys.readouterr().err.endswith("crl.pem' holds no certificate\n")


def test_the_url_that_a_socket_alone_stands_for() -> None:
    """And none where a URL is all there is."""
    known = parse_options(["--unix", "/run/s"])
    assert (known.url, known.uds, known.ssl_context) == ("http://localhost", "/run/s", None)
    assert parse_options(["http://h"]).uds is None


def test_sessions_are_kept_apart_by_their_sockets(tmp_path, monkeypatch) -> None:
    """The same URL leads to another server there; the path as it is given is where it is from here."""
    monkeypatch.chdir(tmp_path)
    environ = {"XDG_STATE_HOME": str(tmp_path)}

    def kept(uds):
        return KeptSession.of("http://localhost", None, [], environ, uds=uds).path

    assert len({kept(None), kept("/run/a"), kept("/run/b"), kept("s")}) == 4
    assert kept("s") == kept(os.fspath(tmp_path / "s")) == kept("./s")
    assert kept(None) == KeptSession.of("http://localhost/", None, [], environ).path
