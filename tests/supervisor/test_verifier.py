"""The verifier accepts whatever the core can tell, and each of its rules catches a broken story."""

from __future__ import annotations

import re
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest
import verifier
from casemate.protocol.events import (
    CheckpointCreated,
    ErrorKind,
    EventData,
    Layer,
    RunCompleted,
    RunForked,
    RunRecovered,
    RunRolledBack,
    RunStarted,
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
from casemate.supervisor.journal import Journal
from casemate.supervisor.recovery import fold
from casemate.supervisor.state import OwnedRun, StateDirectory
from core.simulated import make_pipeline, make_task
from msgspec import Raw, structs
from simulation.host import finish, play
from simulation.world import Crash, GoBack, World
from verifier import verify

Line = tuple[str | None, int | None, EventData]
Lines = list[Line]

ERROR = TaskError(kind=ErrorKind.ERROR, message="no")
LARGE = Raw(msgspec.msgpack.encode("large" * INLINE_VALUE_SIZE))
SMALL = Raw(msgspec.msgpack.encode(1))


# a → b, and the reader of b's stream.
SPEC = make_pipeline([make_task(name) for name in "abc"], [("a", "b")], streams=[("b", "c")])


def begun() -> RunStarted:
    spec = Raw(msgspec.msgpack.encode(SPEC))
    return RunStarted(pipeline="p", input=SMALL, seed=7, spec=spec)


def checkpoint(name: str, parent: str | None, tasks: tuple[str, ...], total: int) -> Line:
    layers = total >= 1
    return (
        None,
        None,
        CheckpointCreated(
            checkpoint=name,
            parent=parent,
            tasks=tasks,
            total=total,
            files=3 if layers else 0,
            bytes=100 if layers else 0,
        ),
    )


def story() -> Lines:
    """A failure that is tried again, a crash, a rollback, and the end."""
    started = TaskStarted(1, {})
    return [
        (None, None, begun()),  # 0
        checkpoint("c0", None, (), 0),
        ("a", 1, TaskReady()),
        ("a", 1, started),
        ("a", 1, TaskEmitted(SMALL)),
        ("a", 1, TaskRetrying(ERROR, 0.0)),  # 5
        ("a", 2, TaskReady()),
        ("a", 2, started),
        ("a", 2, TaskCompleted(LARGE, 1.0, Layer(3, 100))),
        checkpoint("c1", "c0", ("a",), 1),
        ("b", 1, TaskReady()),  # 10
        ("b", 1, started),
        ("c", 1, TaskReady()),
        (None, None, RunRecovered(lost=("b",))),
        ("b", 1, TaskRestarted("its supervisor died")),
        ("c", 1, TaskRestarted("its supervisor died")),  # 15
        ("b", 2, TaskReady()),
        ("b", 2, started),
        ("c", 2, TaskReady()),
        ("c", 2, started),
        ("b", 2, TaskCompleted(SMALL, 1.0)),  # 20
        ("c", 2, TaskCompleted(LARGE, 1.0)),
        checkpoint("c2", "c1", ("b", "c"), 3),
        (None, None, RunCompleted({"c": LARGE})),
        (None, None, RunRolledBack(checkpoint="c1", undone=("b", "c"), generation=1)),
        ("b", 3, TaskReady()),  # 25
        ("b", 3, started),
        ("c", 3, TaskReady()),
        ("c", 3, started),
        ("b", 3, TaskCompleted(SMALL, 1.0)),
        ("c", 3, TaskCompleted(SMALL, 1.0)),  # 30
        checkpoint("c3", "c1", ("b", "c"), 3),
        (None, None, RunCompleted({"c": SMALL})),
    ]


@pytest.fixture
def owned(tmp_path: Path) -> Iterator[OwnedRun]:
    owned = StateDirectory.open(tmp_path / "state").create_run()
    yield owned
    owned.ownership.release()


def tell(owned: OwnedRun, lines: Lines) -> None:
    failures: list[Exception] = []
    journal = Journal(lambda _: None, lambda _, error: failures.append(error))
    journal.open(owned.directory)
    journal.append(owned.directory.id, [(name, number, 0.0, data) for name, number, data in lines])
    journal.close()
    assert not failures


def found(owned: OwnedRun, **asked: Any) -> list[str]:
    run = owned.directory
    return verify(run.path.parent.parent, run.id, **asked)


def test_a_true_story_is_accepted_up_to_any_of_its_events(tmp_path: Path) -> None:
    state = StateDirectory.open(tmp_path / "state")
    for length in range(1, len(story()) + 1):
        owned = state.create_run()
        tell(owned, story()[:length])
        assert found(owned) == [], length
        is_last = isinstance(story()[length - 1][2], RunCompleted)
        assert bool(found(owned, has_ended=True)) is not is_last
        owned.ownership.release()


def whole(random: Random) -> World:
    return play(random).world


def taken_over(random: Random) -> World:
    """A run goes on with another supervisor from somewhere in its journal."""
    played = whole(random)
    world = played.like()
    name, journal = next(iter(played.journals.items()))
    world.journals[name] = journal.until(random.randrange(1, len(journal.records)))
    world.folded[name] = world.fold(name)
    world.do(0, Crash({}))
    if world.folded[name].has_ended:
        world.do(0, GoBack(name, "c0", None))
    finish(world, 0, is_faulty=False)
    return world


@pytest.mark.parametrize("history", [whole, taken_over])
@pytest.mark.parametrize("seed", range(40))
def test_whatever_the_core_can_tell_is_accepted(
    seed: int, history: Callable[[Random], World], tmp_path: Path
) -> None:
    state = StateDirectory.open(tmp_path / "state")
    told: dict[str, Lines] = {}
    for record in history(Random(seed)).journal:
        told.setdefault(record.run, []).append((record.task, record.attempt, record.data))
    for lines in told.values():
        owned = state.create_run()
        tell(owned, lines)
        assert found(owned, has_ended=True) == []
        owned.ownership.release()


Edit = Callable[[Lines], Any]


def changed(at: int, **fields: Any) -> Edit:
    def edit(lines: Lines) -> None:
        name, number, data = lines[at]
        lines[at] = (name, number, structs.replace(data, **fields))

    return edit


def numbered(number: int | None, *places: int) -> Edit:
    def edit(lines: Lines) -> None:
        for at in places:
            lines[at] = (lines[at][0], number, lines[at][2])

    return edit


def without(*places: int) -> Edit:
    return lambda lines: [lines.pop(at) for at in sorted(places, reverse=True)]


def instead(at: int, line: Line) -> Edit:
    return lambda lines: lines.__setitem__(at, line)


def after(at: int, *more: Line) -> Edit:
    return lambda lines: lines.__setitem__(slice(at + 1, at + 1), more)


def moved(at: int, to: int) -> Edit:
    return lambda lines: lines.insert(to, lines.pop(at))


BROKEN: dict[str, tuple[Edit, str]] = {
    "it does not begin": (without(0), "before run.started"),
    "it begins twice": (after(2, (None, None, begun())), "run.started again"),
    "a stranger": (after(3, ("d", 1, TaskReady())), "no task of the run"),
    "a number left out": (numbered(3, 6, 7, 8), "attempt 3 after attempt 1"),
    "a number again": (numbered(1, 6, 7, 8), "attempt 1 after attempt 1"),
    "two attempts at once": (after(3, ("a", 2, TaskReady())), "while attempt 1 is open"),
    "started twice": (after(3, ("a", 1, TaskStarted(2, {}))), "started twice"),
    "an ending too many": (after(5, ("a", 1, TaskRestarted(""))), "while attempt 1 is over"),
    "words after the end": (moved(4, 5), "task.emitted of attempt 1, while attempt 1 is over"),
    "no ending": (without(5), "attempt 2 while attempt 1 is open"),
    "an ending of no attempt": (numbered(None, 5), "of no attempt, while it has one"),
    "words of no attempt": (after(5, ("a", None, TaskEmitted(SMALL))), "emitted of no attempt"),
    "too early": (moved(10, 4), "b: ready without a"),
    "too early for a stream": (moved(12, 10), "c: ready without b"),
    "a reader completes first": (moved(21, 20), "c: completed before b"),
    "done twice": (after(8, ("a", 3, TaskReady())), "though it had ended (TaskCompleted)"),
    "done after it failed": (
        after(5, ("a", None, TaskFailed(ERROR))), "though it had ended (TaskFailed)"),
    "the dead speak": (after(13, ("b", 1, TaskEmitted(SMALL))), "attempt 1, which died before"),
    "the dead go on": (without(14), "b: attempt 2 while attempt 1 is open"),
    "others are lost": (changed(13, lost=("b", "c")), "names ('b', 'c') as lost"),
    "a checkpoint of too much": (changed(9, tasks=("a", "b")), "holds ['a', 'b'], had completed"),
    "a checkpoint of too little": (changed(22, tasks=("b",)), "holds ['a', 'b'], had completed"),
    "a wrong total": (changed(9, total=2), "tells of (2, 3, 100), found (1, 3, 100)"),
    "wrong files": (changed(9, files=2), "tells of (1, 2, 100), found (1, 3, 100)"),
    "wrong bytes": (changed(9, bytes=99), "tells of (1, 3, 99), found (1, 3, 100)"),
    "a wrong parent": (changed(22, parent="c0"), "upon c0, expected c1"),
    "a checkpoint again": (changed(9, checkpoint="c0"), "checkpoint c0 again"),
    "a way back to nowhere": (changed(24, checkpoint="c9"), "to c9, which never was"),
    "too much undone": (changed(24, undone=("a", "b", "c")), "not all but it"),
    "too little undone": (changed(24, undone=("c",)), "not all but it"),
    "dependants left": (
        changed(24, checkpoint=None, before="b", undone=("b",)), "leaves dependants of ['b']"),
    "a generation again": (changed(24, generation=2), "generation 2 after 0"),
    "undone alive": (
        after(29, (None, None, RunRolledBack(before="c", undone=("c",), generation=2))),
        "undoes c while its attempt is open"),
    "a copy of nothing": (
        instead(24, (None, None, RunForked(source="x", checkpoint="c9", undone=(), generation=1))),
        "after the run had ended"),
    "ended too early": (moved(32, 30), "run.completed while c had not ended"),
    "it goes on after the end": (without(24), "after the run had ended"),
    "other outputs": (changed(32, outputs={"c": LARGE}), "its outputs are not those of c"),
    "no outputs": (changed(32, outputs={}), "its outputs are not those of c"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_story_is_told_by_the_rule_it_breaks(name: str, owned: OwnedRun) -> None:
    edit, expected = BROKEN[name]
    lines = story()
    edit(lines)
    tell(owned, lines)
    assert any(expected in problem for problem in found(owned)), found(owned)


def test_a_fold_that_does_not_agree_is_told(
    owned: OwnedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    tell(owned, story())

    def forgetful(*arguments: Any) -> Any:
        state = fold(*arguments)
        state.head = "c0"
        return state

    monkeypatch.setattr("verifier.fold", forgetful)
    assert found(owned) == ["seq 33: head: the events tell c3, the fold c0"]


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("DELETE FROM events WHERE seq = 5", "event 6 follows upon 4"),
        ("UPDATE events SET task_seq = 9 WHERE seq = 8", "a: expected task seq 6, found 9"),
        ("UPDATE events SET kind = 'task.dreamt' WHERE seq = 5", "unknown kind task.dreamt"),
        ("UPDATE events SET data = x'c0' WHERE seq = 5", "cannot be read from here on"),
        ("UPDATE run SET id = '0123456789ab'", "an event of run 0123456789ab"),
    ],
)
def test_a_row_that_was_tampered_with_is_told(
    owned: OwnedRun, statement: str, expected: str
) -> None:
    tell(owned, story())
    with closing(sqlite3.connect(owned.directory.journal)) as db, db:
        db.execute(statement)
    assert any(expected in problem for problem in found(owned)), found(owned)


def test_a_value_that_is_gone_is_told_by_the_script_too(owned: OwnedRun) -> None:
    tell(owned, story())
    state = owned.directory.path.parent.parent
    command = [sys.executable, verifier.__file__, str(state), "last", "--ended"]
    assert subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout == b""
    [value] = [path for path in owned.directory.values.rglob("*") if path.is_file()]
    value.unlink()
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert re.search("cannot be read from here on: value .* no such file", done.stdout)
