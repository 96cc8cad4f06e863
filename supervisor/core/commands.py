"""What the core asks of the outside. Commands carry data, never handles."""

from __future__ import annotations

from dataclasses import dataclass

from ...protocol.events import ErrorKind, EventData

__all__ = ["CancelAttempt", "Command", "Kill", "Record", "Spawn"]


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
    """Start one attempt. `upstream` are the tasks whose outputs are its input, in id order;
    empty: the run's input."""

    run: str
    task: str
    attempt: int
    upstream: tuple[str, ...]


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
    cause, or None where the task is done and only its process remains (after RESULT or FAIL)."""

    run: str
    task: str
    attempt: int
    reason: ErrorKind | None


Command = Record | Spawn | CancelAttempt | Kill
