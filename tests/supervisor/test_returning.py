"""Nothing that finished is lost, and any checkpoint can be returned to: with real processes."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from casemate import UsageError
from casemate.supervisor import offline
from casemate.supervisor.cli.steer import cancel_run
from casemate.supervisor.cursor import PipelineEvent, public
from casemate.supervisor.journal import JournalReader
from casemate.supervisor.overview import describe
from casemate.supervisor.state import StateDirectory
from fakes import wait_until
from runs import Embedded, Place, is_alive

TASKS = """
import time
def first(input, ctx):
    return {"n": 1, "large": "x" * 40_000}
def second(input, ctx):
    return {"n": input["first"]["n"] + 1, "key": ctx.idempotency_key}
def slow(input, ctx):
    ctx.emit("here")
    time.sleep(3600)
def patient(input, ctx):
    before = ctx.saved
    ctx.save({"tries": (before or {"tries": 0})["tries"] + 1, "pad": "y" * 20_000})
    ctx.emit(ctx.saved["tries"] if before else 0)
    if ctx.attempt < 3:
        if ctx.attempt == 1:
            raise ValueError("the first always fails")
        time.sleep(3600)
    return before["tries"]
def ticking(input, ctx):
    for n in range(1_000_000):
        ctx.emit(n)
        time.sleep(0.005)
"""
CHAIN = {"first": {}, "second": {"needs": ["first"]}}


@pytest.fixture
def place(place: Place) -> Place:
    place.tasks(TASKS)
    return place


@pytest.fixture
def house(tmp_path: Path) -> Iterator[Embedded]:
    with Embedded(tmp_path / "state", max_parallel=4) as house:
        yield house


def events(state: Path, run: str) -> list[PipelineEvent]:
    with JournalReader(StateDirectory(state).run(run)) as reader:
        found = reader.events(0, 10_000)
    assert [event.seq for event in found] == list(range(1, len(found) + 1))
    return [public(event) for event in found]


def of(found: list[PipelineEvent], kind: str, task: str | None = None) -> list[Any]:
    return [event for event in found if event.kind == kind and task in (None, event.task)]


def wait_for(state: Path, run: str, kind: str, count: int = 1) -> None:
    wait_until(lambda: len(of(events(state, run), kind)) >= count)


def test_a_run_whose_engine_was_killed_goes_on_and_repeats_nothing(
    tmp_path: Path, place: Place
) -> None:
    state = tmp_path / "state"
    spec = place.spec(tasks={**CHAIN, "slow": {"needs": ["second"], "timeouts": {"wall": "2s"}}})
    with Embedded(state) as house:
        live = house.start(spec)
        live.wait("task.emitted", "slow")
        pid = live.wait("task.started", "slow").data["pid"]
        os.kill(house.engine, signal.SIGKILL)
        wait_until(lambda: not is_alive(pid))
    with Embedded(state) as house:
        house.call(house.supervisor.resume(live.run))
        wait_for(state, live.run, "run.failed")
    found = events(state, live.run)
    assert of(found, "run.recovered")[0].data == {"lost": ["slow"]}
    assert [event.task for event in of(found, "task.started")] == [
        "first", "second", "slow", "slow",
    ]  # fmt: skip
    assert of(found, "task.restarted", "slow")[0].attempt == 1
    assert of(found, "task.failed", "slow")[0].data["error"]["kind"] == "timeout.wall"


def test_a_completed_run_is_rolled_back_to_each_checkpoint_and_ends_the_same(
    house: Embedded, tmp_path: Path, place: Place
) -> None:
    history = house.run(place.spec(tasks=CHAIN))
    run, state = history.run, tmp_path / "state"
    once = history.output("second")
    for number, checkpoint in enumerate(["c1", "c0"], 2):
        house.call(house.supervisor.rollback(run, checkpoint))
        wait_for(state, run, "run.completed", number)
    found = events(state, run)
    assert [event.task for event in of(found, "task.started")] == [
        "first", "second", "second", "first", "second",
    ]  # fmt: skip
    outputs = [event.data["output"] for event in of(found, "task.completed", "second")]
    assert [output["n"] for output in outputs] == [2, 2, 2]
    # A service that deduplicates must not take what is done again for what was done before.
    assert len({output["key"] for output in outputs}) == 3
    assert outputs[0] == once
    with pytest.raises(UsageError, match="no checkpoint 'c99'"):
        house.call(house.supervisor.rollback(run, "c99"))
    with pytest.raises(UsageError, match="has ended"):
        house.call(house.supervisor.resume(run))


def test_a_rollback_kills_what_runs_and_undoes_one_branch(
    house: Embedded, tmp_path: Path, place: Place
) -> None:
    spec = place.spec(tasks={**CHAIN, "slow": {"needs": ["first"]}})
    live = house.start(spec)
    live.wait("task.emitted", "slow")
    pid = live.wait("task.started", "slow").data["pid"]
    live.wait("task.completed", "second")
    house.call(house.supervisor.rollback(live.run, before="slow"))
    wait_until(lambda: not is_alive(pid))
    live.wait("task.emitted", "slow", 2)
    found = events(tmp_path / "state", live.run)
    assert of(found, "run.rolled_back")[0].data["undone"] == ["slow"]
    assert len(of(found, "task.started", "second")) == 1
    live.cancel()
    live.finish()


def test_a_fork_goes_on_by_itself_and_leaves_its_source_alone(
    house: Embedded, tmp_path: Path, place: Place
) -> None:
    history = house.run(place.spec(tasks=CHAIN))
    state = tmp_path / "state"
    before = events(state, history.run)
    copy = house.call(house.supervisor.fork(history.run, "c1"))
    wait_for(state, copy, "run.completed")
    found = events(state, copy)
    assert of(found, "run.forked")[0].data["source"] == history.run
    assert [event.task for event in of(found, "task.started")] == ["first", "second"]
    assert of(found, "run.completed")[0].data["outputs"]["second"]["n"] == 2
    assert events(state, history.run) == before


def test_what_a_task_saved_is_there_for_the_next_attempt_and_the_next_supervisor(
    tmp_path: Path, place: Place
) -> None:
    state = tmp_path / "state"
    spec = place.spec(tasks={"patient": {"retry": {"attempts": 2, "delay": "0s"}}})
    with Embedded(state) as house:
        live = house.start(spec)
        live.wait("task.emitted", "patient", 2)
        os.kill(house.engine, signal.SIGKILL)
    with Embedded(state) as house:
        house.call(house.supervisor.resume(live.run))
        wait_for(state, live.run, "run.completed")
    found = events(state, live.run)
    assert of(found, "run.completed")[0].data["outputs"] == {"patient": 2}
    assert len(of(found, "task.saved")) == 3


def test_a_pause_freezes_and_lasts_until_it_is_resumed(
    house: Embedded, tmp_path: Path, place: Place
) -> None:
    state = tmp_path / "state"
    spec = place.spec(tasks={"ticking": {}})
    live = house.start(spec)
    live.wait("task.emitted", "ticking")
    for _ in range(2):  # the second time changes nothing
        house.call(house.supervisor.pause(live.run))
    assert describe(StateDirectory(state).run(live.run))[0].state == "paused"

    # What it had said before it stood still comes in; then nothing does.
    def stands_still() -> bool:
        count = len(of(events(state, live.run), "task.emitted"))
        return all(len(of(events(state, live.run), "task.emitted")) == count for _ in range(20))

    wait_until(stands_still)
    said = len(of(events(state, live.run), "task.emitted"))
    house.call(house.supervisor.resume(live.run))
    live.wait("task.emitted", "ticking", said + 5)
    house.call(house.supervisor.pause(live.run))
    live.cancel()
    assert live.finish().outcome == "run.cancelled"


def test_what_is_wished_of_a_run_that_nobody_owns_is_kept_for_whoever_resumes_it(
    tmp_path: Path, place: Place
) -> None:
    state = tmp_path / "state"
    directory = StateDirectory(state)
    with Embedded(state) as house:
        run = house.run(place.spec(tasks=CHAIN)).run
    with pytest.raises(UsageError, match="has ended"):
        offline.pause_run(directory, run, drain=False)
    offline.rollback_run(directory, run, "c1", None)
    offline.pause_run(directory, run, drain=False)
    copy = offline.fork_run(directory, run, "c0")
    assert describe(directory.run(run))[0].state == "interrupted"
    with Embedded(state) as house:
        for each in (run, copy):
            house.call(house.supervisor.resume(each))
            wait_for(state, each, "run.completed", 2 if each == run else 1)
    offline.rollback_run(directory, run, None, "second")
    offline.cancel_run(directory, run, "enough")
    assert describe(directory.run(run))[0].state == "cancelled"
    with pytest.raises(UsageError, match="has ended"):
        offline.cancel_run(directory, run, "more")


def test_a_cancel_that_comes_when_all_is_done_again_comes_too_late(
    tmp_path: Path, place: Place
) -> None:
    state = StateDirectory(tmp_path / "state")
    with Embedded(state.path) as house:
        history = house.run(place.spec(tasks=CHAIN))
        latest = history.of("checkpoint.created")[-1].data["checkpoint"]
        house.call(house.supervisor.rollback(history.run, "c0"))
        wait_for(state.path, history.run, "run.completed", 2)
    # To outputs of an earlier life, which whoever opens the journal does not have at hand.
    offline.rollback_run(state, history.run, latest, None)
    with pytest.raises(UsageError, match="has completed: the cancel came too late"):
        cancel_run(history.run, reason="too late", as_json=False, state=state.path)
    last = events(state.path, history.run)[-1]
    assert (last.kind, last.data) == ("run.completed", history.one("run.completed").data)
