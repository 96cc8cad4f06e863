"""The durable state of a run: a fold over its records.

`RunState.apply` is the only way it changes, live and after a crash, for `show` and for a fork. The
scheduler changes a run by no other way, so the same records read back from the journal give the
same state. Clocks, queues and live attempts are not here: they die with the engine.

Records that the engine adds on its own (items, logs, progress, usage) change nothing here, so a
whole journal can be folded as it is. A record that cannot follow those before it is refused before
anything changes: a bug when live, a damaged journal when read back.

Outputs are kept while a dependant may still need them, and those of sinks to the end of the run.
After a rollback some that were dropped are needed again (`missing_outputs`): they are in the
journal, from where the engine gets them (`give`).

A checkpoint is the set of tasks that had completed (with all their upstream), kept as what it adds
to its parent: a run of ten thousand tasks makes as many checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field
from enum import auto
from functools import partial
from typing import Any, NamedTuple

from msgspec import Raw, Struct

from ...protocol.answers import Action
from ...protocol.errors import LocalViolation, UsageError
from ...protocol.events import (
    BreakerClosed,
    BreakerHalfOpen,
    BreakerOpened,
    CheckpointCreated,
    ErrorKind,
    EventData,
    Layer,
    RunCancelled,
    RunCompleted,
    RunFailed,
    RunForked,
    RunPaused,
    RunRecovered,
    RunResumed,
    RunRolledBack,
    RunStarted,
    TaskCancelled,
    TaskCompleted,
    TaskError,
    TaskFailed,
    TaskReady,
    TaskRecovered,
    TaskRestarted,
    TaskRetrying,
    TaskSaved,
    TaskSkipped,
    TaskStarted,
)
from ...protocol.pipeline import PipelineSpec, TaskSpec
from . import breaker
from . import task as task_life
from .commands import Record
from .graph import Graph, build, downstream
from .lifecycle import Lifecycle, State
from .retry import BLAMELESS, BLAMELESS_RETRIES
from .task import Standing

__all__ = [
    "ENDED",
    "LIFECYCLE",
    "OVER",
    "TRANSITIONS",
    "Checkpoint",
    "Completion",
    "Failure",
    "Noted",
    "RunStanding",
    "RunState",
    "TaskState",
]


class RunStanding(State):
    NEW = auto()
    RUNNING = auto()
    PAUSED = auto()
    COMPLETED = auto()
    FAILED = auto()
    CANCELLED = auto()


_ENDINGS: dict[type[EventData], RunStanding] = {
    RunCompleted: RunStanding.COMPLETED,
    RunFailed: RunStanding.FAILED,
    RunCancelled: RunStanding.CANCELLED,
}
_AGAIN: dict[type[EventData], RunStanding] = {RunRolledBack: RunStanding.RUNNING}

# What was left to drain may end a run while it is paused. A copy's history ends with a checkpoint:
# no run that had ended is ever forked.
TRANSITIONS: dict[RunStanding, dict[type[EventData], RunStanding]] = {
    RunStanding.NEW: {RunStarted: RunStanding.RUNNING},
    RunStanding.RUNNING: {
        RunPaused: RunStanding.PAUSED,
        RunRecovered: RunStanding.RUNNING,
        RunForked: RunStanding.RUNNING,
        **_AGAIN,
        **_ENDINGS,
    },
    RunStanding.PAUSED: {
        RunResumed: RunStanding.RUNNING,
        RunRecovered: RunStanding.PAUSED,
        RunRolledBack: RunStanding.PAUSED,
        RunForked: RunStanding.RUNNING,
        **_ENDINGS,
    },
    RunStanding.COMPLETED: _AGAIN,
    RunStanding.FAILED: _AGAIN,
    RunStanding.CANCELLED: _AGAIN,
}
LIFECYCLE: Lifecycle[RunStanding] = Lifecycle(TRANSITIONS)
ENDED = frozenset(_ENDINGS.values())


class TaskState(Struct):
    # Plain upstream tasks that have not completed; of an `always` task, that have not ended.
    waits: int
    wanted: int  # dependants that have not ended, who may still ask for the output
    standing: Standing = Standing.WAITING
    attempt: int = 0  # the latest number given
    done: int = 0  # the attempt that completed, whose output and layer count
    failures: int = 0  # attempts that count against the retry policy
    blameless: int = 0  # attempts that failed through no fault of the task
    delay: float = 0.0  # of the latest retry
    fallback: str | None = None  # what is called in the place of `execute`
    tried: tuple[str, ...] = ()  # fallbacks it has gone on with, that one included
    generation: int = 0  # how often it was undone
    output: Raw | None = None
    layer: Layer | None = None  # of the attempt that completed
    saved: Raw | None = None  # what an attempt left for the next one


class Failure(Struct, frozen=True):
    task: str
    attempt: int | None
    error: TaskError


class Completion(NamedTuple):
    """What a task that completed is."""

    attempt: int
    layer: Layer | None


class Noted(NamedTuple):
    """What a run's journal told last of a breaker."""

    standing: breaker.Standing
    opening: int


class Checkpoint(Struct, frozen=True):
    """The completed tasks of `parent`, and `tasks`; `total` of them. Files and bytes of the layers
    of all."""

    id: str
    parent: str | None
    tasks: Mapping[str, Completion]
    total: int
    files: int
    bytes: int


@dataclass(slots=True)
class RunState:
    run: str
    spec: PipelineSpec
    standing: RunStanding = RunStanding.NEW
    input: Raw = field(default_factory=lambda: Raw(b"\xc0"))
    seed: int = 0
    # Tasks that failed by their own doing, in the order they did.
    failures: dict[str, Failure] = field(default_factory=dict)
    cancelled: TaskError | None = None  # why the first of its tasks was
    generation: int = 0  # how often the run was rolled back or forked
    retries: int = 0  # of its retry budget
    rollbacks: int = 0  # of its rollback budget
    # Tasks that wait for a rollback they asked for, to just before which task.
    returning: dict[str, str] = field(default_factory=dict)
    checkpoints: dict[str, Checkpoint] = field(default_factory=dict)
    head: str | None = None  # the checkpoint that what follows builds on
    fresh: list[str] = field(default_factory=list)  # completed since then
    breakers: dict[str, Noted] = field(default_factory=dict)  # those it told of
    graph: Graph = field(init=False)
    specs: dict[str, TaskSpec] = field(init=False)
    tasks: dict[str, TaskState] = field(init=False)
    unfinished: int = field(init=False)  # tasks that have not ended
    completed: int = 0
    # Completed tasks that no checkpoint holds: `always` tasks whose upstream did not complete, and
    # what follows on them. Who goes back does what they cleaned up again, and then cleans up again.
    loose: set[str] = field(default_factory=set)
    files: int = 0  # in the layers of what has completed and is not loose
    bytes: int = 0

    def __post_init__(self) -> None:
        self.graph = build(self.spec)
        self.specs = {task.id: task for task in self.spec.tasks}
        inputs, dependants = self.graph.inputs, self.graph.dependants
        self.tasks = {
            task: TaskState(waits=len(inputs[task]), wanted=len(dependants[task]))
            for task in self.graph.order
        }
        self.unfinished = len(self.tasks)

    def apply(self, record: Record) -> None:
        fold = _FOLD.get(type(record.data))
        if fold is not None:
            fold(self, record, record.data)

    @property
    def has_ended(self) -> bool:
        return self.standing in ENDED

    @property
    def first_failure(self) -> Failure | None:
        return next(iter(self.failures.values()), None)

    def outputs(self) -> dict[str, Raw]:
        """Of the sinks that completed."""
        values = ((sink, self.tasks[sink].output) for sink in self.graph.sinks)
        return {sink: value for sink, value in values if value is not None}

    def is_due(self, task: str) -> bool:
        """Whether a waiting task has all it needs to start: the outputs of its plain edges, and
        who speaks on its stream edges."""
        state = self.tasks[task]
        return (
            state.standing is Standing.WAITING
            and not state.waits
            and task not in self.returning
            and self.silent_source(task) is None
        )

    def silent_source(self, task: str) -> str | None:
        """Of those whose streams a task reads, the first that neither speaks nor has completed."""
        for source in self.graph.streams[task]:
            if self.tasks[source].standing not in (Standing.RUNNING, Standing.COMPLETED):
                return source
        return None

    def upstream_of(self, task: str) -> set[str]:
        """All that it depends on, however far."""
        return downstream(self.graph.upstream, self.graph.upstream[task])

    # What may be returned to.

    def held_by(self, checkpoint: str) -> dict[str, Completion]:
        """The tasks that had completed at a checkpoint; UsageError where there is none such."""
        held: dict[str, Completion] = {}
        name: str | None = checkpoint
        while name is not None:
            found = self.checkpoints.get(name)
            if found is None:
                known = ", ".join(list(self.checkpoints)[-5:]) or "none"
                raise UsageError(
                    f"run {self.run} has no checkpoint {name!r}; the latest of its "
                    f"{len(self.checkpoints)}: {known}"
                )
            held.update(found.tasks)
            name = found.parent
        return held

    def undone_by(self, checkpoint: str | None, before: str | None) -> tuple[str, ...]:
        """What a rollback to a checkpoint, or to just before a task, has to undo."""
        if (checkpoint is None) == (before is None):
            raise UsageError(f"run {self.run}: roll back either to a checkpoint or before a task")
        if before is None:
            assert checkpoint is not None
            return self.all_but(self.held_by(checkpoint))
        if before not in self.tasks:
            raise UsageError(f"run {self.run} has no task {before!r}")
        for source in self.graph.upstream[before]:
            if self.tasks[source].standing is Standing.FAILED and not self.specs[before].always:
                raise UsageError(
                    f"run {self.run}: {before} cannot run, since {source} failed; roll back "
                    f"before {source}"
                )
        # A task that was cancelled did not end by itself: it is done with the rest.
        cancelled = [t for t, s in self.tasks.items() if s.standing is Standing.CANCELLED]
        undone = downstream(self.graph.dependants, [before, *cancelled])
        return tuple(task for task in self.graph.order if task in undone)

    def all_but(self, kept: Container[str]) -> tuple[str, ...]:
        return tuple(task for task in self.graph.order if task not in kept)

    def restored_by(self, checkpoint: str) -> tuple[str, ...]:
        """What the checkpoint holds and is not so any more: a rollback to an earlier one left it
        behind."""
        held = self.held_by(checkpoint)
        return tuple(
            task
            for task in self.graph.order
            if task in held and self.tasks[task].done != held[task].attempt
        )

    def missing_outputs(self) -> list[tuple[str, int]]:
        """(task, attempt) of the outputs that are needed and not in memory."""
        return [
            (name, task.done)
            for name, task in self.tasks.items()
            if task.standing is Standing.COMPLETED
            and task.output is None
            and (task.wanted or not self.graph.dependants[name])
        ]

    def give(self, outputs: Mapping[tuple[str, int], Raw]) -> None:
        """Outputs from the journal. Those that are not missing any more are left out."""
        for missing in self.missing_outputs():
            if missing in outputs:
                self.tasks[missing[0]].output = outputs[missing]

    # The fold.

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

    def _step_over(self, record: Record, data: RunPaused | RunResumed | RunRecovered) -> None:
        self._pass(type(data))

    def _undo(self, record: Record, data: RunRolledBack | RunForked) -> None:
        if data.generation != self.generation + 1:
            raise LocalViolation(
                f"run {self.run}: generation {data.generation} after {self.generation}"
            )
        restored = data.restored if isinstance(data, RunRolledBack) else ()
        held = self.held_by(data.checkpoint) if restored and data.checkpoint is not None else {}
        strangers = {*data.undone, *restored} - self.tasks.keys()
        if strangers:
            raise LocalViolation(f"run {self.run}: {sorted(strangers)} undone: no task of the run")
        for name in (*data.undone, *restored):
            task = self.tasks[name]
            subject = partial(_task, self.run, name)
            task.standing = task_life.LIFECYCLE.next(subject, task.standing, type(data))
            task.output = task.layer = task.saved = None
            task.done = task.failures = task.blameless = 0
            task.fallback = None
            task.tried = ()
            self.returning.pop(name, None)
            self.loose.discard(name)
            task.generation += 1
            self.failures.pop(name, None)
        for name in restored:
            if name not in held:
                raise LocalViolation(f"run {self.run}: {name} restored: not in {data.checkpoint}")
            task = self.tasks[name]
            task.standing = Standing.COMPLETED
            task.done, task.layer = held[name]
        self._pass(type(data))
        self.cancelled = None
        self.generation = data.generation
        self.head = data.checkpoint
        self.fresh = []
        if data.checkpoint is None:
            # No checkpoint holds just what is left: the next one names all of it.
            standing = Standing.COMPLETED
            self.fresh = [
                name
                for name in self.graph.order
                if self.tasks[name].standing is standing and name not in self.loose
            ]
        self._count()

    def _count(self) -> None:
        """Everything that is counted, anew."""
        tasks, graph = self.tasks, self.graph
        self.completed = self.unfinished = self.files = self.bytes = 0
        for name, task in tasks.items():
            enough = OVER if self.specs[name].always else _COMPLETED
            task.waits = sum(tasks[source].standing not in enough for source in graph.inputs[name])
            task.wanted = sum(tasks[d].standing not in OVER for d in graph.dependants[name])
            if graph.dependants[name] and not task.wanted:
                task.output = None
            self.unfinished += task.standing not in OVER
            if task.standing is Standing.COMPLETED:
                self.completed += 1
                if name not in self.loose:
                    self._add(task.layer)

    def _add(self, layer: Layer | None) -> None:
        if layer is not None:
            self.files += layer.files
            self.bytes += layer.bytes

    def _checkpoint(self, record: Record, data: CheckpointCreated) -> None:
        if data.parent != self.head or data.checkpoint in self.checkpoints:
            raise LocalViolation(
                f"run {self.run}: checkpoint {data.checkpoint} upon {data.parent}, expected a new "
                f"one upon {self.head}"
            )
        tasks = ((name, self.tasks[name]) for name in data.tasks)
        added = {name: Completion(task.done, task.layer) for name, task in tasks}
        self.checkpoints[data.checkpoint] = Checkpoint(
            data.checkpoint, data.parent, added, data.total, data.files, data.bytes
        )
        self.head = data.checkpoint
        self.fresh = []

    def _breaker(
        self, record: Record, data: BreakerOpened | BreakerHalfOpen | BreakerClosed
    ) -> None:
        noted = self.breakers.get(data.key, Noted(breaker.Standing.CLOSED, 0))
        standing = breaker.LIFECYCLE.next(
            lambda: f"run {self.run}: breaker {data.key}", noted.standing, type(data)
        )
        self.breakers[data.key] = Noted(standing, data.opening)

    def _pass(self, happening: type[EventData]) -> None:
        self.standing = LIFECYCLE.next(lambda: f"run {self.run}", self.standing, happening)

    def _ready(self, record: Record, data: TaskReady) -> None:
        task, standing = self._move(record, 1)
        if task.waits:
            raise LocalViolation(f"{_name(record)}: ready with {task.waits} inputs missing")
        task.standing = standing
        task.attempt += 1

    def _started(self, record: Record, data: TaskStarted) -> None:
        task, standing = self._move(record, 0)
        task.standing = standing

    def _saved(self, record: Record, data: TaskSaved) -> None:
        task = self.tasks.get(record.task or "")
        if task is None or task.standing is not Standing.RUNNING or task.attempt != record.attempt:
            raise LocalViolation(f"{_name(record)}: saved, and is not running")
        task.saved = data.state

    def _retrying(self, record: Record, data: TaskRetrying) -> None:
        task, standing = self._move(record, 0)
        task.standing = standing
        task.delay = data.delay
        if data.error.kind in BLAMELESS and task.blameless < BLAMELESS_RETRIES:
            task.blameless += 1
        elif not data.held_back:
            task.failures += 1
            self.retries += 1
        self._begin_again(record)

    def _recovered(self, record: Record, data: TaskRecovered) -> None:
        task, standing = self._move(record, 0)
        task.standing = standing
        if data.action is Action.FALLBACK:
            task.fallback = data.to
            task.tried = (*task.tried, data.to)
            task.failures = 0
            self.retries += 1
        else:
            self.returning[record.task or ""] = data.to
            self.rollbacks += 1
        self._begin_again(record)

    def _restarted(self, record: Record, data: TaskRestarted) -> None:
        task, standing = self._move(record, 0)
        task.standing = standing
        self._begin_again(record)

    def _begin_again(self, record: Record) -> None:
        """What readers of the task's stream had saved was about items that come anew."""
        name = record.task or ""
        for reader in downstream(self.graph.readers, self.graph.readers[name]):
            self.tasks[reader].saved = None

    def _completed(self, record: Record, data: TaskCompleted) -> None:
        self._finish(record, data.output, data.layer)

    def _skipped(self, record: Record, data: TaskSkipped) -> None:
        self._finish(record, data.output, None)

    def _finish(self, record: Record, output: Raw, layer: Layer | None) -> None:
        task, standing = self._move(record, 0)
        name = record.task or ""
        task.standing = standing
        task.output = output
        task.layer = layer
        task.done = task.attempt
        task.saved = None
        self.completed += 1
        if self._is_whole(name):
            self._add(layer)
            self.fresh.append(name)
        else:
            self.loose.add(name)
        for taker in self.graph.takers[name]:
            if not self.specs[taker].always:
                self.tasks[taker].waits -= 1
        self._close(record)

    def _is_whole(self, task: str) -> bool:
        return all(
            self.tasks[source].standing is Standing.COMPLETED and source not in self.loose
            for source in self.graph.upstream[task]
        )

    def _failed(self, record: Record, data: TaskFailed) -> None:
        task, standing = self._move(record, 0)
        task.standing = standing
        if data.error.kind is not ErrorKind.UPSTREAM_FAILED:
            name = record.task or ""
            self.failures[name] = Failure(name, record.attempt, data.error)
        self._close(record)

    def _cancelled(self, record: Record, data: TaskCancelled) -> None:
        task, standing = self._move(record, 0)
        task.standing = standing
        self.cancelled = self.cancelled or data.error
        self._close(record)

    def _move(self, record: Record, ahead: int) -> tuple[TaskState, Standing]:
        """The task a record is about and where it leads, having checked that it can be true.
        `ahead`: by how much its attempt is beyond the latest."""
        task = self.tasks.get(record.task) if record.task is not None else None
        if task is None or self.standing not in (RunStanding.RUNNING, RunStanding.PAUSED):
            happening = type(record.data).__name__
            where = "in no task of the run" if task is None else f"while {self.standing.name}"
            raise LocalViolation(f"run {self.run}: {happening} {where}")
        standing = task_life.LIFECYCLE.next(lambda: _name(record), task.standing, type(record.data))
        # Between attempts there is none to name (see task.py).
        has_attempt = ahead or task.standing in (Standing.READY, Standing.RUNNING)
        expected = task.attempt + ahead if has_attempt else None
        if record.attempt != expected:
            raise LocalViolation(f"{_name(record)}: expected attempt {expected}")
        return task, standing

    def _close(self, record: Record) -> None:
        """The task has ended for good: its inputs have one reader less."""
        self.unfinished -= 1
        ended = record.task or ""
        for taker in self.graph.takers[ended]:
            if self.specs[taker].always:
                self.tasks[taker].waits -= 1
        for name in self.graph.upstream[ended]:
            upstream = self.tasks[name]
            upstream.wanted -= 1
            if not upstream.wanted:
                upstream.output = None


_COMPLETED = frozenset({Standing.COMPLETED})
OVER = frozenset({Standing.COMPLETED, Standing.FAILED, Standing.CANCELLED})


def _task(run: str, name: str | None) -> str:
    return f"task {run}/{name}"


def _name(record: Record) -> str:
    return f"{_task(record.run, record.task)} (attempt {record.attempt})"


# Any: each function takes the data types it is listed under.
_FOLD: dict[type[EventData], Callable[[RunState, Record, Any], None]] = {
    RunStarted: RunState._start,
    RunCompleted: RunState._complete,
    RunFailed: RunState._end,
    RunCancelled: RunState._end,
    RunPaused: RunState._step_over,
    RunResumed: RunState._step_over,
    RunRecovered: RunState._step_over,
    RunRolledBack: RunState._undo,
    RunForked: RunState._undo,
    CheckpointCreated: RunState._checkpoint,
    BreakerOpened: RunState._breaker,
    BreakerHalfOpen: RunState._breaker,
    BreakerClosed: RunState._breaker,
    TaskReady: RunState._ready,
    TaskStarted: RunState._started,
    TaskSaved: RunState._saved,
    TaskRetrying: RunState._retrying,
    TaskRecovered: RunState._recovered,
    TaskRestarted: RunState._restarted,
    TaskCompleted: RunState._completed,
    TaskSkipped: RunState._skipped,
    TaskFailed: RunState._failed,
    TaskCancelled: RunState._cancelled,
}
