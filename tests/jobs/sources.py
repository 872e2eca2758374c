"""Python sources with bare handlers, made by hypothesis, and the patch that each should get."""

from __future__ import annotations

import attrs
from hypothesis import strategies as st


@attrs.frozen
class Sample:
    """A source and what the rule must make of it."""

    before: str
    after: str
    edits: int


def _indent(text: str, by: str) -> str:
    return "".join(f"{by}{line}\n" for line in text.removesuffix("\n").split("\n"))


_BLANKS = st.sampled_from(["", " ", "\t", "  \t ", "\f", " \\\n ", "\\\n"])
_COMMENTS = st.sampled_from(["", "  # except:", " # é ☃ except :"])
_SIMPLE = st.sampled_from(
    [
        "pass",
        "x = 'except:'",
        "s = '''\nexcept:\n'''",
        "y = b'\\xff'  # except:",
        "exceptional = 1; exceptional: int",
        "z = (1,\n  2)",
        "ñ = 'ü'",
        "raise",
    ]
)


def _statement(text: str) -> Sample:
    return Sample(f"{text}\n", f"{text}\n", 0)


@st.composite
def _try(draw: st.DrawFn, inner: st.SearchStrategy[Sample]) -> Sample:
    by = draw(st.sampled_from([" ", "    ", "\t"]))
    body, handled = draw(inner), draw(inner)
    blanks, comment = draw(_BLANKS), draw(_COMMENTS)
    typed = draw(st.sampled_from(["", f"except OSError:{comment}\n{by}pass\n", "except (A, B) as e: pass\n"]))
    last = draw(st.sampled_from(["", f"else:\n{by}pass\n", f"finally :\n{by}pass\n"]))
    tail = f"{blanks}:{comment}\n"
    # The lines of a string are indented too, which changes its value: alike on both sides.
    before = f"try:\n{_indent(body.before, by)}{typed}except{tail}{_indent(handled.before, by)}{last}"
    named = f"try:\n{_indent(body.after, by)}{typed}except BaseException{tail}"
    after = f"{named}{_indent(handled.after, by)}{last}"
    return Sample(before, after, body.edits + handled.edits + 1)


@st.composite
def _block(draw: st.DrawFn, inner: st.SearchStrategy[Sample]) -> Sample:
    head = draw(
        st.sampled_from(
            [
                "if 1:",
                "def f(a=lambda: 0):",
                "class C:",
                "async def g():",
                "with a as b:",
                "while 0:",
                "for i in x:",
            ]
        )
    )
    body = draw(inner)
    return Sample(f"{head}\n{_indent(body.before, '  ')}", f"{head}\n{_indent(body.after, '  ')}", body.edits)


def _sequence(inner: st.SearchStrategy[Sample]) -> st.SearchStrategy[Sample]:
    return st.lists(inner, min_size=1, max_size=3).map(
        lambda parts: Sample(
            "".join(p.before for p in parts), "".join(p.after for p in parts), sum(p.edits for p in parts)
        )
    )


samples = st.recursive(
    _SIMPLE.map(_statement),
    lambda inner: st.one_of(_try(inner), _block(inner), _sequence(inner)),
    max_leaves=12,
)
