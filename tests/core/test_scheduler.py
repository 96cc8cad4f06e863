"""What the scheduler promises, one claim at a time. Longer stories are in `scripts/`."""

from __future__ import annotations

import itertools
import math

import pytest
from casemate.protocol.errors import LocalViolation
from casemate.protocol.events import ErrorKind, RunFailed, TaskError
from casemate.supervisor.core.commands import Kill, Record, Spawn
from casemate.supervisor.core.events import Active, Ended, Started, Tick, Told
from casemate.supervisor.core.scheduler import Scheduler

from .simulated import NIL, Simulated, make_pipeline, make_task, raw, submit


def started(*lines: str) -> Simulated:
    """A run whose first task `a` has started, at 0."""
    run = Simulated.start(*lines)
    run.at(0, "started a#1")
    return run


def test_a_task_past_its_wall_limit_is_killed_once() -> None:
    run = started("task a wall=10")
    assert run.scheduler.deadline() == 10
    assert run.at(9.99) == []
    assert run.at(10) == ["kill a#1: timeout.wall"]
    assert run.at(11) == []
    assert run.scheduler.deadline() == math.inf


def test_commands_name_the_attempt_and_the_first_cause() -> None:
    run = started("task a wall=10")
    assert run.step(10, Tick()) == [Kill("r", "a", 1, ErrorKind.TIMEOUT_WALL)]


def test_the_wall_clock_starts_when_the_task_does() -> None:
    run = Simulated.start("task a wall=10 start=60")
    run.at(50, "started a#1")
    assert run.scheduler.deadline() == 60
    assert run.at(59.9) == []
    assert run.at(60) == ["kill a#1: timeout.wall"]


def test_a_task_that_does_not_start_in_time_is_killed() -> None:
    run = Simulated.start("task a start=3")
    assert run.scheduler.deadline() == 3
    assert run.at(3) == ["kill a#1: timeout.start"]


def test_a_task_without_limits_runs_on() -> None:
    run = started("task a")
    assert run.scheduler.deadline() == math.inf
    assert run.at(1e9) == []


def test_activity_postpones_the_idle_limit_and_no_other() -> None:
    run = started("task a idle=3 wall=10")
    for now in range(1, 10):
        assert run.at(now, "active a#1") == []
    assert run.at(10) == ["kill a#1: timeout.wall"]


def test_the_deadline_is_at_most_once_per_idle_limit_too_early() -> None:
    run = started("task a idle=10")
    early = 0
    for tenth in range(1, 1000):
        now = tenth / 10
        if run.scheduler.deadline() <= now:
            early += 1
            assert run.at(now) == []
        run.at(now, "active a#1")
    assert early <= 10
    assert run.at(99.9 + 10) == ["kill a#1: timeout.idle"]


def test_using_the_whole_cpu_limit_is_too_much() -> None:
    run = started("task a cpu=2")
    assert run.at(5, "used a#1 cpu=1.99") == []
    assert run.at(6, "used a#1 cpu=2") == ["kill a#1: timeout.cpu"]


def test_clocks_stop_when_the_task_has_told_its_result() -> None:
    run = started("task a wall=10 idle=5 cpu=1")
    assert run.at(4, "told a#1") == ["kill a#1"]
    assert run.scheduler.deadline() == math.inf
    assert run.at(20, "used a#1 cpu=9") == []


def test_seconds_count_until_the_result_not_until_the_tree_is_gone() -> None:
    run = started("task a")
    run.at(4, "told a#1")
    assert run.at(5, "ended a#1 output=1")[0] == "record a#1 completed 1 in 4 s"


@pytest.mark.parametrize(
    ("first", "kind"),
    [
        ("tick", "timeout.wall"),
        ("used a#1 cpu=9", "timeout.cpu"),
        ("cancel r", "cancelled"),
    ],
)
@pytest.mark.parametrize("grace", [0, 5])
def test_the_first_cause_wins(first: str, kind: str, grace: float) -> None:
    wall = 1 if first == "tick" else 2
    run = started(f"task a wall={wall} idle=3 cpu=9 grace={grace}")
    assert run.at(1, first) == [f"{'ask' if grace else 'kill'} a#1: {kind}"]
    assert run.at(3, "used a#1 cpu=99") == []
    assert run.at(4, "cancel r") == []
    assert run.at(6) == ([f"kill a#1: {kind}"] if grace else [])
    assert run.at(9) == []
    assert f"{kind}: " in run.at(10, "ended a#1 error=memory too much")[0]


def test_what_else_was_seen_at_the_end_is_told_beside_the_first_cause() -> None:
    run = started("task a wall=10")
    run.at(10)
    [failed, _] = run.at(11, "ended a#1 error=memory too much")
    assert failed == (
        "record a#1 failed: timeout.wall: ran longer than 10 s (timeouts.wall); "
        "then memory: too much"
    )


@pytest.mark.parametrize("kind", ["crash", "lost", "timeout.wall"])
def test_what_our_own_kill_looks_like_is_not_told(kind: str) -> None:
    run = started("task a wall=10")
    run.at(10)
    [failed, _] = run.at(11, f"ended a#1 error={kind} killed from outside")
    assert failed == "record a#1 failed: timeout.wall: ran longer than 10 s (timeouts.wall)"


def test_nobody_is_asked_before_it_has_started() -> None:
    run = Simulated.start("task a start=3 grace=60")
    assert run.at(3) == ["kill a#1: timeout.start"]


def test_a_run_past_its_deadline_leaves_its_tasks_their_grace() -> None:
    run = started("run r timeout=5", "task a grace=2")
    assert run.at(5) == ["ask a#1: timeout.run"]
    assert run.scheduler.deadline() == 7
    assert run.at(7) == ["kill a#1: timeout.run"]
    assert run.at(8, "ended a#1 error=crash")[-1] == (
        "record r failed: timeout.run: the run took longer than 5 s (its timeout) []"
    )


def test_cancelling_a_run_of_which_nothing_lives_ends_it_at_once() -> None:
    run = Simulated.start("task a retry=2 delay=60")
    run.at(0, "ended a#1 error=error")
    assert run.at(0, "started a#1") == []
    assert run.at(1, "cancel r no longer needed") == [
        "record a cancelled: cancelled: no longer needed",
        "record r cancelled: no longer needed",
    ]
    assert run.scheduler.deadline() == math.inf


def test_a_run_that_failed_by_an_invalid_output_tells_the_reasons_as_well() -> None:
    run = started("task a validate")
    run.at(1, "ended a#1 output=1")
    run.at(1, "started a#1")
    run.at(2, "answered a#1 bad too short")
    [end] = [record.data for record in run.journal if isinstance(record.data, RunFailed)]
    assert end.error.reasons == ("too short",)


def test_cancelling_what_is_not_there_does_nothing() -> None:
    assert Simulated().at(0, "cancel r") == []


def test_a_slot_is_free_when_the_tree_is_dead_and_not_before() -> None:
    run = started("host parallel=1 memory=1", "task a wall=10", "task b")
    assert run.at(10) == ["kill a#1: timeout.wall"]
    assert run.at(11, "ended a#1 error=crash")[-1] == "spawn b#1"


def test_an_attempt_that_backs_off_holds_no_slot() -> None:
    run = started("host parallel=1", "task a retry=2 delay=60", "task b")
    assert run.at(1, "ended a#1 error=error")[-1] == "spawn b#1"


def test_a_retry_goes_back_to_its_place_in_the_order() -> None:
    run = started("host parallel=1", "task a retry=2 delay=0", "task b", "task c")
    assert run.at(1, "ended a#1 error=error")[-1] == "spawn a#2"


def test_one_runs_own_limit_does_not_hold_back_another() -> None:
    run = Simulated.start("run one parallel=1", "task a", "task b", "run two", "task x", "task y")
    live = [command for answer in run.answered for command in answer if isinstance(command, Spawn)]
    assert [(spawn.run, spawn.task) for spawn in live] == [("one", "a"), ("two", "x"), ("two", "y")]


def test_five_thousand_ready_tasks_do_not_starve_a_run_of_one() -> None:
    scheduler = Scheduler(max_parallel=2, memory_budget=100)
    big = make_pipeline(make_task(f"t{number:04}") for number in range(5000))
    commands = scheduler.step(0, submit("big", big))
    live = [command for command in commands if isinstance(command, Spawn)]
    scheduler.step(1, submit("one", make_pipeline([make_task("x")])))
    scheduler.step(2, Started("big", live[0].task, 1, pid=1))
    commands = scheduler.step(3, Ended("big", live[0].task, 1, NIL, None))
    assert commands[-1] == Spawn("one", "x", 1, ())


def test_memory_holds_back_what_does_not_fit_and_all_behind_it() -> None:
    run = Simulated(
        "host memory=10", "task a memory=6", "task b memory=5", "run other", "task small memory=1"
    )
    assert run.at(0, "submit r")[-1] == "spawn a#1"
    assert run.at(0, "submit other")[-1] == "spawn other/small#1"  # its run has less alive
    run.at(0, "started a#1")
    assert run.at(1, "ended a#1 output=1")[-1] == "spawn b#1"

    run = Simulated(
        "host memory=10", "task a memory=6", "task b memory=5", "task c memory=1", "task d memory=1"
    )
    assert run.at(0, "submit r")[-1] == "spawn a#1"
    run.at(0, "started a#1")
    spawned = run.at(1, "ended a#1 output=1")[-3:]
    assert spawned == ["spawn b#1", "spawn c#1", "spawn d#1"]


def test_a_task_that_no_budget_could_hold_fails_at_once_and_alone() -> None:
    run = Simulated("host memory=1048576", "task a", "task big memory=3145728")
    answers = run.at(0, "submit r")
    assert answers[2] == (
        "record big failed: setup: limits.memory is 3 MiB, and the host's memory budget for all "
        "tasks is 1 MiB: lower the limit or raise the budget"
    )
    assert answers[-1] == "spawn a#1"


def test_with_fail_fast_a_task_that_no_budget_could_hold_ends_the_run() -> None:
    run = Simulated("host memory=1", "run r fail_fast", "task a", "task big memory=2")
    answers = run.at(0, "submit r")
    assert [answer.split(":")[0] for answer in answers] == [
        "record r started",
        "record r checkpoint.created c0",
        "record big failed",
        "record a cancelled",
        "record r failed",
    ]


def test_an_output_is_there_while_a_dependant_may_ask_for_it() -> None:
    run = started("task a", "task b needs=a retry=2 delay=0", "task c needs=b")
    with pytest.raises(LocalViolation, match="task r/a: its output is not there"):
        run.scheduler.output("r", "a")
    run.at(1, "ended a#1 output=7")
    run.at(1, "started b#1")
    run.at(2, "ended b#1 error=error")
    assert run.scheduler.output("r", "a") == raw(7)
    run.at(2, "started b#2")
    run.at(3, "ended b#2 output=8")
    assert run.scheduler.output("r", "b") == raw(8)
    with pytest.raises(LocalViolation, match="no longer needed"):
        run.scheduler.output("r", "a")


def test_a_run_that_has_ended_is_forgotten_and_its_name_is_free() -> None:
    run = started("task a")
    run.at(1, "ended a#1 output=7")
    with pytest.raises(LocalViolation, match="run r: not one that is under way"):
        run.scheduler.state("r")
    scheduler = run.scheduler
    again = submit("r", run.runs["r"].spec())
    assert [type(command) for command in scheduler.step(2, again)][-1] is Spawn


def test_a_dependant_of_two_failures_fails_once() -> None:
    run = started("task a", "task b", "task c needs=a,b", "task d needs=c")
    run.at(1, "ended a#1 error=error")
    run.at(1, "started b#1")
    assert run.at(2, "ended b#1 error=error") == [
        "record b#1 failed: error: it broke",
        "record r failed: error: task a (attempt 1): it broke [a, b]",
    ]


def test_a_scheduler_that_could_run_nothing_is_refused() -> None:
    with pytest.raises(LocalViolation, match="max_parallel is 0"):
        Scheduler(max_parallel=0, memory_budget=1)


def test_an_active_step_answers_nothing_and_knows_no_strangers() -> None:
    run = started("task a idle=5")
    for stranger in (Active("r", "a", 9), Active("r", "x", 1), Active("s", "a", 1)):
        assert run.step(4, stranger) == []
    assert run.at(5) == ["kill a#1: timeout.idle"]


def test_ten_thousand_tasks_in_a_row_fail_without_recursion() -> None:
    names = [f"t{number:05}" for number in range(10_000)]
    spec = make_pipeline(map(make_task, names), itertools.pairwise(names))
    scheduler = Scheduler(max_parallel=2, memory_budget=100)
    scheduler.step(0, submit("r", spec))
    scheduler.step(0, Started("r", names[0], 1, pid=1))
    scheduler.step(1, Told("r", names[0], 1))
    error = TaskError(kind=ErrorKind.ERROR, message="it broke")
    failure = Ended("r", names[0], 1, output=None, error=error)
    commands = scheduler.step(1, failure)
    assert sum(isinstance(command, Record) for command in commands) == 10_001
