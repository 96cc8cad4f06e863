"""Every lifecycle is its table: an edge that is not there is refused and changes nothing."""

from __future__ import annotations

from enum import Enum

import pytest
from casemate.protocol.errors import LocalViolation
from casemate.protocol.events import (
    ErrorKind,
    EventData,
    RunCancelled,
    RunCompleted,
    RunFailed,
    RunStarted,
    TaskCancelled,
    TaskCompleted,
    TaskEmitted,
    TaskError,
    TaskFailed,
    TaskReady,
    TaskRetrying,
    TaskStarted,
)
from casemate.supervisor.core import attempt, state, task
from casemate.supervisor.core.commands import Record
from casemate.supervisor.core.lifecycle import Lifecycle
from casemate.supervisor.core.state import RunStanding, RunState
from casemate.supervisor.core.task import Standing

from .simulated import NIL, make_pipeline, make_task, raw

ERROR = TaskError(kind=ErrorKind.ERROR, message="boom")
OF_A_TASK: list[EventData] = [
    TaskReady(),
    TaskStarted(pid=1, walls={}),
    TaskCompleted(output=NIL, seconds=0),
    TaskRetrying(error=ERROR, delay=0),
    TaskFailed(error=ERROR),
    TaskCancelled(error=ERROR),
]
WAYS: dict[Standing, list[tuple[int | None, EventData]]] = {
    Standing.WAITING: [],
    Standing.READY: [(1, TaskReady())],
    Standing.RUNNING: [(1, TaskReady()), (1, TaskStarted(pid=1, walls={}))],
    Standing.BACKOFF: [(1, TaskReady()), (1, TaskRetrying(error=ERROR, delay=0))],
    Standing.COMPLETED: [
        (1, TaskReady()),
        (1, TaskStarted(pid=1, walls={})),
        (1, TaskCompleted(output=NIL, seconds=0)),
    ],
    Standing.FAILED: [(None, TaskFailed(error=ERROR))],
    Standing.CANCELLED: [(None, TaskCancelled(error=ERROR))],
}
STARTED = RunStarted(pipeline="p", input=NIL, seed=1, spec=NIL)


def new_run() -> RunState:
    return RunState("r", make_pipeline([make_task("a"), make_task("b")], [("a", "b")]))


def run_with_a(standing: Standing) -> RunState:
    run = new_run()
    run.apply(Record("r", None, None, STARTED))
    for number, data in WAYS[standing]:
        run.apply(Record("r", "a", number, data))
    assert run.tasks["a"].standing is standing
    return run


@pytest.mark.parametrize("data", OF_A_TASK, ids=lambda data: type(data).__name__)
@pytest.mark.parametrize("standing", Standing)
def test_a_record_takes_an_edge_of_the_table_or_is_refused(
    standing: Standing, data: EventData
) -> None:
    run = run_with_a(standing)
    number: int | None = run.tasks["a"].attempt
    if isinstance(data, TaskReady):
        number = run.tasks["a"].attempt + 1
    elif standing in (Standing.WAITING, Standing.BACKOFF):
        number = None
    after = task.TRANSITIONS[standing].get(type(data))
    if after is not None:
        run.apply(Record("r", "a", number, data))
        assert run.tasks["a"].standing is after
        return
    with pytest.raises(LocalViolation, match=f"{type(data).__name__} while {standing.name}"):
        run.apply(Record("r", "a", number, data))
    assert run == run_with_a(standing)


@pytest.mark.parametrize(
    ("standing", "record"),
    [
        (Standing.WAITING, Record("r", "a", 2, TaskReady())),
        (Standing.WAITING, Record("r", "a", None, TaskReady())),
        (Standing.WAITING, Record("r", "b", 1, TaskReady())),  # its input is missing
        (Standing.WAITING, Record("r", "c", 1, TaskReady())),
        (Standing.WAITING, Record("r", None, 1, TaskReady())),
        (Standing.WAITING, Record("r", "a", 1, TaskFailed(error=ERROR))),
        (Standing.READY, Record("r", "a", 2, TaskStarted(pid=1, walls={}))),
        (Standing.READY, Record("r", "a", None, TaskFailed(error=ERROR))),
        (Standing.RUNNING, Record("r", "a", 2, TaskCompleted(output=NIL, seconds=0))),
        (Standing.BACKOFF, Record("r", "a", 1, TaskReady())),
        (Standing.BACKOFF, Record("r", "a", 1, TaskCancelled(error=ERROR))),
        (Standing.RUNNING, Record("r", None, None, RunCompleted(outputs={}))),
        (Standing.RUNNING, Record("r", None, None, RunFailed(error=ERROR, tasks=()))),
        (Standing.COMPLETED, Record("r", None, None, RunCancelled(reason="why not"))),
        (Standing.WAITING, Record("r", None, None, STARTED)),
    ],
)
def test_a_record_that_cannot_follow_is_refused(standing: Standing, record: Record) -> None:
    run = run_with_a(standing)
    with pytest.raises(LocalViolation):
        run.apply(record)
    assert run == run_with_a(standing)


def test_nothing_happens_to_a_task_before_the_run_or_after_it() -> None:
    run = new_run()
    with pytest.raises(LocalViolation, match="TaskReady while NEW"):
        run.apply(Record("r", "a", 1, TaskReady()))
    run = run_with_a(Standing.CANCELLED)
    run.apply(Record("r", "b", None, TaskCancelled(error=ERROR)))
    run.apply(Record("r", None, None, RunCancelled(reason="enough")))
    assert run.standing is RunStanding.CANCELLED
    with pytest.raises(LocalViolation, match="TaskReady while CANCELLED"):
        run.apply(Record("r", "a", 1, TaskReady()))


def test_what_the_engine_records_on_its_own_changes_nothing() -> None:
    run = run_with_a(Standing.RUNNING)
    run.apply(Record("r", "a", 1, TaskEmitted(item=raw(7))))
    assert run == run_with_a(Standing.RUNNING)


def test_an_output_is_kept_until_its_last_reader_has_ended() -> None:
    run = run_with_a(Standing.RUNNING)
    run.apply(Record("r", "a", 1, TaskCompleted(output=raw(7), seconds=0)))
    run.apply(Record("r", "b", 1, TaskReady()))
    run.apply(Record("r", "b", 1, TaskRetrying(error=ERROR, delay=0)))
    assert run.tasks["a"].output == raw(7)
    run.apply(Record("r", "b", 2, TaskReady()))
    run.apply(Record("r", "b", 2, TaskStarted(pid=1, walls={})))
    run.apply(Record("r", "b", 2, TaskCompleted(output=raw(8), seconds=0)))
    assert run.tasks["a"].output is None
    assert run.outputs() == {"b": raw(8)}


@pytest.mark.parametrize("table", [task.LIFECYCLE, attempt.LIFECYCLE, state.LIFECYCLE])
def test_every_state_has_a_row_and_a_way_to_it_and_on(table: Lifecycle[Enum]) -> None:
    states = set(type(next(iter(table.transitions))))
    assert set(table.transitions) == states
    first = next(iter(table.transitions))
    reached = {first}
    for at in table.transitions:
        reached |= set(table.transitions[at].values())
    assert reached == states
