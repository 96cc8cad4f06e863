"""What the core asks of the outside. Commands carry data, never handles.

They are structs, as inputs are, for there are several to each step: a frozen dataclass takes ten
times as long to make."""

from __future__ import annotations

from msgspec import Raw, Struct

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


class Record(Struct, frozen=True):
    """Append this fact to the run's journal. Records are durable in the order given, before any
    later command's effect can reach a task."""

    run: str
    task: str | None
    attempt: int | None
    data: EventData


class Spawn(Struct, frozen=True):
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


class CancelAttempt(Struct, frozen=True):
    """Ask politely (cancel message, SIGTERM); a `Kill` follows after the task's `grace`."""

    run: str
    task: str
    attempt: int
    reason: ErrorKind


class Kill(Struct, frozen=True):
    """Kill the attempt's whole tree, drain its link, answer with `Ended`. `reason` is the first
    cause (CANCELLED too where the task is to begin again), or None where the task is done and only
    its process remains (after RESULT or FAIL)."""

    run: str
    task: str
    attempt: int
    reason: ErrorKind | None


class Freeze(Struct, frozen=True):
    """Stop the attempt's whole tree where it is, however far it has come."""

    run: str
    task: str
    attempt: int


class Thaw(Struct, frozen=True):
    run: str
    task: str
    attempt: int


class Fetch(Struct, frozen=True):
    """Read these outputs, (task, attempt), from the journal; answer with `Fetched`."""

    run: str
    outputs: tuple[tuple[str, int], ...]


class TellBreaker(Struct, frozen=True):
    """Let the row of this key take a step, in this order among all that is told; None: only look
    at it. Answer with `BreakerMoved`, and send one whenever it moves, until `ForgetBreaker`."""

    number: int
    key: str
    happening: Happening | None


class ForgetBreaker(Struct, frozen=True):
    """Nobody here uses it any more."""

    key: str


Command = (
    Record | Spawn | CancelAttempt | Kill | Freeze | Thaw | Fetch | TellBreaker | ForgetBreaker
)
