"""A host that does whatever a host can do, driven by a seed; in the end it becomes fair.

One history: a run is submitted, and then up to a hundred times one of the things happens that may
happen, in any order and at any time. Attempts start slowly or never; they speak, save, say nothing,
finish, or fail; they die before their result, or tell one after they were killed, or lie (tell a
result and end with an error); what is over is spoken of again. Operators submit, pause, resume,
cancel, fork, roll back. The disk is full, or a journal takes no more. The engine is late. Wall time
jumps. The supervisor crashes between any two records, with or without what it wrote last, and its
runs are taken up again, or wished something of meanwhile.

Each seed has a mood (`_MOODS`): what happens often in it. With everything equally likely no run
would ever get far.

Then the host is fair: runs are taken up and resumed, what lives starts, speaks and ends, though not
always well; time passes when nothing else can happen. Every run must end by that.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from random import Random
from zlib import crc32

from casemate.protocol.answers import Action, RecoveryAction, ValidationResult
from casemate.protocol.errors import UsageError
from casemate.protocol.events import ErrorKind, Layer, TaskError
from casemate.protocol.messages import Part
from casemate.supervisor.core.breaker import Forced, Reset
from casemate.supervisor.core.commands import Command
from casemate.supervisor.core.events import (
    Active,
    Answered,
    CancelRun,
    CheckpointRun,
    Drain,
    Ended,
    FailRun,
    Fetched,
    Input,
    PauseRun,
    ResumeRun,
    Rollback,
    Saved,
    Started,
    Tick,
    Told,
    Used,
    Waits,
)
from core.simulated import raw, submit

from .pipelines import Dice, pipeline
from .world import (
    Crash,
    ForkOf,
    GoBack,
    Hears,
    Key,
    Move,
    Offline,
    Says,
    TakeUp,
    Unwritable,
    WallJumps,
    World,
)

__all__ = ["STEPS", "Host", "finish", "play", "roam"]

STEPS = 100
MOST_RUNS = 4
# What a host may say went wrong with an attempt.
FAULTS = sorted(
    set(ErrorKind)
    - {
        ErrorKind.UPSTREAM_FAILED,
        ErrorKind.TIMEOUT_RUN,
        ErrorKind.CANCELLED,
        ErrorKind.BREAKER_OPEN,
    }
)
# How often each kind of move is tried, of those named; see Host.
_MOODS: tuple[dict[str, int], ...] = (
    {"attempt": 12, "time": 3, "operator": 1, "late": 1},
    {"attempt": 8, "time": 6, "late": 1},
    {"attempt": 8, "time": 3, "fault": 4, "late": 1},
    {"attempt": 8, "time": 2, "operator": 5},
    {"attempt": 8, "time": 2, "crash": 2, "operator": 1},
    {"attempt": 8, "time": 2, "crash": 1, "disk": 1, "fault": 1, "operator": 2, "late": 1},
)


class Host:
    def __init__(self, random: Random) -> None:
        self.dice = Dice(random)
        self.now = 0.0
        self.names = 0
        self.world = World(max_parallel=1 + self.dice.below(3), memory=8, cores=2)
        mood = self.dice.pick(_MOODS)
        self.deck = [
            getattr(self, f"_{kind}") for kind, often in mood.items() for _ in range(often)
        ]
        self.is_faulty = self.dice.chance(0.5)

    def do(self, move: Move) -> list[Command]:
        return self.world.do(self.now, move)

    def wish(self, move: Move) -> None:
        """What may be refused."""
        if self.world.may_be(move):
            with contextlib.suppress(UsageError):
                self.do(move)

    def move(self) -> None:
        """One thing that may happen."""
        self.now += self.dice.pick((0, 0, 0.125, 0.75))
        if self.world.words and self.dice.chance(0.5):
            self.do(Hears())
            return
        chosen: Callable[[], None] = self.dice.pick(self.deck)
        chosen()

    # Kinds of moves.

    def _time(self) -> None:
        deadline = self.world.scheduler.deadline()
        how = self.dice.below(8)
        if how == 0:  # late: much is due at once
            self.now += self.dice.pick((2, 10, 100))
        elif how == 1:
            self.do(WallJumps(self.dice.pick((-3600.0, -1.0, 1.0, 86400.0))))
        elif how < 6 and deadline < math.inf:
            self.now = max(self.now, deadline)
        self.do(Tick())

    def _attempt(self) -> None:
        world, dice = self.world, self.dice
        if not world.stages:
            self._nothing_lives()
            return
        key = dice.pick(list(world.stages))
        stage = world.stages[key]
        if key in world.killed and dice.chance(0.5):
            self._end(key)
        elif stage == "spawned":
            self.do(Started(*key, pid=1))
        elif stage == "told":
            self._end(key)
        elif dice.chance(0.5):
            self.do(Told(*key))
        else:
            self.do(self._said(key))

    def _nothing_lives(self) -> None:
        world = self.world
        if world.fetching:
            self._fetch()
        elif world.words:
            self.do(Hears())
        elif world.scheduler.deadline() < math.inf:
            self.now = max(self.now, world.scheduler.deadline())
            self.do(Tick())
        elif interrupted := world.interrupted():
            self.do(TakeUp(interrupted[0]))
        elif paused := sorted(world.judge.paused):
            self.do(ResumeRun(paused[0]))
        elif len(world.folded) < MOST_RUNS:
            self.submit()
        else:
            self._operator()

    def _said(self, key: Key) -> Input:
        dice = self.dice
        if self.world.parts[key] is not Part.EXECUTE:
            return Active(*key)
        how = dice.below(5)
        if how == 0:
            return Active(*key)
        if how == 1:
            return Saved(*key, state=raw(dice.below(100)))
        if how == 2:
            return Used(*key, cpu=dice.pick((0.5, 1.0, 5.0)))
        return Waits(*key, is_waiting=how == 3)

    def _end(self, key: Key) -> None:
        """The tree is dead: with an answer if it gave one, or if it was on its way."""
        stage = self.world.stages[key]
        has_told = stage == "told" or (stage == "started" and key in self.world.killed)
        if has_told and self.world.parts[key] is not Part.EXECUTE:
            self.do(Answered(*key, self._answer(key)))
        elif has_told and self.dice.chance(0.8):
            value = f"of {key[1]}#{key[2]}" if self.dice.chance(0.2) else key[2]
            layer = Layer(files=1, bytes=key[2]) if self.dice.chance(0.3) else None
            self.do(Ended(*key, output=raw(value), error=None, layer=layer))
        else:
            self._die(key)

    def _die(self, key: Key) -> None:
        asked = self.dice.pick((None, None, None, 2.0))
        error = TaskError(kind=self.dice.pick(FAULTS), message="it broke", retry_after=asked)
        if self.world.parts[key] is Part.EXECUTE:
            self.do(Ended(*key, output=None, error=error))
        else:
            self.do(Answered(*key, error))

    def _answer(self, key: Key) -> ValidationResult | RecoveryAction | None:
        """Of a check: also what cannot be."""
        dice = self.dice
        if self.world.parts[key] is Part.VALIDATE:
            return dice.pick((ValidationResult(True), ValidationResult(False, ("too short",))))
        how = dice.below(8)
        if how == 0:
            return None
        if how == 1:
            return RecoveryAction(do=Action.SKIP, output=raw(7))
        if how == 2:
            return RecoveryAction(do=Action.FAIL)
        if how < 5:
            return RecoveryAction(do=Action.RETRY, after=dice.pick((None, 0.5)))
        if how == 5:
            return RecoveryAction(do=Action.ROLLBACK, to=dice.pick("abcdef"))
        return RecoveryAction(do=Action.FALLBACK, to=dice.pick("xyz"))

    def _fault(self) -> None:
        """An attempt dies by itself, however far it has come."""
        if self.world.stages:
            self._die(self.dice.pick(list(self.world.stages)))

    def _late(self) -> None:
        """Something is said of what is over."""
        over = [key for key in self.world.gone if key not in self.world.stages]
        if not over:
            return
        key = self.dice.pick(over)
        error = TaskError(kind=ErrorKind.CRASH, message="again")
        late: tuple[Input, ...] = (
            Started(*key, pid=1),
            Told(*key),
            Ended(*key, output=raw(0), error=None),
            Ended(*key, output=None, error=error),
            self._said(key),
        )
        self.do(self.dice.pick(late))

    def _operator(self) -> None:
        world, dice = self.world, self.dice
        if world.fetching:
            self._fetch()
            return
        if (len(world.folded) < MOST_RUNS and dice.chance(0.3)) or not world.folded:
            self.submit()
            return
        if world.known and dice.chance(0.3):
            key = dice.pick(sorted(world.known))
            self.do(Says(key, Forced(3.0) if dice.chance(0.5) else Reset()))
            return
        run = dice.pick(list(world.folded))
        state = world.folded[run]
        checkpoints, tasks = list(state.checkpoints), list(state.tasks)
        checkpoint = dice.pick(checkpoints) if checkpoints else None
        before = dice.pick(tasks) if tasks and dice.chance(0.4) else None
        if before is not None:
            checkpoint = None
        how = dice.below(10)
        if how < 2:
            self.wish(PauseRun(run, drain=dice.chance(0.3)))
        elif how < 5:
            self.wish(ResumeRun(run))
        elif how == 5:
            self.wish(CheckpointRun(run))
        elif how == 6 and dice.chance(0.3):
            self.wish(CancelRun(run, "enough"))
        elif how == 7 and checkpoint is not None and len(world.folded) < MOST_RUNS:
            self.wish(ForkOf(run, self._name(), checkpoint))
        elif checkpoint is not None or before is not None:
            is_known = world.scheduler.knows(run)
            back = Rollback if is_known else GoBack
            self.wish(back(run, checkpoint, before))

    def _name(self) -> str:
        """One that no run ever had."""
        self.names += 1
        return f"run{self.names - 1}"

    def submit(self) -> None:
        self.do(submit(self._name(), pipeline(self.dice)))

    def _fetch(self) -> None:
        run = self.world.fetching.pop(0)
        self.do(Fetched(run, self.world.outputs(run)))

    def _crash(self) -> None:
        world, dice = self.world, self.dice
        interrupted = world.interrupted()
        if interrupted and dice.chance(0.9):
            run = dice.pick(interrupted)
            if dice.chance(0.3):
                self._wish_offline(run)
            elif not dice.chance(0.2):
                self.do(TakeUp(run))
            return
        if dice.chance(0.6):
            self._attempt()  # or nothing would ever get far
            return
        if dice.chance(0.2):
            self.do(Drain())
            return
        keep: dict[str, int] = {}
        for run, journal in world.journals.items():
            if dice.chance(0.7):
                lost = dice.below(4) if dice.chance(0.8) else dice.below(12)
                keep[run] = max(0, len(journal.records) - lost)
        self.do(Crash(keep))

    def _wish_offline(self, run: str) -> None:
        dice = self.dice
        checkpoints = list(self.world.folded[run].checkpoints)
        how = dice.below(6)
        if how < 2:
            self.wish(Offline(PauseRun(run, drain=False)))
        elif how == 2:
            self.wish(Offline(CheckpointRun(run)))
        elif how == 3 and dice.chance(0.5):
            self.wish(Offline(CancelRun(run, "enough")))
        elif checkpoints:
            self.wish(Offline(Rollback(run, dice.pick(checkpoints), None)))

    def _disk(self) -> None:
        world, dice = self.world, self.dice
        known = [run for run in world.folded if world.scheduler.knows(run)]
        if not known or dice.chance(0.7):
            self._attempt()
            return
        run = dice.pick(known)
        error = TaskError(kind=ErrorKind.DISK, message="no space left")
        if run in world.fetching:
            world.fetching.remove(run)
            self.wish(FailRun(run, error))
        elif dice.chance(0.5):
            self.wish(FailRun(run, error))
        else:
            kept = len(world.journals[run].records) - dice.below(3)
            self.wish(Unwritable(run, kept))


def finish(world: World, now: float, is_faulty: bool) -> None:
    """The host is fair from now on; no choice is left to chance."""
    for _ in range(3000):
        if not world.open_runs() and not world.unwritable:
            break
        now = _fair(world, now, is_faulty)
    else:
        raise AssertionError(f"{world.open_runs()} do not end")
    assert not world.stages, "a run has ended, and something lives"
    assert world.scheduler.deadline() == math.inf
    world.judge.check_every_attempt_ended()
    for run in world.folded:
        world.compare(run)


def _fair(world: World, now: float, is_faulty: bool) -> float:
    if world.judge.is_draining:
        world.do(now, Crash({}))
    elif world.words:
        world.do(now, Hears())
    elif interrupted := world.interrupted():
        world.do(now, TakeUp(interrupted[0]))
    elif paused := sorted(world.judge.paused - world.unwritable):
        world.do(now, ResumeRun(paused[0]))
    elif world.fetching:
        run = world.fetching.pop(0)
        world.do(now, Fetched(run, world.outputs(run)))
    elif world.stages:
        key = min(world.stages)
        stage = world.stages[key]
        breaks = is_faulty and crc32(repr(key).encode()) % 3 == 0
        if key in world.killed or breaks:
            error = TaskError(kind=ErrorKind.CRASH, message="it broke")
            if world.parts[key] is not Part.EXECUTE:
                world.do(
                    now, Answered(*key, error if stage != "told" else _fair_answer(world, key))
                )
            elif stage == "told":
                world.do(now, Ended(*key, output=raw(1), error=None))
            else:
                world.do(now, Ended(*key, output=None, error=error))
        elif stage == "spawned":
            world.do(now, Started(*key, pid=1))
        else:
            world.do(now, Told(*key))
    else:
        deadline = world.scheduler.deadline()
        assert deadline < math.inf, f"nothing lives, nothing is due, {world.open_runs()} go on"
        now = max(now, deadline)
        world.do(now, Tick())
    return now


def _fair_answer(world: World, key: Key) -> ValidationResult | RecoveryAction | None:
    """Good, or bad; a recovery asks for one thing after the other, and may for ever."""
    choice = crc32(repr(key).encode(), 1)
    if world.parts[key] is Part.VALIDATE:
        return ValidationResult(choice % 3 > 0)
    back = RecoveryAction(do=Action.ROLLBACK, to=key[1])
    return (None, RecoveryAction(do=Action.RETRY), back)[choice % 3]


def roam(host: Host) -> None:
    """The unfair part."""
    host.submit()
    for _ in range(5 + host.dice.below(STEPS - 5)):
        host.move()


def play(random: Random) -> Host:
    """A whole history: whatever breaks a promise is raised."""
    host = Host(random)
    roam(host)
    finish(host.world, host.now, host.is_faulty)
    return host
