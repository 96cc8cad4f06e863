"""Whatever a host does, the promises of the core hold; `make simulate` is the long run of this.

A few seeds of it run here, in parts, so that several processes share them. What each step must hold
is in `judge.py`; that the records alone give the state, in `world.py`.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from random import Random

import pytest
from casemate.protocol.errors import LocalViolation, UsageError
from casemate.protocol.events import RunStarted
from casemate.supervisor.core.commands import Record
from casemate.supervisor.core.events import (
    Active,
    Answered,
    Ended,
    Input,
    Saved,
    Started,
    Tick,
    Told,
    Used,
    Waits,
)
from casemate.supervisor.core.state import RunState
from core.simulated import Simulated

from .coverage import TABLES, watch_edges
from .host import finish, play
from .script import script
from .shrink import replay
from .world import Crash, World

PARTS = 8
SEEDS = 100  # of each part; `make simulate` plays 20 000


@pytest.mark.parametrize("part", range(PARTS))
def test_whatever_a_host_does_the_promises_hold_and_every_run_ends(part: int) -> None:
    for seed in range(part * SEEDS, (part + 1) * SEEDS):
        try:
            play(Random(seed))
        except Exception as error:
            error.add_note(f"seed {seed}; PYTHONPATH=tests python -m simulation --first {seed}")
            raise


def test_most_edges_of_every_table_are_taken_soon() -> None:
    taken: Counter[tuple[str, str, str]] = Counter()
    with watch_edges(taken):
        for seed in range(300):
            play(Random(seed))
    for name, table in TABLES.items():
        found = sum(edge[0] == name for edge in taken)
        assert found > 0.7 * len(table.edges()), name


def digests(count: int) -> str:
    lines = [play(Random(seed)).world.digest() for seed in range(count)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def test_the_same_seed_gives_the_same_journal_to_the_byte() -> None:
    """In other processes, where every set of texts has another order."""
    tests = Path(__file__).parent.parent
    code = "from simulation.test_simulation import digests; print(digests(20))"
    for order in ("1", "2"):
        env = {**os.environ, "PYTHONPATH": str(tests), "PYTHONHASHSEED": order}
        told = subprocess.run(
            [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
        )
        assert told.stdout.strip() == digests(20)


def records(world: World) -> list[list[Record]]:
    """Without the wall time that each was written at."""
    return [journal.records for journal in world.journals.values()]


SAID = (Started, Active, Saved, Waits, Used, Told, Ended, Answered)


@pytest.mark.parametrize("seed", range(60))
def test_what_the_dead_say_is_as_if_only_time_had_passed(seed: int) -> None:
    host = play(Random(seed))
    world = host.world
    again = world.like()
    for now, move in world.did:
        if isinstance(move, SAID) and (move.run, move.task, move.attempt) not in again.stages:
            again.do(now, Tick())
        else:
            again.do(now, move)
    assert records(again) == records(world)


@pytest.mark.parametrize("seed", range(40))
def test_a_run_is_taken_over_from_any_place_of_its_journal_and_ends(seed: int) -> None:
    whole = play(Random(seed)).world
    random = Random(seed)
    for name, journal in whole.journals.items():
        for cut in range(1, len(journal.records), random.randint(4, 9)):
            world = whole.like()
            world.journals[name] = journal.until(cut)
            world.folded[name] = world.journals[name].state()
            world.do(0, Crash({name: cut}))
            finish(world, 0, is_faulty=False)


@pytest.mark.parametrize("seed", range(40))
def test_the_journal_cut_anywhere_gives_the_state_of_that_moment(seed: int) -> None:
    for name, journal in play(Random(seed)).world.journals.items():
        assert isinstance(journal.records[0].data, RunStarted)
        step = RunState(name, journal.spec)
        for cut, record in enumerate(journal.records):
            step.apply(record)
            if cut % 7 == 0:
                again = RunState(name, journal.spec)
                for each in journal.records[: cut + 1]:
                    again.apply(each)
                assert again == step


@pytest.mark.parametrize("seed", range(40))
def test_what_is_refused_changes_nothing(seed: int) -> None:
    """The same story, with things that cannot be said in between, leaves the same journals."""
    host = play(Random(seed))
    world = host.world
    again = world.like()
    refused = 0
    for now, move in world.did:
        again.do(now, move)
        for run, task, number in list(again.stages)[-3:]:
            nonsense: list[Input] = [
                Started(run, task, number + 100, pid=1),
                Told(run, "nobody", number),
                Ended(run, task, number, output=None, error=None),
            ]
            for each in nonsense:
                with pytest.raises((LocalViolation, UsageError)):
                    again.scheduler.step(now, each)
                refused += 1
    assert refused or not any(each.spec.tasks for each in world.journals.values())
    assert records(again) == records(world)


@pytest.mark.parametrize("seed", range(20))
def test_a_history_can_be_told_as_a_script_and_played_from_it(seed: int) -> None:
    world = play(Random(seed)).world
    lines = script(world, world.did).splitlines()
    told = Simulated(*(line for line in lines if not line[0].isdigit()))
    for line in lines:
        if line[0].isdigit():
            now, _, said = line.partition(" ")
            told.at(float(now), said)
    for name, journal in world.journals.items():
        ours = [(each.task, each.attempt, type(each.data)) for each in journal.records]
        again = told.journals[name].records
        assert [(each.task, each.attempt, type(each.data)) for each in again] == ours


def test_a_history_with_nothing_left_out_replays_as_it_was() -> None:
    host = play(Random(7))
    world = host.world
    again = replay(world.like(), world.did, host.is_faulty)
    assert again.did == world.did
