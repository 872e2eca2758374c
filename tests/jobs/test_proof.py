"""The proof: each kind of tampering is refused, with a reason."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.jobs.sources import Sample, samples
from trio_swarm.jobs.codemod.proof import prove

BEFORE = b"""\
import os
def f(a, b=1):  # note
    try:
        return os.getcwd() + 'text'
    except:
        x = 1.0
        raise
    try: pass
    except : pass
"""
AFTER = b"""\
import os
def f(a, b=1):  # note
    try:
        return os.getcwd() + 'text'
    except BaseException:
        x = 1.0
        raise
    try: pass
    except BaseException : pass
"""


def test_the_right_patch_holds():
    """Two bare handlers named, nothing else."""
    assert prove(BEFORE, AFTER) == (True, "", 2)


def test_no_edit_of_a_file_without_bare_handlers_holds():
    """An identical file proves with no edits."""
    assert prove(b"x = 1\n", b"x = 1\n") == (True, "", 0)


@pytest.mark.parametrize(
    ("old", "new", "part"),
    [
        (b"except BaseException:", b"except:", "bare handler is left at line 5"),
        (b"except BaseException:", b"except Exception:", "became Exception"),
        (b"except BaseException:", b"except (BaseException):", "line 5"),
        (b"except BaseException:", b"except BaseException as e:", "trees differ"),
        (b"except BaseException:", b"except builtins.BaseException:", "became Attribute"),
        (b"except BaseException:", b"except  BaseException:", "line 5"),
        (b"except BaseException:", b"except BaseException :", "line 5"),
        (b"1.0", b"1", "trees differ"),
        (b"1.0", b"True", "trees differ"),
        (b"b=1", b"b=2", "trees differ"),
        (b"b=1", b"b", "trees differ"),
        (b"'text'", b"'texT'", "trees differ"),
        (b"'text'", b"b'text'", "trees differ"),
        (b"'text'", b'"text"', "line 4"),
        (b"getcwd", b"getcwdb", "trees differ"),
        (b"import os", b"import os, sys", "trees differ"),
        (b"raise\n", b"raise\n        pass\n", "trees differ"),
        (b"raise\n", b"raise;\n", "line 7"),
        (b"# note", b"# nope", "line 2"),
        (b"# note", b"", "line 2"),
        (b"import os\n", b"import os\r\n", "line 1"),
        (b"import os\n", b"import os\n\n", "9 lines became 10"),
        (b"import os", b"\xef\xbb\xbfimport os", "line 1"),
        (b"import os", b"import os  # \xff", "does not parse"),
        (b"def f(", b"def f((", "does not parse"),
        (b"def f(", b"async def f(", "trees differ"),
    ],
)
def test_tampering_is_refused(old, new, part):
    """Whatever else is changed, in the tree or only in the bytes."""
    tampered = AFTER.replace(old, new, 1)
    assert tampered != AFTER

    proof = prove(BEFORE, tampered)

    assert not proof.ok
    assert part in proof.reason
    assert "\n" not in proof.reason


def test_an_unnamed_original_handler_may_not_lose_its_type():
    """A typed handler that became bare, or another type, is refused."""
    typed = b"try: pass\nexcept OSError: pass\n"

    assert not prove(typed, b"try: pass\nexcept: pass\n").ok
    assert not prove(typed, b"try: pass\nexcept BaseException: pass\n").ok


def test_originals_that_do_not_parse_are_refused():
    """There is nothing to compare with."""
    assert "original does not parse" in prove(b"x = (", b"x = 1").reason


def test_a_patch_may_not_compile_only_where_the_original_did_not():
    """A `return` outside a function parses; the patch of such a file is still proved."""
    before = b"try: pass\nexcept: return\n"

    assert prove(before, b"try: pass\nexcept BaseException: return\n").ok


def test_a_patch_that_stops_compiling_is_refused():
    """A bare handler may stand before no other; named, both compile; the reverse is caught by the parser."""
    before = b"nonlocal_ = 1\ndef f():\n  try: pass\n  except: pass\n"

    assert not prove(before, before.replace(b"except", b"nonlocal q\n  except")).ok


def test_deep_sources_do_not_exhaust_the_stack():
    """The comparison is iterative: a long chain of operators is as good as any."""
    deep = b"x = " + b" + ".join([b"1"] * 900) + b"\ntry: pass\nexcept: pass\n"

    assert prove(deep, deep.replace(b"except", b"except BaseException")).ok


@given(samples, st.data())
def test_any_other_byte_changed_is_refused(sample: Sample, data: st.DataObject):
    """One byte replaced, added or dropped anywhere in a right patch never proves."""
    after = sample.after.encode()
    at = data.draw(st.integers(0, len(after) - 1))
    width = data.draw(st.integers(0, 1))
    byte = data.draw(st.sampled_from([b"", b" ", b"x", b"\n", b"#", b"0"]))
    changed = after[:at] + byte + after[at + width :]
    assume(changed != after)

    assert not prove(sample.before.encode(), changed).ok


@given(st.binary(max_size=60), st.binary(max_size=60))
def test_any_two_byte_strings_get_a_verdict(before: bytes, after: bytes):
    """Nothing is raised, and only equal files prove without an edit."""
    proof = prove(before, after)

    assert not (proof.ok and before != after)


def test_a_deep_handler_is_refused_and_not_unparsed():
    """prove() raises nothing: what stands in the handler's place may be deeper than the stack."""
    deep = b"try: pass\nexcept " + b".".join([b"a"] * 900) + b": pass\n"

    assert not prove(b"try: pass\nexcept: pass\n", deep).ok


def test_compiling_is_asked_for_or_not():
    """Equal trees that never compile hold either way; the flag is about the cost."""
    original, patched = (b"try: pass\nexcept%s: pass\nreturn\n" % name for name in (b"", b" BaseException"))

    assert prove(original, patched, compiles=False).ok
    assert prove(original, patched, compiles=True).ok
