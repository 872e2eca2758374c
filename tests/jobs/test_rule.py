"""The rule: bare handlers get their name, and not one other byte changes."""

from __future__ import annotations

import ast
import codecs
import gc
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.jobs.sources import Sample, samples
from trio_swarm.jobs.codemod.proof import prove
from trio_swarm.jobs.codemod.rule import Rewrite, Unparseable, rewrite
from trio_swarm.jobs.codemod.syntax import quiet

TRY = "try:\n    pass\nexcept:\n    pass\n"
DONE = TRY.replace("except", "except BaseException")


def done(data: bytes) -> bytes:
    """By the bytes alone: right for sources that say `except` only where a bare handler is."""
    return data.replace(b"except", b"except BaseException")


@pytest.mark.parametrize(
    "data",
    [
        TRY.encode(),
        TRY.replace("\n", "\r\n").encode(),
        TRY.replace("\n", "\r").encode(),
        b"try:\r    pass\r\nexcept:\n    pass\r",
        b"try:\n    pass\nexcept: pass",
        b"try: pass\nexcept: pass # end",
        b"try: pass\nexcept   \t:  # why\n  pass\n",
        b"try: pass\nexcept\\\n  \\\n :pass\n",
        b"try: pass\r\nexcept\\\r\n:pass\r\n",
        b"\x0ctry: pass\n\x0cexcept\x0c: pass\n",
        b"if 1:\n\ttry: pass\n\texcept: pass\n",
        b"x = '''a\rb\r\nc'''\rtry: pass\rexcept: pass\r",
        codecs.BOM_UTF8 + TRY.encode(),
        codecs.BOM_UTF8 + b"# coding: utf-8\n" + TRY.encode(),
        "s = 'é\u2028☃\x0b\x1c'; é = 1\n".encode() + TRY.encode(),
        b"# -*- coding: latin-1 -*-\ns = '\xe9'\n" + TRY.encode() + b"# \xff\n",
        b"#!/x\n# vim: set fileencoding=iso-8859-15 :\ns = '\xa4'\n" + TRY.encode(),
        b"# coding: utf-8-unix\ns = '\xc3\xa9'\n" + TRY.encode(),
        b"# coding: latin-1-dos\r\ns = '\xe9'\r\n" + TRY.replace("\n", "\r\n").encode(),
        "# coding: cp1252\ns = '€'\n".encode("cp1252") + TRY.encode(),
        "# coding: shift_jis\ns = '表ソ'; é = 0\n".replace("é", "ソ").encode("shift_jis") + TRY.encode(),
        "# coding: euc_jp\ns = '日本'\n".encode("euc_jp") + TRY.encode(),
        "# coding: iso2022_jp\ns = '日本'\n".encode("iso2022_jp") + TRY.encode(),
        "# coding: koi8-r\nд = 'Ж'\n".encode("koi8-r") + TRY.encode(),
    ],
)
def test_every_encoding_and_newline_is_kept_byte_for_byte(data):
    """The output is the input with the insertion after each keyword, and the proof agrees."""
    result = rewrite(data)

    assert result.output == done(data)
    assert result.edits == len(result.lines) == 1
    assert prove(data, result.output).ok


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\n",
        b"x = 1\n",
        b"try: pass\nexcept Exception: pass\n",
        b"try: pass\nexcept BaseException: pass\n",
        b"try: pass\nexcept* OSError: pass\n",
        b"s = 'except:'  # except:\n",
        b"'''\ntry: pass\nexcept:\n'''\n",
        b"exceptional: int = 1\n",
        b"# coding: utf-7\nx = 1\n",
    ],
)
def test_a_file_without_bare_handlers_is_left_alone(data):
    """No output and no edits; text that only looks like one does not count."""
    assert rewrite(data) == Rewrite(0, None)


@pytest.mark.parametrize(
    ("data", "part"),
    [
        (b"x = (\n", "SyntaxError"),
        (b"print 'x'\n", "SyntaxError"),
        (b"try: pass\nexcept: pass\nexcept OSError: pass\nx = (\n", "SyntaxError"),
        (b"x = 1\0\n", "null bytes"),
        (b"s = '\xff'\n", "utf-8"),
        (b"# \xff only in a comment\n", "decode"),
        (b"# coding: nonsense\n", "nonsense"),
        (codecs.BOM_UTF8 + b"# coding: latin-1\n", "BOM"),
        (TRY.encode("utf-16"), ""),
        (b"x = " + b"(" * 5000 + b")" * 5000, ""),
        (b"x = " + b"-" * 100_000 + b"1", ""),
        (b"x = " + b"9" * 5000 + b"\n", "limit"),
        (b"# coding: ascii\n# \xe9\n", "ascii"),
    ],
)
def test_what_does_not_parse_is_unparseable(data, part):
    """One exception with a one-line reason, whatever the parser raises."""
    with pytest.raises(Unparseable) as caught:
        rewrite(data)

    assert part.lower() in caught.value.reason.lower()
    assert "\n" not in caught.value.reason


def test_a_codec_that_does_not_round_trip_is_not_guessed_at():
    """UTF-7 has many spellings of one text: such a file is an outcome, not a changed file."""
    data = b"# coding: utf-7\ns = '+AGE-'\n" + TRY.encode()

    with pytest.raises(Unparseable, match="byte for byte"):
        rewrite(data)


def test_a_keyword_hidden_by_a_codec_is_found():
    """The quick look at the bytes is not trusted where the codec may spell letters otherwise."""
    hidden = b"# coding: raw_unicode_escape\ntry: pass\n\\u0065xcept: pass\n"

    assert ast.parse(hidden)
    with pytest.raises(Unparseable, match="byte for byte"):
        rewrite(hidden)


@pytest.mark.parametrize(
    "binding",
    [
        "BaseException = OSError",
        "from a import b as BaseException",
        "def f(BaseException): pass",
        "class BaseException: pass",
        "[BaseException := 1]",
        "for BaseException in (): pass",
        "\N{MATHEMATICAL BOLD CAPITAL B}aseException = OSError",
    ],
)
def test_a_module_that_binds_the_name_is_left_alone(binding):
    """There the two handlers are not equivalent; the reason says so, and the proof refuses too."""
    data = f"{binding}\n{TRY}".encode()
    result = rewrite(data)

    assert (result.edits, result.output) == (0, None)
    assert "binds" in result.reason
    assert "binds" in prove(data, f"{binding}\n{DONE}".encode()).reason


def test_naming_the_builtin_is_not_binding_it():
    """A mention of the name leaves the rule at work."""
    data = b"x = BaseException\n" + TRY.encode()

    assert rewrite(data).output == b"x = BaseException\n" + DONE.encode()


def test_warnings_of_the_files_are_silent_and_the_collector_is_as_before():
    """Invalid escapes warn nobody, also where warnings are errors; the collector runs on."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert rewrite(b"s = '\\d'\nx = 1 is 1\n" + TRY.encode()).edits == 1
        assert rewrite(b"s = '\\d'\n").edits == 0
    assert gc.isenabled()
    gc.disable()
    try:
        with quiet():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_an_unknown_rule_is_a_value_error():
    """The caller's mistake, not an outcome."""
    with pytest.raises(ValueError, match="unknown rule"):
        rewrite(b"", "nonsense")


@given(samples, st.sampled_from(["\n", "\r\n", "\r"]), st.booleans())
def test_any_nesting_is_rewritten_exactly(sample: Sample, newline: str, bom: bool):
    """Nested, commented and continued handlers: the output is the expected text, and it is proved."""
    mark = codecs.BOM_UTF8 if bom else b""
    before = mark + sample.before.replace("\n", newline).encode()
    after = mark + sample.after.replace("\n", newline).encode()

    result = rewrite(before)

    assert result.edits == sample.edits
    assert (result.output or before) == after
    proof = prove(before, after)
    assert (proof.ok, proof.edits) == (True, sample.edits), proof.reason
    if result.output:
        assert rewrite(result.output) == Rewrite(0, None)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_rewrite_or_unparseable(data: bytes):
    """Nothing else leaves the rule."""
    try:
        result = rewrite(data)
    except Unparseable:
        return
    assert (result.output is None) == (result.edits == 0)


@given(st.text("exceptry:pass \n\t\\#'\"();=", max_size=120))
def test_near_python_is_a_rewrite_that_is_proved_or_unparseable(text: str):
    """Close misses of the grammar, too."""
    data = text.encode()
    try:
        result = rewrite(data)
    except Unparseable:
        return
    if result.output is not None:
        assert prove(data, result.output).ok
