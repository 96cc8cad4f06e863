"""The life of one attempt, from spawn to the death of its tree: the volatile half of a task.

A check of an attempt (its output validated, its error recovered from) is a sandbox like any other
and lives the same life, after that of the attempt itself and under the same number.

The first cause wins. Once an attempt is doomed (a timeout, a cancel) or has told its result, later
causes change nothing, and its clocks stand still but for the grace period. `Ended` comes last and
from any phase: only then is the tree known to be dead.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import auto
from typing import TYPE_CHECKING

from msgspec import structs

from ...protocol.events import ErrorKind, TaskCompleted, TaskError
from ...protocol.limits import CHECK_WALL
from ...protocol.messages import Part
from ...protocol.pipeline import TaskSpec, Timeouts
from .commands import CancelAttempt, Kill
from .events import Ended, Started, Told
from .lifecycle import Lifecycle, State
from .priority import Queued

if TYPE_CHECKING:
    from .admission import Grant

__all__ = ["LIFECYCLE", "TRANSITIONS", "Attempt", "Check", "Clock", "Phase"]


class Phase(State):
    SPAWNING = auto()
    RUNNING = auto()
    ASKED = auto()  # to end by itself, within its grace
    KILLING = auto()
    OVER = auto()


# Started and Told may cross a Kill on its way out: they are late then, and no fault.
TRANSITIONS: dict[Phase, dict[type, Phase]] = {
    Phase.SPAWNING: {Started: Phase.RUNNING, Kill: Phase.KILLING, Ended: Phase.OVER},
    Phase.RUNNING: {
        Told: Phase.KILLING,
        CancelAttempt: Phase.ASKED,
        Kill: Phase.KILLING,
        Ended: Phase.OVER,
    },
    Phase.ASKED: {Told: Phase.KILLING, Kill: Phase.KILLING, Ended: Phase.OVER},
    Phase.KILLING: {Started: Phase.KILLING, Told: Phase.KILLING, Ended: Phase.OVER},
    Phase.OVER: {},
}
LIFECYCLE: Lifecycle[Phase] = Lifecycle(TRANSITIONS)


class Clock(Queued, ABC):
    """Something that happens at a time, unless it is postponed until then."""

    __slots__ = ()

    @abstractmethod
    def due(self) -> float:
        """When; infinity: never. May only be later than where the clock is queued."""


@dataclass(frozen=True, slots=True)
class Check:
    """What an attempt came to, and what has to be asked before it counts: is this output good
    (`completion`), is there a way on from this error (`error`)? One of the two is set."""

    number: int
    completion: TaskCompleted | None = None
    error: TaskError | None = None

    @property
    def part(self) -> Part:
        return Part.RECOVER if self.completion is None else Part.VALIDATE


class Attempt(Clock):
    __slots__ = (
        "_wall",
        "active",
        "asked",
        "check",
        "grant",
        "is_waiting",
        "message",
        "number",
        "phase",
        "reason",
        "restart",
        "run",
        "spawned",
        "spec",
        "started",
        "told",
    )

    def __init__(
        self,
        run: str,
        spec: TaskSpec,
        number: int,
        now: float,
        grant: Grant,
        check: Check | None = None,
    ) -> None:
        super().__init__()
        self.grant = grant  # what it takes from the host
        if check is not None:
            spec = structs.replace(spec, timeouts=_of_check(spec.timeouts))
        self.run = run
        self.spec = spec
        self.number = number
        self.check = check  # None: it is the attempt itself
        self.phase = Phase.SPAWNING
        self.spawned = now
        self.started: float | None = None
        self.told: float | None = None
        self.active = now  # when it last said something
        self.asked = now
        self.reason: ErrorKind | None = None
        self.message = ""
        self.restart: str | None = None  # why the task is to begin again, whatever this one gave
        self.is_waiting = False  # for a stream
        self._wall = math.inf

    def name(self) -> str:
        return f"task {self.run}/{self.spec.id} (attempt {self.number})"

    def move(self, happening: type) -> None:
        self.phase = LIFECYCLE.next(self.name, self.phase, happening)

    def start(self, now: float) -> None:
        self.started = self.active = now
        wall = self.spec.timeouts.wall
        self._wall = math.inf if wall is None else now + wall

    @property
    def failure(self) -> TaskError | None:
        """What its task failed with, where this is the check that asks for a way on."""
        return None if self.check is None else self.check.error

    @property
    def is_doomed(self) -> bool:
        """Whatever it gives, it will not complete (an error may be recovered from, but what came
        before it is not given again)."""
        is_failed = self.failure is not None
        return is_failed or self.reason is not None or self.restart is not None

    def skip(self, since: float, now: float) -> None:
        """It stood still between the two: so did its clocks."""
        gap = now - since
        self.spawned = min(self.spawned, since) + gap
        self.active = min(self.active, since) + gap
        self.asked = min(self.asked, since) + gap
        if self.started is not None:
            self.started += gap
            self._wall += gap

    def seconds(self, now: float) -> float:
        """How long it ran: until it told its result, not until its tree was swept up."""
        if self.started is None:
            return 0.0
        return (now if self.told is None else self.told) - self.started

    def due(self) -> float:
        timeouts = self.spec.timeouts
        if self.phase is Phase.RUNNING:
            if timeouts.idle is None or self.is_waiting:
                return self._wall
            return min(self._wall, self.active + timeouts.idle)
        if self.phase is Phase.SPAWNING:
            return self.spawned + timeouts.start
        return self.asked + timeouts.grace  # what is being killed has no clock

    def overrun(self, now: float) -> tuple[ErrorKind, str]:
        """The limit that ran out, of those `due` watches."""
        timeouts = self.spec.timeouts
        if self.phase is Phase.SPAWNING:
            kind, what = ErrorKind.TIMEOUT_START, f"did not start within {timeouts.start:g} s"
        elif now >= self._wall:
            kind, what = ErrorKind.TIMEOUT_WALL, f"ran longer than {timeouts.wall:g} s"
        else:
            kind, what = ErrorKind.TIMEOUT_IDLE, f"said nothing for {timeouts.idle:g} s"
        # The clocks of a check are not all the task's to set.
        if self.check is None:
            what += f" ({kind.replace('timeout', 'timeouts')})"
        return kind, what

    def verdict(self, error: TaskError | None) -> TaskError | None:
        """What the attempt ends with, given what was seen at its end; None: it completed."""
        if self.reason is None:
            return error
        if error is None:  # it finished after all, too late
            return TaskError(kind=self.reason, message=self.message)
        message = self.message
        if error.kind not in (self.reason, ErrorKind.CRASH, ErrorKind.LOST):
            # These are what our own kill looks like from outside; anything else is worth telling.
            message = f"{message}; then {error.kind}: {error.message}"
        return TaskError(
            kind=self.reason,
            message=message,
            type=error.type,
            traceback=error.traceback,
            refused=error.refused,
            usage=error.usage,
            retry_after=error.retry_after,
        )


def _of_check(timeouts: Timeouts) -> Timeouts:
    """A check has no time limits of its own but these: it looks at one value."""
    wall = CHECK_WALL if timeouts.wall is None else min(timeouts.wall, CHECK_WALL)
    return Timeouts(start=timeouts.start, wall=wall, idle=None, cpu=None, grace=0.0)
