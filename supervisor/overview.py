"""How runs stand, for people and clients: read from their journals, without a supervisor.

There is one fold (`recovery.py`, into `RunState`), and what a run or a task *is* comes from it. It
keeps no times, since nothing is decided by them; `_Witness` watches it, record by record, and notes
when each standing was reached, and the error that led there. So does `read_story`, for what a later
rollback undid: an event of a task that has come to a higher generation since.

`summarise` is for lists of many runs. It reads the few events of the run itself and passes them
through the run's own lifecycle, the same table that the fold passes through.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec
from msgspec import Struct

from ..protocol.control import RunState as Shown
from ..protocol.control import RunSummary, TaskSummary
from ..protocol.errors import CasemateError, UsageError
from ..protocol.events import (
    DATA,
    CheckpointCreated,
    EventData,
    RunPaused,
    RunStarted,
    TaskError,
)
from .core.commands import Record
from .core.state import ENDED, LIFECYCLE, RunStanding, RunState
from .core.task import Standing
from .core.why import Facts, Reason, explain
from .journal import JournalError, JournalReader, NotBegunError, Outline
from .recovery import fold
from .state import RunDirectory, StateDirectory

__all__ = [
    "Told",
    "describe",
    "explain_task",
    "list_checkpoints",
    "list_runs",
    "read_story",
    "summarise",
]

# Of a run that somebody owns; without an owner, what has not ended was interrupted.
_SHOWN = {
    RunStanding.NEW: Shown.RUNNING,
    RunStanding.RUNNING: Shown.RUNNING,
    RunStanding.PAUSED: Shown.PAUSED,
    RunStanding.COMPLETED: Shown.COMPLETED,
    RunStanding.FAILED: Shown.FAILED,
    RunStanding.CANCELLED: Shown.CANCELLED,
}
_TASK_SHOWN = {
    Standing.WAITING: "waiting",
    Standing.READY: "ready",
    Standing.RUNNING: "running",
    Standing.BACKOFF: "retrying",
    Standing.COMPLETED: "completed",
    Standing.FAILED: "failed",
    Standing.CANCELLED: "cancelled",
}


class Told(NamedTuple):
    """An event of a run's story. `undone`: by a rollback that came later."""

    outline: Outline
    undone: bool


class _Name(Struct):
    """What a summary needs of RunStarted."""

    pipeline: str


class _Times:
    """Beside the standing of a run: when it began, and when it came to its end."""

    def __init__(self) -> None:
        self.standing = RunStanding.NEW
        self.pipeline: str | None = None
        self.started: float | None = None
        self.ended: float | None = None

    def note(self, standing: RunStanding, at: float) -> None:
        if self.started is None:
            self.started = at
        if standing is not self.standing:
            self.ended = at if standing in ENDED else None
        self.standing = standing

    def summary(self, run: str, is_owned: bool, last_seq: int) -> RunSummary:
        goes_on = is_owned or self.standing in ENDED
        return RunSummary(
            id=run,
            pipeline=self.pipeline,
            state=_SHOWN[self.standing] if goes_on else Shown.INTERRUPTED,
            started=self.started,
            ended=self.ended,
            last_seq=last_seq,
        )


class _Witness(_Times):
    """The same for each task, beside the fold."""

    def __init__(self) -> None:
        super().__init__()
        self.tasks: dict[str, tuple[Standing, float, TaskError | None]] = {}
        self.is_frozen = False

    def __call__(self, state: RunState, record: Record, told: Outline) -> None:
        data, at = record.data, told.event.at
        if isinstance(data, RunStarted):
            self.pipeline = data.pipeline
        if state.standing is not self.standing:
            self.is_frozen = isinstance(data, RunPaused) and not data.drain
        self.note(state.standing, at)
        gone_back = (*getattr(data, "undone", ()), *getattr(data, "restored", ()))
        for name in (record.task,) if record.task else gone_back:
            standing = state.tasks[name].standing
            if name not in self.tasks or standing is not self.tasks[name][0]:
                self.tasks[name] = (standing, at, getattr(data, "error", None))

    def task_summary(self, state: RunState, name: str) -> TaskSummary:
        standing, since, error = self.tasks.get(name, (Standing.WAITING, None, None))
        shown = _TASK_SHOWN[standing]
        if self.is_frozen and standing is Standing.RUNNING:
            shown = "paused"
        elif standing is Standing.COMPLETED and error is not None:
            shown = "skipped"
        return TaskSummary(
            id=name,
            state=shown,
            attempt=state.tasks[name].done or state.tasks[name].attempt,
            since=since,
            error=error,
        )


def list_runs(state: StateDirectory, limit: int | None = None) -> list[RunSummary]:
    """The newest `limit` runs of a state directory, newest first."""
    return [summarise(state.run(run_id)) for run_id in reversed(state.run_ids()[-(limit or 0) :])]


def summarise(run: RunDirectory) -> RunSummary:
    """A run's standing, by its journal and its lock. Where nobody owns it and it has not ended,
    it was interrupted: no run is running for ever because its supervisor died."""
    # Asked before reading: an owner that ends the run in between must not look interrupted.
    is_owned = run.is_owned()
    times = _Times()
    last_seq = 0
    try:
        with JournalReader(run) as reader:
            last_seq = reader.last_seq()
            for event, _ in reader.of_run():
                if event.seq > last_seq:
                    break
                kind = DATA.get(event.kind)
                if kind is RunStarted:
                    times.pipeline = msgspec.msgpack.decode(event.data, type=_Name).pipeline
                times.note(_next(run.id, times.standing, kind), event.at)
    except NotBegunError:
        pass
    except (CasemateError, msgspec.DecodeError) as error:
        return RunSummary(id=run.id, state=Shown.DAMAGED, problem=str(error))
    return times.summary(run.id, is_owned, last_seq)


def _next(run: str, standing: RunStanding, kind: type[EventData] | None) -> RunStanding:
    if kind is None:
        raise JournalError(f"run {run}: an event of an unknown kind")
    return LIFECYCLE.next(lambda: f"run {run}", standing, kind)


def describe(run: RunDirectory) -> tuple[RunSummary, tuple[TaskSummary, ...]]:
    """A run's standing and that of each of its tasks, in the pipeline's order."""
    is_owned = run.is_owned()
    witness = _Witness()
    state, last_seq = None, 0
    try:
        with JournalReader(run) as reader:
            last_seq = reader.last_seq()
            state = fold(reader, run.id, last_seq, witness)
    except NotBegunError:
        pass
    tasks = () if state is None else tuple(
        witness.task_summary(state, task.id) for task in state.spec.tasks
    )  # fmt: skip
    summary = witness.summary(run.id, is_owned, last_seq)
    if state is not None:
        keys = {task.breaker.key for task in state.spec.tasks if task.breaker is not None}
        summary = msgspec.structs.replace(summary, breakers=tuple(sorted(keys)))
    return summary, tasks


def list_checkpoints(run: RunDirectory) -> list[CheckpointCreated]:
    """All that were made, oldest first: a rollback takes none away."""
    try:
        with JournalReader(run) as reader:
            return [
                msgspec.msgpack.decode(event.data, type=CheckpointCreated)
                for event, _ in reader.decisions()
                if event.kind == "checkpoint.created"
            ]
    except NotBegunError:
        return []


def explain_task(
    run: RunDirectory, task: str, live: Sequence[str] = ()
) -> tuple[RunSummary, TaskSummary, tuple[Reason, ...]]:
    """Why a task is as it is. `live`: what the run's supervisor says of it at this moment."""
    is_owned = run.is_owned()
    witness, facts = _Witness(), Facts(task)

    def see(state: RunState, record: Record, told: Outline) -> None:
        witness(state, record, told)
        facts.see(told.event.seq, told.event.at, record)

    with JournalReader(run) as reader:
        last_seq = reader.last_seq()
        state = fold(reader, run.id, last_seq, see)
    if task not in state.tasks:
        raise UsageError(f"run {run.id} has no task {task!r}")
    reasons = explain(state, facts, is_owned=is_owned, live=live)
    return witness.summary(run.id, is_owned, last_seq), witness.task_summary(state, task), reasons


def read_story(run: RunDirectory) -> list[Told]:
    """Every event but a task's output in bulk. Nothing that was undone is left out."""
    seen: list[tuple[Outline, int]] = []  # and the generation its task had

    def witness(state: RunState, record: Record, told: Outline) -> None:
        seen.append((told, state.tasks[record.task].generation if record.task else 0))

    try:
        with JournalReader(run) as reader:
            last_seq = reader.last_seq()
            state = fold(reader, run.id, last_seq, witness)
    except NotBegunError:
        return []
    tasks = state.tasks

    def is_undone(task: str | None, attempt: int | None, generation: int) -> bool:
        return (
            task is not None
            and generation < tasks[task].generation
            and (attempt is None or attempt != tasks[task].done)
        )

    return [
        Told(told, is_undone(told.event.task, told.event.attempt, generation))
        for told, generation in seen
    ]
