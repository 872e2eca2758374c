"""``trio-swarm serve``: a server for operators, workers and steps, until a signal ends it."""

from __future__ import annotations

import argparse
import enum
import ipaddress
import re
import secrets
import signal
import ssl
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, NoReturn

import attrs
import trio

from trio_swarm._io.groups import collapse
from trio_swarm._io.last_resort import descriptor_of, open_last_resort
from trio_swarm._io.terminal import write_text
from trio_swarm._io.token_file import keep_token
from trio_swarm._io.unix import open_unix_listener
from trio_swarm.errors import StoreError, SwarmError
from trio_swarm.jobs.runner import STOP_SIGNALS, Run, run_in_swarm
from trio_swarm.operators import OperatorServer
from trio_swarm.swarm import Swarm, check_base_url

__all__ = ["EXIT_STATUSES", "ServeError", "ServeOptions", "Status", "parse_options", "serve"]

PROG: Final = "trio-swarm"
DEFAULT_HOST: Final = "127.0.0.1"
DEFAULT_PORT: Final = 7777

_MAX_PORT: Final = 65535
_ORIGIN: Final = re.compile(r"https?://(?:[A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")
_HOST: Final = re.compile(r"(?:[A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")


class Status(enum.IntEnum):
    """Exit statuses of ``serve``."""

    STOPPED = 0
    USAGE = 2
    CANNOT_LISTEN = 3
    STATE = 4
    FILES = 5
    FAILED = 8


EXIT_STATUSES: Final[Mapping[Status, str]] = MappingProxyType(
    {
        Status.STOPPED: "ended in order by Ctrl-C, SIGTERM or SIGHUP",
        Status.USAGE: "wrong flags; nothing was touched",
        Status.CANNOT_LISTEN: "cannot listen there: the address is in use, unknown or not allowed",
        Status.STATE: "the state directory cannot be used, or another server is using it",
        Status.FILES: "the token file, certificate or key cannot be used",
        Status.FAILED: "the server failed in another way",
    }
)


class ServeError(Exception):
    """The server cannot run as asked; the text is one line for the user."""

    def __init__(self, text: str, status: Status) -> None:
        super().__init__(text)
        self.status = status


@attrs.frozen
class ServeOptions:
    """The flags, checked."""

    host: str = DEFAULT_HOST
    port: int = DEFAULT_PORT
    state: Path | None = None
    origins: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    token_file: Path | None = None
    tls: tuple[Path, Path] | None = None
    """Certificate chain and key."""
    unix: Path | None = None
    base_url: str | None = None
    """Where workers are told to go; None: where it listens."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ServeError(message, Status.USAGE)


def build_parser(prog: str = "trio-swarm serve") -> argparse.ArgumentParser:
    """The parser; ``--help`` lists the exit statuses."""
    statuses = "\n".join(f"  {status:>3}  {text}" for status, text in EXIT_STATUSES.items())
    parser = _Parser(
        prog=prog,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Serve operators, workers and steps over HTTP and WebSocket until a signal ends it.",
        epilog=f"exit statuses:\n{statuses}",
    )
    add = parser.add_argument
    add("--host", metavar="HOST", type=_address, help=f"address to listen on (default {DEFAULT_HOST})")
    add("--port", metavar="PORT", type=_port, help=f"0 lets the system choose (default {DEFAULT_PORT})")
    unix = (
        "listen on this Unix socket (mode 0600) instead: `trio-swarm operator --unix PATH` leads there,"
        " and `uds` of connect_operator and connect_worker"
    )
    add("--unix", metavar="PATH", type=_path, help=unix)
    add(
        "--base-url",
        metavar="URL",
        type=_url,
        help="the address that workers are told, where they reach the server by another one",
    )
    add(
        "--state",
        metavar="DIR",
        type=_path,
        help="keep sessions in this directory (0700), so that operators need not log in again",
    )
    add(
        "--token-file",
        metavar="FILE",
        type=_path,
        help="keep the admin token in this file (0600): what is in it is used, else one is made;"
        " it is shown on a terminal only then",
    )
    _add_edge(parser)
    return parser


def _add_edge(parser: argparse.ArgumentParser) -> None:
    """The flags that say who may come, and how."""
    add = parser.add_argument
    add(
        "--origin",
        metavar="ORIGIN",
        action="append",
        default=[],
        type=_origin,
        help="do not refuse requests with this Origin, for example https://app.example (there is no CORS: it"
        " is for a page that is served under the same host); may be repeated",
    )
    add(
        "--allow-host",
        metavar="NAME",
        action="append",
        default=[],
        type=_host_name,
        help="a name under which the server is reached, beside the address it listens on; may be repeated",
    )
    add("--tls-cert", metavar="FILE", type=_path, help="certificate chain (PEM), for https")
    add("--tls-key", metavar="FILE", type=_path, help="its private key (PEM, not encrypted)")


def parse_options(argv: Sequence[str]) -> ServeOptions:
    """Read the flags. Raises `ServeError` for wrong ones and ``SystemExit`` after ``--help``."""
    args = build_parser().parse_args(argv)
    if sys.stdout is None and args.token_file is None:
        text = "standard output is closed: without --token-file nobody would learn the admin token"
        raise ServeError(text, Status.USAGE)
    if (args.tls_cert is None) != (args.tls_key is None):
        raise ServeError("--tls-cert and --tls-key go together", Status.USAGE)
    if args.unix is not None:
        for flag, value in (("--host", args.host), ("--port", args.port), ("--tls-cert", args.tls_cert)):
            if value is not None:
                raise ServeError(f"--unix and {flag} exclude each other", Status.USAGE)
    return ServeOptions(
        host=DEFAULT_HOST if args.host is None else args.host,
        port=DEFAULT_PORT if args.port is None else args.port,
        state=args.state,
        origins=tuple(args.origin),
        allowed_hosts=tuple(args.allow_host),
        token_file=args.token_file,
        tls=None if args.tls_cert is None else (args.tls_cert, args.tls_key),
        unix=args.unix,
        base_url=args.base_url,
    )


def serve(options: ServeOptions, *, stopping: Callable[[], None]) -> int:
    """Serve until SIGINT, SIGTERM or SIGHUP; returns the exit status. ``stopping()`` is called at the signal.

    Raises `ServeError`, and an ``ExceptionGroup`` if several things went wrong.
    """

    try:
        run = trio.run(_run, options, stopping)
        if run.error is not None:
            raise run.error
    except (SwarmError, OSError) as error:
        raise ServeError(f"{type(error).__name__}: {error}", Status.FAILED) from error
    return Status.STOPPED


async def _run(options: ServeOptions, stopping: Callable[[], None]) -> Run:
    # Peers bring log lines about: a pipe that is full, and that nobody reads, must not stop the server.
    async with open_last_resort(descriptor_of(sys.stderr)) as tell:
        return await run_in_swarm("serve", partial(_serve, options, stopping, tell))


async def _serve(
    options: ServeOptions, stopping: Callable[[], None], tell: Callable[[str], None], swarm: Swarm
) -> None:
    context = await trio.to_thread.run_sync(_tls_of, options)
    async with _listening(options, context) as listeners, _admin_token(options) as token:
        try:
            with _stopped() as stopped:
                async with swarm.serve_operators(
                    listeners=listeners,
                    allowed_origins=options.origins,
                    allowed_hosts=options.allowed_hosts,
                    state=options.state,
                    admin_token=token.text,
                    base_url=options.base_url,
                ) as server:
                    token.used = True
                    for text in _warnings(options, server, listeners):
                        tell(f"{PROG}: warning: {text}")
                    await _announced(partial(_announce, options, server, token), stopped)
                    stopping()
        except StoreError as error:
            raise ServeError(str(error), Status.STATE) from error


@contextmanager
def _stopped() -> Iterator[Callable[[], Awaitable[object]]]:
    """What waits for the first signal, so that the server's block is left in order.

    The swarm's own watcher would cancel it, and operators and waiting clients would be cut off
    without a word. Later signals wait, too, until the server's end, which is bounded.
    """
    heeded = [number for number in STOP_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    if not heeded:
        yield trio.sleep_forever
        return
    with trio.open_signal_receiver(*heeded) as signals:
        yield partial(anext, signals)


@attrs.define
class _Token:
    text: str = attrs.field(repr=False)
    used: bool = False
    """A server has begun to serve with it."""


@asynccontextmanager
async def _admin_token(options: ServeOptions) -> AsyncIterator[_Token]:
    """The admin's token; a file that was made for it is removed again if no server came of it."""
    token, made = _Token(secrets.token_hex(16)), False
    if options.token_file is not None:
        try:
            token.text, made = await trio.to_thread.run_sync(keep_token, options.token_file, token.text)
        except (OSError, ValueError) as error:
            text = f"cannot use the token file {options.token_file}: {_reason(error)}"
            raise ServeError(text, Status.FILES) from error
    try:
        yield token
    finally:
        if made and not token.used and options.token_file is not None:
            # Ours, of this moment, and without a use: one call that does not wait.
            with suppress(OSError):
                options.token_file.unlink()


@asynccontextmanager
async def _listening(
    options: ServeOptions, context: ssl.SSLContext | None
) -> AsyncIterator[Sequence[trio.abc.Listener[Any]]]:
    """Listeners as asked; closed at the end."""
    async with AsyncExitStack() as stack:
        listeners: list[trio.abc.Listener[Any]]
        try:
            if options.unix is not None:
                listeners = [await stack.enter_async_context(open_unix_listener(options.unix))]
            else:
                listeners = [*await trio.open_tcp_listeners(options.port, host=options.host)]
                for listener in listeners:
                    stack.push_async_callback(listener.aclose)
        except (OSError, ValueError) as error:
            place = options.unix or f"{options.host} port {options.port}"
            raise ServeError(f"cannot listen on {place}: {_reason(error)}", Status.CANNOT_LISTEN) from error
        if context is not None:
            listeners = [trio.SSLListener(each, context, https_compatible=True) for each in listeners]
        yield listeners


def _tls_of(options: ServeOptions) -> ssl.SSLContext | None:
    if options.tls is None:
        return None
    certificate, key = options.tls

    def no_password() -> str:
        raise ValueError("the key is encrypted")

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(certificate, key, password=no_password)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        text = f"cannot use the certificate {certificate} with the key {key}: {_reason(error)}"
        raise ServeError(text, Status.FILES) from error
    return context


async def _announced(
    announce: Callable[[], Awaitable[None]], stopped: Callable[[], Awaitable[object]]
) -> None:
    """Wait for the signal, and tell meanwhile: a pipe that nobody reads must not keep one from the other."""
    with collapse():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(announce)
            await stopped()
            nursery.cancel_scope.cancel()


async def _announce(options: ServeOptions, server: OperatorServer, token: _Token) -> None:
    """Say where it listens; and the admin's token, where nobody else is told by that."""
    url = server.url
    lines = [f"listening on {url}" if options.unix is None else f"listening on {url} at {options.unix}"]
    if options.token_file is not None:
        lines.append(f"admin token in {options.token_file}")
    if options.token_file is None or (sys.stdout is not None and sys.stdout.isatty()):
        lines.append(f"admin token {token.text}")
    if sys.stdout is not None:
        try:
            await write_text(sys.stdout.fileno(), "".join(f"{line}\n" for line in lines))
        except OSError as error:
            raise ServeError(f"cannot write to standard output: {_reason(error)}", Status.FAILED) from error


def _warnings(
    options: ServeOptions, server: OperatorServer, listeners: Sequence[trio.abc.Listener[Any]]
) -> Iterator[str]:
    names = [_name_of(listener) for listener in listeners]
    if options.tls is None and not all(map(_is_private, names)):
        yield "it listens beyond this machine without TLS: tokens can be read on their way"
    if options.base_url is None and any(ipaddress.ip_address(name).is_unspecified for name in names if name):
        yield f"workers are told to come to {server.tcp_url}: give --base-url if any is on another machine"


def _name_of(listener: trio.abc.Listener[Any]) -> str:
    """The address that it listens on; empty for a Unix socket."""
    inner = listener.transport_listener if isinstance(listener, trio.SSLListener) else listener
    name = inner.socket.getsockname() if isinstance(inner, trio.SocketListener) else None
    return str(name[0]).partition("%")[0] if isinstance(name, tuple) else ""


def _is_private(name: str) -> bool:
    return not name or ipaddress.ip_address(name).is_loopback


def _reason(error: OSError | ValueError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _port(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or int(text) > _MAX_PORT:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port (0 to {_MAX_PORT})")
    return int(text)


def _path(text: str) -> Path:
    if not text or "\0" in text:
        raise argparse.ArgumentTypeError(f"{text!r} is not a path")
    return Path(text)


def _address(text: str) -> str:
    if not text or not text.isprintable():
        raise argparse.ArgumentTypeError(f"{text!r} is not an address or a name")
    return text


def _url(text: str) -> str:
    try:
        return check_base_url(text)
    except ValueError as error:
        reason = str(error).removeprefix("base_url: ")
        raise argparse.ArgumentTypeError(f"{text!r}: {reason}") from None


def _origin(text: str) -> str:
    if not _ORIGIN.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not an origin like https://app.example")
    return text


def _host_name(text: str) -> str:
    if not _HOST.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a name like swarm.example or swarm.example:7777")
    return text
