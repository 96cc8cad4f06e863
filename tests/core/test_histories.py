"""Random histories: whatever the host does, within what a host can do, the promises hold.

A seeded host answers the core's commands in any order and at any time it likes: it starts what was
spawned or not, lets attempts speak, finish, fail, die unasked, or ignore a request to end; it
repeats itself about attempts that are over; runs are submitted, paused, resumed, rolled back and
cancelled in the middle. The judge in `simulated.py` watches every step, and the live state is
compared with the fold of the records after every step. In the end the host becomes fair (it answers
everything), and every run must end, every attempt having ended exactly once. The same holds for a
run that another supervisor takes over from any place of its journal.
"""

from __future__ import annotations

import contextlib
import math
from random import Random

import msgspec
import pytest
from casemate.protocol.errors import LocalViolation, UsageError
from casemate.protocol.events import DATA, KIND_OF, ErrorKind, RunRolledBack, RunStarted, TaskError
from casemate.protocol.pipeline import Checkpoints, PipelineSpec
from casemate.supervisor.core.commands import Fetch, Kill, Record, Spawn
from casemate.supervisor.core.events import (
    Active,
    Adopt,
    CancelRun,
    CheckpointRun,
    Ended,
    Fetched,
    Input,
    PauseRun,
    ResumeRun,
    Rollback,
    Saved,
    Started,
    Tick,
    Told,
    Used,
    Waits,
)
from casemate.supervisor.core.scheduler import Scheduler
from casemate.supervisor.core.state import RunStanding, RunState
from hypothesis import given, settings
from hypothesis import strategies as st

from .simulated import Simulated, make_pipeline, make_task, raw, submit

Key = tuple[str, str, int]
STEPS = 60
# What a host may say went wrong with an attempt.
FAULTS = sorted(
    set(ErrorKind) - {ErrorKind.UPSTREAM_FAILED, ErrorKind.TIMEOUT_RUN, ErrorKind.CANCELLED}
)

# Pipelines may disagree about a key.
BULKHEADS = (None, "k:1", "k:2", "l:1")
RATES = (None, "1/2s", "k:1/s", "k:2/s", "l:2/5s")


class Host:
    """What lives, as the host knows it, and what it may truthfully say."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.now = 0.0
        self.world = Simulated(f"host parallel={random.randint(1, 3)} memory=8 cores=2")
        self.spawned: dict[Key, str] = {}  # spawned, started or told
        self.killed: set[Key] = set()
        self.over: list[Key] = []
        self.asked: list[str] = []  # runs whose outputs are to be fetched

    def tell(self, input: Input) -> None:
        for command in self.world.step(self.now, input):
            if isinstance(command, Spawn):
                self.spawned[command.run, command.task, command.attempt] = "spawned"
            elif isinstance(command, Fetch):
                self.asked.append(command.run)
            elif isinstance(command, Kill):
                self.killed.add((command.run, command.task, command.attempt))

    def pipeline(self) -> PipelineSpec:
        random = self.random
        names = "abcdef"[: random.randint(0, 6)]

        def maybe(*values: int) -> int | None:
            return random.choice([None, *values])

        is_limited = random.random() < 0.6
        tasks = [
            make_task(
                name,
                memory=random.choice([1, 1, 2, 5, 9]),
                start=random.choice([1, 5]),
                wall=maybe(2, 6),
                idle=maybe(1, 3),
                cpu=maybe(1, 4),
                grace=random.choice([0, 0, 1]),
                retry=random.choice([1, 2, 4]),
                delay=random.choice([0, 0.5, 3]),
                jitter=random.choice([0, 0.3]),
                on=random.choice([(), ("timeout",), ("error", "crash", "timeout", "lost")]),
                cores=random.choice([None, None, 0.1, 1.5, 9]),
                parallel=maybe(1) if is_limited else None,
                bulkhead=random.choice(BULKHEADS) if is_limited else None,
                rate=random.choice(RATES) if is_limited else None,
                priority=random.choice([0, 0, 1, -1]),
            )
            for name in names
        ]
        edges = [(a, b) for a in names for b in names if a < b and random.random() < 0.3]
        share = random.choice([0, 0.4])
        streams = [edge for edge in edges if random.random() < share]
        return make_pipeline(
            tasks,
            [edge for edge in edges if edge not in streams],
            streams=streams,
            checkpoints=random.choice(
                [
                    Checkpoints(),
                    Checkpoints(every_task=False),
                    Checkpoints(every_task=False, every=3),
                ]
            ),
            fail_fast=random.random() < 0.2,
            timeout=maybe(4, 30) if random.random() < 0.4 else None,
            max_parallel=maybe(1, 2),
            priority=random.choice([0, 0, 2]),
        )

    def end(self, key: Key) -> None:
        """The tree is dead: with an answer if it gave one, or if it was on its way."""
        how = self.spawned.pop(key)
        self.over.append(key)
        is_answered = how == "told" or (how == "started" and key in self.killed)
        if is_answered and self.random.random() < 0.7:
            self.tell(Ended(*key, output=raw(key[2]), error=None))
        else:
            error = TaskError(kind=self.random.choice(FAULTS), message="it broke")
            self.tell(Ended(*key, output=None, error=error))

    def wish(self) -> None:
        """What an operator may ask at any time, and be refused."""
        random = self.random
        run = random.choice(sorted(self.world.folded))
        state = self.world.folded[run]
        wishes: list[Input] = [
            PauseRun(run, drain=random.random() < 0.3),
            ResumeRun(run),
            ResumeRun(run),
            CheckpointRun(run),
        ]
        if state.checkpoints:
            wishes.append(Rollback(run, random.choice(sorted(state.checkpoints)), None))
        if state.tasks:
            wishes.append(Rollback(run, None, random.choice(sorted(state.tasks))))
        with contextlib.suppress(UsageError):
            self.tell(random.choice(wishes))

    def go_back(self) -> None:
        state = self.world.folded["run0"]
        if state.checkpoints:
            with contextlib.suppress(UsageError):
                self.tell(Rollback("run0", self.random.choice(sorted(state.checkpoints)), None))

    def fetch(self) -> None:
        run = self.asked.pop(0)
        self.tell(Fetched(run, self.world.outputs(run)))

    def move(self) -> None:
        """One thing that may happen."""
        random = self.random
        self.now += random.choice([0, 0, 0.1, 0.7])
        what = random.randint(0, 18)
        live = sorted(self.spawned)
        if what == 0 and len(self.world.folded) < 3:
            name = f"run{len(self.world.folded)}"
            self.tell(submit(name, self.pipeline(), seed=random.randint(0, 9)))
        elif what == 1 and self.world.folded and random.random() < 0.2:
            self.tell(CancelRun(random.choice(sorted(self.world.folded)), "enough"))
        elif what == 2 and self.over:
            key = random.choice(self.over)
            error = TaskError(kind=ErrorKind.CRASH, message="again")
            late: list[Input] = [
                Started(*key, pid=1),
                Active(*key),
                Told(*key),
                Used(*key, cpu=99.0),
                Ended(*key, output=None, error=error),
            ]
            self.tell(random.choice(late))
        elif what in (3, 4, 5):
            deadline = self.world.scheduler.deadline()
            if deadline < math.inf and what != 3:
                self.now = max(self.now, deadline)
            self.tell(Tick())
        elif what == 16 and random.random() < 0.4:
            self.wish()
        elif what == 17 and self.asked:
            self.fetch()
        elif live:
            key = random.choice(live)
            how = self.spawned[key]
            if what == 6 or (what > 12 and key in self.killed):
                self.end(key)
            elif how == "spawned":
                self.spawned[key] = "started"
                self.tell(Started(*key, pid=1))
            elif how == "told":
                self.end(key)
            elif what == 7:
                self.tell(Used(*key, cpu=random.choice([0.5, 1.0, 5.0])))
            elif what == 8:
                self.tell(Active(*key))
            elif what == 9:
                is_waiting = random.random() < 0.5
                said: list[Input] = [Saved(*key, state=raw(7)), Waits(*key, is_waiting=is_waiting)]
                self.tell(random.choice(said))
            else:
                self.spawned[key] = "told"
                self.tell(Told(*key))

    def finish(self) -> None:
        """A fair host: what lives starts, tells and ends; what was killed ends; time passes."""
        for _ in range(2000):
            if set(self.world.folded) <= self.world.judge.over:
                return
            if self.world.judge.paused:
                self.tell(ResumeRun(min(self.world.judge.paused)))
                continue
            if self.asked:
                self.fetch()
                continue
            if not self.spawned:
                deadline = self.world.scheduler.deadline()
                assert deadline < math.inf, "nothing lives, nothing is due, and a run has not ended"
                self.now = max(self.now, deadline)
                self.tell(Tick())
                continue
            key = min(self.spawned)
            if key in self.killed:
                self.end(key)
            elif self.spawned[key] == "spawned":
                self.spawned[key] = "started"
                self.tell(Started(*key, pid=1))
            else:
                self.spawned[key] = "told"
                self.tell(Told(*key))
        raise AssertionError("a run does not end")


def play(random: Random, restless: bool = False) -> Host:
    """`restless`: its operator goes back to one checkpoint after the other."""
    host = Host(random)
    host.tell(submit("run0", host.pipeline()))
    for _ in range(STEPS):
        if restless and random.random() < 0.2:
            host.go_back()
        host.move()
    host.finish()
    host.world.judge.check_every_attempt_ended()
    return host


def rebuilt(journal: list[Record]) -> dict[str, RunState]:
    """The state of every run from the bytes its journal would hold, and nothing else."""
    states: dict[str, RunState] = {}
    for record in journal:
        kind, data = KIND_OF[type(record.data)], msgspec.msgpack.encode(record.data)
        read = msgspec.msgpack.decode(data, type=DATA[kind])
        if isinstance(read, RunStarted):
            spec = msgspec.msgpack.decode(read.spec, type=PipelineSpec)
            states[record.run] = RunState(record.run, spec)
        states[record.run].apply(Record(record.run, record.task, record.attempt, read))
    return states


@settings(max_examples=150, deadline=None)
@given(st.randoms(use_true_random=False))
def test_whatever_the_host_does_the_promises_hold_and_every_run_ends(random: Random) -> None:
    host = play(random)
    assert host.world.scheduler.deadline() == math.inf


def test_a_run_has_what_the_checkpoint_holds_that_it_was_rolled_back_to() -> None:
    restored = 0
    for seed in range(100):
        world = play(Random(seed), restless=True).world  # the judge knows what each holds
        for name, state in rebuilt(world.journal).items():
            state.give(world.outputs(name))
            assert state == world.folded[name]
        rollbacks = [r.data for r in world.journal if isinstance(r.data, RunRolledBack)]
        restored += sum(bool(each.restored) for each in rollbacks)
    assert restored


@pytest.mark.parametrize("seed", range(60))
def test_the_journal_alone_gives_the_state(seed: int) -> None:
    world = play(Random(seed)).world
    for name, state in rebuilt(world.journal).items():
        state.give(world.outputs(name))  # a rollback needs some again, and the journal has them
        assert state == world.folded[name]
    ends = {RunStanding.COMPLETED, RunStanding.FAILED, RunStanding.CANCELLED}
    assert {state.standing for state in world.folded.values()} <= ends


@pytest.mark.parametrize("seed", range(60))
def test_the_journal_cut_anywhere_gives_the_state_of_that_moment(seed: int) -> None:
    journal = play(Random(seed)).world.journal
    step = rebuilt([])
    for cut, record in enumerate(journal):
        if cut % 7 == 0:
            assert rebuilt(journal[:cut]) == step
        if isinstance(record.data, RunStarted):
            spec = msgspec.msgpack.decode(record.data.spec, type=PipelineSpec)
            step[record.run] = RunState(record.run, spec)
        step[record.run].apply(record)


# The last two: cut between the end of a speaker and what follows of it for readers.
@pytest.mark.parametrize("seed", [*range(100), 100450, 103345])
def test_a_run_is_taken_over_from_any_place_of_its_journal_and_ends(seed: int) -> None:
    random = Random(seed)
    whole = [record for record in play(random).world.journal if record.run == "run0"]
    for cut in range(1, len(whole), random.randint(3, 6)):
        host = Host(random)
        world = host.world
        world.journal += whole[:cut]
        state = world.fold("run0")
        if state.has_ended:
            continue
        world.judge.specs["run0"] = state.spec
        for record in whole[:cut]:
            world.judge.remember(record)
        if state.standing is RunStanding.PAUSED:
            world.judge.paused.add("run0")
        host.tell(Adopt("run0", state))
        host.finish()
        world.judge.check_every_attempt_ended()
        assert rebuilt(world.journal)["run0"].standing is world.folded["run0"].standing


@pytest.mark.parametrize("seed", range(60))
def test_the_same_inputs_give_the_same_commands(seed: int) -> None:
    world = play(Random(seed)).world
    again = Scheduler(world.max_parallel, world.memory, world.cores)
    assert [again.step(now, input) for now, input in world.heard] == world.answered


@pytest.mark.parametrize("seed", range(60))
def test_what_is_refused_changes_nothing(seed: int) -> None:
    """The same story, with things that cannot be said in between, has the same answers."""
    world = play(Random(seed)).world
    again = Scheduler(world.max_parallel, world.memory, world.cores)
    refused = 0
    known: list[Key] = []
    for (now, input), answer in zip(world.heard, world.answered, strict=True):
        assert again.step(now, input) == answer
        known += [(c.run, c.task, c.attempt) for c in answer if isinstance(c, Spawn)]
        for run, task, attempt in known[-3:]:
            nonsense: list[Input] = [
                Started(run, task, attempt + 100, pid=1),
                Told(run, "nobody", attempt),
                Ended(run, task, attempt, output=None, error=None),
            ]
            for each in nonsense:
                try:
                    assert again.step(now, each) == []  # of what is over it is late, not wrong
                except LocalViolation:
                    refused += 1
    assert refused or not known
