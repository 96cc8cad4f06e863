"""Breakers with real processes: shared by runs and by supervisors, through kills and restarts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from casemate.protocol.pipeline import PipelineSpec
from runs import Embedded, History, Live, Place, is_alive

TASKS = """
import time
def sick(input, ctx):
    if ctx.attempt <= ctx.spec["fails"]:
        raise ConnectionError("no answer")
    return ctx.attempt
def sick_then_hangs(input, ctx):
    if ctx.attempt <= 3:
        raise ConnectionError("no answer")
    ctx.emit("here")
    if ctx.attempt == 4:
        time.sleep(3600)
    return ctx.attempt
def steady(input, ctx):
    ctx.emit("here")
    for n in range(1_000_000):
        ctx.progress(n)
        time.sleep(0.05)
def hangs_once(input, ctx):
    ctx.emit("here")
    if ctx.attempt == 1:
        time.sleep(3600)
    return ctx.attempt
"""
KEY = "model-api"
BREAKER = {"failures": 3, "window": "60s", "open_for": "300ms", "key": KEY}


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


def casemate(*words: str) -> Any:
    """What the command prints with --json."""
    code = "from casemate.supervisor.cli import main; main()"
    whole = [sys.executable, "-c", code, *words, "--json"]
    found = subprocess.run(whole, capture_output=True, text=True, check=True)
    return json.loads(found.stdout)


def of_breakers(history: History) -> list[str]:
    return [e.kind.removeprefix("breaker.") for e in history.events if e.kind.startswith("breaker")]


def test_three_runs_share_a_breaker_and_what_one_suffers_spares_the_others(
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
    for history in histories:
        assert history.outcome == "run.completed"
        opened = history.of("breaker.opened")[0].data
        assert opened == {"key": "model-api", "failures": 3, "open_for": 0.3, "opening": 1}
    for history in histories[:2]:
        killed = history.one("task.retrying")
        assert killed.data["error"]["kind"] == "breaker_open"
        assert killed.data["delay"] == 0
        assert history.output("hangs_once") == 2
    # Whoever ended last was not the probe, but waited for it.
    told = [of_breakers(history) for history in histories]
    assert ["opened", "half_open", "closed"] in told


def test_what_a_person_opens_and_resets_acts_in_every_supervisor(
    house: Embedded, state: Path, place: Place
) -> None:
    live = house.start(hanging(place))
    live.wait("task.emitted")
    opened = casemate("breaker", "open", KEY, "--for", "1h", "--state", str(state))
    assert (opened["state"], opened["open_for"]) == ("open", 3600)
    live.wait("task.retrying")
    live.wait("task.ready", count=2)
    [listed] = casemate("breaker", "list", "--state", str(state))
    assert (listed["key"], listed["state"], listed["opening"]) == (KEY, "open", 1)
    shown = casemate("show", live.run, "--state", str(state))
    assert [each["key"] for each in shown["breakers"]] == [KEY]
    why = casemate("show", live.run, "--why", "hangs_once", "--state", str(state))
    assert KEY in json.dumps(why)
    assert house.call(house.supervisor.reset_breaker(KEY)).state == "closed"
    assert [each.state for each in house.call(house.supervisor.breakers())] == ["closed"]
    history = live.finish()
    assert of_breakers(history) == ["opened", "closed"]
    assert history.of("breaker.opened")[0].data["failures"] == 0


def test_an_open_breaker_outlives_its_supervisor_and_is_told_once(
    state: Path, place: Place
) -> None:
    with Embedded(state) as house:
        live = house.start(sick(place, fails=3, open_for="1h", max_open_for="1h"))
        live.wait("breaker.opened")
        live.wait("task.ready", count=4)
        os.kill(house.engine, signal.SIGKILL)
    with Embedded(state) as house:
        house.call(house.supervisor.resume(live.run))
        again = Live(house, live.run)
        again.wait("task.ready", count=5)
        [row] = casemate("breaker", "list", "--state", str(state))
        assert (row["state"], row["opening"]) == ("open", 1)
        casemate("breaker", "reset", KEY, "--state", str(state))
        history = again.finish()
    assert history.outcome == "run.completed"
    assert of_breakers(history) == ["opened", "closed"]


def test_a_probe_that_died_with_its_supervisor_is_followed_by_anothers(
    house: Embedded, state: Path, place: Place
) -> None:
    """Nothing is heard of it: the lease runs out, and who waits in another supervisor is next."""
    task = {"retry": {"attempts": 9, "delay": "0s"}, "breaker": BREAKER}
    with Embedded(state) as doomed:
        first = doomed.start(place.spec(tasks={"sick_then_hangs": task}))
        first.wait("task.emitted")  # it is the probe
        waits = house.start(sick(place, fails=0))
        waits.wait("breaker.half_open")
        os.kill(doomed.engine, signal.SIGKILL)
        history = waits.finish()
    assert history.output("sick") == 1
    assert of_breakers(history) == ["opened", "half_open", "closed"]
    house.call(house.supervisor.resume(first.run))
    resumed = Live(house, first.run).finish()
    assert resumed.output("sick_then_hangs") == 5


def test_drain_lets_end_what_runs_and_wait_ends_what_waits(house: Embedded, place: Place) -> None:
    lasting = place.spec(
        tasks={
            "steady": {"breaker": {**BREAKER, "on_open": "drain"}},
        }
    )
    live = house.start(lasting)
    live.wait("task.emitted")
    given_up = house.run(
        sick(place, fails=3, open_for="1h", max_open_for="1h", wait="200ms", on_open="drain")
    )
    assert given_up.outcome == "run.failed"
    assert given_up.error("sick")["kind"] == "breaker_open"
    live.wait("breaker.opened")
    live.wait("task.progress")  # it goes on
    live.cancel()
    assert live.finish().outcome == "run.cancelled"
