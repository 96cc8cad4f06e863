"""`casemate watch` as a person has it: on a terminal, beside a run that others steer too."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from datetime import UTC, datetime
from functools import wraps
from pathlib import Path
from typing import Any, cast

import pytest
from casemate import Client
from casemate.protocol.control import RunState, RunSummary, Shown, TaskSummary
from casemate.protocol.errors import CasemateError
from casemate.protocol.events import CheckpointCreated
from casemate.supervisor.cli.viewer import Page
from casemate.supervisor.cli.watch import Watch
from casemate.supervisor.client import AsyncClient
from casemate.supervisor.cursor import PipelineEvent
from casemate.supervisor.state import StateDirectory
from fakes import PATIENCE, wait_until
from runs import Place, serving

CASEMATE = [sys.executable, "-c", "from casemate.supervisor.cli import main; main()"]

TASKS = """
import time
def first(input):
    return 1
def second(input, ctx):
    ctx.emit("here")
    while not ctx.cancelled:
        time.sleep(0.01)
"""


class Screen:
    """A terminal of 80×24 and the program on it. `lines`: what a person sees; of what casemate
    sends to a terminal this understands all, and so little more that nothing else gets by."""

    def __init__(self, *arguments: str, term: str = "xterm-256color") -> None:
        self._ours, theirs = pty.openpty()
        self.lines = [""] * 24
        self.resize(80, 24)
        self.before = termios.tcgetattr(theirs)
        self._theirs = theirs
        self._rest = ""
        self.process = subprocess.Popen(
            [*CASEMATE, *arguments],
            stdin=theirs,
            stdout=theirs,
            stderr=subprocess.PIPE,
            env=os.environ | {"TERM": term},
            start_new_session=True,
        )

    def resize(self, columns: int, rows: int) -> None:
        size = struct.pack("HHHH", rows, columns, 0, 0)
        fcntl.ioctl(self._ours, termios.TIOCSWINSZ, size)
        self.lines = [""] * rows

    def press(self, keys: str) -> None:
        os.write(self._ours, keys.encode())

    def _take(self) -> None:
        while select.select([self._ours], [], [], 0)[0]:
            self._rest += os.read(self._ours, 65536).decode("utf-8", "replace")
        # The last line may not be whole yet: it is looked at again.
        *whole, self._rest = re.split(r"(?=\x1b\[\d+;1H)", self._rest)
        for part in (*whole, self._rest):
            if place := re.match(r"\x1b\[(\d+);1H\x1b\[2K", part):
                text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]?|\x1b", "", part[place.end() :])
                assert text.isprintable(), repr(text)
                self.lines[int(place[1]) - 1] = text

    def shows(self, *wanted: str) -> bool:
        self._take()
        screen = "\n".join(self.lines)
        return all(words in screen for words in wanted) or self.process.poll() is not None

    def wait(self, *wanted: str) -> None:
        with contextlib.suppress(AssertionError):
            wait_until(lambda: self.shows(*wanted))
        said = "" if self.process.poll() is None else self.process.communicate()[1].decode()
        assert self.shows(*wanted) and not said, f"no {wanted} in {self.lines} {said}"

    def leave(self) -> int:
        self.press("q")
        _, said = self.process.communicate(timeout=PATIENCE)
        assert said == b""
        assert termios.tcgetattr(self._theirs) == self.before, "given back as it was"
        return self.process.returncode

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()
        os.close(self._ours)
        os.close(self._theirs)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    place = Place(tmp_path / "place")
    place.tasks(TASKS)
    tasks = {"first": {"execute": "tasks.py:first"}, "second": {"execute": "tasks.py:second"}}
    tasks["second"] |= {"needs": ["first"]}  # type: ignore[dict-item]
    place.write("chain.json", json.dumps({"name": "chain", "tasks": tasks}))
    return place


@pytest.fixture
def state(tmp_path: Path) -> Path:
    StateDirectory.open(tmp_path / "state")
    return tmp_path / "state"


@pytest.fixture
def screens() -> Iterator[list[Screen]]:
    opened: list[Screen] = []
    yield opened
    for screen in opened:
        screen.close()


def submitted(client: Client, state: Path, place: Place) -> str:
    wait_until(lambda: any(r.accepts for r in StateDirectory(state).living_supervisors()))
    return client.submit(place.path / "chain.json")


def test_a_run_is_watched_and_steered_by_keys(
    state: Path, place: Place, screens: list[Screen]
) -> None:
    with serving(state), Client(state=state) as client:
        run = submitted(client, state, place)
        screen = Screen("watch", run[:9], "--state", str(state))
        screens.append(screen)
        screen.wait("chain", run, "▶ running", "✔ completed", 'item "here"', "? help")
        screen.press("py")
        screen.wait("‖ paused", "is paused")
        assert client.summary(run).state is RunState.PAUSED
        client.resume(run)  # somebody else
        screen.wait("▶ running")
        screen.press("b")
        screen.wait("Roll back run", "c1", "c0")
        screen.press("\x1b[B\ry")
        screen.wait("rolled back to c0", "checkpoint c2: 1 task")
        screen.resize(200, 50)
        screen.press("x")  # no key of its: what was said in the bottom line goes
        screen.wait("p pause  r resume  c cancel  b rollback  f filter  ⏎ task  o runs")
        screen.press("cy")
        screen.wait("✘ cancelled", "run cancelled: cancelled by who watched it")
        assert screen.leave() == 0
        assert client.summary(run).state is RunState.CANCELLED


def test_a_supervisor_that_goes_away_and_comes_back_is_noticed(
    state: Path, place: Place, screens: list[Screen]
) -> None:
    with serving(state) as service, Client(state=state) as client:
        run = submitted(client, state, place)
        screen = Screen("watch", "--state", str(state))
        screens.append(screen)
        screen.wait('item "here"')
        service.kill()
        screen.wait("↯ interrupted", "↯ lost", f"`casemate resume {run}` goes on with it")
        screen.press("r")
        screen.wait("no living supervisor owns it")
    with serving(state):
        screen.wait("▶ running", "▶ 1 running", "✔ 1 completed")
        os.kill(screen.process.pid, signal.SIGTERM)
        assert screen.process.wait(PATIENCE) == 0
        assert termios.tcgetattr(screen._theirs) == screen.before


def test_a_signal_ends_it_whatever_is_asked(
    state: Path, place: Place, screens: list[Screen]
) -> None:
    with serving(state), Client(state=state) as client:
        submitted(client, state, place)
        screen = Screen("watch", "--state", str(state))
        screens.append(screen)
        screen.wait('item "here"')
        screen.press("c")
        screen.wait("y / n")
        os.kill(screen.process.pid, signal.SIGTERM)
        assert screen.process.wait(PATIENCE) == 0
        assert termios.tcgetattr(screen._theirs) == screen.before


def test_what_is_no_terminal_is_told_what_to_use_instead(
    state: Path, screens: list[Screen]
) -> None:
    dumb = Screen("watch", "--state", str(state), term="dumb")
    screens.append(dumb)
    piped = subprocess.run(
        [*CASEMATE, "watch", "--state", str(state)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert (piped.returncode, piped.stdout) == (2, "")
    assert dumb.process.communicate(timeout=PATIENCE)[1].decode() == piped.stderr
    assert dumb.process.returncode == 2
    assert "`casemate events last --follow`" in piped.stderr


# ---- without a terminal: what comes of answers that are late, or that nobody gives


class Saying:
    """What somebody says who is there, and then nothing more."""

    def __init__(self, events: list[PipelineEvent]) -> None:
        self._events = events
        state = RunSummary(id="a", state=RunState.RUNNING)
        self.snapshot = Shown(id=None, run=state, tasks=(), as_of=0)

    async def __aiter__(self) -> AsyncIterator[PipelineEvent]:
        for event in self._events:
            yield event
        await asyncio.Event().wait()


class Answers:
    """A client. `runs`: how each stands, None: its supervisor is away. What it is asked to do waits
    until `released`, and is noted in `done`; nothing happens in its runs."""

    def __init__(self, **runs: RunState | None) -> None:
        self.states = runs
        self.released = asyncio.Event()
        self.done: list[tuple[str, ...]] = []
        self.said: list[PipelineEvent] = []
        self.said_whole: list[PipelineEvent] = []
        self.asked = 0

    async def show(self, run: str) -> tuple[RunSummary, tuple[TaskSummary, ...]]:
        return await self.summary(run), ()

    async def summary(self, run: str) -> RunSummary:
        self.asked += 1
        if (state := self.states[run]) is None:
            raise CasemateError("no supervisor answers at 10.0.0.5:7601")
        return RunSummary(id=run, state=state, pipeline="nightly")

    def events(self, *_: object, whole: bool, **more: object) -> Saying:
        return Saying(self.said_whole if whole else self.said)

    async def runs(self) -> list[RunSummary]:
        return [await self.summary(run) for run in self.states]

    async def checkpoints(self, run: str) -> list[CheckpointCreated]:
        await self.released.wait()
        return [
            CheckpointCreated(checkpoint="c1", parent=None, tasks=("a",), total=1, files=0, bytes=0)
        ]

    async def pause(self, run: str) -> None:
        await self.released.wait()
        self.done.append(("pause", run))

    async def rollback(self, run: str, checkpoint: str, **_: object) -> None:
        self.done.append(("rollback", run, checkpoint))


def playing(story: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    @wraps(story)
    def test() -> None:
        asyncio.run(story())

    return test


async def settled(watch: Watch) -> None:
    for _ in range(50):
        await asyncio.sleep(0)
    watch._raise_bugs()


def watching(answers: Answers, run: str = "a") -> Watch:
    watch = Watch(cast(AsyncClient, answers), run)
    watch._open(run)
    return watch


@playing
async def test_a_list_that_comes_late_is_not_laid_over_another_run() -> None:
    answers = Answers(a=RunState.RUNNING, b=RunState.RUNNING)
    watch = watching(answers)
    watch.press("b")
    watch.press("o")
    await settled(watch)
    watch.press("down")
    watch.press("enter")
    assert watch._dashboard.run == "b"
    answers.released.set()
    await settled(watch)
    assert watch._viewer.page is Page.TABLE
    for key in ("enter", "y"):
        watch.press(key)
        await settled(watch)
    assert answers.done == []


@playing
async def test_a_wish_is_for_the_run_that_was_looked_at_when_its_key_was_pressed() -> None:
    answers = Answers(a=RunState.RUNNING, b=RunState.RUNNING)
    watch = watching(answers)
    watch.press("p")
    watch.press("y")
    watch._open("b")
    answers.released.set()
    await settled(watch)
    assert answers.done == [("pause", "a")]
    assert watch._viewer.notice == "", "nor is it said over the other"


@playing
async def test_a_supervisor_elsewhere_that_is_away_is_waited_for() -> None:
    answers = Answers(a=RunState.RUNNING)
    watch = watching(answers)
    await settled(watch)
    assert watch._dashboard.is_told
    answers.states["a"] = None
    watch._open("a")
    await settled(watch)
    assert not watch._dashboard.is_told
    answers.states["a"] = RunState.RUNNING
    while not watch._dashboard.is_told:
        await asyncio.sleep(0.01)
        watch._raise_bugs()


@playing
async def test_a_large_pipeline_is_laid_out_that_is_met_before_its_first_event() -> None:
    answers = Answers(a=RunState.RUNNING)

    def begun(spec: object) -> PipelineEvent:
        data = {"pipeline": "nightly", "spec": spec}
        return PipelineEvent(1, "a", None, None, "run.started", datetime.now(UTC), data)

    answers.said = [begun(None)]  # it is left out of what is published
    answers.said_whole = [begun({"tasks": [{"id": "first"}], "edges": []})]
    watch = watching(answers)
    await settled(watch)
    assert list(watch._dashboard.tasks) == ["first"]
