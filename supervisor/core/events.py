"""What the core is told. `Ended` is the only way an attempt leaves: its tree is dead by then."""

from __future__ import annotations

from typing import Any

from msgspec import Raw, Struct, field

from ...protocol.answers import RecoveryAction, ValidationResult
from ...protocol.events import Layer, TaskError
from ...protocol.pipeline import PipelineSpec
from .breaker import Row
from .state import RunState

__all__ = [
    "Active",
    "Adopt",
    "Answered",
    "BreakerMoved",
    "CancelRun",
    "CheckpointRun",
    "Drain",
    "Ended",
    "FailRun",
    "Fetched",
    "Input",
    "PauseRun",
    "ResumeRun",
    "Rollback",
    "Saved",
    "Slots",
    "Started",
    "Submit",
    "Tick",
    "Told",
    "Used",
    "Waits",
]


class Submit(Struct, frozen=True):
    """A new run. `seed` decides its jitter."""

    run: str
    spec: PipelineSpec
    input: Raw
    spec_bytes: Raw
    seed: int


class Adopt(Struct, frozen=True):
    """A run that this supervisor has taken over, as its journal tells it. `fork`: (run, checkpoint)
    that it was copied from, `changed`: with these tasks of a changed pipeline. `held`: nothing is
    started, nothing recorded that was not asked for: what follows (a rollback, a pause) is all that
    is wanted."""

    run: str
    state: RunState
    fork: tuple[str, str] | None = None
    changed: tuple[str, ...] = ()
    held: bool = False


class Started(Struct, frozen=True):
    """The guest greeted us from inside its walls."""

    run: str
    task: str
    attempt: int
    pid: int
    walls: dict[str, Any] = field(default_factory=dict)


class Active(Struct, frozen=True):
    """The attempt said something: its idle clock starts anew."""

    run: str
    task: str
    attempt: int


class Saved(Struct, frozen=True):
    """The attempt left a state for whoever comes after it."""

    run: str
    task: str
    attempt: int
    state: Raw


class Waits(Struct, frozen=True):
    """The attempt waits for a stream (out of credit, or nothing to read), or does so no more: its
    idle clock stands still meanwhile."""

    run: str
    task: str
    attempt: int
    is_waiting: bool


class Used(Struct, frozen=True):
    """Cpu seconds of the attempt's whole tree so far."""

    run: str
    task: str
    attempt: int
    cpu: float


class Told(Struct, frozen=True):
    """The guest sent RESULT or FAIL: the attempt's clocks stop, its process is to be killed."""

    run: str
    task: str
    attempt: int


class Ended(Struct, frozen=True):
    """The tree is dead and the link drained. Exactly one of `output` and `error`. A kill reason
    the core gave earlier wins over both (the first cause), with this error's details kept.
    `layer`: what it wrote, durable by now, where it gave an output."""

    run: str
    task: str
    attempt: int
    output: Raw | None
    error: TaskError | None
    layer: Layer | None = None


class Answered(Struct, frozen=True):
    """The same of a check: its tree is dead. `answer` is what it said (None: a recovery that leaves
    it to the retry policy), or why it said nothing."""

    run: str
    task: str
    attempt: int
    answer: ValidationResult | RecoveryAction | TaskError | None


class CancelRun(Struct, frozen=True):
    """Twice, or `at_once`: its `always` tasks too."""

    run: str
    reason: str
    at_once: bool = False


class FailRun(Struct, frozen=True):
    """Something the run cannot go on without has failed: end it, failed with `error`."""

    run: str
    error: TaskError


class PauseRun(Struct, frozen=True):
    run: str
    drain: bool


class ResumeRun(Struct, frozen=True):
    run: str


class CheckpointRun(Struct, frozen=True):
    """Make one now, if anything has completed since the last."""

    run: str


class Rollback(Struct, frozen=True):
    """Back to a checkpoint, or to just before a task."""

    run: str
    checkpoint: str | None
    before: str | None


class Drain(Struct, frozen=True):
    """The supervisor is about to end: nothing new starts, in any run; what runs may end."""


class Slots(Struct, frozen=True):
    """How many attempts the supervisor may have at once from now on."""

    most: int


class Fetched(Struct, frozen=True):
    """What `Fetch` asked for, by (task, attempt)."""

    run: str
    outputs: dict[tuple[str, int], Raw]


class BreakerMoved(Struct, frozen=True):
    """What a breaker has come to, read at `at` by the wall clock. `number`: of the newest
    `TellBreaker` that is in it."""

    number: int
    key: str
    row: Row
    at: float


class Tick(Struct, frozen=True):
    """Nothing happened but time."""


Input = (
    Submit
    | Adopt
    | Started
    | Active
    | Saved
    | Waits
    | Used
    | Told
    | Ended
    | Answered
    | CancelRun
    | FailRun
    | PauseRun
    | ResumeRun
    | CheckpointRun
    | Rollback
    | Drain
    | Slots
    | Fetched
    | BreakerMoved
    | Tick
)
