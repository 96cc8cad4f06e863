"""How a run stands is what the one fold over its journal says, and its lock."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random

import msgspec
import pytest
from casemate.protocol.control import RunState as Shown
from casemate.protocol.errors import CasemateError
from casemate.protocol.events import (
    CheckpointCreated,
    ErrorKind,
    EventData,
    RunCancelled,
    RunCompleted,
    RunFailed,
    RunPaused,
    RunResumed,
    RunRolledBack,
    RunStarted,
    TaskCancelled,
    TaskCompleted,
    TaskEmitted,
    TaskError,
    TaskFailed,
    TaskReady,
    TaskRestarted,
    TaskRetrying,
    TaskStarted,
)
from casemate.protocol.limits import INLINE_VALUE_SIZE
from casemate.supervisor.journal import Entry, Journal
from casemate.supervisor.overview import describe, list_runs, read_story, summarise
from casemate.supervisor.state import OwnedRun, StateDirectory
from core.simulated import make_pipeline, make_task
from msgspec import Raw
from simulation.host import play

LARGE = Raw(msgspec.msgpack.encode("large" * INLINE_VALUE_SIZE))
ERROR = TaskError(kind=ErrorKind.ERROR, message="no")
SPEC = make_pipeline([make_task(name) for name in "cab"], [("a", "c")])  # not in order of id
BEGUN = RunStarted(pipeline="review", input=LARGE, seed=7, spec=Raw(msgspec.msgpack.encode(SPEC)))
STARTED = TaskStarted(7, {})


@pytest.fixture
def state(tmp_path: Path) -> StateDirectory:
    return StateDirectory.open(tmp_path / "state")


@pytest.fixture
def owned(state: StateDirectory) -> Iterator[OwnedRun]:
    run = state.create_run()
    yield run
    run.ownership.release()


def tell(owned: OwnedRun, *told: tuple[str | None, int | None, EventData]) -> None:
    """Each a second after the one before."""
    entries: list[Entry] = [
        (task, attempt, float(at), data) for at, (task, attempt, data) in enumerate(told, 1)
    ]
    journal = Journal(lambda _: None, lambda _, error: pytest.fail(str(error)))
    journal.open(owned.directory)
    journal.append(owned.directory.id, entries)
    journal.close()


@pytest.mark.parametrize(
    ("ends", "expected"),
    [
        ([TaskCompleted(LARGE, 1.0), RunCompleted({"a": LARGE})], Shown.COMPLETED),
        ([TaskFailed(ERROR), RunFailed(ERROR, ("a",))], Shown.FAILED),
        ([TaskCancelled(ERROR), RunCancelled("by hand")], Shown.CANCELLED),
        ([RunPaused()], Shown.PAUSED),
        ([RunPaused(), RunResumed()], Shown.RUNNING),
        ([], Shown.RUNNING),
    ],
)
def test_a_run_is_what_its_journal_and_its_lock_say(
    owned: OwnedRun, state: StateDirectory, ends: list[EventData], expected: Shown
) -> None:
    run = owned.directory
    assert summarise(run).state is describe(run)[0].state is Shown.RUNNING
    spec = msgspec.msgpack.encode(make_pipeline([make_task("a")]))
    tell(
        owned,
        (None, None, msgspec.structs.replace(BEGUN, spec=Raw(spec))),
        ("a", 1, TaskReady()),
        ("a", 1, STARTED),
        *(("a", 1, end) if "Task" in type(end).__name__ else (None, None, end) for end in ends),
    )
    (found,) = list_runs(state)
    assert (found.id, found.pipeline, found.state) == (run.id, "review", expected)
    has_ended = expected in {Shown.COMPLETED, Shown.FAILED, Shown.CANCELLED}
    assert (found.started, found.ended) == (1.0, 5.0 if has_ended else None)
    assert found.last_seq == 3 + len(ends)
    assert describe(run)[0] == found
    owned.ownership.release()
    dead = expected if has_ended else Shown.INTERRUPTED
    assert [one.state for one in list_runs(state)] == [dead]
    assert describe(run)[0].state is dead


@pytest.mark.parametrize("seed", range(10))
def test_lists_and_descriptions_agree_wherever_a_journal_ends(
    seed: int, state: StateDirectory
) -> None:
    records = next(iter(play(Random(seed)).world.journals.values())).records
    random = Random(seed)
    for cut in {random.randint(1, len(records)) for _ in range(8)}:
        owned = state.create_run()
        tell(owned, *((each.task, each.attempt, each.data) for each in records[:cut]))
        described, _ = describe(owned.directory)  # which alone says whose breakers it uses
        assert summarise(owned.directory) == msgspec.structs.replace(described, breakers=())
        owned.ownership.release()


def test_runs_are_listed_newest_first(state: StateDirectory) -> None:
    made = [state.create_run() for _ in range(3)]
    for run in made:
        run.ownership.release()
    ids = [run.directory.id for run in reversed(made)]
    assert [one.id for one in list_runs(state)] == ids
    assert [one.id for one in list_runs(state, 2)] == ids[:2]
    made[0].directory.journal.write_bytes(b"not a database, " * 500)
    assert list_runs(state)[-1].state is Shown.DAMAGED


def test_a_run_is_described_task_by_task(owned: OwnedRun) -> None:
    run = owned.directory
    assert describe(run)[1] == ()
    tell(
        owned,
        (None, None, BEGUN),  # 1
        ("a", 1, TaskReady()),
        ("a", 1, STARTED),
        ("a", 1, TaskEmitted(LARGE)),
        ("a", 1, TaskRetrying(ERROR, 1.0)),  # 5
        ("a", 2, TaskReady()),
        ("a", 2, STARTED),
        ("b", 1, TaskReady()),
        ("b", 1, TaskRetrying(ERROR, 1.0)),
    )
    summary, tasks = describe(run)
    assert (summary.state, summary.last_seq, summary.pipeline) == (Shown.RUNNING, 9, "review")
    assert [(task.id, task.state, task.attempt, task.since, task.error) for task in tasks] == [
        ("c", "waiting", 0, None, None),
        ("a", "running", 2, 7.0, None),
        ("b", "retrying", 1, 9.0, ERROR),
    ]


@pytest.mark.parametrize(("drain", "expected"), [(False, "paused"), (True, "running")])
def test_what_stands_still_is_told_from_what_is_left_to_end(
    owned: OwnedRun, drain: bool, expected: str
) -> None:
    begun: list[tuple[str | None, int | None, EventData]] = [
        (None, None, BEGUN),
        ("a", 1, TaskReady()),
        ("a", 1, STARTED),
    ]
    tell(owned, *begun, (None, None, RunPaused(drain)))
    assert {task.id: task.state for task in describe(owned.directory)[1]}["a"] == expected


def test_the_story_keeps_what_was_undone_and_says_so(owned: OwnedRun) -> None:
    begin = CheckpointCreated(checkpoint="c0", parent=None, tasks=(), total=0, files=0, bytes=0)
    tell(
        owned,
        (None, None, BEGUN),  # 1
        (None, None, begin),
        ("b", 1, TaskReady()),
        ("b", 1, STARTED),
        ("b", 1, TaskRestarted("rolled back")),  # 5
        ("a", 1, TaskReady()),
        ("a", 1, STARTED),
        ("a", 1, TaskCompleted(LARGE, 1.0)),
        (None, None, RunRolledBack(before="a", undone=("a", "c"), generation=1)),
        ("a", 2, TaskReady()),  # 10
    )
    story = read_story(owned.directory)
    assert [told.outline.event.seq for told in story] == list(range(1, 11))
    assert [told.outline.event.seq for told in story if told.undone] == [6, 7, 8]
    assert describe(owned.directory)[1][1].state == "ready"


@pytest.mark.parametrize(
    "told",
    [
        [(None, None, RunPaused())],  # it does not begin
        [(None, None, BEGUN), ("a", 2, TaskReady())],
        [(None, None, BEGUN), ("z", 1, TaskReady())],
        [(None, None, BEGUN), (None, None, RunRolledBack(before="a", undone=("z",), generation=1))],
        [(None, None, msgspec.structs.replace(BEGUN, spec=Raw(b"\xc0")))],
    ],
)
def test_a_journal_that_tells_no_story_is_damaged_and_never_our_own_bug(
    owned: OwnedRun, told: list[tuple[str | None, int | None, EventData]]
) -> None:
    """A `LocalViolation` would bring the front down."""
    tell(owned, *told)
    with pytest.raises(CasemateError, match=f"run {owned.directory.id}: ") as caught:
        describe(owned.directory)
    assert type(caught.value).__name__ == "JournalError"
