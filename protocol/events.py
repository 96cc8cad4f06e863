"""The facts of a run, as they are journaled and published.

An event is numbered (`seq`, from 1, without holes) by the journal and stamped there; its `data` is
one of the structs below, chosen by `kind`. `Raw` fields are user payloads: carried, never opened.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from msgspec import Raw, Struct, field

from .answers import Action

__all__ = [
    "DATA",
    "KIND_OF",
    "BreakerClosed",
    "BreakerHalfOpen",
    "BreakerOpened",
    "CheckpointCreated",
    "ErrorKind",
    "Event",
    "EventData",
    "Layer",
    "RunCancelled",
    "RunCompleted",
    "RunFailed",
    "RunForked",
    "RunPaused",
    "RunRecovered",
    "RunResumed",
    "RunRolledBack",
    "RunStarted",
    "TaskArtifact",
    "TaskCancelled",
    "TaskCompleted",
    "TaskEmitted",
    "TaskError",
    "TaskFailed",
    "TaskLog",
    "TaskProgress",
    "TaskReady",
    "TaskRecovered",
    "TaskRestarted",
    "TaskRetrying",
    "TaskSaved",
    "TaskSkipped",
    "TaskStarted",
    "TaskUsage",
    "WorkspaceChanged",
]


class ErrorKind(StrEnum):
    """Why an attempt failed (DESIGN §7)."""

    ERROR = "error"
    INVALID_OUTPUT = "invalid_output"
    TIMEOUT_START = "timeout.start"
    TIMEOUT_WALL = "timeout.wall"
    TIMEOUT_IDLE = "timeout.idle"
    TIMEOUT_CPU = "timeout.cpu"
    TIMEOUT_RUN = "timeout.run"
    MEMORY = "memory"
    PIDS = "pids"
    DISK = "disk"
    OUTPUT_LIMIT = "output_limit"
    CRASH = "crash"
    VIOLATION = "violation"
    CONFLICT = "conflict"
    PROTOCOL = "protocol"
    SETUP = "setup"
    BREAKER_OPEN = "breaker_open"
    UPSTREAM_FAILED = "upstream_failed"
    CANCELLED = "cancelled"
    LOST = "lost"


class Usage(Struct, frozen=True, kw_only=True):
    """Peak memory in bytes, cpu in seconds, processes, bytes written; None where not measured."""

    memory: int | None = None
    cpu: float | None = None
    pids: int | None = None
    disk: int | None = None


class TaskError(Struct, frozen=True, kw_only=True):
    kind: ErrorKind
    message: str
    type: str | None = None
    traceback: str | None = None
    refused: tuple[str, ...] = ()
    usage: Usage | None = None
    reasons: tuple[str, ...] = ()  # why the output is not valid
    retry_after: float | None = None  # seconds that the code's exception asked to wait


class RunStarted(Struct, frozen=True, kw_only=True):
    pipeline: str
    input: Raw
    seed: int
    spec: Raw  # the PipelineSpec


class RunCompleted(Struct, frozen=True):
    outputs: dict[str, Raw]  # sink task: output


class RunFailed(Struct, frozen=True):
    error: TaskError
    tasks: tuple[str, ...]  # the tasks that failed for good, in id order


class RunCancelled(Struct, frozen=True):
    reason: str


class RunPaused(Struct, frozen=True):
    """`drain`: what runs was left to end; else it was frozen."""

    drain: bool = False


class RunResumed(Struct, frozen=True):
    pass


class RunRecovered(Struct, frozen=True):
    """Found after its supervisor had died, and taken over."""

    lost: tuple[str, ...]  # tasks whose attempts died with it, in id order


class RunRolledBack(Struct, frozen=True, kw_only=True):
    """Back to `checkpoint`, or to just `before` a task: exactly one is set. What `undone` names is
    to be done again, under `generation`. `restored`: what had been done again, or was to be, since
    the checkpoint was left behind; it has completed again, as it had then."""

    checkpoint: str | None = None
    before: str | None = None
    undone: tuple[str, ...]  # in topological, then id order
    restored: tuple[str, ...] = ()  # in the same
    generation: int


class RunForked(Struct, frozen=True, kw_only=True):
    """The events before this one are history shared with `source`, up to its `checkpoint`.

    Where the pipeline was changed (`run --watch`), `changed` names the tasks that are not as they
    were in `source`, new ones, and all that depends on them. The events before this one then tell
    anew, under numbers of their own, what is kept of `source`; `checkpoint` holds that."""

    source: str
    checkpoint: str
    undone: tuple[str, ...]
    generation: int
    changed: tuple[str, ...] = ()


class CheckpointCreated(Struct, frozen=True, kw_only=True):
    """`tasks` completed since `parent`; the checkpoint holds `total`. Files and bytes of all layers
    it holds."""

    checkpoint: str  # c0, c1, ...
    parent: str | None
    tasks: tuple[str, ...]
    total: int
    files: int
    bytes: int


class WorkspaceChanged(Struct, frozen=True, kw_only=True):
    """Others changed files of the base while the run was under way. `paths` are the first few."""

    paths: tuple[str, ...]
    total: int


class _Breaker(Struct, frozen=True, kw_only=True):
    """What a breaker that this run's tasks use has come to, for all runs of the state directory.
    `failures`: that led to its latest opening; 0 where it was opened by hand. `open_for`: how long
    it keeps attempts back then, in seconds. `opening`: the how manieth of its life that one is."""

    key: str
    failures: int
    open_for: float
    opening: int


class BreakerOpened(_Breaker, frozen=True, kw_only=True):
    pass


class BreakerHalfOpen(_Breaker, frozen=True, kw_only=True):
    """One attempt of all runs is let through."""


class BreakerClosed(_Breaker, frozen=True, kw_only=True):
    pass


class TaskReady(Struct, frozen=True):
    pass


class TaskStarted(Struct, frozen=True):
    pid: int
    walls: dict[str, Any]  # ours, not the task's: see sandbox/plan.py


class TaskEmitted(Struct, frozen=True):
    item: Raw


def _no_fields() -> Raw:
    return Raw(b"\x80")


class TaskLog(Struct, frozen=True, kw_only=True):
    stream: str  # stdout, stderr or log
    text: str
    fields: Raw = field(default_factory=_no_fields)  # a map
    dropped: int = 0  # bytes not kept


class TaskProgress(Struct, frozen=True):
    done: float
    total: float | None = None


class TaskUsage(Struct, frozen=True, kw_only=True):
    memory: int | None = None
    cpu: float | None = None
    pids: int | None = None
    disk: int | None = None


class TaskSaved(Struct, frozen=True):
    state: Raw


class TaskArtifact(Struct, frozen=True):
    """A file that an attempt handed over, told when it has ended, before how."""

    name: str  # a relative path, as the task called it
    size: int
    sha256: str
    content: Raw  # bytes


class Layer(Struct, frozen=True):
    """What an attempt wrote: changed paths, and bytes of the files among them."""

    files: int
    bytes: int


class TaskCompleted(Struct, frozen=True):
    output: Raw
    seconds: float
    layer: Layer | None = None  # None: it changed no file


class TaskRetrying(Struct, frozen=True):
    error: TaskError
    delay: float
    held_back: bool = False  # its breaker took the attempt away: that counts against nobody


class TaskRecovered(Struct, frozen=True, kw_only=True):
    """The task goes on with its fallback `to`, or (`action` rollback) a rollback to just before
    the task `to` follows."""

    error: TaskError
    action: Action
    to: str


class TaskSkipped(Struct, frozen=True):
    """It failed, and `output` was taken for its output: it has completed."""

    error: TaskError
    output: Raw


class TaskRestarted(Struct, frozen=True):
    """The attempt was ended for no fault of its own: the task is done again, uncounted."""

    reason: str


class TaskFailed(Struct, frozen=True):
    error: TaskError


class TaskCancelled(Struct, frozen=True):
    error: TaskError


EventData = (
    RunStarted
    | RunCompleted
    | RunFailed
    | RunCancelled
    | RunPaused
    | RunResumed
    | RunRecovered
    | RunRolledBack
    | RunForked
    | CheckpointCreated
    | WorkspaceChanged
    | BreakerOpened
    | BreakerHalfOpen
    | BreakerClosed
    | TaskReady
    | TaskStarted
    | TaskEmitted
    | TaskLog
    | TaskProgress
    | TaskUsage
    | TaskSaved
    | TaskArtifact
    | TaskCompleted
    | TaskRetrying
    | TaskRestarted
    | TaskRecovered
    | TaskSkipped
    | TaskFailed
    | TaskCancelled
)

DATA: dict[str, type[EventData]] = {
    "run.started": RunStarted,
    "run.completed": RunCompleted,
    "run.failed": RunFailed,
    "run.cancelled": RunCancelled,
    "run.paused": RunPaused,
    "run.resumed": RunResumed,
    "run.recovered": RunRecovered,
    "run.rolled_back": RunRolledBack,
    "run.forked": RunForked,
    "checkpoint.created": CheckpointCreated,
    "workspace.changed": WorkspaceChanged,
    "breaker.opened": BreakerOpened,
    "breaker.half_open": BreakerHalfOpen,
    "breaker.closed": BreakerClosed,
    "task.ready": TaskReady,
    "task.started": TaskStarted,
    "task.emitted": TaskEmitted,
    "task.log": TaskLog,
    "task.progress": TaskProgress,
    "task.usage": TaskUsage,
    "task.saved": TaskSaved,
    "task.artifact": TaskArtifact,
    "task.completed": TaskCompleted,
    "task.retrying": TaskRetrying,
    "task.restarted": TaskRestarted,
    "task.recovered": TaskRecovered,
    "task.skipped": TaskSkipped,
    "task.failed": TaskFailed,
    "task.cancelled": TaskCancelled,
}
KIND_OF: dict[type[EventData], str] = {data: kind for kind, data in DATA.items()}


class Event(Struct, frozen=True):
    """One numbered fact. `data` is the msgpack map of the struct that `kind` names."""

    seq: int
    run: str
    task: str | None
    attempt: int | None
    kind: str
    at: float  # wall clock, seconds since 1970: for people, never compared
    data: Raw
    # Counts the events of `task` from 1, so that who follows one task sees what he missed.
    task_seq: int | None = None
