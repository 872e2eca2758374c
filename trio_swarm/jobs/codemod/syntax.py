"""Reading and parsing source bytes, as the interpreter that runs this would.

Pool workers import this module: standard library only, no Trio and no attrs, so that they
start fast.
"""

from __future__ import annotations

import ast
import codecs
import contextlib
import gc
import os
import re
import stat
import symtable
import unicodedata
import warnings
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, Final

__all__ = [
    "MAX_SOURCE",
    "Unparseable",
    "Unreadable",
    "check_parses",
    "could_mention",
    "parse",
    "quiet",
    "read_source",
    "source_encoding",
    "symbols",
]

MAX_SOURCE: Final = 8 * 2**20
"""Bytes of one source file. Its patch travels in base64 inside one frame of at most 16 MiB."""

_COOKIE: Final = re.compile(rb"[ \t\f]*#.*?coding[:=][ \t]*([-\w.]+)")
_BLANK: Final = re.compile(rb"[ \t\f]*(?:#|$)")
_LATIN: Final = ("latin-1", "iso-8859-1", "iso-latin-1")

# What the parser and the compiler raise for a document that they refuse: MemoryError and
# RecursionError stand for nesting that is too deep, ValueError for NUL bytes and bad encodings.
_REFUSALS: Final = (SyntaxError, ValueError, LookupError, RecursionError, MemoryError, OverflowError)


class Unparseable(Exception):
    """The interpreter does not parse this source; ``reason`` is one line."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Unreadable(Exception):
    """The file could not be read; ``reason`` is one line."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Parse without warnings and without the cycle collector, restoring both.

    The warnings are those of the files that are read (invalid escapes and the like), not ours.
    A syntax tree has no cycles, but its hundred thousand fresh objects trigger the collector
    over and over: pausing it takes a fifth off the time to parse.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        if collecting:
            gc.enable()


def parse(data: bytes) -> ast.Module:
    """The syntax tree of *data*. Raises Unparseable. Call it within :func:`quiet`."""
    try:
        tree = compile(data, "<source>", "exec", ast.PyCF_ONLY_AST, dont_inherit=True)
    except _REFUSALS as error:
        raise Unparseable(_reason(error)) from error
    _check_utf8(data)
    assert isinstance(tree, ast.Module)
    return tree


def symbols(data: bytes) -> symtable.SymbolTable:
    """The symbol table of *data*; raises Unparseable also for source that only the compiler refuses."""
    source: Any = data  # bytes are taken, with their cookie, though typeshed knows of str alone
    try:
        return symtable.symtable(source, "<source>", "exec")
    except _REFUSALS as error:
        raise Unparseable(_reason(error)) from error


def check_parses(data: bytes) -> None:
    """Raise Unparseable exactly where :func:`parse` does, in less time where it does not.

    The symbol table stands on the same parser but builds no tree of Python objects. It refuses
    a little more than the parser (``nonlocal`` at module level), so the parser has the last word.
    """
    try:
        symbols(data)
    except Unparseable:
        parse(data)
    else:
        _check_utf8(data)


def source_encoding(data: bytes) -> str:
    """The codec that the interpreter decodes *data* with: by byte order mark, cookie, or UTF-8."""
    if data.startswith(codecs.BOM_UTF8):
        return "utf-8"
    # The cookie may stand behind a first line of any length.
    for line in data.splitlines()[:2]:
        found = _COOKIE.match(line)
        if found:
            return _normal(found[1].decode("ascii"))
        if not _BLANK.match(line):
            break
    return "utf-8"


def could_mention(data: bytes, identifier: str) -> bool:
    """False only where no token of *data* can be *identifier* (ASCII), however it is spelled."""
    encoding = source_encoding(data)
    if data.isascii() and encoding in ("utf-8", "ascii", "iso8859-1"):
        return identifier.encode("ascii") in data
    try:
        # The parser compares identifiers by their NFKC form.
        return identifier in unicodedata.normalize("NFKC", data.decode(encoding))
    except (UnicodeError, LookupError):
        return True


def read_source(root: str | os.PathLike[str], path: str) -> bytes:
    """The bytes of the regular file *path* (relative, POSIX) below *root*.

    A FIFO or a device with a Python name never blocks the reader. Raises Unreadable.
    """
    relative = PurePosixPath(path)
    if relative.is_absolute() or ".." in relative.parts or "\0" in path:
        raise Unreadable("not a path below the tree")
    try:
        with open(Path(root, path), "rb", opener=_open_at_once) as file:
            about = os.fstat(file.fileno())
            if not stat.S_ISREG(about.st_mode):
                raise Unreadable("not a regular file")
            if about.st_size > MAX_SOURCE:
                raise Unreadable(f"larger than {MAX_SOURCE} bytes")
            return file.read()
    except (OSError, ValueError) as error:
        raise Unreadable(_os_reason(error)) from error


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)


def _check_utf8(data: bytes) -> None:
    """Python 3.11 lets a stray byte in a comment pass when it parses bytes; a file may not hold it."""
    if data.isascii() or source_encoding(data) != "utf-8":
        return
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Unparseable(_reason(error)) from error


def _normal(name: str) -> str:
    """CPython's own shortcut for the names that it knows (``utf-8-unix``, ``latin-1-dos``)."""
    short = name[:12].lower().replace("_", "-")
    if short == "utf-8" or short.startswith("utf-8-"):
        return "utf-8"
    if short in _LATIN or short.startswith(tuple(f"{known}-" for known in _LATIN)):
        return "iso8859-1"
    try:
        return codecs.lookup(name).name
    except (LookupError, ValueError):
        return name


def _reason(error: BaseException) -> str:
    if isinstance(error, SyntaxError):
        where = f" (line {error.lineno})" if error.lineno else ""
        text = f"{error.msg}{where}"
    elif isinstance(error, (RecursionError, MemoryError)):
        text = "nested too deeply"
    else:
        text = str(error)
    return f"{type(error).__name__}: {text}".replace("\n", " ")


def _os_reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    return str(error)
