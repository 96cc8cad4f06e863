"""A run under way: what a scheduler knows of it beyond its journal. The volatile half of a run.

The durable half is `RunState`; what is here dies with the supervisor, and is drawn anew from that
when another takes the run over. It is attempts that live, what they gave as long as that does not
count yet, tasks in line or kept back, and the run's own clocks: between two attempts, until a
breaker lets a task through, until its end, until the next checkpoint. All of these stand still in
a pause, unlike those of attempts that it lets run.
"""

from __future__ import annotations

import math

from ...protocol.events import TaskCompleted, TaskError, TaskSkipped
from ...protocol.pipeline import Breaker
from .admission import Line
from .attempt import Attempt, Check, Clock
from .breaker import Probe
from .state import RunState

__all__ = ["Alarm", "Backoff", "Deadline", "Every", "Patience", "Rolling", "Run"]


class Run:
    __slots__ = (
        "backoffs",
        "checks",
        "deadline",
        "every",
        "frozen",
        "has_cleanup",
        "held",
        "is_abandoned",
        "is_cancelled",
        "is_fetching",
        "is_held",
        "line",
        "live",
        "provisional",
        "rolling",
        "state",
        "stop",
        "stopped",
    )

    def __init__(self, state: RunState, line: Line) -> None:
        self.state = state
        self.line = line  # its tasks that are ready
        self.live: dict[str, Attempt] = {}
        # What a task's latest attempt gave, until it counts.
        self.provisional: dict[str, TaskCompleted | TaskSkipped] = {}
        self.checks: dict[str, Check] = {}  # to be spawned
        self.held: dict[str, Patience] = {}  # ready, and kept back by their breakers
        self.backoffs: dict[str, Backoff] = {}
        self.deadline: Deadline | None = None
        self.every: Every | None = None
        self.stop: TaskError | None = None  # why it is being ended; the first cause wins
        self.stopped: float | None = None  # since when its clocks stand still
        self.frozen = False  # its attempts do, too
        self.is_fetching = False  # outputs that its tasks need
        self.is_held = False
        self.has_cleanup = any(task.always for task in state.spec.tasks)
        self.is_cancelled = False  # whatever else it is being ended for
        self.is_abandoned = False  # being ended, its `always` tasks too
        self.rolling: Rolling | None = None

    def goes_on(self, task: str) -> bool:
        """Whether it may still be run: the run is not being ended, or this is for its end."""
        if self.stop is None:
            return True
        return self.state.specs[task].always and not self.is_abandoned

    def clocks(self) -> list[Alarm]:
        alarms: list[Alarm] = list(self.backoffs.values())
        alarms += [patience for patience in self.held.values() if patience.until < math.inf]
        return alarms + [clock for clock in (self.deadline, self.every) if clock is not None]


class Rolling:
    """A rollback that waits for the deaths of what it undoes, or gives back as it was."""

    __slots__ = ("before", "checkpoint", "restored", "touched", "undone")

    def __init__(
        self,
        checkpoint: str | None,
        before: str | None,
        undone: tuple[str, ...],
        restored: tuple[str, ...],
    ) -> None:
        self.checkpoint = checkpoint
        self.before = before
        self.undone = undone
        self.restored = restored
        self.touched = frozenset({*undone, *restored})


class Alarm(Clock):
    """Something of a run that happens at a time."""

    __slots__ = ("run", "until")

    def __init__(self, run: Run, until: float) -> None:
        super().__init__()
        self.run = run
        self.until = until

    def due(self) -> float:
        return self.until


class Backoff(Alarm):
    """A task between two attempts."""

    __slots__ = ("task",)

    def __init__(self, run: Run, task: str, until: float) -> None:
        super().__init__(run, until)
        self.task = task


class Patience(Alarm):
    """A task that its breaker keeps back, for no longer than it lets itself be."""

    __slots__ = ("attempt", "breaker")

    def __init__(self, run: Run, attempt: Probe, breaker: Breaker, until: float) -> None:
        super().__init__(run, until)
        self.attempt = attempt
        self.breaker = breaker


class Deadline(Alarm):
    """Of a whole run."""

    __slots__ = ()


class Every(Alarm):
    """The next checkpoint by the clock."""

    __slots__ = ()
