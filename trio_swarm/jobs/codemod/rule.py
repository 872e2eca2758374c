"""The rule: ``except:`` becomes ``except BaseException:``, and not one other byte changes.

The two are equivalent by the language reference as long as the name means the builtin, so a
module that binds ``BaseException`` itself is left alone. (What a star import brings is not
known before it runs; that one case is the user's to exclude.)

Pool workers import this module: no Trio and no attrs.
"""

from __future__ import annotations

import ast
import re
from itertools import accumulate, pairwise
from typing import Final, NamedTuple

from trio_swarm.jobs.codemod.patch import insert
from trio_swarm.jobs.codemod.syntax import (
    Unparseable,
    check_parses,
    could_mention,
    parse,
    quiet,
    source_encoding,
    symbols,
)

__all__ = ["INSERTED", "RULES", "Rewrite", "Unparseable", "rewrite"]

RULES: Final = ("bare-except",)
"""The rules by name."""

_KEYWORD: Final = b"except"
INSERTED: Final = b" BaseException"
"""What a patch of the rule puts behind each keyword; ASCII in every encoding that source may have."""
_BUILTIN: Final = "BaseException"

# The keyword and the colon with nothing between but blanks and continuation lines. It also
# matches in strings and comments: it says which files are worth a syntax tree, no more.
_CANDIDATE: Final = re.compile(rb"except(?:[ \t\f]|\\(?:\r\n|\r|\n))*:")

# Codecs in which those ASCII bytes are always there when the text is.
_PLAIN: Final = frozenset({"utf-8", "ascii", "iso8859-1"})

_BODIES: Final = ("body", "orelse", "finalbody", "handlers", "cases")


class Rewrite(NamedTuple):
    """What the rule makes of one file."""

    edits: int
    """Handlers rewritten."""
    output: bytes | None
    """The new file; None when nothing is to be changed."""
    lines: tuple[int, ...] = ()
    """The line numbers of the edits, from 1, in order."""
    reason: str = ""
    """Why a file with bare handlers was left alone; empty when it was not."""
    at: tuple[int, ...] = ()
    """Where ``INSERTED`` goes in: offsets in the bytes of the old file, ascending."""


def rewrite(data: bytes, rule: str = "bare-except") -> Rewrite:
    """Apply *rule* to the bytes of one source file.

    Encoding, byte order mark, newlines, form feeds, continuation lines and comments are kept
    byte for byte. Raises Unparseable for a file that the interpreter does not parse, or whose
    encoding does not round-trip; ValueError for an unknown rule. Pure and synchronous.
    """
    if rule not in RULES:
        raise ValueError(f"unknown rule {rule!r}")
    with quiet():
        encoding = source_encoding(data)
        if encoding in _PLAIN and not _CANDIDATE.search(data):
            check_parses(data)
            return Rewrite(0, None)
        places = _bare_handlers(parse(data))
        if not places:
            return Rewrite(0, None)
        if could_mention(data, _BUILTIN) and _binds(data, _BUILTIN):
            return Rewrite(0, None, reason=f"the module binds {_BUILTIN} itself")
    at = _offsets(data, encoding, places)
    return Rewrite(len(places), insert(data, at, INSERTED), tuple(line for line, _ in places), at=at)


def _bare_handlers(tree: ast.Module) -> list[tuple[int, int]]:
    """(line from 1, column in UTF-8 bytes) of each bare handler, in order of the source.

    Handlers are statements' children, and no expression holds a statement: expressions, which
    are nine nodes in ten, are not visited.
    """
    found: list[tuple[int, int]] = []
    bodies: list[list[ast.AST]] = [list(tree.body)]
    while bodies:
        for node in bodies.pop():
            if isinstance(node, ast.ExceptHandler) and node.type is None:
                found.append((node.lineno, node.col_offset))
            fields = vars(node)
            for name in _BODIES:
                below = fields.get(name)
                if below and isinstance(below, list):
                    bodies.append(below)
    return sorted(found)


def _offsets(data: bytes, encoding: str, places: list[tuple[int, int]]) -> tuple[int, ...]:
    """Where each keyword ends in *data*."""
    try:
        return _ends(data, encoding, places)
    except (UnicodeError, LookupError) as error:
        raise Unparseable(f"the encoding {encoding} cannot be kept: {error}".replace("\n", " ")) from error


def _ends(data: bytes, encoding: str, places: list[tuple[int, int]]) -> tuple[int, ...]:
    # The parser counts lines and columns in UTF-8, whatever the file is in.
    utf8 = data if encoding == "utf-8" else data.decode(encoding).encode("utf-8")
    starts = [0]
    for line in utf8.splitlines(keepends=True):  # of bytes: at \n, \r and \r\n only, as the parser
        starts.append(starts[-1] + len(line))
    cuts = [0]
    for line_number, column in places:
        start = starts[line_number - 1] + column
        end = start + len(_KEYWORD)
        if utf8[start:end] != _KEYWORD:
            raise Unparseable(f"cannot find the keyword of line {line_number}")
        cuts.append(end)
    if encoding == "utf-8":
        return tuple(cuts[1:])
    pieces = [utf8[a:b].decode("utf-8").encode(encoding) for a, b in pairwise([*cuts, len(utf8)])]
    if b"".join(pieces) != data:
        raise Unparseable(f"the encoding {encoding} cannot be kept byte for byte")
    return tuple(accumulate(len(piece) for piece in pieces[:-1]))


def _binds(data: bytes, name: str) -> bool:
    """Whether any scope of the module binds *name*; a file that does not compile binds nothing."""
    try:
        tables = [symbols(data)]
    except Unparseable:
        return False
    while tables:
        scope = tables.pop()
        if name in scope.get_identifiers():
            symbol = scope.lookup(name)
            if symbol.is_assigned() or symbol.is_imported() or symbol.is_parameter():
                return True
        tables.extend(scope.get_children())
    return False
