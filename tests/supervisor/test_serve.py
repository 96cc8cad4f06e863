"""`casemate serve` goes on with what dead supervisors left, and stays until it is told to end."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from casemate import Supervisor
from casemate.protocol.control import RunState
from casemate.supervisor.cli.reloading import Reloading
from casemate.supervisor.cli.serve import _serve
from casemate.supervisor.config import Config, load_config
from casemate.supervisor.notify import Notifier
from casemate.supervisor.overview import summarise
from casemate.supervisor.state import StateDirectory
from fakes import wait_until
from runs import Embedded, Place, serving
from verifier import assert_true_story

TASKS = """
import time
def once(input):
    return "done"
def cut(input, ctx):
    ctx.emit("here")
    time.sleep(3600 if ctx.attempt == 1 else 0)
    return "done again"
"""
CASEMATE = [sys.executable, "-c", "from casemate.supervisor.cli import main; main()"]
CHAIN = {"once": {}, "cut": {"needs": ["once"]}}


@pytest.fixture
def place(tmp_path: Path) -> Place:
    place = Place(tmp_path / "place")
    place.tasks(TASKS)
    return place


def stands(state: Path, run: str) -> RunState:
    return summarise(StateDirectory(state).run(run)).state


def told(lines: list[str], run: str) -> list[str]:
    """The kinds of its events."""
    events = [json.loads(line) for line in lines]
    return [event["kind"] for event in events if event["run"] == run]


def left_behind(state: Path, place: Place) -> list[str]:
    """One that was cut off, one that was paused before, one that had completed."""
    with Embedded(state) as house:
        ended = house.run(place.spec(tasks={"once": {}}))
        lives = [house.start(place.spec(tasks=CHAIN)) for _ in range(2)]
        for live in lives:
            live.wait("task.emitted", "cut")
        house.call(house.supervisor.pause(lives[1].run))
        os.kill(house.engine, signal.SIGKILL)
    return [*(live.run for live in lives), ended.run]


def test_what_was_cut_off_goes_on_at_once_and_what_was_paused_stays_so(
    tmp_path: Path, place: Place
) -> None:
    state = tmp_path / "state"
    cut, paused, ended = left_behind(state, place)
    with serving(state, "--json") as service:
        # What is printed comes after what the journal says, and ends with the command.
        wait_until(lambda: told(service.said(), cut)[-1:] == ["run.completed"])
        wait_until(lambda: stands(state, paused) is RunState.PAUSED)
    assert stands(state, cut) is RunState.COMPLETED
    events = [json.loads(line) for line in service.said()]
    assert told(service.said(), cut)[0] == "run.recovered"
    assert [e["task"] for e in events if e["kind"] == "task.started"] == ["cut"]
    assert not any(event["run"] == ended for event in events)
    assert stands(state, paused) is RunState.INTERRUPTED
    for run in (cut, paused, ended):
        assert_true_story(state, run)


def test_what_it_was_doing_when_it_ended_goes_on_with_the_next(
    tmp_path: Path, place: Place
) -> None:
    state = tmp_path / "state"
    _, paused, _ = left_behind(state, place)
    for _ in range(2):
        with serving(state) as service:
            wait_until(lambda: stands(state, paused) is RunState.PAUSED)
        assert service.said()[0].startswith(f"serving {state} · ipc://")
    with serving(state):
        wait_until(lambda: stands(state, paused) is RunState.PAUSED)
        subprocess.run([*CASEMATE, "resume", paused, "--state", str(state)], check=True)
        wait_until(lambda: stands(state, paused) is RunState.COMPLETED)
    assert_true_story(state, paused, has_ended=True)


def test_it_does_not_stay_where_it_reads_nothing_again(tmp_path: Path) -> None:
    class Broken(Reloading):
        async def keep(self, supervisor: Supervisor, load: Callable[[], Config]) -> None:
            raise ZeroDivisionError("a bug")

    config = load_config(state=tmp_path / "state")
    with pytest.raises(ZeroDivisionError):
        asyncio.run(_serve(config, Notifier(), False, 0.0, Broken(None), lambda: config))
