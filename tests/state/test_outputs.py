"""The index of outputs against a list that is searched from its end."""

from __future__ import annotations

from contextlib import ExitStack

import attrs
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from trio_swarm._state.board import Denied
from trio_swarm._state.outputs import Output, OutputIndex

TASKS = ("a", "b", "c")
NAMES = ("x", "y", "out-1")


class Outputs(RuleBasedStateMachine):
    """Anything may be emitted, read, given up and forgotten in any order; c has ended, and then b."""

    def __init__(self) -> None:
        super().__init__()
        self.index = OutputIndex(max_output=50, max_task=100, max_all=150, max_records=6)
        self.model: list[Output] = []
        self.rooms: list = []
        self.read: list[tuple[str, ExitStack]] = []
        self.number = 0
        self.lost: dict[str, Output] = {}
        """Those that gave way, as the index has them; the model has them with no size."""

    @rule(task=st.sampled_from(TASKS))
    def begin(self, task) -> None:
        mine = [each for each in [*self.model, *self.rooms] if each.task_id == task]
        if len(mine) >= 6:
            with pytest.raises(Denied) as caught:
                self.index.room(task)
            assert caught.value.status == 413
        else:
            self.rooms.append(self.index.room(task))

    @precondition(lambda self: self.rooms)
    @rule(data=st.data(), size=st.integers(0, 60))
    def take(self, data, size) -> None:
        room = data.draw(st.sampled_from(self.rooms))
        everything = [*self.model, *self.rooms]
        of_task = sum(each.size for each in everything if each.task_id == room.task_id)
        total = sum(each.size for each in everything)
        victims = self.victims(total + size - 150)
        status = 413 if room.size + size > 50 or of_task + size > 100 else 507 if victims is None else None
        before = room.size
        if status is None:
            assert list(self.index.take(room, size, iter("cb"))) == victims
            assert room.size == before + size
            self.gave_way(victims)
            return
        with pytest.raises(Denied) as caught:
            self.index.take(room, size, iter("cb"))
        assert (caught.value.status, room.size) == (status, before)

    def victims(self, missing: int) -> list[Output] | None:
        """What has to go for that many bytes; None where there is not enough."""
        found: list[Output] = []
        being_read = {out_id for out_id, _ in self.read}
        for task in "cb":
            for each in self.model:
                if missing > 0 and each.task_id == task and each.size and each.out_id not in being_read:
                    found.append(each)
                    missing -= each.size
        return found if missing <= 0 else None

    def gave_way(self, gone: list[Output]) -> None:
        """Nothing is left of them but that they were there."""
        for output in gone:
            known = self.index.find(output.out_id, output.task_id)
            assert (known.given_up, known.content, known.file) == (True, None, None)
            assert self.index.gave_up(output.out_id)
            self.model[self.model.index(output)] = attrs.evolve(known, size=0)
            self.lost[output.out_id] = known

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def begin_reading(self, data) -> None:
        output = data.draw(st.sampled_from(self.model))
        stack = ExitStack()
        stack.enter_context(self.index.reading(output))
        self.read.append((output.out_id, stack))

    @precondition(lambda self: self.read)
    @rule(data=st.data())
    def end_reading(self, data) -> None:
        self.read.pop(data.draw(st.integers(0, len(self.read) - 1)))[1].close()

    @rule(size=st.integers(0, 80), where=st.sampled_from(["disk", "memory"]))
    def clear(self, size, where) -> None:
        """Only files are given up, or only what is in memory, and only if that is enough."""
        before = self.model[:]
        gone = list(self.index.give_up(size, iter("cb"), where=where))
        assert all((each.file is not None) is (where == "disk") and each in before for each in gone)
        assert sum(each.size for each in gone) >= size or gone == []
        self.gave_way(gone)

    @precondition(lambda self: self.rooms)
    @rule(
        data=st.data(),
        producer=st.sampled_from(NAMES),
        artifact=st.none() | st.sampled_from(NAMES),
        public=st.booleans(),
        inline=st.booleans(),
    )
    def add(self, data, producer, artifact, public, inline) -> None:
        room = self.rooms.pop(data.draw(st.integers(0, len(self.rooms) - 1)))
        self.number += 1
        output = Output(
            out_id=f"out-{self.number}",
            task_id=room.task_id,
            attempt=1 + self.number % 2,
            producer=producer,
            parent_refs=(),
            public=public,
            size=room.size,
            content=b"x" * room.size if inline else None,
            file=None if inline else "a path",
            artifact=artifact,
        )
        self.model.append(self.index.add(output))

    @precondition(lambda self: self.rooms)
    @rule(data=st.data())
    def give_up(self, data) -> None:
        self.index.give_back(self.rooms.pop(data.draw(st.integers(0, len(self.rooms) - 1))))

    @rule(task=st.sampled_from(TASKS))
    def forget(self, task) -> None:
        gone = [self.lost.get(each.out_id, each) for each in self.model if each.task_id == task]
        assert list(self.index.forget(task)) == gone
        self.model = [each for each in self.model if each.task_id != task]
        for room in [each for each in self.rooms if each.task_id == task]:
            self.rooms.remove(room)
            with pytest.raises(Denied) as caught:
                self.index.take(room, 1)
            assert caught.value.status == 410
            self.index.give_back(room)

    @invariant()
    def finds_what_a_search_finds(self) -> None:
        for reader in (*TASKS, None, "nobody"):
            seen = [each for each in self.model if each.public or each.task_id == reader]
            for key in (*NAMES, "out-2"):
                mine = [each for each in seen if each.task_id == reader]
                expected = (
                    [each for each in seen if each.out_id == key]
                    or [each for each in mine if each.producer == key]
                    or [each for each in mine if each.artifact == key]
                    or [each for each in seen if each.producer == key]
                    or [each for each in seen if each.artifact == key]
                    or [None]
                )[-1]
                if expected is not None:
                    expected = self.lost.get(expected.out_id, expected)
                assert self.index.find(key, reader) is expected

    @invariant()
    def counts(self) -> None:
        assert self.index.size == sum(each.size for each in [*self.model, *self.rooms])
        assert self.index._inline == sum(each.size for each in self.model if each.content is not None)
        for task in TASKS:
            mine = [self.lost.get(each.out_id, each) for each in self.model if each.task_id == task]
            assert list(self.index.of(task)) == mine
            assert list(self.index.of(task, 2)) == [each for each in mine if each.attempt == 2]

    def teardown(self) -> None:
        while self.read:
            self.read.pop()[1].close()
        assert self.index._read == {}
        for task in TASKS:
            self.index.forget(task)
        index = self.index
        assert (index.size, index._inline) == (0, 0)
        assert [index._by_id, index._by_producer, index._by_artifact, index._tasks] == [{}] * 4


TestOutputs = Outputs.TestCase
TestOutputs.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def test_an_output_of_a_forgotten_task_is_refused() -> None:
    index = OutputIndex()
    room = index.room("a")
    index.forget("a")
    output = Output("out-1", room.task_id, 1, "x", (), True, 0, b"")
    with pytest.raises(Denied) as caught:
        index.add(output)
    assert caught.value.status == 410
    assert index.find("out-1", "a") is None


def an_ended_task_of(index: OutputIndex, *sizes: int) -> list[Output]:
    """Outputs of the task "ended"."""
    made = []
    for number, size in enumerate(sizes):
        room = index.room("ended")
        index.take(room, size)
        output = Output(
            out_id=f"old-{number}",
            task_id="ended",
            attempt=1,
            producer="x",
            parent_refs=(),
            public=False,
            size=size,
            content=None,
            file="a path",
        )
        made.append(index.add(output))
    return made


@pytest.mark.parametrize(
    ("bounds", "running", "expected", "status"),
    [
        ({"max_all": 100}, 0, 100, None),
        ({"max_all": 100}, 0, 101, 507),
        ({"max_all": 100}, 1, 100, 507),
        ({"max_all": 100, "max_task": 90}, 0, 90, None),
        ({"max_all": 100, "max_task": 90}, 1, 90, 413),
        ({"max_all": 100, "max_output": 90}, 0, 91, 413),
    ],
)
def test_nothing_gives_way_to_one_that_will_find_no_room(bounds, running, expected, status) -> None:
    """At the limit they go one by one, as it comes; one byte over and it is refused with its first."""
    index = OutputIndex(**bounds)
    old = an_ended_task_of(index, 40, 30)
    index.take(index.room("running"), running)
    room = index.room("running", expected)
    if status is not None:
        for size in (0, 60):
            with pytest.raises(Denied) as caught:
                index.take(room, size, iter(["ended"]))
            assert caught.value.status == status
        assert (index.size, index.gave_up("old-0"), index.gave_up("old-1")) == (70 + running, False, False)
        return
    assert index.take(room, 0, iter(["ended"])) == ()
    assert index.take(room, 30, iter(["ended"])) == ()
    assert index.take(room, 1, iter(["ended"])) == (old[0],)
    assert index.take(room, expected - 31, iter(["ended"])) == (old[1],)
    assert index.size == expected


def test_one_of_unknown_size_takes_what_there_is() -> None:
    index = OutputIndex(max_all=100)
    old = an_ended_task_of(index, 40, 30)
    room = index.room("running")
    assert index.take(room, 70, iter(["ended"])) == (old[0],)
    assert index.take(room, 30, iter(["ended"])) == (old[1],)
    with pytest.raises(Denied):
        index.take(room, 1, iter(["ended"]))


def test_files_go_only_if_all_that_is_to_come_finds_room() -> None:
    index = OutputIndex()
    old = an_ended_task_of(index, 40, 30)
    assert index.give_up(1, ["ended"], where="disk", in_all=71) == ()
    assert index.give_up(1, ["ended"], where="memory", in_all=1) == ()
    assert index.give_up(1, ["ended"], where="disk", in_all=70) == (old[0],)
