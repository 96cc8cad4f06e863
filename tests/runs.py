"""Real runs for tests: a folder with a pipeline's files, a supervisor, and what a run told.

Whatever a test is about, every run it reads to the end is held against the laws that no run may
break (`check_laws`): numbers without holes, one ending for each attempt, nothing alive after it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import textwrap
import threading
from collections import Counter
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import psutil
from casemate import PipelineEvent, Supervisor
from casemate.protocol.pipeline import PipelineSpec
from casemate.supervisor.builder import Pipeline
from casemate.supervisor.pipeline import Allow, compile_document
from casemate.supervisor.remote import Address
from casemate.supervisor.state import process_start_time
from fakes import PATIENCE, wait_until

__all__ = [
    "Embedded",
    "History",
    "Live",
    "Place",
    "Service",
    "descendants",
    "free_ports",
    "is_alive",
    "serving",
    "since_start",
    "traces",
]

Result = TypeVar("Result")
_CASEMATE = [sys.executable, "-c", "from casemate.supervisor.cli import main; main()"]

ENDINGS = {
    "task.completed",
    "task.skipped",
    "task.retrying",
    "task.recovered",
    "task.failed",
    "task.cancelled",
    "task.restarted",
}
LAST = {"run.completed", "run.failed", "run.cancelled"}

# Small enough that many fit any host's budget at once.
DEFAULTS = {"limits": {"memory": "128MiB", "pids": 32}, "timeouts": {"wall": "60s"}}


def is_alive(pid: int) -> bool:
    """A zombie is dead: it runs nothing, and whoever started it will see to it."""
    return process_start_time(pid) is not None


def descendants(pid: int) -> list[int]:
    """Every process below `pid` that is alive."""
    try:
        below = psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    return [each.pid for each in below if is_alive(each.pid)]


def traces() -> tuple[list[str], list[str], set[int]]:
    """What this process holds: descriptors, threads, living descendants."""
    return (
        sorted(os.listdir("/proc/self/fd")),
        sorted(thread.name for thread in threading.enumerate()),
        set(descendants(os.getpid())),
    )


def free_ports() -> Address:
    """Two ports side by side that nobody has. Not among those that the kernel hands out to whoever
    asks for any: a test beside this one would be given them before they are used."""
    while True:
        port = random.randrange(20_000, 32_000, 2)
        with socket.socket() as one, socket.socket() as two, contextlib.suppress(OSError):
            one.bind(("127.0.0.1", port))
            two.bind(("127.0.0.1", port + 1))
            return Address("127.0.0.1", port)


class Place:
    """The folder of one pipeline."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)

    def write(self, name: str, text: str) -> Path:
        file = self.path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(textwrap.dedent(text), encoding="utf-8")
        return file

    def tasks(self, source: str) -> None:
        """The file that `spec` looks for functions in."""
        self.write("tasks.py", source)

    def spec(self, *, allow: Allow | None = None, **document: Any) -> PipelineSpec:
        """`tasks` maps ids to their keys; without `execute` or `command` a task is the function of
        its own name in tasks.py."""
        tasks = {
            name: given if {"execute", "command"} & given.keys()
            else {"execute": f"tasks.py:{name}", **given}
            for name, given in document.pop("tasks").items()
        }  # fmt: skip
        whole = {"name": "test", "defaults": DEFAULTS, **document, "tasks": tasks}
        return compile_document(whole, root=self.path, allow=allow)


class History:
    """The events of one run that has ended."""

    def __init__(self, events: list[PipelineEvent]) -> None:
        self.events = events

    @property
    def outcome(self) -> str:
        return self.events[-1].kind

    @property
    def run(self) -> str:
        return self.events[0].run

    def of(self, kind: str, task: str | None = None) -> list[PipelineEvent]:
        return [e for e in self.events if e.kind == kind and task in (None, e.task)]

    def one(self, kind: str, task: str | None = None) -> PipelineEvent:
        [event] = self.of(kind, task)
        return event

    def kinds(self, task: str) -> list[str]:
        """Without usage, which comes by the clock."""
        return [e.kind for e in self.events if e.task == task and e.kind != "task.usage"]

    def items(self, task: str) -> list[Any]:
        return [e.data["item"] for e in self.of("task.emitted", task)]

    def text(self, task: str, stream: str) -> str:
        logs = self.of("task.log", task)
        return "".join(e.data["text"] for e in logs if e.data["stream"] == stream)

    def output(self, task: str) -> Any:
        return self.one("task.completed", task).data["output"]

    def error(self, task: str) -> dict[str, Any]:
        """The final one."""
        [ending] = [
            e for e in self.events if e.task == task and e.kind in {"task.failed", "task.cancelled"}
        ]
        error: dict[str, Any] = ending.data["error"]
        return error

    def errors(self) -> dict[str, str]:
        """{task: the kind of its final error}"""
        final = self.of("task.failed") + self.of("task.cancelled")
        return {str(e.task): e.data["error"]["kind"] for e in final}

    def seq(self, kind: str, task: str) -> int:
        return self.one(kind, task).seq

    def peak(self) -> int:
        """The most attempts that were between `started` and their ending at one time."""
        alive: set[tuple[str | None, int | None]] = set()
        most = 0
        for event in self.events:
            if event.kind == "task.started":
                alive.add((event.task, event.attempt))
            elif event.kind in ENDINGS:
                alive.discard((event.task, event.attempt))
            most = max(most, len(alive))
        return most

    def check_laws(self) -> Self:
        assert [e.seq for e in self.events] == list(range(1, len(self.events) + 1))
        assert {e.run for e in self.events} == {self.run}
        assert self.events[0].kind == "run.started"
        assert [e.kind for e in self.events if e.kind in LAST] == [self.outcome]
        endings = Counter((e.task, e.attempt) for e in self.events if e.kind in ENDINGS)
        assert set(endings.values()) <= {1}, f"an attempt ended twice: {endings}"
        for event in self.of("task.started"):
            assert (event.task, event.attempt) in endings, f"{event} has no ending"
        over: set[tuple[str | None, int | None]] = set()
        for event in self.events:
            key = (event.task, event.attempt)
            assert key not in over, f"{event} comes after its attempt's ending"
            if event.kind in ENDINGS and event.attempt is not None:
                over.add(key)
        return self


class Live:
    """A run under way, followed from the first event."""

    def __init__(self, house: Embedded, run: str) -> None:
        self.house = house
        self.run = run
        self.events: list[PipelineEvent] = []
        self._changed = threading.Condition()
        self._problem: BaseException | None = None
        self._is_over = False
        house.begin(self._follow())

    async def _follow(self) -> None:
        problem: BaseException | None = None
        try:
            async for event in self.house.supervisor.events(self.run):
                if event.kind in ENDINGS:
                    self._check_dead(event)
                with self._changed:
                    self.events.append(event)
                    self._changed.notify_all()
        except BaseException as error:
            problem = error
        with self._changed:
            self._problem, self._is_over = problem, True
            self._changed.notify_all()

    def _check_dead(self, ending: PipelineEvent) -> None:
        for event in self.events:
            if (event.kind, event.task, event.attempt) == (
                "task.started",
                ending.task,
                ending.attempt,
            ):
                assert not is_alive(event.data["pid"]), f"{ending} and its process lives"

    def wait(self, kind: str, task: str | None = None, count: int = 1) -> PipelineEvent:
        """The `count`-th event of this kind."""

        def found() -> list[PipelineEvent]:
            return [e for e in self.events if e.kind == kind and task in (None, e.task)]

        with self._changed:
            assert self._changed.wait_for(
                lambda: len(found()) >= count or self._is_over, PATIENCE
            ), f"no {kind} of {task} in {self.events}"
            assert len(found()) >= count, f"no {kind} of {task}: {self._problem} {self.events}"
            return found()[count - 1]

    def finish(self) -> History:
        with self._changed:
            assert self._changed.wait_for(lambda: self._is_over, PATIENCE), self.events
        if self._problem is not None:
            raise self._problem
        return History(self.events).check_laws()

    def cancel(self) -> None:
        self.house.call(self.house.supervisor.cancel(self.run))


class Embedded:
    """A Supervisor on the loop of a thread of its own, so that a test reads from top to bottom."""

    def __init__(self, state: Path, **settings: Any) -> None:
        self.state = state
        self._settings = settings
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="embedding-program")

    def __enter__(self) -> Self:
        self._thread.start()
        try:
            self.call(self._enter())
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.call(self.supervisor.__aexit__(kind, error, trace))
        finally:
            self._stop()

    def _stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE)
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()

    async def _enter(self) -> None:
        self.supervisor = Supervisor(state=self.state, **self._settings)
        await self.supervisor.__aenter__()

    @property
    def engine(self) -> int:
        """The pid of the engine child."""
        process = self.supervisor._process
        assert process is not None
        return process.pid

    def begin(self, work: Coroutine[Any, Any, Any]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop)

    def call(self, work: Coroutine[Any, Any, Result]) -> Result:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE)

    def start(self, pipeline: PipelineSpec | Pipeline | Path, input: Any = None) -> Live:
        return Live(self, self.call(self.supervisor.submit(pipeline, input)))

    def run(self, pipeline: PipelineSpec | Pipeline | Path, input: Any = None) -> History:
        return self.start(pipeline, input).finish()


def since_start(history: History, ending: str, task: str) -> float:
    """Seconds from `started` to the ending, as the journal has them."""
    return (history.one(ending, task).at - history.one("task.started", task).at).total_seconds()


class Service:
    """A `casemate serve` in a process of its own."""

    def __init__(self, process: subprocess.Popen[str], printed: Path) -> None:
        self.process = process
        self._printed = printed

    def said(self) -> list[str]:
        """The lines that it has printed."""
        lines = self._printed.read_text().splitlines(True)
        return [line for line in lines if line.endswith("\n")]

    def wait_ended(self) -> tuple[int, str]:
        """Its exit code, and what it had to say on stderr."""
        _, err = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, err

    def kill(self) -> None:
        """-9, with its engine, and until nothing of it lives."""
        below = descendants(self.process.pid)
        self.process.kill()
        self.process.communicate()
        wait_until(lambda: not any(map(is_alive, below)))


@contextmanager
def serving(state: Path, *arguments: str) -> Iterator[Service]:
    """Told to end in the end, unless it was killed, and then nothing of it is left."""
    printed = state.with_name("printed")
    with printed.open("wb") as out:
        server = subprocess.Popen(
            [*_CASEMATE, "serve", "--state", str(state), *arguments],
            stdout=out,
            stderr=subprocess.PIPE,
            text=True,
        )
    try:
        yield Service(server, printed)
        if server.returncode is not None:
            return
        below = descendants(server.pid)
        assert below  # its engine at least
        server.send_signal(signal.SIGTERM)
        _, err = server.communicate(timeout=PATIENCE)
        assert (server.wait(), err) == (0, "")
        wait_until(lambda: not any(map(is_alive, below)))
    finally:
        if server.returncode is None:
            server.kill()
            server.communicate()
