"""A patch that travels as offsets."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_swarm.jobs.codemod.patch import insert


@given(st.binary(max_size=50), st.data(), st.binary(min_size=1, max_size=5))
def test_what_was_inserted_and_taken_out_again_is_the_original(data, draw, text):
    """And nothing else moved."""
    at = sorted(draw.draw(st.sets(st.integers(0, len(data)), max_size=8)))

    patched = insert(data, at, text)

    for offset in reversed([offset + n * len(text) for n, offset in enumerate(at)]):
        assert patched[offset : offset + len(text)] == text
        patched = patched[:offset] + patched[offset + len(text) :]
    assert patched == data


@pytest.mark.parametrize("at", [[-1], [5], [2, 1], [1, 1], [True], [1.0], ["1"]])
def test_offsets_of_another_file_are_refused(at):
    """Instead of a patch that is nearly right."""
    with pytest.raises(ValueError, match="offset"):
        insert(b"abcd", at, b"x")
