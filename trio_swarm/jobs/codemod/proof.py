"""The proof that a patch changes nothing but bare handlers, made without the rule's code.

A patch holds when all of these hold:

1. both files parse, and the trees are equal once a bare handler of the original is read as
   one that names ``BaseException``;
2. no bare handler is left in the patched file;
3. each physical line is the original's, or it begins with ``except BaseException`` where the
   original's has ``except`` and is the same for the rest: comments, newlines and encoding,
   which a tree does not show, are untouched;
4. a patched module does not bind ``BaseException`` itself;
5. the patched file compiles, unless the original does not either.
"""

from __future__ import annotations

import ast
import re
from typing import Final, NamedTuple

from trio_swarm.jobs.codemod.syntax import Unparseable, could_mention, parse, quiet

__all__ = ["Proof", "prove"]

_EDITED: Final = re.compile(rb"([ \t\f]*except) BaseException(?![\w])")
_NAME: Final = "BaseException"


class Proof(NamedTuple):
    """The verdict on one patch."""

    ok: bool
    reason: str
    """Why not, in one line; empty when it holds."""
    edits: int
    """Bare handlers of the original that the patch names."""


class _Rejected(Exception):
    """Carries the reason to :func:`prove`."""


def prove(original: bytes, patched: bytes, *, compiles: bool = True) -> Proof:
    """Whether *patched* is *original* with its bare handlers named, and nothing else.

    *compiles* asks for point 5 as well, which costs as much as the rest: equal trees compile
    alike, so it is for a verification that takes nothing for granted.

    Pure, synchronous, iterative (the depth of the source does not matter); raises nothing for
    any two byte strings.
    """
    with quiet():
        try:
            edits = _checked(original, patched)
        except _Rejected as rejected:
            return Proof(False, str(rejected), 0)
    return Proof(True, "", edits)


def _checked(original: bytes, patched: bytes) -> int:
    # The trees are gone when this returns: before the collector, which would walk them, is back.
    before = _parsed(original, "original")
    after = _parsed(patched, "patched file")
    edits = _compare_trees(before, after)
    _compare_lines(original, patched, edits)
    if edits and could_mention(original, _NAME):
        _check_name_is_builtin(after)
    _check_compiles(original, after)
    return edits


def _parsed(data: bytes, which: str) -> ast.Module:
    try:
        return parse(data)
    except Unparseable as error:
        raise _Rejected(f"the {which} does not parse: {error.reason}") from error


def _compare_trees(before: ast.AST, after: ast.AST) -> int:
    """Walk both trees in step; the count of handlers that differ as the rule allows."""
    edits = 0
    xs: list[object] = [before]
    ys: list[object] = [after]
    while xs:
        x, y = xs.pop(), ys.pop()
        kind = type(x)
        if kind is not type(y):
            raise _Rejected(f"the trees differ: {kind.__name__} became {_at(y)}")
        if isinstance(x, ast.AST):
            named = isinstance(y, ast.ExceptHandler) and _names_bare(x, y)
            edits += named
            for field in x._fields:
                u, v = getattr(x, field, None), getattr(y, field, None)
                # Names are interned and absent parts are None: most leaves are one object.
                if u is not v and not (named and field == "type"):
                    xs.append(u)
                    ys.append(v)
        elif isinstance(x, list) and isinstance(y, list):
            if len(x) != len(y):
                raise _Rejected(f"the trees differ: {len(x)} nodes became {len(y)}{_first(y)}")
            xs += x
            ys += y
        elif x != y:
            raise _Rejected(f"the trees differ: {_short(x)} became {_short(y)}")
    return edits


def _names_bare(x: ast.AST, y: ast.ExceptHandler) -> bool:
    """Whether *y* is the bare handler *x*, named. Raises when *y* is bare itself."""
    if y.type is None:
        raise _Rejected(f"a bare handler is left at line {y.lineno}")
    if getattr(x, "type", None) is not None:
        return False
    if not isinstance(y.type, ast.Name) or y.type.id != _NAME:
        # Not unparsed: that recurses, and what stands there may be deep.
        what = y.type.id if isinstance(y.type, ast.Name) else type(y.type).__name__
        raise _Rejected(f"the bare handler of line {y.lineno} became {what[:60]}")
    return True


def _compare_lines(original: bytes, patched: bytes, edits: int) -> None:
    before, after = original.splitlines(keepends=True), patched.splitlines(keepends=True)
    if len(before) != len(after):
        raise _Rejected(f"{len(before)} lines became {len(after)}")
    changed = 0
    for number, (x, y) in enumerate(zip(before, after, strict=True), 1):
        if x == y:
            continue
        edited = _EDITED.match(y)
        if edited is None or edited[1] + y[edited.end() :] != x:
            raise _Rejected(f"line {number} is changed beyond its keyword")
        changed += 1
    if changed != edits:
        raise _Rejected(f"{changed} changed lines for {edits} handlers")


def _check_name_is_builtin(tree: ast.Module) -> None:
    """Refuse where the module binds the name: then the two handlers are not the same."""
    for node in ast.walk(tree):
        bound: object
        if isinstance(node, ast.Name):
            bound = None if isinstance(node.ctx, ast.Load) else node.id
        elif isinstance(node, ast.alias):
            bound = node.asname or node.name.partition(".")[0]
        elif isinstance(node, ast.arg):
            bound = node.arg
        elif isinstance(node, ast.MatchMapping):
            bound = node.rest
        else:  # definitions, handlers and the other patterns bind by an attribute `name`
            bound = getattr(node, "name", None)
        if bound == _NAME:
            raise _Rejected(f"the module binds {_NAME} itself at line {getattr(node, 'lineno', 0)}")


def _check_compiles(original: bytes, after: ast.Module) -> None:
    try:
        compile(after, "<patched>", "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        try:
            compile(original, "<original>", "exec", dont_inherit=True)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return  # a file that parses but never compiled, such as a `return` outside a function
        raise _Rejected(f"does not compile: {type(error).__name__}: {error}") from error


def _at(node: object) -> str:
    line = getattr(node, "lineno", None)
    return f"{type(node).__name__}" + (f" at line {line}" if line else "")


def _first(nodes: list[object]) -> str:
    return f" from line {line}" if nodes and (line := getattr(nodes[0], "lineno", None)) else ""


def _short(value: object) -> str:
    # Of a literal int, repr may refuse thousands of digits; the type tells enough.
    if isinstance(value, int):
        return f"an int of {value.bit_length()} bits" if value.bit_length() > 64 else repr(value)
    return repr(value)[:60].replace("\n", " ")
