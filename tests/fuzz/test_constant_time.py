"""Secrets are compared by `hmac.compare_digest`: ``==`` tells by its time how much of a guess was right.

Mechanical: every comparison in the package whose operands have a name that holds a secret is
found, and must be among those listed here, each with a reason.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import trio_swarm

PACKAGE = Path(trio_swarm.__file__).parent

SECRET = re.compile(
    r"(^|_)(token|digest|secret|sig|signature|hmac|mac|handle|nonce|password|bearer|credential|capability|sha)"
    r"(s|_hex|_digest)*$"
)
"""The last words of a name: ``handle_digest`` and ``admin_token``, but not ``token_file``."""

ALLOWED: dict[tuple[str, str], str] = {
    ("_io/http_upgrade.py", "'upgrade' not in _tokens(head, 'connection')"): "the words of a header",
    ("_io/http_upgrade.py", "'websocket' not in _tokens(head, 'upgrade')"): "the words of a header",
    ("_io/wsopening.py", "'upgrade' not in tokens"): "the words of a header",
    (
        "_io/warden_sweep.py",
        "f'{token}.0' not in procfs.marks(pid)",
    ): "a mark in the environment of our own processes",
    (
        "jobs/codemod/verify.py",
        "digest(output) != sha",
    ): "of a file, against damage and not against an attacker",
    ("swarm/tasks_api.py", "' ' in admin_token"): "its form, when it is set",
}


def names_of(expression: ast.expr) -> Iterator[str]:
    """The names whose values are compared: not what ``len`` is taken of, nor what an attribute is of."""
    if isinstance(expression, ast.Name):
        yield expression.id
    elif isinstance(expression, ast.Attribute):
        yield expression.attr
    elif isinstance(expression, ast.Call):
        if isinstance(expression.func, ast.Name) and expression.func.id in (
            "len",
            "type",
            "id",
            "isinstance",
        ):
            return
        yield from names_of(expression.func)
        for each in expression.args:
            yield from names_of(each)
        if isinstance(expression.func, ast.Attribute):  # token.strip(), digest.hex()
            yield from names_of(expression.func.value)
    elif not isinstance(expression, ast.Compare | ast.Constant):
        for child in ast.iter_child_nodes(expression):
            if isinstance(child, ast.expr):
                yield from names_of(child)


def is_digest(expression: ast.expr) -> bool:
    """What is looked up by its digest: how long that takes tells of the digest alone."""
    return isinstance(expression, ast.Name | ast.Attribute) and ast.unparse(expression).endswith("digest")


def comparisons(source: str) -> Iterator[str]:
    """The text of each comparison of a secret, but with None."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Compare):
            operands = [node.left, *node.comparators]
            by_value = any(isinstance(op, ast.Eq | ast.NotEq) for op in node.ops)
            if not is_digest(node.left):
                by_value |= any(isinstance(op, ast.In | ast.NotIn) for op in node.ops)
            if by_value and any(SECRET.search(name.lower()) for each in operands for name in names_of(each)):
                yield ast.unparse(node)
        elif isinstance(node, ast.Match) and any(
            SECRET.search(name.lower()) for name in names_of(node.subject)
        ):
            yield f"match {ast.unparse(node.subject)}"


def found_in_the_package() -> set[tuple[str, str]]:
    return {
        (path.relative_to(PACKAGE).as_posix(), text)
        for path in PACKAGE.rglob("*.py")
        for text in comparisons(path.read_text())
    }


def test_no_secret_is_compared_but_in_constant_time() -> None:
    assert found_in_the_package() - set(ALLOWED) == set()


def test_no_exception_is_listed_that_is_not_needed() -> None:
    assert set(ALLOWED) - found_in_the_package() == set()


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("token == wanted", True),
        ("wanted != self._admin_digest", True),
        ("bearer in tokens", True),
        ("hashlib.sha256(x).digest() == y", True),
        ("session.token.strip() == x", True),
        ("x == f'Bearer {token}'", True),
        ("a < b == record.handle_digest", True),
        ("match token:\n    case 'x': pass", True),
        ("sig_hex == x", True),
        ("(token if x else y) == z", True),
        ("token in self._tokens", True),
        ("digest in self._by_digest", False),
        ("token is None", False),
        ("len(token) == 3", False),
        ("token.role == 'operator'", False),
        ("token_file == x", False),
        ("hmac.compare_digest(token, x)", False),
        ("(args.token is None) != (args.sid is None)", False),
    ],
)
def test_what_counts_as_a_comparison_of_a_secret(source, found) -> None:
    assert bool(list(comparisons(source))) is found
