"""What the core asks of the outside. Commands carry data, never handles."""

from __future__ import annotations

from dataclasses import dataclass

from msgspec import Raw

from ...protocol.events import ErrorKind, EventData, TaskError
from ...protocol.messages import Part
from .breaker import Happening

__all__ = [
    "CancelAttempt",
    "Command",
    "Fetch",
    "ForgetBreaker",
    "Freeze",
    "Kill",
    "Record",
    "Spawn",
    "TellBreaker",
    "Thaw",
]


@dataclass(frozen=True, slots=True)
class Record:
    """Append this fact to the run's journal. Records are durable in the order given, before any
    later command's effect can reach a task."""

    run: str
    task: str | None
    attempt: int | None
    data: EventData


@dataclass(frozen=True, slots=True)
class Spawn:
    """Start one attempt, or a check of it. `upstream` are the tasks whose outputs are its input, in
    id order. `streams`: whose items it is sent while it runs, (task, attempt). A check gets `value`
    alone: the output to validate, the error to recover from."""

    run: str
    task: str
    attempt: int
    upstream: tuple[str, ...]
    streams: tuple[tuple[str, int], ...] = ()
    part: Part = Part.EXECUTE
    value: Raw | TaskError | None = None


@dataclass(frozen=True, slots=True)
class CancelAttempt:
    """Ask politely (cancel message, SIGTERM); a `Kill` follows after the task's `grace`."""

    run: str
    task: str
    attempt: int
    reason: ErrorKind


@dataclass(frozen=True, slots=True)
class Kill:
    """Kill the attempt's whole tree, drain its link, answer with `Ended`. `reason` is the first
    cause (CANCELLED too where the task is to begin again), or None where the task is done and only
    its process remains (after RESULT or FAIL)."""

    run: str
    task: str
    attempt: int
    reason: ErrorKind | None


@dataclass(frozen=True, slots=True)
class Freeze:
    """Stop the attempt's whole tree where it is, however far it has come."""

    run: str
    task: str
    attempt: int


@dataclass(frozen=True, slots=True)
class Thaw:
    run: str
    task: str
    attempt: int


@dataclass(frozen=True, slots=True)
class Fetch:
    """Read these outputs, (task, attempt), from the journal; answer with `Fetched`."""

    run: str
    outputs: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class TellBreaker:
    """Let the row of this key take a step, in this order among all that is told; None: only look
    at it. Answer with `BreakerMoved`, and send one whenever it moves, until `ForgetBreaker`."""

    number: int
    key: str
    happening: Happening | None


@dataclass(frozen=True, slots=True)
class ForgetBreaker:
    """Nobody here uses it any more."""

    key: str


Command = (
    Record | Spawn | CancelAttempt | Kill | Freeze | Thaw | Fetch | TellBreaker | ForgetBreaker
)
