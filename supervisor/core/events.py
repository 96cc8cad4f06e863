"""What the core is told. `Ended` is the only way an attempt leaves: its tree is dead by then."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from msgspec import Raw

from ...protocol.events import TaskError
from ...protocol.pipeline import PipelineSpec

__all__ = ["Active", "CancelRun", "Ended", "Input", "Started", "Submit", "Tick", "Told", "Used"]


@dataclass(frozen=True, slots=True)
class Submit:
    """A new run. `seed` decides its jitter."""

    run: str
    spec: PipelineSpec
    input: Raw
    spec_bytes: Raw
    seed: int


@dataclass(frozen=True, slots=True)
class Started:
    """The guest greeted us from inside its walls."""

    run: str
    task: str
    attempt: int
    pid: int
    walls: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Active:
    """The attempt said something: its idle clock starts anew."""

    run: str
    task: str
    attempt: int


@dataclass(frozen=True, slots=True)
class Used:
    """Cpu seconds of the attempt's whole tree so far."""

    run: str
    task: str
    attempt: int
    cpu: float


@dataclass(frozen=True, slots=True)
class Told:
    """The guest sent RESULT or FAIL: the attempt's clocks stop, its process is to be killed."""

    run: str
    task: str
    attempt: int


@dataclass(frozen=True, slots=True)
class Ended:
    """The tree is dead and the link drained. Exactly one of `output` and `error`. A kill reason
    the core gave earlier wins over both (the first cause), with this error's details kept."""

    run: str
    task: str
    attempt: int
    output: Raw | None
    error: TaskError | None


@dataclass(frozen=True, slots=True)
class CancelRun:
    run: str
    reason: str


@dataclass(frozen=True, slots=True)
class Tick:
    """Nothing happened but time."""


Input = Submit | Started | Active | Used | Told | Ended | CancelRun | Tick
