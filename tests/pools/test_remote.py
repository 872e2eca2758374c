"""rebuild: a remote failure as an exception, and nothing taken on trust."""

import builtins

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_swarm.errors import RemoteError
from trio_swarm.pools._remote import rebuild

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)
NAMES = st.sampled_from(sorted(dir(builtins))) | st.text(max_size=8)
TOLD = st.recursive(
    st.fixed_dictionaries(
        {}, optional={"type": NAMES | JSON, "message": st.text(max_size=5) | JSON, "notes": JSON}
    ),
    lambda inner: st.fixed_dictionaries({"type": NAMES, "exceptions": st.lists(inner | JSON, max_size=3)}),
    max_leaves=6,
)


@given(st.text(), TOLD | JSON)
def test_anything_becomes_some_exception(error, told):
    """Never another one than it returns, and never a BaseException that is more than that."""
    assert isinstance(rebuild(error, told), Exception)


def test_without_our_key_it_is_a_remote_error():
    """A worker of the original sends a string only."""
    error = rebuild("boom")
    assert type(error) is RemoteError
    assert str(error) == "boom"


@pytest.mark.parametrize(
    "name", ["SystemExit", "KeyboardInterrupt", "print", "object", "StopIteration", "os.system"]
)
def test_names_that_are_no_plain_exception_stay_names(name):
    """Nothing is called or imported for them."""
    error = rebuild("e", {"type": name, "message": "m"})
    assert type(error) is RemoteError
    assert error.remote_type == name


def test_a_missing_file_keeps_its_type():
    """A builtin subclass of OSError, too."""
    error = rebuild("e", {"type": "FileNotFoundError", "message": "m", "traceback": "tb", "notes": ["n"]})
    assert type(error) is FileNotFoundError
    assert error.__notes__ == ["n"]
    assert error.__cause__.traceback_text == "tb"


def test_groups_are_cut_at_some_depth():
    """However deep the nesting, no recursion without end."""
    told = {"type": "ValueError", "message": "bottom"}
    for _ in range(500):
        told = {"type": "ExceptionGroup", "message": "g", "exceptions": [told]}
    assert isinstance(rebuild("e", told), ExceptionGroup)
