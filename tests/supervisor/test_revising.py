"""A run goes on with a changed pipeline: `Supervisor.revise`, and `run --watch` upon it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest
from casemate import Supervisor, UsageError
from casemate.protocol.control import RunState
from casemate.protocol.pipeline import PipelineSpec
from casemate.supervisor.cli.again import run_again
from casemate.supervisor.overview import summarise
from casemate.supervisor.reload import Watch
from casemate.supervisor.state import StateDirectory
from fakes import PATIENCE, wait_until
from runs import Embedded, Live, Place
from verifier import assert_true_story

CASEMATE = [sys.executable, "-c", "from casemate.supervisor.cli import main; main()"]

TASKS = """
import os, time
BIG = "x" * 500_000
def source(input, ctx):
    open(f"{ctx.workspace}/made", "w").write("by source")
    for number in range(3):
        ctx.emit(number)
    if ctx.attempt == 1:
        raise ValueError("once")
    return {"big": BIG, "input": input}
def side(input, ctx):
    return "side"
async def reader(input, ctx):
    items = [item async for item in ctx.stream("source")]
    return items + ["old"]
def end(input, ctx):
    return [input["reader"][-1], input["side"], open(f"{ctx.workspace}/made").read()]
"""
GRAPH: dict[str, Any] = {
    "workspace": "files",
    "tasks": {
        "source": {"retry": {"attempts": 2, "delay": "10ms"}},
        "side": {"needs": ["source"]},
        "reader": {},
        "end": {"needs": ["reader", "side"]},
    },
    "edges": [{"from": "source", "to": "reader", "stream": True}],
}


@pytest.fixture
def place(tmp_path: Path) -> Place:
    place = Place(tmp_path / "place")
    (place.path / "files").mkdir()
    place.tasks(TASKS)
    return place


def edit(place: Place, text: str, becomes: str) -> None:
    source = (place.path / "tasks.py").read_text()
    assert text in source
    place.tasks(source.replace(text, becomes))


def revised(house: Embedded, run: str, place: Place, **document: Any) -> Live | None:
    again = house.call(house.supervisor.revise(run, place.spec(**GRAPH | document)))
    return None if again is None else Live(house, again)


def test_what_a_change_touches_is_done_again_and_nothing_else(tmp_path: Path, place: Place) -> None:
    state = tmp_path / "state"
    with Embedded(state) as house:
        first = house.run(place.spec(**GRAPH), {"n": 1})
        assert first.output("end") == ["old", "side", "by source"]
        edit(place, '"old"', '"new"')
        live = revised(house, first.run, place)
        assert live is not None
        second = live.finish()
        assert second.output("end") == ["new", "side", "by source"]
        # The items that it reads were said in the other run.
        assert second.output("reader") == [0, 1, 2, "new"]
        forked = second.one("run.forked")
        assert (forked.data["source"], forked.data["changed"]) == (first.run, ["reader", "end"])
        again = {e.task for e in second.events if e.kind == "task.started" and e.seq > forked.seq}
        assert again == {"reader", "end"}
        # What is kept is told in the new run, large values too; the attempt that failed is not.
        assert second.output("source") == first.output("source")
        assert [e.attempt for e in second.of("task.started", "source")] == [1]
        # It may be gone back in, as in any run.
        house.call(house.supervisor.rollback(second.run, before="side"))
        last = Live(house, second.run).wait("task.completed", "end", count=2)
        assert last.data["output"] == ["new", "side", "by source"]
    for run in (first.run, second.run):
        assert_true_story(state, run, has_ended=True)


def test_nothing_happens_where_nothing_that_is_run_was_changed(
    tmp_path: Path, place: Place
) -> None:
    with Embedded(tmp_path / "state") as house:
        first = house.run(place.spec(**GRAPH))
        edit(place, "BIG =", "# a remark\nBIG =")
        assert revised(house, first.run, place) is None


def test_a_run_under_way_ends_and_goes_on_from_what_it_had_completed(
    tmp_path: Path, place: Place
) -> None:
    state = tmp_path / "state"
    edit(place, 'return "side"', "ctx.emit(1); time.sleep(3600)")
    with Embedded(state) as house:
        live = house.start(place.spec(**GRAPH))
        live.wait("task.completed", "reader")
        live.wait("task.emitted", "side")
        edit(place, "ctx.emit(1); time.sleep(3600)", 'return "quick"')
        again = revised(house, live.run, place)
        assert live.finish().outcome == "run.cancelled"
        assert again is not None
        history = again.finish()
        assert history.output("end") == ["old", "quick", "by source"]
        assert history.one("run.forked").data["changed"] == ["side", "end"]
        assert_true_story(state, live.run, has_ended=True)
        assert_true_story(state, history.run, has_ended=True)


def test_a_run_that_was_revised_is_taken_up_with_its_own_code(tmp_path: Path, place: Place) -> None:
    state = tmp_path / "state"
    with Embedded(state) as house:
        first = house.run(place.spec(**GRAPH))
        edit(place, '"old"', '"new"')
        edit(place, 'return "side"', 'ctx.emit(1); time.sleep(ctx.attempt % 2 * 3600); return "s"')
        live = revised(house, first.run, place)
        assert live is not None
        live.wait("task.emitted", "side")
        os.kill(house.engine, signal.SIGKILL)
    edit(place, '"new"', '"newest"')
    with Embedded(state) as house:
        house.call(house.supervisor.resume(live.run))
        assert Live(house, live.run).finish().output("end") == ["new", "s", "by source"]
    assert_true_story(state, live.run, has_ended=True)


def test_tasks_may_come_and_go_and_another_workspace_is_another_run(
    tmp_path: Path, place: Place
) -> None:
    with Embedded(tmp_path / "state") as house:
        first = house.run(place.spec(**GRAPH))
        tasks = {"source": GRAPH["tasks"]["source"], "more": {"execute": "tasks.py:side"}}
        live = revised(house, first.run, place, tasks=tasks, edges=[])
        assert live is not None
        history = live.finish()
        assert history.one("run.forked").data["changed"] == ["more"]
        assert history.output("more") == "side"
        (place.path / "other").mkdir()
        live = revised(house, first.run, place, workspace="other")
        assert live is not None
        assert set(live.finish().one("run.forked").data["changed"]) == set(GRAPH["tasks"])


def test_a_run_that_nobody_knows_cannot_be_revised(tmp_path: Path, place: Place) -> None:
    with Embedded(tmp_path / "state") as house, pytest.raises(UsageError):
        revised(house, "1m8m6qdd4761", place)


# -------------------------------------------------------------------------------- run --watch


class Watching:
    """A `casemate run --watch --json` in a process of its own."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.events: list[dict[str, Any]] = []
        self.said: list[str] = []
        self._changed = threading.Condition()
        for stream, take in ((process.stdout, self._event), (process.stderr, self.said.append)):
            assert stream is not None
            threading.Thread(target=self._read, args=(stream, take)).start()

    def _event(self, line: str) -> None:
        self.events.append(json.loads(line))

    def _read(self, stream: Any, take: Any) -> None:
        for line in stream:
            with self._changed:
                take(line)
                self._changed.notify_all()

    def of(self, kind: str, task: str | None = None) -> list[dict[str, Any]]:
        return [e for e in self.events if e["kind"] == kind and task in (None, e.get("task"))]

    def wait(self, kind: str, count: int, task: str | None = None) -> dict[str, Any]:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.of(kind, task)) >= count, PATIENCE), (
                self.events,
                self.said,
            )
            return self.of(kind, task)[count - 1]

    def wait_said(self, text: str) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: text in "".join(self.said), PATIENCE), self.said


@contextmanager
def watching(state: Path, file: Path) -> Iterator[Watching]:
    process = subprocess.Popen(
        [*CASEMATE, "run", str(file), "--watch", "--json", "--state", str(state)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield Watching(process)
        finally:
            process.send_signal(signal.SIGINT)
            code = process.wait(PATIENCE)
    assert code == 130


CHAIN = """
name: chain
defaults: {limits: {memory: 128MiB, pids: 32}}
tasks:
  a: {execute: "tasks.py:a"}
  b: {execute: "tasks.py:b", needs: [a]}
"""
CODE = """
import time
def a(input):
    return 1
def b(input, ctx):
    return [input["a"], "first"]
"""


def test_edit_save_see(tmp_path: Path) -> None:
    state, place = tmp_path / "state", Place(tmp_path / "place")
    place.tasks(CODE)
    file = place.write("chain.yaml", CHAIN)
    with watching(state, file) as house:
        assert house.wait("run.completed", 1)["data"]["outputs"] == {"b": [1, "first"]}
        # Code.
        edit(place, '"first"', '"second"')
        assert house.wait("run.completed", 2)["data"]["outputs"] == {"b": [1, "second"]}
        assert house.of("run.forked")[0]["data"]["changed"] == ["b"]
        # What is broken is told, and nothing happens until it is mended.
        file.write_text(CHAIN.replace("needs", "neds"))
        house.wait_said("neds")
        file.write_text(CHAIN.replace("name: chain", "name: renamed and else the same"))
        last = house.wait("run.completed", 3)
        assert last["data"]["outputs"] == {"b": [1, "second"]}
        assert house.of("run.forked")[1]["data"]["changed"] == []
        # A file that is missing is mended by a file that comes.
        file.write_text(CHAIN.replace("tasks.py:b", "more.py:b"))
        house.wait_said("more.py")
        place.write("more.py", "def b(input):\n    return 'more'\n")
        assert house.wait("run.completed", 4)["data"]["outputs"] == {"b": "more"}
        # While it runs.
        place.write("more.py", "def b(input, ctx):\n    ctx.emit(1)\n    while 1: pass\n")
        house.wait("task.emitted", 1, "b")
        place.write("more.py", "def b(input):\n    return 'mended'\n")
        assert house.wait("run.completed", 5)["data"]["outputs"] == {"b": "mended"}
        assert len(house.of("run.cancelled")) == 1
    assert len({e["attempt"] for e in house.of("task.started", "a")}) == 1
    runs = list(dict.fromkeys(event["run"] for event in house.events))
    states = [summarise(StateDirectory(state).run(run)).state for run in runs]
    assert states == [*[RunState.COMPLETED] * 4, RunState.CANCELLED, RunState.COMPLETED]
    for run in runs:
        assert_true_story(state, run, has_ended=True)


def test_a_signal_ends_the_run_and_the_command(tmp_path: Path) -> None:
    state, place = tmp_path / "state", Place(tmp_path / "place")
    place.tasks(CODE.replace("return 1", "time.sleep(3600)"))
    with watching(state, place.write("chain.yaml", CHAIN)) as house:
        house.wait("task.started", 1, "a")
    [run] = {event["run"] for event in house.events}
    wait_until(lambda: summarise(StateDirectory(state).run(run)).state is RunState.CANCELLED)


class SlowlyRevised:
    """A supervisor whose runs last until they are cancelled. So many turns of the loop before it
    gives the run of a change there is a signal."""

    def __init__(self, turns: int) -> None:
        self.ended: dict[str, asyncio.Event] = {}
        self._turns = turns

    async def submit(self, spec: PipelineSpec, value: object) -> str:
        return self._begin("first")

    async def revise(self, run: str, spec: PipelineSpec) -> str:
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(self._turns):
            await asyncio.sleep(0)
        self.ended[run].set()
        return self._begin("second")

    async def cancel(self, run: str, reason: str) -> None:
        self.ended[run].set()

    def _begin(self, run: str) -> str:
        self.ended[run] = asyncio.Event()
        return run


@pytest.mark.parametrize("turns", [0, 1, 2, 3, 50])
def test_a_signal_while_a_change_is_taken_over_ends_the_new_run_too(
    place: Place, turns: int
) -> None:
    spec, supervisor = place.spec(**GRAPH), SlowlyRevised(turns)

    async def follow(run: str, spec: PipelineSpec) -> None:
        await supervisor.ended[run].wait()

    async def main() -> None:
        watch = Watch(place.path / "tasks.py")
        edit(place, '"old"', '"new"')
        again = run_again(cast(Supervisor, supervisor), spec, None, watch, lambda: spec, follow)
        await asyncio.wait_for(again, PATIENCE)

    asyncio.run(main())
    assert {run: ended.is_set() for run, ended in supervisor.ended.items()} == {
        "first": True,
        "second": True,
    }
