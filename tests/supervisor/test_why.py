"""Why a task is as it is, asked of real runs while they live, and of their journals afterwards.

What is said in each case is in `tests/core/why/`; here it is that the answer follows what happens,
and that a supervisor which lives adds what it alone knows.
"""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from casemate import UsageError
from casemate.supervisor.cli.show import print_why
from fakes import wait_until
from runs import Embedded, Place, is_alive

TASKS = """
import time
def steady(input, ctx):
    ctx.emit("here")
    time.sleep(3600)
def fails(input, ctx):
    raise ValueError("my \\x1b mistake")
def after(input, ctx):
    return 1
behind = big = after
"""


class Asking:
    def __init__(self, state: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.state, self.capsys = state, capsys

    def json(self, task: str) -> Any:
        assert print_why("last", task, as_json=True, state=self.state) == 0
        return json.loads(self.capsys.readouterr().out)

    def words(self, task: str) -> str:
        return " ".join(reason["text"] for reason in self.json(task)["why"])

    def lines(self, task: str) -> list[str]:
        assert print_why("last", task, as_json=False, state=self.state) == 0
        return self.capsys.readouterr().out.splitlines()


@pytest.fixture
def asking(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Asking:
    return Asking(tmp_path / "state", capsys)


@pytest.fixture
def place(place: Place) -> Place:
    place.tasks(TASKS)
    return place


def test_the_answer_follows_a_run_from_its_first_task_to_its_end(
    tmp_path: Path, place: Place, asking: Asking
) -> None:
    spec = place.spec(
        tasks={
            "steady": {"timeouts": {"wall": "50s"}},
            "fails": {"retry": {"attempts": 2, "delay": "1h"}},
            "after": {"needs": ["steady", "fails"]},
            "behind": {},
            "big": {"needs": ["behind"]},
        },
        max_parallel=2,
    )
    with Embedded(tmp_path / "state", max_parallel=2) as house:
        live = house.start(spec)
        retrying = live.wait("task.retrying", "fails")
        live.wait("task.emitted", "steady")
        live.wait("task.completed", "big")
        started = live.wait("task.started", "steady")

        told = asking.json("fails")
        assert told["task"]["state"] == "retrying"
        first, policy, due = told["why"]
        assert first["seq"] == retrying.seq and "failed" in first["text"]
        assert "1 of its 2 attempts" in policy["text"]
        assert due["at"] == pytest.approx(first["at"] + retrying.data["delay"])
        shown = asking.lines("fails")
        assert "ValueError: my \\x1b mistake" in shown[1] and "  in " in shown[3]

        assert "It waits for fails and steady." in asking.words("after")
        [running, wall] = asking.json("steady")["why"]
        assert running["seq"] == started.seq
        assert wall["at"] == pytest.approx(running["at"] + 50)
        live.cancel()
        history = live.finish()
    cancelled = history.one("task.cancelled", "steady")
    [ending, _] = asking.json("steady")["why"]
    assert ending["seq"] == cancelled.seq and "was killed" in ending["text"]
    assert "before it began" in asking.words("after")
    with pytest.raises(UsageError, match="has no task 'nobody'"):
        asking.json("nobody")


def test_who_holds_the_slots_is_asked_of_the_supervisor(
    tmp_path: Path, place: Place, asking: Asking
) -> None:
    first = place.spec(tasks={"steady": {}})
    with Embedded(tmp_path / "state", max_parallel=1) as house:
        holding = house.start(first)
        pid = holding.wait("task.started", "steady").data["pid"]
        holding.wait("task.emitted", "steady")
        live = house.start(place.spec(tasks={"after": {}, "behind": {}}))
        live.wait("task.ready", "behind")
        words = asking.words("behind")
        assert "may have 1 attempt at once" in words and "of this run none, of others 1" in words
        assert "1 stands before it, after first" in words
        os.kill(house.engine, signal.SIGKILL)
        wait_until(lambda: not is_alive(pid))
        words = asking.words("behind")
        assert "No living supervisor has the run" in words and "at once" not in words
