"""What runs in the worker, in the child actor and in the pod."""

from __future__ import annotations

import base64
import json
import subprocess
import sys

import attrs
import pytest

from trio_swarm.jobs.codemod.child import prove_run
from trio_swarm.jobs.codemod.manifest import digest
from trio_swarm.jobs.codemod.pod import write_turn
from trio_swarm.jobs.codemod.worker import scan

TRY = b"try: pass\nexcept: pass  # \xc3\xa9\n"
DONE = b"try: pass\nexcept BaseException: pass  # \xc3\xa9\n"


def never(prompt: str) -> str:
    raise AssertionError("nothing is to be asked")


@pytest.fixture
def ctx(tmp_path):
    (tmp_path / "a.py").write_bytes(TRY)
    return {"root": str(tmp_path), "paths": ["a.py"], "rule": "bare-except", "agent": "w1"}


def test_a_patch_is_asked_about_and_returned(ctx):
    """The question shows the lines; the outcome carries the new file and its digest."""
    asked = []

    (outcome,) = scan(ctx, lambda prompt: asked.append(json.loads(prompt)) or "apply")

    assert asked == [
        {
            "path": "a.py",
            "edits": 1,
            "lines": [[2, "except: pass  # é", "except BaseException: pass  # é"]],
            "agent": "w1",
        }
    ]
    assert outcome == {
        "kind": "patched",
        "edits": 1,
        "sha256": digest(DONE),
        "output_b64": base64.b64encode(DONE).decode(),
        "at": (DONE.index(b" BaseException"),),
        "text": " BaseException",
        "reason": "",
    }


@pytest.mark.parametrize(
    ("answer", "reason"), [("skip: not now", "not now"), ("skip", "skipped"), ("yes", "yes"), ("", "skipped")]
)
def test_only_apply_applies(ctx, answer, reason):
    """Anything else leaves the file alone, for the reason given."""
    (outcome,) = scan(ctx, lambda prompt: answer)

    assert (outcome["kind"], outcome["reason"], "output_b64" in outcome) == ("skipped", reason, False)


def test_many_and_long_lines_are_cut_in_the_question(ctx, tmp_path):
    """The count is of all."""
    (tmp_path / "a.py").write_bytes((b"try: pass\nexcept: x = '" + b"y" * 1000 + b"'\n") * 30)
    asked = []

    scan(ctx, lambda prompt: asked.append(json.loads(prompt)) or "apply")

    assert asked[0]["edits"] == 30
    assert len(asked[0]["lines"]) == 20
    assert len(asked[0]["lines"][0][2]) == 200


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"x = 1\n", "unchanged"),
        (b"x = (\n", "unparseable"),
        (b"BaseException = 1\n" + TRY, "skipped"),
        (None, "unreadable"),
    ],
)
def test_other_outcomes_ask_nothing(ctx, tmp_path, data, kind):
    """Each is a value with a reason where there is one."""
    if data is None:
        (tmp_path / "a.py").unlink()
    else:
        (tmp_path / "a.py").write_bytes(data)

    (outcome,) = scan(ctx, never)

    assert outcome["kind"] == kind
    assert not {"sha256", "output_b64", "at"} & set(outcome)
    assert bool(outcome["reason"]) == (kind != "unchanged")


def test_a_codec_that_cannot_replace_is_no_obstacle(ctx, tmp_path):
    """The question is for people; the file itself is kept byte for byte."""
    (tmp_path / "a.py").write_bytes(b"# coding: idna\n" + b"try: pass\nexcept: pass\n")

    (outcome,) = scan(ctx, lambda prompt: "apply")

    assert outcome["kind"] in ("patched", "unparseable")


def test_the_worker_part_loads_no_trio():
    """A worker's start is its import."""
    code = (
        "import sys, trio_swarm.jobs.codemod.worker;"
        "sys.exit(str([m for m in ('trio', 'attr', 'cattrs', 'rich') if m in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == "[]"


@attrs.define
class Run:
    assignment: str


AT = [DONE.index(b" BaseException")]


def order(tmp_path, at: list, text: str = " BaseException") -> str:
    return json.dumps({"root": str(tmp_path), "path": "a.py", "at": at, "text": text})


async def test_the_child_proves_a_patch(ctx, tmp_path):
    """The answer names the digest of what it proved."""
    answer = json.loads(await prove_run(Run(order(tmp_path, AT))))

    assert answer == {"ok": True, "reason": "", "edits": 1, "sha256": digest(DONE)}


async def test_the_child_refuses_a_wrong_patch_and_a_missing_original(ctx, tmp_path):
    """Both are proofs that fail, with the reason."""
    for at, text in (AT, " Exception"), ([AT[0] + 1], " BaseException"), ([], "x"), ([10**6], "x"):
        answer = json.loads(await prove_run(Run(order(tmp_path, at, text))))
        assert not answer["ok"]
        assert answer["reason"]
    (tmp_path / "a.py").unlink()
    assert "original" in json.loads(await prove_run(Run(order(tmp_path, AT))))["reason"]


@pytest.mark.parametrize("assignment", ["", "{}", "[]", '{"at": [1]}', '{"at": [], "text": "é"}'])
async def test_an_assignment_of_another_form_is_an_error(assignment):
    """The run fails; the actor goes on."""
    with pytest.raises((ValueError, KeyError, TypeError)):
        await prove_run(Run(assignment))


@attrs.define
class Turn:
    """A pod's turn as far as the engine uses it."""

    input: str
    written: list = attrs.field(factory=list)
    said: list[str] = attrs.field(factory=list)

    @property
    def files(self):
        return self

    async def write_bytes(self, path, data, *, mode=None):
        self.written.append((path, data, mode))

    async def text(self, text):
        self.said.append(text)


async def test_the_pod_writes_what_the_order_says():
    """And says the digest of it."""
    output = base64.b64encode(DONE).decode()
    turn = Turn(json.dumps({"path": "/out/a.py", "output_b64": output, "sha256": digest(DONE)}))

    await write_turn(turn)

    assert turn.written == [("/out/a.py", DONE, None)]
    assert json.loads(turn.said[0]) == {"path": "/out/a.py", "bytes": len(DONE), "sha256": digest(DONE)}


@pytest.mark.parametrize("output", [base64.b64encode(TRY).decode(), "%", "é"])
async def test_the_pod_writes_nothing_that_is_not_what_was_proved(output):
    """The digest goes with the content."""
    turn = Turn(json.dumps({"path": "/out/a.py", "output_b64": output, "sha256": digest(DONE)}))

    with pytest.raises(ValueError, match=r"digest|base64|ASCII|output_b64"):
        await write_turn(turn)
    assert turn.written == turn.said == []
