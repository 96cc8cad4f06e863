"""A run's durable state: a fold of its records, and nothing else.

`RunState(run, spec)` is a run of which nothing has been recorded; `apply` adds one record. The
scheduler changes a run by no other way, so the same records read back from the journal give the
same state. Clocks, queues and live attempts are not here: they die with the engine.

Records that the engine adds on its own (items, logs, progress, usage) change nothing here, so a
whole journal can be folded as it is. A record that cannot follow those before it is refused before
anything changes: a bug when live, a damaged journal when read back.

Outputs are kept while a dependant may still need them, and those of sinks to the end of the run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

from msgspec import Raw

from ...protocol.errors import LocalViolation
from ...protocol.events import (
    ErrorKind,
    EventData,
    RunCancelled,
    RunCompleted,
    RunFailed,
    RunStarted,
    TaskCancelled,
    TaskCompleted,
    TaskError,
    TaskFailed,
    TaskReady,
    TaskRetrying,
    TaskStarted,
)
from ...protocol.pipeline import PipelineSpec, TaskSpec
from . import task as task_life
from .commands import Record
from .graph import Graph, build
from .lifecycle import Lifecycle
from .retry import BLAMELESS
from .task import Standing

__all__ = ["LIFECYCLE", "TRANSITIONS", "Failure", "RunStanding", "RunState", "TaskState"]


class RunStanding(Enum):
    NEW = auto()
    RUNNING = auto()
    COMPLETED = auto()
    FAILED = auto()
    CANCELLED = auto()


TRANSITIONS: dict[RunStanding, dict[type[EventData], RunStanding]] = {
    RunStanding.NEW: {RunStarted: RunStanding.RUNNING},
    RunStanding.RUNNING: {
        RunCompleted: RunStanding.COMPLETED,
        RunFailed: RunStanding.FAILED,
        RunCancelled: RunStanding.CANCELLED,
    },
    RunStanding.COMPLETED: {},
    RunStanding.FAILED: {},
    RunStanding.CANCELLED: {},
}
LIFECYCLE: Lifecycle[RunStanding] = Lifecycle(TRANSITIONS)


@dataclass(slots=True)
class TaskState:
    waits: int  # upstream tasks that have not completed
    wanted: int  # dependants that have not ended, who may still ask for the output
    standing: Standing = Standing.WAITING
    attempt: int = 0  # the latest number given
    failures: int = 0  # attempts that count against the retry policy
    blameless: int = 0  # attempts that failed through no fault of the task
    output: Raw | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    task: str
    attempt: int | None
    error: TaskError


@dataclass(slots=True)
class RunState:
    run: str
    spec: PipelineSpec
    standing: RunStanding = RunStanding.NEW
    input: Raw = field(default_factory=lambda: Raw(b"\xc0"))
    seed: int = 0
    failed: list[str] = field(default_factory=list)  # by their own doing, in the order they did
    first_failure: Failure | None = None
    graph: Graph = field(init=False)
    specs: dict[str, TaskSpec] = field(init=False)
    tasks: dict[str, TaskState] = field(init=False)
    unfinished: int = field(init=False)  # tasks that have not ended
    completed: int = 0

    def __post_init__(self) -> None:
        self.graph = build(self.spec)
        self.specs = {task.id: task for task in self.spec.tasks}
        upstream, dependants = self.graph.upstream, self.graph.dependants
        self.tasks = {
            task: TaskState(waits=len(upstream[task]), wanted=len(dependants[task]))
            for task in self.graph.order
        }
        self.unfinished = len(self.tasks)

    def apply(self, record: Record) -> None:
        fold = _FOLD.get(type(record.data))
        if fold is not None:
            fold(self, record, record.data)

    def outputs(self) -> dict[str, Raw]:
        """Of the sinks that completed."""
        values = ((sink, self.tasks[sink].output) for sink in self.graph.sinks)
        return {sink: value for sink, value in values if value is not None}

    def _start(self, record: Record, data: RunStarted) -> None:
        self._pass(RunStarted)
        self.input = data.input
        self.seed = data.seed

    def _complete(self, record: Record, data: RunCompleted) -> None:
        if self.completed != len(self.tasks):
            raise LocalViolation(
                f"run {self.run}: completed with {self.completed} of {len(self.tasks)} tasks"
            )
        self._pass(RunCompleted)

    def _end(self, record: Record, data: RunFailed | RunCancelled) -> None:
        if self.unfinished:
            raise LocalViolation(f"run {self.run}: ended while {self.unfinished} tasks had not")
        self._pass(type(data))

    def _pass(self, happening: type[EventData]) -> None:
        self.standing = LIFECYCLE.next(f"run {self.run}", self.standing, happening)

    def _ready(self, record: Record, data: TaskReady) -> None:
        task, standing = self._move(record, 1)
        if task.waits:
            raise LocalViolation(f"{_name(record)}: ready with {task.waits} inputs missing")
        task.standing = standing
        task.attempt += 1

    def _started(self, record: Record, data: TaskStarted) -> None:
        task, standing = self._move(record, 0)
        task.standing = standing

    def _retrying(self, record: Record, data: TaskRetrying) -> None:
        task, standing = self._move(record, 0)
        task.standing = standing
        if data.error.kind in BLAMELESS:
            task.blameless += 1
        else:
            task.failures += 1

    def _completed(self, record: Record, data: TaskCompleted) -> None:
        task, standing = self._move(record, 0)
        task.standing = standing
        task.output = data.output
        self.completed += 1
        for dependant in self.graph.dependants[record.task or ""]:
            self.tasks[dependant].waits -= 1
        self._close(record)

    def _failed(self, record: Record, data: TaskFailed) -> None:
        task, standing = self._move(record, 0)
        task.standing = standing
        if data.error.kind is not ErrorKind.UPSTREAM_FAILED:
            name = record.task or ""
            self.failed.append(name)
            if self.first_failure is None:
                self.first_failure = Failure(name, record.attempt, data.error)
        self._close(record)

    def _cancelled(self, record: Record, data: TaskCancelled) -> None:
        task, standing = self._move(record, 0)
        task.standing = standing
        self._close(record)

    def _move(self, record: Record, ahead: int) -> tuple[TaskState, Standing]:
        """The task a record is about and where it leads, having checked that it can be true.
        `ahead`: by how much its attempt is beyond the latest."""
        task = self.tasks.get(record.task) if record.task is not None else None
        if task is None or self.standing is not RunStanding.RUNNING:
            happening = type(record.data).__name__
            where = "in no task of the run" if task is None else f"while {self.standing.name}"
            raise LocalViolation(f"run {self.run}: {happening} {where}")
        standing = task_life.LIFECYCLE.next(_name(record), task.standing, type(record.data))
        # Between attempts there is none to name (see task.py).
        has_attempt = ahead or task.standing in (Standing.READY, Standing.RUNNING)
        expected = task.attempt + ahead if has_attempt else None
        if record.attempt != expected:
            raise LocalViolation(f"{_name(record)}: expected attempt {expected}")
        return task, standing

    def _close(self, record: Record) -> None:
        """The task has ended for good: its inputs have one reader less."""
        self.unfinished -= 1
        for name in self.graph.upstream[record.task or ""]:
            upstream = self.tasks[name]
            upstream.wanted -= 1
            if not upstream.wanted:
                upstream.output = None


def _name(record: Record) -> str:
    return f"task {record.run}/{record.task} (attempt {record.attempt})"


# Any: each function takes the one data type it is listed under.
_FOLD: dict[type[EventData], Callable[[RunState, Record, Any], None]] = {
    RunStarted: RunState._start,
    RunCompleted: RunState._complete,
    RunFailed: RunState._end,
    RunCancelled: RunState._end,
    TaskReady: RunState._ready,
    TaskStarted: RunState._started,
    TaskRetrying: RunState._retrying,
    TaskCompleted: RunState._completed,
    TaskFailed: RunState._failed,
    TaskCancelled: RunState._cancelled,
}
