"""The four lines of a sub-agent's prompt."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_swarm.workers.brief import WorkerBrief

LINES = """\
agent_id: reviewer
worker_handle: wh-1a2b3c4d
base_url: http://127.0.0.1:7777
task_id: T-9f01aa22bb33cc44
"""


def test_the_contracts_own_lines():
    """4.2; and written again they are the same."""
    brief = WorkerBrief.parse(LINES)

    assert brief == WorkerBrief("reviewer", "wh-1a2b3c4d", "http://127.0.0.1:7777", "T-9f01aa22bb33cc44")
    assert brief.text + "\n" == LINES
    assert "1a2b3c4d" not in repr(brief)


@pytest.mark.parametrize(
    "text",
    [
        "\r\n".join(LINES.splitlines()),
        "\n\n  " + LINES.replace("\n", "\n  ") + "\nHint: fetch the prompt first.",
        "LDS Session Alias: x\n" + LINES + "LDS Session Alias: y\n",
        LINES + "\n" + LINES,
        "agent_id: of something else\n" + LINES,
    ],
)
def test_what_stands_around_them_is_passed_over(text):
    """Indentation, hints, the alias line, the same block once more."""
    assert WorkerBrief.parse(text) == WorkerBrief.parse(LINES)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "four lines"),
        ("do this and that", "four lines"),
        ("\n".join(LINES.splitlines()[:3]), "four lines"),
        ("\n".join(reversed(LINES.splitlines())), "four lines"),
        (LINES.replace("task_id", "\ntask_id"), "four lines"),
        (LINES + LINES.replace("wh-1a2b3c4d", "wh-00000000"), "twice"),
        (LINES.replace("reviewer", " "), "agent_id"),
        (LINES.replace("wh-1a2b3c4d", "wh-1a 2b"), "worker_handle"),
        (LINES.replace("wh-1a2b3c4d", "wh-\x00"), "worker_handle"),
        (LINES.replace("wh-1a2b3c4d", "wh-é"), "worker_handle"),
        (LINES.replace("http://127.0.0.1:7777", "<base_url>"), "base_url"),
        (LINES.replace("http://127.0.0.1:7777", "http://u:p@h"), "base_url"),
        (LINES.replace("T-9f01aa22bb33cc44", "T" * 10_000), "task_id"),
    ],
)
def test_what_is_no_brief(text, says):
    """One ValueError that names it, and never the handle."""
    with pytest.raises(ValueError, match=says) as caught:
        WorkerBrief.parse(text)
    assert "1a2b" not in str(caught.value)


@given(
    st.text()
    | st.lists(st.sampled_from([*LINES.splitlines(), "", "agent_id:", "x"]), max_size=9).map("\n".join)
)
def test_any_text(text):
    """A brief or a ValueError."""
    try:
        assert WorkerBrief.parse(text).text in "\n".join(line.strip() for line in text.splitlines())
    except ValueError:
        return
