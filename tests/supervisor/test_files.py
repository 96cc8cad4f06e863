"""The workspace of a run, layer by layer: with real processes, mounted and copied."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from casemate import PipelineEvent, UsageError
from casemate.protocol.pipeline import PipelineSpec
from casemate.supervisor import offline
from casemate.supervisor.cursor import public
from casemate.supervisor.files import layer_owner, present_layers
from casemate.supervisor.journal import JournalReader
from casemate.supervisor.layers import View
from casemate.supervisor.recovery import read_run
from casemate.supervisor.state import StateDirectory
from casemate.supervisor.workspace import Workspace
from fakes import wait_until
from runs import Embedded, Place, is_alive
from verifier import assert_true_story

TASKS = """
import os, time
def write(input, ctx):
    with open("made", "w") as file:
        file.write("by write")
    os.unlink("gone")
    os.makedirs("folder/below")
    with open("kept", "a") as file:
        file.write(" and more")
    return sorted(os.listdir(ctx.workspace))
def read(input, ctx):
    return {name: open(name).read() for name in sorted(os.listdir(".")) if os.path.isfile(name)}
def left(input, ctx):
    with open("kept", "w") as file:
        file.write("left")
def right(input, ctx):
    with open("kept", "w") as file:
        file.write("right")
def fails(input, ctx):
    with open("half", "w") as file:
        file.write("done")
    raise ValueError("midway")
def grow(input, ctx):
    for number in range(1000):
        with open(f"file{number}", "wb") as file:
            file.write(b"x" * 100_000)
        time.sleep(0.01)
    time.sleep(3600)
def bloat(input, ctx):
    for number in range(60):
        with open(f"file{number}", "wb") as file:
            file.write(b"x" * 100_000)
def scatter(input, ctx):
    for number in range(3000):
        open(f"empty{number}", "w").close()
def strew(input, ctx):
    scatter(input, ctx)
    time.sleep(3600)
def step(input, ctx):
    log = open("log").read() if os.path.exists("log") else ""
    with open("log", "w") as file:
        file.write(log + ctx.task_id + " ")
    return log
def lingers(input, ctx):
    time.sleep(0.3)
def waits(input, ctx):
    with open("late", "w") as file:
        file.write("written")
    ctx.emit("here")
    time.sleep(3600 if ctx.attempt == 1 else 0)
"""


@pytest.fixture(params=["mounted", "copied"])
def state(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Nothing can be mounted over a base that holds what is mounted: then copies are made."""
    return tmp_path / "state" if request.param == "mounted" else tmp_path / "place/repo/state"


@pytest.fixture
def place(tmp_path: Path) -> Place:
    place = Place(tmp_path / "place")
    place.tasks(TASKS)
    place.write("repo/kept", "kept")
    place.write("repo/gone", "gone")
    return place


@pytest.fixture
def house(state: Path) -> Iterator[Embedded]:
    with Embedded(state, max_parallel=4) as house:
        yield house


def spec(place: Place, **tasks: dict[str, Any]) -> PipelineSpec:
    return place.spec(workspace="repo", tasks=tasks)


def events(state: Path, run: str, kind: str) -> list[PipelineEvent]:
    with JournalReader(StateDirectory(state).run(run)) as reader:
        return [public(event) for event in reader.events(0, 10_000) if event.kind == kind]


def finished(state: Path, run: str, count: int = 1) -> None:
    wait_until(lambda: len(events(state, run, "run.completed")) >= count)


def files(state: Path, run: str) -> dict[str, str]:
    """What the files of a run have come to, by what its directory holds."""
    directory = StateDirectory(state).run(run)
    found = read_run(directory).state
    workspace = Workspace(directory, found.spec, owner=layer_owner(), state=state)
    stack = workspace.whole_stack(found.graph, present_layers(found))
    shown = {}
    with View(workspace.store, workspace.base, stack) as view:
        for path in {*view.paths(), *(p.name for p in workspace.base.iterdir() if p.is_file())}:
            place = view.find(path)
            if place is not None and str(place.kind) == "file":
                fd = (
                    workspace.store.open_file(place.layers[0], path)
                    if place.layers
                    else view.open_base(path)
                )
                with os.fdopen(fd, "rb") as file:
                    shown[path] = file.read().decode()
    return shown


def test_a_task_sees_what_those_before_it_wrote_and_the_workspace_stays_as_it_was(
    house: Embedded, place: Place, state: Path
) -> None:
    history = house.run(spec(place, write={}, read={"needs": ["write"]}))
    assert history.outcome == "run.completed", history.events
    assert history.output("read") == {"kept": "kept and more", "made": "by write"}
    assert (place.path / "repo/kept").read_text() == "kept"
    assert not (place.path / "repo/made").exists()
    assert history.one("task.completed", "write").data["layer"]["files"] == 5
    assert history.one("task.completed", "read").data["layer"] is None
    [_, first, second] = history.of("checkpoint.created")
    assert first.data["files"] == second.data["files"] == 5
    walls = history.one("task.started", "read").data["walls"]["workspace"]
    assert ("1 layer" in walls) == (state.parent.name != "repo"), walls
    assert files(state, history.run) == {"kept": "kept and more", "made": "by write"}


def test_branches_that_changed_the_same_file_are_in_conflict_where_they_meet(
    house: Embedded, place: Place
) -> None:
    tasks: dict[str, dict[str, Any]] = {
        "left": {},
        "right": {},
        "read": {"needs": ["left", "right"]},
    }
    history = house.run(spec(place, **tasks))
    error = history.error("read")
    assert error["kind"] == "conflict"
    assert error["message"] == (
        "tasks left and right both changed kept; let one of them need the other, or say "
        "`conflict: last`"
    )
    history = house.run(place.spec(workspace="repo", conflict="last", tasks=tasks))
    assert history.output("read")["kept"] == "right"


def test_a_run_whose_workspace_is_gone_never_is(house: Embedded, place: Place, state: Path) -> None:
    what = msgspec.structs.replace(spec(place, step={}), workspace=str(place.path / "nowhere"))
    with pytest.raises(UsageError, match="nowhere: no such folder"):
        house.start(what).finish()
    assert os.listdir(state / "runs") == []


def test_what_a_failed_attempt_wrote_joins_nothing_and_is_kept(
    house: Embedded, place: Place, state: Path
) -> None:
    history = house.run(spec(place, fails={"retry": {"attempts": 2, "delay": "0s"}}))
    assert history.errors() == {"fails": "error"}
    assert files(state, history.run) == {"kept": "kept", "gone": "gone"}
    store = Workspace(
        StateDirectory(state).run(history.run), spec(place, fails={}), owner=layer_owner()
    ).store
    for attempt in ("fails.1", "fails.2"):
        assert [change.path for change in store.changes(attempt)] == ["half"]


@pytest.mark.parametrize(
    ("task", "seen"),
    [
        ("grow", "found while it ran"),
        ("bloat", "on disk"),
        ("strew", "more than 1280 files and folders"),
        ("scatter", "more than 1280 files and folders"),
    ],
)
def test_a_layer_beyond_its_limit_fails_the_attempt(
    house: Embedded, place: Place, task: str, seen: str
) -> None:
    history = house.run(spec(place, **{task: {"limits": {"disk": "5MiB"}}}))
    error = history.error(task)
    assert error["kind"] == "disk"
    assert seen in error["message"]


def chain(place: Place) -> PipelineSpec:
    names = ["a", "b", "c", "d"]
    return spec(
        place,
        **{
            name: {"execute": "tasks.py:step", "needs": names[:number][-1:]}
            for number, name in enumerate(names)
        },
    )


def test_a_rollback_to_each_checkpoint_brings_back_its_files(
    house: Embedded, place: Place, state: Path
) -> None:
    history = house.run(chain(place))
    assert history.output("d") == "a b c "
    run, count = history.run, 1
    for checkpoint in ("c3", "c2", "c1", "c0"):
        house.call(house.supervisor.rollback(run, checkpoint))
        finished(state, run, count := count + 1)
        assert files(state, run)["log"] == "a b c d "
    outputs = [e.data["output"] for e in events(state, run, "task.completed") if e.task == "d"]
    assert outputs == ["a b c "] * 5


def test_a_checkpoint_that_was_left_behind_still_has_its_files_and_outputs(
    house: Embedded, place: Place, state: Path
) -> None:
    run = house.run(chain(place)).run
    house.call(house.supervisor.rollback(run, "c1"))
    finished(state, run, 2)  # b, c and d as second attempts, in c5 and so on
    copy = house.call(house.supervisor.fork(run, "c5"))
    finished(state, copy, 2)  # the first is shared history
    for each in (run, copy):
        house.call(house.supervisor.rollback(each, "c3"))
        finished(state, each, 3)
        [*_, back] = events(state, each, "run.rolled_back")
        assert (back.data["undone"], back.data["restored"]) == (["d"], ["b", "c"])
        [*_, last] = events(state, each, "task.completed")
        assert (last.task, last.attempt, last.data["output"]) == ("d", 3, "a b c ")
        assert files(state, each)["log"] == "a b c d "
        assert_true_story(state, each, has_ended=True)


def test_a_fork_has_the_files_of_its_checkpoint_and_leaves_its_source_alone(
    house: Embedded, place: Place, state: Path
) -> None:
    history = house.run(chain(place))
    copy = house.call(house.supervisor.fork(history.run, "c2"))
    finished(state, copy)
    started = [e.task for e in events(state, copy, "task.started")]
    assert started == ["a", "b", "c", "d"]  # of a and b: the history that both share
    assert files(state, copy)["log"] == "a b c d "
    layers = StateDirectory(state).run(copy).path / "layers"
    assert {path.name for path in layers.iterdir()} == {"a.1", "b.1", "c.1", "d.1"}
    assert files(state, history.run)["log"] == "a b c d "


def test_a_run_taken_over_after_a_kill_has_what_had_completed_and_nothing_else(
    place: Place, state: Path
) -> None:
    what = spec(
        place,
        step={},
        waits={"needs": ["step"]},
        read={"needs": ["waits"]},
    )
    with Embedded(state) as house:
        live = house.start(what)
        live.wait("task.emitted", "waits")
        pid = live.wait("task.started", "waits").data["pid"]
        os.kill(house.engine, signal.SIGKILL)
        wait_until(lambda: not is_alive(pid))
    with Embedded(state) as house:
        house.call(house.supervisor.resume(live.run))
        finished(state, live.run)
    [outputs] = [e.data["outputs"] for e in events(state, live.run, "run.completed")]
    assert outputs["read"] == {"gone": "gone", "kept": "kept", "late": "written", "log": "step "}
    layers = StateDirectory(state).run(live.run).path / "layers"
    assert {path.name for path in layers.iterdir()} == {"step.1", "waits.1", "waits.2"}


def test_what_others_change_in_the_workspace_is_told_and_stands_in_the_way_of_a_rollback(
    house: Embedded, place: Place, state: Path
) -> None:
    live = house.start(spec(place, waits={}, step={}))
    live.wait("task.completed", "step")
    (place.path / "repo/kept").write_text("by somebody else")
    with pytest.raises(UsageError, match="was changed since the run began: kept"):
        house.call(house.supervisor.rollback(live.run, before="step"))
    house.call(house.supervisor.rollback(live.run, before="step", accept_base=True))
    live.wait("task.completed", "step", 2)
    (place.path / "repo/new").write_text("by somebody else")
    house.call(house.supervisor.rollback(live.run, before="step", accept_base=True))
    live.cancel()
    live.finish()
    (place.path / "repo/more").write_text("by somebody else")
    with pytest.raises(UsageError, match="was changed since the run began: more"):
        house.call(house.supervisor.rollback(live.run, "c0"))
    wait_until(lambda: not StateDirectory(state).run(live.run).is_owned())
    with pytest.raises(UsageError, match="was changed since the run began: more"):
        offline.rollback_run(StateDirectory(state), live.run, "c0", None)
    offline.rollback_run(StateDirectory(state), live.run, "c0", None, accept_base=True)


def test_changes_by_others_are_told_at_the_next_checkpoint(house: Embedded, place: Place) -> None:
    slow = {"execute": "tasks.py:lingers"}
    live = house.start(spec(place, first=slow, second={**slow, "needs": ["first"]}, waits={}))
    live.wait("task.started", "first")
    (place.path / "repo/kept").write_text("by somebody else")
    (place.path / "repo/gone").unlink()
    assert live.wait("workspace.changed").data == {"paths": ["gone", "kept"], "total": 2}
    live.cancel()
    live.finish()


def test_a_snapshot_is_not_touched_by_what_happens_to_the_workspace(
    house: Embedded, place: Place
) -> None:
    what = place.spec(
        workspace="repo", base="snapshot", tasks={"waits": {}, "read": {"needs": ["waits"]}}
    )
    live = house.start(what)
    live.wait("task.emitted", "waits")
    (place.path / "repo/kept").write_text("by somebody else")
    house.call(house.supervisor.rollback(live.run, before="waits"))
    history = live.finish()
    assert history.output("read") == {"gone": "gone", "kept": "kept", "late": "written"}
