"""The command line of ``trio-swarm operator``."""

from __future__ import annotations

import argparse
import ssl
from collections.abc import Sequence
from typing import Final, NoReturn

import attrs

from trio_swarm._io.http_peer import Address, socket_path
from trio_swarm.cli.operator_desk import HELP
from trio_swarm.operators import OperatorSession
from trio_swarm.operators.joining import Login

__all__ = ["USAGE", "OperatorCommandError", "OperatorOptions", "parse_options"]

USAGE: Final = 2
_FAILED: Final = 1
_LOCAL: Final = "http://localhost"
"""The URL of a server at a Unix socket: what it says for ``Host``."""


class OperatorCommandError(Exception):
    """What ends the command; the text is one line."""

    def __init__(self, message: str, status: int = _FAILED) -> None:
        super().__init__(message)
        self.status = status


@attrs.frozen
class OperatorOptions:
    """The command line, checked."""

    url: str
    roles: tuple[str, ...]
    name: str | None
    keep: bool
    session: OperatorSession | None
    """One given by its sid and token, to be taken over and left as it is."""
    uds: str | None = None
    """The path of the Unix socket that leads to the server."""
    ssl_context: ssl.SSLContext | None = attrs.field(default=None, repr=False)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise OperatorCommandError(message, USAGE)


def parse_options(argv: Sequence[str]) -> OperatorOptions:
    """Raises `OperatorCommandError`, and ``SystemExit`` after ``--help``."""
    parser = _parser()
    args = parser.parse_args(list(argv))
    if args.url is None and args.unix is None:
        parser.error("the following arguments are required: URL, or --unix PATH")
    url = _LOCAL if args.url is None else args.url
    if (args.sid is None) != (args.token is None):
        raise OperatorCommandError("--sid and --token go together", USAGE)
    if args.sid is not None and (args.keep or args.role):
        raise OperatorCommandError("--sid takes a session as it is: without --keep and --role", USAGE)
    session = None if args.sid is None else OperatorSession(args.sid, _token(args.token))
    try:
        address = Address.parse(url, args.unix)
    except ValueError as error:  # Without the URL itself: it may hold a password.
        raise OperatorCommandError(f"argument URL: {error}", USAGE) from None
    try:
        if session is not None:
            Login.resumed(address, session, None)
    except ValueError as error:
        raise OperatorCommandError(f"--sid and --token: {error}", USAGE) from None
    if args.cafile is not None and not address.secure:
        raise OperatorCommandError("--cafile is for an https URL", USAGE)
    context = None if args.cafile is None else _trusting(args.cafile)
    return OperatorOptions(url, tuple(args.role), args.name, args.keep, session, args.unix, context)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="trio-swarm operator",
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Be an operator of the server at URL or at a Unix socket: see what is asked, and answer.",
        epilog=f"commands:\n{HELP}",
    )
    parser.add_argument(
        "url",
        metavar="URL",
        nargs="?",
        help=f"where the server is, http://127.0.0.1:7777; with --unix {_LOCAL} if not given",
    )
    parser.add_argument(
        "--unix", metavar="PATH", type=_socket, help="the server listens on this Unix socket: connect to that"
    )
    parser.add_argument(
        "--cafile",
        metavar="PEM",
        help="for https: trust the certificate authorities in this file, or the server's self-signed"
        " certificate, instead of those that the system trusts",
    )
    parser.add_argument("--role", action="append", default=[], help="a name to hold; may be repeated")
    parser.add_argument("--name", help="who you are, for people")
    parser.add_argument(
        "--keep",
        action="store_true",
        help="keep the session when leaving, and come back to it next time; its token is kept in a file"
        " of mode 0600 below XDG_STATE_HOME or ~/.local/state",
    )
    parser.add_argument("--sid", help="take this session over instead of logging in; needs --token")
    parser.add_argument(
        "--token", help="its token, or @FILE to read it from a file: others can see a command line"
    )
    return parser


def _socket(text: str) -> str:
    try:
        return socket_path(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _trusting(cafile: str) -> ssl.SSLContext:
    """What trusts nobody but those in the file."""
    try:
        if not cafile:  # To the ssl module: whom the system trusts.
            raise ValueError("the path is empty")
        context = ssl.create_default_context(cafile=cafile)
        if not context.cert_store_stats()["x509"]:  # It takes revocation lists, too.
            raise ValueError(f"{cafile!r} holds no certificate")
    except ssl.SSLError as error:
        text = f"--cafile: {cafile!r} holds no certificate (PEM) that can be used: {error.reason or error}"
        raise OperatorCommandError(text, USAGE) from None
    except OSError as error:
        text = f"--cafile: {cafile!r} cannot be read: {error.strerror or error}"
        raise OperatorCommandError(text, USAGE) from None
    except ValueError as error:
        raise OperatorCommandError(f"--cafile: {error}", USAGE) from None
    return context


def _token(given: str) -> str:
    if not given.startswith("@"):
        return given
    try:
        with open(given[1:], encoding="utf-8") as file:
            return file.read(4096).strip()
    except (OSError, ValueError) as error:
        raise OperatorCommandError(f"--token: {error}", USAGE) from None
