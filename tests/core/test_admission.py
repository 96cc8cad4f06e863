"""What holds attempts back, one claim at a time; all of it at random is in `test_histories.py`."""

from __future__ import annotations

import math
from random import Random

import pytest
from casemate.protocol.errors import UsageError
from casemate.supervisor.core import gates
from casemate.supervisor.core.commands import Spawn
from casemate.supervisor.core.events import Ended, Started
from casemate.supervisor.core.look import words as look_words
from casemate.supervisor.core.priority import Queued
from casemate.supervisor.core.scheduler import Scheduler
from casemate.supervisor.core.turns import PATIENCE, Turns
from hypothesis import given
from hypothesis import strategies as st

from .simulated import NIL, Simulated, make_pipeline, make_task, submit


def spawned(world: Simulated) -> list[str]:
    """`run/task` of every start so far, in order."""
    return [
        f"{command.run}/{command.task}"
        for answer in world.answered
        for command in answer
        if isinstance(command, Spawn)
    ]


# --- under a key ----------------------------------------------------------------------------------


def test_what_is_over_one_limit_does_not_hold_back_what_is_behind_it() -> None:
    run = Simulated.start(
        "task a bulkhead=api:1", "task b bulkhead=api:1", "task c bulkhead=disk:1", "task d"
    )
    assert spawned(run) == ["r/a", "r/c", "r/d"]
    run.at(1, "started a#1")
    assert run.at(2, "ended a#1 output=1")[-1] == "spawn b#1"


def test_a_bulkhead_is_over_all_runs() -> None:
    run = Simulated.start(
        "run one", "task a bulkhead=api:2", "task b bulkhead=api:2", "run two", "task a", "task x",
        "run three", "task y bulkhead=api:2",
    )  # fmt: skip
    assert spawned(run) == ["one/a", "one/b", "two/a", "two/x"]
    run.at(1, "started one/b#1")
    assert run.at(2, "ended one/b#1 error=error")[-1] == "spawn three/y#1"


def test_a_tasks_own_limit_is_over_all_runs_of_its_pipeline() -> None:
    tasks = ("task a parallel=1", "task b parallel=1")
    run = Simulated.start("run one", *tasks, "run two", *tasks)
    assert spawned(run) == ["one/a", "one/b"]
    run.at(1, "started one/b#1")
    assert run.at(2, "ended one/b#1 output=1")[-1] == "spawn two/b#1"


def test_each_keeps_to_its_own_word_where_two_disagree_about_a_key() -> None:
    run = Simulated.start(
        "run loose", "task a bulkhead=api:2", "task b bulkhead=api:2", "task c bulkhead=api:2",
        "run strict", "task x bulkhead=api:1",
    )  # fmt: skip
    for task in ("a", "b"):
        run.at(1, f"started loose/{task}#1")
    assert spawned(run) == ["loose/a", "loose/b"]
    assert run.at(2, "ended loose/a#1 output=1")[-1] == "spawn loose/c#1"
    run.at(3, "ended loose/b#1 output=1")
    assert spawned(run)[-1] == "loose/c"  # strict would be the second
    run.at(4, "started loose/c#1")
    assert run.at(5, "ended loose/c#1 output=1")[-1] == "spawn strict/x#1"


def test_a_rate_lets_so_many_start_within_any_such_time() -> None:
    run = Simulated.start(*(f"task {name} rate=api:2/10s" for name in "abcd"), "task e")
    assert spawned(run) == ["r/a", "r/b", "r/e"]
    for name in "abe":
        run.at(1, f"started {name}#1")
        run.at(2, f"ended {name}#1 output=1")  # that they have ended frees nothing
    assert run.scheduler.deadline() == 10
    assert run.at(9.9) == []
    assert run.at(10) == ["spawn c#1", "spawn d#1"]


def test_every_attempt_counts_against_a_rate() -> None:
    run = Simulated.start("task a rate=1/10s retry=2 delay=1")
    run.at(1, "started a#1")
    run.at(2, "ended a#1 error=error")
    assert run.at(3) == ["record a#2 ready"]
    assert run.scheduler.deadline() == 10
    assert run.at(10) == ["spawn a#2"]


def test_a_rate_is_remembered_after_the_run_that_used_it() -> None:
    world = Simulated("run one", "task a rate=1/min", "run two", "task a rate=1/min")
    world.at(0, "submit one")
    world.at(1, "started one/a#1")
    world.at(2, "ended one/a#1 output=1")
    assert "spawn two/a#1" not in world.at(3, "submit two")
    assert world.at(60) == ["spawn two/a#1"]


def test_nobody_is_woken_for_a_rate_that_nobody_waits_for() -> None:
    run = Simulated.start(
        "task a", "task b rate=1/min start=99", "task c rate=b:1/min", "task d rate=b:1/min"
    )
    for task in "abc":
        run.at(1, f"started {task}#1")
    assert run.scheduler.deadline() == 60
    run.at(2, "cancel r")
    assert run.scheduler.deadline() == math.inf
    for task in "abc":
        run.at(3, f"ended {task}#1 error=crash")
    assert run.scheduler.deadline() == math.inf


def test_a_paused_run_keeps_no_place_from_another() -> None:
    run = Simulated.start(
        "host parallel=2", "run one", "task a bulkhead=api:1", "task b bulkhead=api:1",
        "run two", "task x bulkhead=api:1",
    )  # fmt: skip
    run.at(1, "started one/a#1")
    run.at(2, "pause one drain")
    assert run.at(3, "ended one/a#1 output=1")[-1] == "spawn two/x#1"
    run.at(4, "started two/x#1")
    run.at(4, "resume one")
    assert run.at(5, "ended two/x#1 output=1")[-1] == "spawn one/b#1"


def test_a_run_with_as_many_alive_as_it_allows_itself_keeps_no_place_either() -> None:
    run = Simulated.start(
        "run one parallel=1", "task a", "task b bulkhead=api:1", "run two", "task x bulkhead=api:1"
    )
    assert spawned(run) == ["one/a", "two/x"]


def test_places_at_a_gate_go_round_the_runs_that_wait_for_them() -> None:
    world = Simulated.start(
        *(line for run in ("one", "two", "tri") for line in (f"run {run}", *(
            f"task {name} bulkhead=api:1" for name in "abc"
        )))
    )  # fmt: skip
    for now in range(8):
        key = spawned(world)[-1]
        world.at(now, f"started {key}#1")
        world.at(now, f"ended {key}#1 output=1")
    runs = [key[:3] for key in spawned(world)]
    assert runs == ["one", *["one", "two", "tri"] * 2, "two", "tri"]


def test_what_waits_under_a_key_is_not_looked_at_again_before_there_is_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looked = 0
    has_room = gates.Bulkhead.has_room

    def counting(gate: gates.Bulkhead, now: float) -> bool:
        nonlocal looked
        looked += 1
        return has_room(gate, now)

    scheduler = Scheduler(max_parallel=8, memory_budget=100)
    names = [f"t{number:04}" for number in range(5000)]
    limited = [make_task(name, bulkhead="api:1", parallel=1) for name in names]
    scheduler.step(0, submit("big", make_pipeline([*limited, make_task("x"), make_task("y")])))
    monkeypatch.setattr(gates.Bulkhead, "has_room", counting)
    scheduler.step(1, Started("big", "x", 1, pid=1))
    scheduler.step(1, Ended("big", "x", 1, NIL, None))
    scheduler.step(1, Started("big", names[0], 1, pid=1))
    assert looked == 0
    commands = scheduler.step(1, Ended("big", names[0], 1, NIL, None))
    assert commands[-1] == Spawn("big", names[1], 1, ())
    assert 0 < looked < 20


def test_nothing_is_remembered_of_keys_that_nobody_names() -> None:
    world = Simulated.start(
        "run one", "task a bulkhead=api:1 rate=2/s parallel=3", "task b rate=api:5/min"
    )
    for task in ("a", "b"):
        world.at(1, f"started one/{task}#1")
        world.at(2, f"ended one/{task}#1 output=1")
    admission = world.scheduler._admission  # nothing else shows it
    assert admission.keys() == {("task.rate", "p/a"), ("rate", "api")}
    world.declare("run two")
    world.declare("task x")
    world.at(100, "submit two")
    assert admission.keys() == set()


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ("bulkhead=api:1", "Under the bulkhead api 1 may run at once, in all runs, and do."),
        ("rate=api:1/min", "Under the key api 1/min may start (rate), in all runs, and did."),
        ("cores=2", "It needs 2 cores (limits.cpu); of the host's 2 attempts that live have 2."),
    ],
)
def test_why_a_task_waits_is_told_in_words(keys: str, words: str) -> None:
    run = Simulated.start("host cores=2", f"task a {keys}", f"task b {keys}")
    look = run.scheduler.look("r", "b")
    assert look is not None
    assert look_words(look) == (words,)


# --- checks ---------------------------------------------------------------------------------------


def test_a_check_is_bound_by_no_key_and_goes_first() -> None:
    run = Simulated.start(
        "host parallel=1", "task a validate bulkhead=api:1", "task b bulkhead=api:1", "task c"
    )
    run.at(1, "started a#1")
    assert run.at(2, "ended a#1 output=1") == ["check a#1 validate 1"]


def test_while_a_check_runs_its_task_has_no_place_under_a_key() -> None:
    run = Simulated.start("task a validate bulkhead=api:1", "task b bulkhead=api:1", "task c")
    assert spawned(run) == ["r/a", "r/c"]
    run.at(1, "started a#1")
    run.at(2, "ended a#1 output=1")
    assert spawned(run)[2:] == ["r/a", "r/b"]


# --- the host -------------------------------------------------------------------------------------


def test_ceilings_on_cpu_sum_up_to_what_the_host_has() -> None:
    tenths = [f"task {name} cores=0.1" for name in "abcdefghijk"]
    run = Simulated.start("host cores=1 parallel=20", *tenths)
    assert len(spawned(run)) == 10
    run = Simulated.start("host cores=1 parallel=20", *(f"task {n} cores=0.4" for n in "abc"))
    assert spawned(run) == ["r/a", "r/b"]


def test_a_ceiling_above_what_the_host_has_takes_all_of_it() -> None:
    run = Simulated.start("host cores=2", "task a cores=64", "task b cores=0.01", "task c")
    assert spawned(run) == ["r/a"]
    run.at(1, "started a#1")
    assert run.at(2, "ended a#1 output=1")[-2:] == ["spawn b#1", "spawn c#1"]


# --- turns ----------------------------------------------------------------------------------------


def test_the_highest_priority_of_a_run_goes_first() -> None:
    run = Simulated.start(
        "host parallel=1", "task a priority=-1", "task b", "task c priority=9", "task d"
    )
    for now, task in enumerate("cbda"):
        assert spawned(run)[-1] == f"r/{task}"
        run.at(now, f"started {task}#1")
        run.at(now, f"ended {task}#1 output=1")


def test_the_run_of_the_highest_priority_goes_first_and_the_lowest_gets_its_share() -> None:
    scheduler = Scheduler(max_parallel=1, memory_budget=100)
    names = [f"t{number:02}" for number in range(60)]
    low = make_pipeline(map(make_task, names))
    high = make_pipeline(map(make_task, names), priority=10)
    [*_, live] = scheduler.step(0, submit("low", low))
    scheduler.step(0, submit("high", high))
    order = []
    for now in range(29):
        assert isinstance(live, Spawn)
        scheduler.step(now, Started(live.run, live.task, 1, pid=1))
        [*_, live] = scheduler.step(now, Ended(live.run, live.task, 1, NIL, None))
        assert isinstance(live, Spawn)
        order.append(live.run)
    # it is the eldest again once the other has been served, and passed over from then on
    again = [*["high"] * (PATIENCE + 1), "low"]
    assert order == [*["high"] * PATIENCE, "low", *again, *again]


class Waiting(Queued):
    def __init__(self, key: tuple[int, int, int]) -> None:
        super().__init__()
        self.key = key


@given(st.lists(st.integers(-2, 2), min_size=1, max_size=8), st.integers(0, 2**32))
def test_nobody_is_passed_over_for_ever(priorities: list[int], seed: int) -> None:
    """Whoever comes and goes beside it, and whatever their keys."""
    random = Random(seed)
    turns: Turns[Waiting] = Turns()
    steady = [Waiting((priority, 0, 0)) for priority in priorities]
    passers = [Waiting((-9, 0, 0)) for _ in range(4)]
    for waiting in steady:
        turns.put(waiting.key, waiting)
    waited = dict.fromkeys(steady, 0)
    for _ in range(500):
        passer = random.choice(passers)
        if random.random() < 0.4:
            turns.discard(passer)
        else:
            turns.put(passer.key, passer)
        first = turns.first()
        assert first is not None
        turns.served(first)
        for waiting in steady:
            waited[waiting] = 0 if waiting is first else waited[waiting] + 1
            assert waited[waiting] <= (PATIENCE + 1) * (len(steady) + len(passers))


def test_a_limit_under_which_nothing_could_start_is_refused() -> None:
    for line, message in (
        ("task a parallel=0", "task a: max_parallel is 0, expected at least 1"),
        ("task a bulkhead=api:0", r"task a: bulkhead\.max_parallel is 0"),
    ):
        world = Simulated("run r", line)
        with pytest.raises(UsageError, match=message):
            world.at(0, "submit r")
