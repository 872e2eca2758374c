"""The line decoder: the same lines however the bytes are cut, and never too much kept."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trio_swarm.frames import FrameError, LineDecoder
from trio_swarm.limits import MAX_FRAME


def outcome(chunks, max_line):
    """The lines, the unterminated rest, and whether the decoder gave up."""
    decoder, lines = LineDecoder(max_line=max_line), []
    try:
        for chunk in chunks:
            lines += decoder.feed(chunk)
            assert decoder.buffered <= max_line
        return lines, decoder.close(), False
    except FrameError:
        assert decoder.buffered == 0
        return lines, b"", True


def cut(data, places):
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(edges)]


@settings(deadline=None, database=None, max_examples=150)
@given(
    st.lists(st.sampled_from([b"\n", b"a", b"\r", b"{}", b"\xff", b"abcdefgh", "\u2028".encode()])),
    st.lists(st.integers(0, 200)),
)
def test_the_answers_do_not_depend_on_how_the_bytes_are_cut(parts, places):
    """Whole, byte by byte, and cut anywhere: the same lines and the same end."""
    data = b"".join(parts)
    whole = outcome([data], 10)

    assert outcome([data[i : i + 1] for i in range(len(data))], 10) == whole
    assert outcome(cut(data, places), 10) == whole
    assert outcome([data], 10**6) == (data.split(b"\n")[:-1], data.split(b"\n")[-1], False)


def test_lines_are_cut_at_newlines_only():
    """Not at what str.splitlines takes for a line's end; blank lines are lines."""
    decoder = LineDecoder()

    assert decoder.feed("a\u2028b\x85c\x0cd\r\n\n\ne".encode()) == ["a\u2028b\x85c\x0cd\r".encode(), b"", b""]
    assert decoder.buffered == 1
    assert decoder.close() == b"e"
    assert decoder.close() == b""


def test_lines_are_bytes_whatever_was_fed():
    """A bytearray that the caller goes on using is not kept."""
    decoder, data = LineDecoder(), bytearray(b"one\ntwo\nthr")
    lines = decoder.feed(data)
    data[:] = b"x" * len(data)

    assert [*lines, *decoder.feed(b"ee\n")] == [b"one", b"two", b"three"]
    assert {type(line) for line in lines} == {bytes}


@pytest.mark.parametrize("feed", [[b"x" * 8], [b"x" * 4, b"x" * 4], [b"x"] * 8], ids=["one", "two", "bytes"])
def test_a_line_of_just_the_limit_is_a_line(feed):
    """The limit does not count the newline."""
    assert outcome([*feed, b"\n"], 8) == ([b"x" * 8], b"", False)
    assert outcome(feed, 8) == ([], b"x" * 8, False)
    assert outcome([*feed, b"x\n"], 8) == ([], b"", True)


def test_the_lines_before_one_that_is_too_long_are_returned_first():
    """Then every call raises: the framing is lost."""
    decoder = LineDecoder(max_line=4)

    assert decoder.feed(b"a\nb\nccccc\nd\n") == [b"a", b"b"]
    for call in (lambda: decoder.feed(b"e\n"), decoder.close, lambda: decoder.feed(b"")):
        with pytest.raises(FrameError, match="longer than 4 bytes"):
            call()


def test_nothing_beyond_the_limit_is_kept():
    """The bytes of a line that is too long are dropped, with what was kept before."""
    decoder = LineDecoder(max_line=1000)
    decoder.feed(b"x" * 999)
    with pytest.raises(FrameError):
        decoder.feed(b"xx")

    assert decoder.buffered == 0


def test_the_limit_is_positive():
    """A decoder that can return nothing is a mistake."""
    with pytest.raises(ValueError, match="max_line"):
        LineDecoder(max_line=0)


def test_a_line_of_the_largest_size_in_pieces_and_many_single_bytes():
    """Linear time: quadratic would take minutes for either."""
    decoder, piece = LineDecoder(), b"x" * 65536
    for _ in range(MAX_FRAME // len(piece)):
        assert decoder.feed(piece) == []
    assert decoder.feed(b"\n") == [b"x" * MAX_FRAME]

    for _ in range(2**19):
        decoder.feed(b"y")
    assert decoder.close() == b"y" * 2**19
