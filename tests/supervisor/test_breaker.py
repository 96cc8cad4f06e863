"""Breakers with real processes: shared by runs and by supervisors, through kills and restarts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from casemate.protocol.pipeline import PipelineSpec
from runs import Embedded, History, Place, is_alive

TASKS = """
import time
def sick(input, ctx):
    if ctx.attempt <= ctx.spec["fails"]:
        raise ConnectionError("no answer")
    return ctx.attempt
def hangs_once(input, ctx):
    ctx.emit("here")
    if ctx.attempt == 1:
        time.sleep(3600)
    return ctx.attempt
"""
BREAKER = {"failures": 3, "window": "60s", "open_for": "300ms", "key": "model-api"}


@pytest.fixture
def place(place: Place) -> Place:
    place.tasks(TASKS)
    return place


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def house(state: Path) -> Iterator[Embedded]:
    with Embedded(state, max_parallel=8) as house:
        yield house


def sick(place: Place, fails: int, **breaker: Any) -> PipelineSpec:
    """A run of one task whose first attempts fail, and are tried again at once."""
    task = {
        "spec": {"fails": fails},
        "retry": {"attempts": 20, "delay": "0s"},
        "breaker": {**BREAKER, **breaker},
    }
    return place.spec(tasks={"sick": task})


def hanging(place: Place, **breaker: Any) -> PipelineSpec:
    return place.spec(tasks={"hangs_once": {"breaker": {**BREAKER, **breaker}}})


def of_breakers(history: History) -> list[str]:
    return [e.kind.removeprefix("breaker.") for e in history.events if e.kind.startswith("breaker")]


def test_three_runs_share_a_breaker_and_what_one_run_suffers_spares_the_others(
    house: Embedded, state: Path, place: Place
) -> None:
    with Embedded(state) as other:  # a supervisor of its own, as in another terminal
        victims = [house.start(hanging(place)), other.start(hanging(place))]
        pids = [live.wait("task.started").data["pid"] for live in victims]
        for live in victims:
            live.wait("task.emitted")
        patient = house.start(sick(place, fails=3))
        histories = [live.finish() for live in (*victims, patient)]
    assert not any(is_alive(pid) for pid in pids)
    assert [history.outcome for history in histories] == ["run.completed"] * 3
    for history in histories[:2]:
        killed = history.one("task.retrying")
        assert killed.data["error"]["kind"] == "breaker_open"
        assert killed.data["delay"] == 0
        assert history.output("hangs_once") == 2
    opened = {history.of("breaker.opened")[0].data["opening"] for history in histories}
    assert opened == {1}
    for history in histories:
        first = history.of("breaker.opened")[0].data
        assert first == {"key": "model-api", "failures": 3, "open_for": 0.3, "opening": 1}
        assert of_breakers(history)[-1] == "closed" or history.outcome == "run.completed"
    # The probe of one of the three closed it for all: nothing was started between.
    assert [of_breakers(history)[0] for history in histories] == ["opened"] * 3
