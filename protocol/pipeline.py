"""A pipeline as pure data: what the loader produces, the engine runs and the journal keeps.

Everything is resolved here: sizes are bytes, durations are seconds, defaults are filled in.
What a person writes (files, the builder) is sparse and lives in `supervisor/`.
"""

from __future__ import annotations

from enum import StrEnum

from msgspec import Raw, Struct

from .answers import Action
from .limits import RETRY_BUDGET, ROLLBACK_BUDGET, STREAM_BACKLOG

__all__ = [
    "BREAKER_KEY_PATTERN",
    "TASK_ID_PATTERN",
    "Base",
    "Bind",
    "Breaker",
    "Bulkhead",
    "Checkpoints",
    "CommandEntry",
    "Conflict",
    "Edge",
    "Entry",
    "FileEntry",
    "Limits",
    "ModuleEntry",
    "Network",
    "OnOpen",
    "PickleEntry",
    "PipelineSpec",
    "ProcView",
    "Python",
    "Rate",
    "Retry",
    "Rule",
    "TaskSpec",
    "Timeouts",
]

TASK_ID_PATTERN = r"^[A-Za-z0-9_-]{1,64}$"
# Room for a pipeline's name, a slash and a task's id, which is the key of who names none.
BREAKER_KEY_PATTERN = r"^[A-Za-z0-9_][A-Za-z0-9_. /:-]{0,199}$"


class Network(StrEnum):
    NONE = "none"
    HOST = "host"


class ProcView(StrEnum):
    PIDS = "pids"  # subset=pid: the processes of the sandbox and nothing of the host
    READONLY = "readonly"  # all of /proc, read-only: Node's cpu count, psutil


class Bind(Struct, frozen=True):
    """A host file or folder seen inside. The operator's word alone makes these."""

    host: str
    inside: str
    writable: bool = False


class Base(StrEnum):
    """What lies below the layers of a run."""

    LIVE = "live"  # the workspace itself; what others change in it meanwhile is noticed
    SNAPSHOT = "snapshot"  # a copy, made when the run starts


class Conflict(StrEnum):
    """What happens where two branches changed the same path and meet."""

    FAIL = "fail"
    LAST = "last"  # the later one counts, in topological, then id order


class Checkpoints(Struct, frozen=True, kw_only=True):
    """When checkpoints are made, besides c0 at the start and those asked for by hand."""

    every_task: bool = True
    after: tuple[str, ...] = ()  # when one of these tasks has completed
    every: float | None = None  # seconds


class Limits(Struct, frozen=True, kw_only=True):
    """What one attempt may use, over its whole process tree. Sizes in bytes."""

    memory: int
    cpu: float | None  # cores; None: no ceiling
    pids: int  # processes and threads
    files: int  # open file descriptors of one process
    tmp: int  # /tmp and /dev/shm together
    disk: int  # the largest file, and the attempt's layer
    output: int  # stdout and stderr and log and items together
    event_rate: float | None = None  # events a second; None: as many as the journal takes


class Timeouts(Struct, frozen=True, kw_only=True):
    """Seconds; None: no limit."""

    start: float
    wall: float | None
    idle: float | None
    cpu: float | None
    grace: float


class Retry(Struct, frozen=True, kw_only=True):
    """`attempts` counts the first try. The n-th retry waits delay * backoff**(n-1), at most
    `max_delay`, plus or minus `jitter` of it."""

    attempts: int
    delay: float
    backoff: float
    max_delay: float
    jitter: float
    on: tuple[str, ...]  # error kinds; a prefix counts: "timeout" is every timeout.*


class Bulkhead(Struct, frozen=True, kw_only=True):
    """At most `max_parallel` attempts at a time of all tasks that name the key, in all runs."""

    key: str
    max_parallel: int


class Rate(Struct, frozen=True, kw_only=True):
    """At most `limit` attempts start within any `period` (seconds): of this task, or of all tasks
    that name the key, in all runs."""

    limit: int
    period: float
    key: str | None = None


class OnOpen(StrEnum):
    """What becomes of attempts that run when their breaker opens."""

    KILL = "kill"
    DRAIN = "drain"  # left to end


class Breaker(Struct, frozen=True, kw_only=True):
    """After `failures` within `window` seconds (None: in a row, however far apart) no attempt of
    any task with this `key` is started for `open_for` seconds; then one is, as a probe. Each probe
    that fails makes the next wait `backoff` times as long, at most `max_open_for`."""

    key: str
    failures: int
    window: float | None
    open_for: float
    backoff: float
    max_open_for: float
    on_open: OnOpen
    wait: float | None  # how long a task lets itself be held back; None: for ever


class FileEntry(Struct, frozen=True, tag="file"):
    """`agents.py:analyze`: a qualified name in a file of the snapshotted sources."""

    file: str  # relative to the sources root
    name: str


class ModuleEntry(Struct, frozen=True, tag="module"):
    """`package.module:function`, importable in the sandbox."""

    module: str
    name: str


class PickleEntry(Struct, frozen=True, tag="pickle"):
    """A function without a file, by cloudpickle; unpickled inside the sandbox alone."""

    payload: bytes
    name: str


class CommandEntry(Struct, frozen=True, tag="command"):
    """A program in any language."""

    argv: tuple[str, ...]


Entry = FileEntry | ModuleEntry | PickleEntry | CommandEntry


class Python(Struct, frozen=True, kw_only=True):
    """An interpreter of the task's own choice, as it is seen inside, and what has to be seen of it.
    `venv`: the virtual environment that it is of."""

    executable: str
    binds: tuple[Bind, ...]
    venv: str | None = None


class Rule(Struct, frozen=True, kw_only=True):
    """What to do about an error of one of these kinds: `RecoveryAction` as data."""

    on: tuple[str, ...]  # error kinds; a prefix counts: "timeout" is every timeout.*
    do: Action
    after: float | None = None
    output: Raw = Raw(b"\xc0")
    to: str | None = None


class TaskSpec(Struct, frozen=True, kw_only=True):
    id: str
    execute: Entry
    spec: Raw  # AgentSpec: the task's own data, closed
    # Further files or folders, relative to the root; absolute where one outside was allowed.
    sources: tuple[str, ...]
    env: dict[str, str]
    limits: Limits
    timeouts: Timeouts
    retry: Retry
    breaker: Breaker | None = None
    network: Network = Network.NONE
    binds: tuple[Bind, ...] = ()  # what else of the host it sees, and may write to
    degrade: tuple[str, ...] = ()  # walls it does without where the host cannot give them
    proc: ProcView = ProcView.PIDS
    python: Python | None = None  # None: the one that casemate runs under
    preload: tuple[str, ...] = ()  # modules to import before `execute` is, ahead where possible
    # Variables of the host to pass on: names, for a value here would be in every journal.
    host_env: tuple[str, ...] = ()
    max_parallel: int | None = None  # attempts of this task, in all runs of this pipeline
    bulkhead: Bulkhead | None = None
    rate: Rate | None = None
    priority: int = 0  # among the ready tasks of its run: the highest first
    validate: Entry | None = None  # is given the output alone, in a sandbox of its own
    output_schema: Raw = Raw(b"\xc0")  # JSON Schema of the output; nil: none
    recover: Entry | None = None  # is given the error alone, in a sandbox of its own
    rules: tuple[Rule, ...] = ()  # the first that covers the error's kind, in the place of recover
    fallbacks: dict[str, Entry] = {}
    always: bool = False  # runs when its upstream has ended, however that was

    @property
    def is_validated(self) -> bool:
        return self.validate is not None or bytes(self.output_schema) != b"\xc0"


class Edge(Struct, frozen=True, order=True):
    """`to` may see the output of `source` after it completed, or (`stream`) its items while it
    runs."""

    source: str
    to: str
    stream: bool = False


class PipelineSpec(Struct, frozen=True, kw_only=True):
    name: str
    tasks: tuple[TaskSpec, ...]
    edges: tuple[Edge, ...]
    root: str  # the pipeline's folder on this host: sources resolve beneath it
    workspace: str | None = None  # absolute, on this host
    fail_fast: bool = False
    timeout: float | None = None  # the whole run
    max_parallel: int | None = None  # of this run
    priority: int = 0  # among runs: the highest first, and nobody waits for ever
    checkpoints: Checkpoints = Checkpoints()
    base: Base = Base.LIVE
    conflict: Conflict = Conflict.FAIL
    stream_backlog: int = STREAM_BACKLOG  # bytes of items that may wait for their consumer to start
    retry_budget: int = RETRY_BUDGET  # retries and fallbacks of the whole run
    rollback_budget: int = ROLLBACK_BUDGET  # rollbacks that its tasks may ask for
