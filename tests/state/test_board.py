"""The board's machine: who may act for an attempt, and that nothing is kept for ever."""

from __future__ import annotations

import hashlib

import attrs
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from trio_swarm._state.board import STATUSES, BoardMachine, Denied, FinalValue, is_handle
from trio_swarm._state.guesses import GuessLimit
from trio_swarm._state.token import CapabilityToken, attenuate, mint
from trio_swarm.errors import BusyError, Refused
from trio_swarm.limits import (
    GUESSES_PER_PEER,
    IDEMPOTENCY_KEYS,
    KEPT_ATTEMPTS,
    KEY_LIFE,
    MAX_RENEWALS,
    MAX_SPAWN_DEPTH,
    MAX_TASK_RECORDS,
)

SECRET = b"secret"
TTL = 10


def denied(call, *args, **kwargs) -> int:
    """The status with which it is refused."""
    with pytest.raises(Denied) as caught:
        call(*args, **kwargs)
    return caught.value.status


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        ("wh-12345678", True),
        ("wh-12", True),
        ("wh-1", False),
        ("wh-" + "a" * 61, True),
        ("wh-" + "a" * 62, False),
        ("wh-1234_678", False),
        ("wh-1234567é", False),
        ("WH-12345678", False),
        ("wh-12345678\n", False),
        ("eyJhIjoxfQ", False),
        ("", False),
    ],
)
def test_the_form_of_a_handle(text, is_one) -> None:
    """5.3: total length 5 to 64, ASCII letters and digits."""
    assert is_handle(text) is is_one


@attrs.define
class Credentials:
    """An attempt as the model knows it."""

    task: str
    number: int
    token: str
    handle: str
    until: int


class Board(RuleBasedStateMachine):
    """Tasks come, are tried, end and are forgotten; after each step every credential is judged."""

    def __init__(self) -> None:
        super().__init__()
        self.machine = BoardMachine(
            secret=SECRET, max_tasks=4, guesses=GuessLimit(per_peer=10**6, per_server=10**6)
        )
        self.now = 1000
        self.count = 0
        self.tasks: dict[str, str] = {}
        self.depth: dict[str, int] = {}
        self.above: dict[str | None, list[str]] = {}
        self.ended_in_order: list[str] = []
        self.attempts: list[Credentials] = []
        self.ended: set[tuple[str, int]] = set()

    def latest(self, task: str) -> int:
        return max((each.number for each in self.attempts if each.task == task), default=0)

    @rule(data=st.data())
    def create(self, data) -> None:
        self.count += 1
        task = f"ST-{self.count}"
        parent = data.draw(st.none() | st.sampled_from([*self.tasks, "ST-none"]))
        named = [*self.above.get(parent, ()), parent]
        above = [each for each in named if each in self.tasks and self.tasks[each] not in STATUSES]
        depth = self.depth[above[-1]] + 1 if above else 99 if parent == "ST-none" else 0
        if depth >= MAX_SPAWN_DEPTH:
            with pytest.raises(Refused):
                self.machine.create(task, parent=parent)
            return
        if len(self.tasks) >= 4 and not self.ended_in_order:
            with pytest.raises(BusyError):
                self.machine.create(task, parent=parent)
            return
        expected = [self.ended_in_order.pop(0)] if len(self.tasks) >= 4 else []
        assert self.machine.create(task, parent=parent) == expected
        for gone in expected:
            del self.tasks[gone]
        self.tasks[task], self.depth[task] = "pending", depth
        self.above[task] = above
        assert self.machine.find(task).depth == depth

    @precondition(lambda self: self.tasks)
    @rule(data=st.data())
    def begin(self, data) -> None:
        task = data.draw(st.sampled_from(list(self.tasks)))
        self.count += 1
        token = mint(
            secret=SECRET,
            agent_id=f"worker-of-{task}",
            role="worker",
            issued_at=self.now,
            expire_at=self.now + TTL,
            nonce=f"{self.count:032x}",
        )
        handle = f"wh-{self.count:08x}"
        assert self.machine.is_handle_free(handle)

        def begin():
            return self.machine.begin(
                task, fingerprint=token.fingerprint, handle=handle, expire_at=self.now + TTL
            )

        if self.tasks[task] in STATUSES:
            with pytest.raises(Refused):
                begin()
            assert self.machine.is_handle_free(handle)
            return
        record = begin()
        assert not self.machine.is_handle_free(handle)
        self.tasks[task] = "running"
        assert record.number == self.latest(task) + 1
        self.attempts.append(Credentials(task, record.number, token.encode(), handle, self.now + TTL))

    @precondition(lambda self: self.attempts)
    @rule(data=st.data())
    def end_attempt(self, data) -> None:
        each = data.draw(st.sampled_from(self.attempts))
        task = self.machine.find(each.task)
        if task is not None and each.number in task.kept:
            task.kept[each.number].ended = True
            self.ended.add((each.task, each.number))

    @precondition(lambda self: self.tasks)
    @rule(data=st.data(), status=st.sampled_from(sorted(STATUSES)))
    def settle(self, data, status) -> None:
        task = data.draw(st.sampled_from(list(self.tasks)))
        first = self.tasks[task] not in STATUSES
        assert self.machine.settle(task, status) is first
        if first:
            self.tasks[task] = status
            self.ended_in_order.append(task)
        assert self.machine.find(task).status == self.tasks[task]

    @rule(seconds=st.integers(1, TTL))
    def time_passes(self, seconds) -> None:
        self.now += seconds

    def expected(self, each: Credentials, by_handle: bool) -> int | None:
        known = each.task in self.tasks and each.number > self.latest(each.task) - KEPT_ATTEMPTS
        if by_handle and not known:
            return 410
        if self.now >= each.until:
            return 410 if by_handle else 401
        if not known or self.tasks[each.task] in STATUSES:
            return 410
        if each.number != self.latest(each.task):
            return 409
        return 410 if (each.task, each.number) in self.ended else None

    @invariant()
    def every_credential_is_judged(self) -> None:
        for each in self.attempts:
            for bearer in (each.token, each.handle):
                status = self.expected(each, bearer is each.handle)
                try:
                    admission = self.machine.admit(bearer, "post_result", now=self.now)
                    self.machine.use(admission)
                except Denied as refused:
                    assert refused.status == status
                else:
                    assert status is None
                    assert (admission.record.task_id, admission.record.number) == (each.task, each.number)

    @invariant()
    def nothing_is_kept_for_ever(self) -> None:
        kept = sum(len(task.kept) for task in self.machine)
        assert len(self.machine._by_handle) == len(self.machine._by_fingerprint) == kept
        assert [task.task_id for task in self.machine] == list(self.tasks)
        assert list(self.machine._done) == self.ended_in_order


TestBoard = Board.TestCase
TestBoard.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)


def begun(machine: BoardMachine | None = None, **fields):
    machine = machine or BoardMachine(secret=SECRET)
    machine.create("ST-1")
    token = mint(
        secret=SECRET,
        agent_id="worker-of-ST-1",
        role="worker",
        issued_at=0,
        expire_at=100,
        nonce="ab" * 16,
        **fields,
    )
    record = machine.begin("ST-1", fingerprint=token.fingerprint, handle="wh-12345678", expire_at=100)
    return machine, record, token


def test_nothing_that_opens_a_door_is_kept() -> None:
    """Of handle and nonce there are digests; a repr shows neither."""
    _, record, token = begun()
    assert record.handle_digest == hashlib.sha256(b"wh-12345678").digest()
    assert record.fingerprints == [hashlib.sha256(token.nonce.encode()).hexdigest()]
    assert "wh-12345678" not in repr(record)
    assert token.nonce not in repr(record) + str(attrs.asdict(record))


def test_the_order_of_judgement() -> None:
    """5.2: signature, expiry, verb, record, binding; each hides what would come after it."""
    machine, _, token = begun()
    forged = attrs.evolve(token, sig_hex="0" * 64).encode()
    unknown = mint(secret=SECRET, agent_id="x", role="observer", issued_at=0, expire_at=100, nonce="cd" * 16)
    unknown_worker = mint(
        secret=SECRET, agent_id="x", role="worker", issued_at=0, expire_at=100, nonce="cd" * 16
    )
    at = {"now": 100, "task_id": "ST-other"}
    assert denied(machine.admit, "?", "fetch_prompt", **at) == 400
    assert denied(machine.admit, forged, "subscribe_events", **at) == 401
    assert denied(machine.admit, token.encode(), "subscribe_events", **at) == 401
    at["now"] = 99
    assert denied(machine.admit, unknown.encode(), "fetch_prompt", **at) == 403
    assert denied(machine.admit, unknown_worker.encode(), "fetch_prompt", **at) == 410
    assert denied(machine.admit, token.encode(), "subscribe_events", **at) == 403
    assert denied(machine.admit, token.encode(), "fetch_prompt", **at) == 403
    assert machine.admit(token.encode(), "fetch_prompt", now=99, task_id="ST-1", attempt=1).grant is not None


def test_uses_are_counted_by_use_and_only_there() -> None:
    machine, _, token = begun(max_uses=2)
    admission = machine.admit(token.encode(), "post_result", now=0)
    machine.use(admission, count=False)
    machine.use(admission)
    machine.use(machine.admit(token.encode(), "fetch_prompt", now=0))
    assert denied(machine.use, admission) == 403
    machine.use(machine.admit("wh-12345678", "post_result", now=0))


def test_a_narrower_token_uses_up_its_own() -> None:
    machine, _, token = begun()
    once = CapabilityToken.decode(attenuate(token, max_uses=1).encode())
    narrower = attenuate(once, scopes=["post_result"])
    machine.use(machine.admit(narrower.encode(), "post_result", now=0))
    assert denied(machine.use, machine.admit(once.encode(), "post_result", now=0)) == 403
    machine.use(machine.admit(token.encode(), "post_result", now=0))


def test_a_repeated_key_gives_the_same_answer_or_422() -> None:
    _, record, _ = begun()
    record.remember("k", b"digest", "answer", now=0)
    assert record.recall("k", b"digest").answer == "answer"
    assert record.recall("other", b"digest") is None
    assert denied(record.recall, "k", b"another") == 422


def test_keys_are_bounded_and_no_young_one_is_forgotten() -> None:
    """It is 503 instead, until the oldest is old enough."""
    _, record, _ = begun()
    for number in range(IDEMPOTENCY_KEYS):
        record.make_room(number / 100)
        record.remember(str(number), b"", number, now=number / 100)
    with pytest.raises(Denied) as caught:
        record.make_room(100)
    assert (caught.value.status, caught.value.retry_after) == (503, KEY_LIFE - 100)
    assert record.recall("0", b"").answer == 0
    record.make_room(KEY_LIFE)
    assert list(record.keys) == [str(number) for number in range(1, IDEMPOTENCY_KEYS)]


def test_an_attempt_has_a_key_for_each_of_its_outputs() -> None:
    assert IDEMPOTENCY_KEYS >= 2 * MAX_TASK_RECORDS


def test_the_last_final_is_the_one() -> None:
    """4.8."""
    _, record, _ = begun()
    for number in range(3):
        record.give(FinalValue(number, number == 1, "worker"))
    assert (record.final, record.finals) == (FinalValue(2, False, "worker"), 3)


def test_unknown_handles_are_counted_against_who_shows_them() -> None:
    """A good one passes all the same, from wherever it comes."""
    machine, record, _ = begun(BoardMachine(secret=SECRET, guesses=GuessLimit(per_peer=2, per_server=3)))
    for _ in range(2):
        assert denied(machine.admit, "wh-00000000", "fetch_prompt", now=0, peer="1.1.1.1") == 410
    with pytest.raises(Denied) as caught:
        machine.admit("wh-00000000", "fetch_prompt", now=15, peer="1.1.1.1")
    assert (caught.value.status, caught.value.retry_after) == (429, 45)
    assert machine.admit("wh-12345678", "fetch_prompt", now=15, peer="1.1.1.1").record is record
    assert denied(machine.admit, "wh-00000000", "fetch_prompt", now=15, peer="2.2.2.2") == 410
    assert denied(machine.admit, "wh-00000000", "fetch_prompt", now=15, peer="3.3.3.3") == 429
    assert machine.admit("wh-12345678", "fetch_prompt", now=15, peer="3.3.3.3").record is record
    assert denied(machine.admit, "wh-00000000", "fetch_prompt", now=60, peer="1.1.1.1") == 410


@pytest.mark.parametrize(
    ("peer", "task_id", "takes_turns"),
    [
        ("1.1.1.1", None, True),
        ("1.1.1.1", "ST-2", True),  # no such task
        ("1.1.1.1", "ST-3", True),  # it has ended
        ("1.1.1.1", "ST-1", False),
        ("2.2.2.2", None, False),
    ],
)
def test_handles_take_turns_where_there_were_too_many_unknown_ones(peer, task_id, takes_turns) -> None:
    """Good and bad alike: who is quicker to be told is told which is which."""
    machine, _, token = begun(BoardMachine(secret=SECRET, guesses=GuessLimit(per_peer=2, per_server=9)))
    machine.create("ST-3")
    machine.settle("ST-3", "pass")
    for _ in range(5):
        denied(machine.admit, "wh-00000000", "fetch_prompt", now=0, peer="1.1.1.1")
    for handle in ("wh-12345678", "wh-00000000"):
        assert machine.takes_turns(handle, now=59, peer=peer, task_id=task_id) is takes_turns
        assert not machine.takes_turns(handle, now=60, peer=peer, task_id=task_id)
    assert not machine.takes_turns(token.encode(), now=1, peer="1.1.1.1")


def test_unknown_handles_that_name_a_task_count_against_it_alone() -> None:
    """From many addresses too; those who name another task, or none, are not held up by it."""
    machine, record, _ = begun()
    machine.create("ST-2")
    for number in range(GUESSES_PER_PEER):
        peer = f"1.1.{number}.1"
        assert denied(machine.admit, "wh-00000000", "fetch_prompt", now=0, peer=peer, task_id="ST-1") == 410
    assert denied(machine.admit, "wh-00000000", "fetch_prompt", now=0, peer="9.9.9.9", task_id="ST-1") == 429
    assert machine.takes_turns("wh-12345678", now=0, peer="9.9.9.9", task_id="ST-1")
    assert machine.admit("wh-12345678", "fetch_prompt", now=0, task_id="ST-1").record is record
    assert not machine.takes_turns("wh-12345678", now=0, peer="1.1.1.1", task_id="ST-2")
    assert not machine.takes_turns("wh-12345678", now=0, peer="1.1.1.1")
    assert denied(machine.admit, "wh-00000000", "fetch_prompt", now=60, peer="9.9.9.9", task_id="ST-1") == 410


def test_the_handle_of_a_forgotten_attempt_is_no_guess() -> None:
    """Its worker comes late, again and again; and nobody else is given it."""
    machine, _, _ = begun(
        BoardMachine(secret=SECRET, max_tasks=1, guesses=GuessLimit(per_peer=2, per_server=2))
    )
    machine.settle("ST-1", "pass")
    machine.create("ST-2")
    for _ in range(5):
        assert denied(machine.admit, "wh-12345678", "fetch_prompt", now=0) == 410
    assert not machine.is_handle_free("wh-12345678")
    assert denied(machine.admit, "wh-00000000", "fetch_prompt", now=0) == 410


def test_forgotten_handles_are_bounded(monkeypatch) -> None:
    monkeypatch.setattr("trio_swarm._state.board.FORGOTTEN_HANDLES", 3)
    machine = BoardMachine(secret=SECRET, max_tasks=1)
    for number in range(6):
        machine.create(f"ST-{number}")
        machine.begin(f"ST-{number}", fingerprint=str(number), handle=f"wh-{number:08x}", expire_at=9)
        machine.settle(f"ST-{number}", "pass")
    assert len(machine._gone) == 3
    assert machine.is_handle_free("wh-00000001")
    assert not machine.is_handle_free("wh-00000004")


def test_what_ended_tasks_hold_is_bounded_and_the_oldest_goes() -> None:
    """The latest stays whatever it holds; nothing that runs is forgotten."""
    machine = BoardMachine(secret=SECRET, max_kept=100)
    machine.create("runs")
    for number, size, forgotten in [
        (1, 60, []),
        (2, 40, []),
        (3, 1, ["1"]),
        (4, 500, ["2", "3"]),
        (5, 1, ["4"]),
    ]:
        machine.create(str(number))
        machine.settle(str(number), "pass")
        assert machine.weigh(str(number), size) == forgotten
    assert [task.task_id for task in machine] == ["runs", "5"]
    assert machine._kept == 1


def a_machine(*parents: str | None) -> BoardMachine:
    """With the tasks ST-0, ST-1 ..., each below the one that is named for it."""
    machine = BoardMachine(secret=SECRET, max_tasks=20)
    for number, parent in enumerate(parents):
        machine.create(f"ST-{number}", parent=parent)
    return machine


def depth_of(machine: BoardMachine, parent: str) -> int:
    machine.create("ST-new", parent=parent)
    return machine.find("ST-new").depth


def test_a_task_is_nested_in_no_parent_that_has_ended() -> None:
    """It comes from there; whoever goes on after three that are done is not deep down."""
    machine = a_machine(None, "ST-0", "ST-1", "ST-2")
    for number in range(4):
        machine.settle(f"ST-{number}", "pass")
    assert depth_of(machine, "ST-3") == 0


def test_a_task_is_nested_in_what_its_ended_parent_was_nested_in() -> None:
    machine = a_machine(None, "ST-0", "ST-1", "ST-2")
    machine.settle("ST-1", "pass")
    machine.settle("ST-3", "pass")
    assert depth_of(machine, "ST-3") == 3
    with pytest.raises(Refused, match="levels"):
        machine.create("ST-x", parent="ST-new")


def test_no_chain_of_ended_parents_gets_below_the_limit() -> None:
    """Each begins the next and ends at once: as deep as if it had waited."""
    machine = a_machine(None)
    for number in range(1, MAX_SPAWN_DEPTH):
        machine.create(f"ST-{number}", parent=f"ST-{number - 1}")
        machine.settle(f"ST-{number - 1}", "pass")
    with pytest.raises(Refused, match="levels"):
        machine.create("ST-x", parent=f"ST-{MAX_SPAWN_DEPTH - 1}")


def test_a_forgotten_link_hides_no_task_that_runs() -> None:
    machine = BoardMachine(secret=SECRET, max_tasks=3)
    machine.create("ST-0")
    machine.create("ST-1", parent="ST-0")
    machine.settle("ST-1", "pass")
    machine.create("ST-2", parent="ST-1")
    assert machine.create("ST-3") == ["ST-1"]
    machine.settle("ST-3", "pass")
    machine.settle("ST-2", "pass")
    assert depth_of(machine, "ST-2") == 1


def test_outputs_give_way_first_where_nobody_waits() -> None:
    """What ended first goes first; what is below a task that runs comes after all others."""
    machine = a_machine(None, "ST-0", None, "ST-1", None)
    for number in (3, 1, 4, 2):
        machine.settle(f"ST-{number}", "pass")
    assert list(machine.yielding()) == ["ST-4", "ST-2", "ST-3", "ST-1"]
    machine.settle("ST-0", "failed")
    assert list(machine.yielding()) == ["ST-3", "ST-1", "ST-4", "ST-2", "ST-0"]


def test_a_task_ends_only_as_ended() -> None:
    machine, _, _ = begun()
    with pytest.raises(ValueError, match="running"):
        machine.settle("ST-1", "running")
    assert not machine.find("ST-1").ended
    assert not machine.settle("ST-none", "pass")
    with pytest.raises(ValueError, match="already"):
        machine.create("ST-1")


def test_a_renewed_token_is_good_beside_the_old_one() -> None:
    """Each until its own time is over; the handle as long as the latest (3.5)."""
    machine, record, token = begun()
    later = mint(
        secret=SECRET,
        agent_id=token.agent_id,
        role="worker",
        issued_at=90,
        expire_at=190,
        nonce="cd" * 16,
    )
    machine.renew(record, fingerprint=later.fingerprint, expire_at=190)
    for bearer in (token.encode(), later.encode(), "wh-12345678"):
        assert machine.admit(bearer, "fetch_prompt", now=99).record is record
    assert denied(machine.admit, token.encode(), "fetch_prompt", now=token.expire_at) == 401
    for bearer in (later.encode(), "wh-12345678"):
        assert machine.admit(bearer, "fetch_prompt", now=189).record is record
    assert denied(machine.admit, "wh-12345678", "fetch_prompt", now=190) == 410


def test_renewals_are_bounded_end_with_the_attempt_and_are_forgotten_with_it() -> None:
    """Nothing of an attempt is kept for ever, and a dead one gets no new life."""
    machine, record, _ = begun()
    for number in range(MAX_RENEWALS):
        machine.renew(record, fingerprint=f"f{number}", expire_at=200)
    with pytest.raises(Refused, match=str(MAX_RENEWALS)):
        machine.renew(record, fingerprint="one more", expire_at=200)
    record.fingerprints.pop()
    del machine._by_fingerprint[f"f{MAX_RENEWALS - 1}"]
    machine.settle("ST-1", "pass")
    with pytest.raises(Refused, match="has ended"):
        machine.renew(record, fingerprint="after", expire_at=200)
    machine._forget_oldest()
    assert (machine._by_fingerprint, machine._by_handle) == ({}, {})


def test_which_bearers_are_known_before_a_body_is_read() -> None:
    """A token of a living attempt, whatever it allows; never a handle, which could be guessed that way."""

    def minted(number: int) -> CapabilityToken:
        return mint(
            secret=SECRET,
            agent_id="worker-of-T-1",
            role="worker",
            issued_at=0,
            expire_at=100,
            nonce=f"{number:032x}",
        )

    board, token = BoardMachine(secret=SECRET), minted(1)
    board.create("T-1")
    board.begin("T-1", fingerprint=token.fingerprint, handle="wh-1a2b3c4d", expire_at=100)
    narrow = attenuate(token, scopes=["fetch_prompt"], expire_at=10)

    assert board.knows_token(token.encode(), now=0)
    assert board.knows_token(narrow.encode(), now=9)
    assert not board.knows_token(narrow.encode(), now=10)
    for other in ("wh-1a2b3c4d", "", "junk", minted(2).encode(), token.encode()[:-2]):
        assert not board.knows_token(other, now=0)
    assert not board.knows_token(token.encode(), now=100)
    board.settle("T-1", "pass")
    assert not board.knows_token(token.encode(), now=0)
