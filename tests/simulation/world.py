"""The real core, its journals as bytes, the fold of those beside it, and a judge.

`do(now, move)` lets one thing happen and returns what the core answers. Most moves are inputs of
the core; the others are what happens to a supervisor, and are carried out as the engine does:

    Crash       everything that lived is gone, and of each journal what was not durable yet
    TakeUp      a run that nobody has is taken over, from its journal by the real fold of `recovery`
    GoBack      the same of a run that may have ended, and at once a rollback
    ForkOf      a copy of a run's journal up to a checkpoint goes on as a run of its own
    Offline     a wish for a run that nobody has: a core of its own decides, and only records it
    Unwritable  the disk takes no more of a run's journal: what could not be recorded never was
    Hears       the oldest word to a breaker's row reaches it, and what it has come to is told
    Says        a person opens or closes a breaker
    WallJumps   and nothing but wall time, by which the rows of breakers count

After every step each record is written, read back and folded into a second state, which must equal
the live one. What is being spawned is looked up as the engine does, and must be what the judge
remembers. Wall time is in the journal and in the rows of breakers, and in nothing else.

A world also knows what lives and how far it has come (`stages`), so that `may_be` can tell whether
a move is one that a host can truthfully make.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from copy import copy as shallow
from dataclasses import dataclass, fields
from hashlib import sha256
from typing import Any, cast

import msgspec
from casemate.protocol.errors import UsageError
from casemate.protocol.events import (
    DATA,
    KIND_OF,
    CheckpointCreated,
    Event,
    EventData,
    RunStarted,
    TaskError,
)
from casemate.protocol.messages import Part
from casemate.protocol.pipeline import PipelineSpec
from casemate.supervisor.core.breaker import Forced, Happening, Reset, Row, step
from casemate.supervisor.core.commands import (
    CancelAttempt,
    Command,
    Fetch,
    ForgetBreaker,
    Freeze,
    Kill,
    Record,
    Spawn,
    TellBreaker,
    Thaw,
)
from casemate.supervisor.core.events import (
    Active,
    Adopt,
    Answered,
    BreakerMoved,
    CancelRun,
    CheckpointRun,
    Ended,
    FailRun,
    Fetched,
    Input,
    PauseRun,
    ResumeRun,
    Rollback,
    Saved,
    Started,
    Submit,
    Told,
    Used,
    Waits,
)
from casemate.supervisor.core.scheduler import Scheduler
from casemate.supervisor.core.state import RunState
from casemate.supervisor.journal import JournalReader, Outline
from casemate.supervisor.recovery import fold
from msgspec import Raw

from .judge import COMPLETIONS, Judge, Said

__all__ = [
    "Crash",
    "ForkOf",
    "GoBack",
    "Hears",
    "Key",
    "Move",
    "Offline",
    "Says",
    "TakeUp",
    "Unwritable",
    "WallJumps",
    "Wish",
    "World",
]

Key = tuple[str, str, int]
Wish = CancelRun | PauseRun | CheckpointRun | Rollback
_NIL = Raw(b"\xc0")
# An output longer than this (a string of a few letters) is a large one: no fold has it at hand.
_SMALL = 9
_encode = msgspec.msgpack.Encoder().encode
_DECODERS: dict[type[EventData], msgspec.msgpack.Decoder[EventData]] = {
    kind: msgspec.msgpack.Decoder(kind) for kind in DATA.values()
}
_ABOUT_AN_ATTEMPT = (Started, Active, Saved, Waits, Used, Told, Ended, Answered)


@dataclass(frozen=True, slots=True)
class Crash:
    """`keep`: how many records of a run are durable; all of those that are not named."""

    keep: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class TakeUp:
    run: str


@dataclass(frozen=True, slots=True)
class GoBack:
    run: str
    checkpoint: str | None
    before: str | None


@dataclass(frozen=True, slots=True)
class ForkOf:
    run: str
    copy: str
    checkpoint: str


@dataclass(frozen=True, slots=True)
class Offline:
    wish: Wish


@dataclass(frozen=True, slots=True)
class Unwritable:
    run: str
    keep: int


@dataclass(frozen=True, slots=True)
class Hears:
    pass


@dataclass(frozen=True, slots=True)
class Says:
    key: str
    happening: Forced | Reset


@dataclass(frozen=True, slots=True)
class WallJumps:
    by: float


Move = Input | Crash | TakeUp | GoBack | ForkOf | Offline | Unwritable | Hears | Says | WallJumps


class Journal:
    """What `recovery.fold` reads, of one run: events as bytes, with large values apart."""

    def __init__(self, run: str) -> None:
        self.run = run
        self.records: list[Record] = []
        self.lines: list[Event] = []

    def append(self, record: Record, at: float) -> Record:
        """What is read back of it."""
        kind = type(record.data)
        data = _encode(record.data)
        line = Event(
            len(self.lines) + 1, self.run, record.task, record.attempt, KIND_OF[kind], at, Raw(data)
        )
        read = Record(self.run, record.task, record.attempt, _DECODERS[kind].decode(data))
        self.lines.append(line)
        self.records.append(read)
        return read

    def cut(self, keep: int) -> None:
        del self.lines[keep:], self.records[keep:]

    def until(self, keep: int) -> Journal:
        """A copy that ends there."""
        copy = Journal(self.run)
        copy.lines, copy.records = self.lines[:keep], self.records[:keep]
        return copy

    def decisions(self) -> list[Outline]:
        return [self._outline(*each) for each in zip(self.lines, self.records, strict=True)]

    def _outline(self, line: Event, record: Record) -> Outline:
        data = record.data
        if not isinstance(data, COMPLETIONS) or len(data.output) <= _SMALL:
            return Outline(line, {})
        nil = Raw(_encode(msgspec.structs.replace(data, output=_NIL)))
        return Outline(msgspec.structs.replace(line, data=nil), {"output": len(data.output)})

    def state(self) -> RunState:
        """By the real fold, which asks no more of a reader than this."""
        return fold(cast(JournalReader, self), self.run, len(self.lines))

    @property
    def spec(self) -> PipelineSpec:
        first = self.records[0].data
        assert isinstance(first, RunStarted)
        return msgspec.msgpack.decode(first.spec, type=PipelineSpec)


def _copied(state: RunState) -> RunState:
    """One that changes by itself. Only its shape is shared, and what never changes."""
    copy = shallow(state)
    for field in fields(state):
        held = getattr(state, field.name)
        if isinstance(held, dict | list | set):
            setattr(copy, field.name, shallow(held))
    copy.tasks = {name: shallow(task) for name, task in state.tasks.items()}
    return copy


class World:
    def __init__(self, max_parallel: int = 8, memory: int = 1000, cores: float = math.inf) -> None:
        self.set_up(max_parallel, memory, cores)
        self.journals: dict[str, Journal] = {}
        self.folded: dict[str, RunState] = {}
        self.states: dict[str, RunState] = {}  # live
        self.wall = 1e9  # how far wall time is ahead
        self.stages: dict[Key, str] = {}  # spawned, started or told; what lives
        self.parts: dict[Key, Part] = {}
        self.killed: set[Key] = set()
        self.gone: list[Key] = []  # what lived in this life
        self.fetching: list[str] = []  # runs whose outputs are to be read
        self.rows: dict[str, Row] = {}  # of breakers, which outlive any supervisor
        self.words: list[TellBreaker] = []  # on their way to them
        self.known: set[str] = set()  # keys of rows that the core asked to be told of
        self.changed: set[str] = set()  # runs that are to be compared with their folds
        self.number = 0  # of the newest word that was heard
        self.unwritable: set[str] = set()
        self.reread: set[str] = set()  # runs that are folded as a supervisor would find them
        self.did: list[tuple[float, Move]] = []
        self.heard: list[tuple[float, Input]] = []  # by the core, and what it answered
        self.answered: list[list[Command]] = []
        # Any: each function takes the one type it is listed under. What is not here is an input.
        self._happens: dict[type[Move], Callable[[float, Any], list[Command]]] = {
            Crash: self._crash,
            TakeUp: self._take_up,
            GoBack: self._go_back,
            ForkOf: self._fork,
            Offline: self._offline,
            Hears: self._hear,
            Says: self._say,
            WallJumps: self._jump,
            Unwritable: self._fill_up,
        }
        self._take_in: dict[type[Input], Callable[[Any], None]] = {
            Submit: self._begin,
            Fetched: self._fetched,
            Adopt: lambda adopt: self.changed.add(adopt.run),
            **dict.fromkeys(_ABOUT_AN_ATTEMPT, self._told),
        }
        self._carry_out: dict[type[Command], Callable[[float, Any], None]] = {
            Record: self._append,
            Spawn: self._spawn,
            Kill: lambda now, kill: self.killed.add((kill.run, kill.task, kill.attempt)),
            Fetch: lambda now, fetch: self.fetching.append(fetch.run),
            TellBreaker: self._tell_breaker,
            ForgetBreaker: lambda now, forget: self.known.discard(forget.key),
        }

    def set_up(self, max_parallel: int, memory: int, cores: float) -> None:
        self.max_parallel = max_parallel
        self.memory = memory
        self.cores = cores
        self.scheduler = Scheduler(max_parallel, memory, cores)
        self.judge = Judge(max_parallel, memory, cores)

    def like(self) -> World:
        """A new one on the same host."""
        return World(self.max_parallel, self.memory, self.cores)

    @property
    def journal(self) -> list[Record]:
        """The records of all runs, one run after the other."""
        return [record for each in self.journals.values() for record in each.records]

    def digest(self) -> str:
        lines = [line for each in self.journals.values() for line in each.lines]
        return sha256(_encode(lines)).hexdigest()

    def fold(self, run: str) -> RunState:
        """The run as its journal tells it, without large outputs."""
        return self.journals[run].state()

    def outputs(self, run: str) -> dict[tuple[str, int], Raw]:
        """Every output that the journal holds, by task and attempt."""
        return {
            (record.task or "", record.attempt or 0): record.data.output
            for record in self.journals[run].records
            if isinstance(record.data, COMPLETIONS)
        }

    def open_runs(self) -> list[str]:
        """Those that have not ended, as their journals tell it."""
        return [name for name, state in self.folded.items() if not state.has_ended]

    def interrupted(self) -> list[str]:
        return [name for name in self.open_runs() if not self.scheduler.knows(name)]

    # What may happen.

    def may_be(self, move: Move) -> bool:
        """Whether a host can make this move now, truthfully."""
        if isinstance(move, _ABOUT_AN_ATTEMPT):
            return self._may_say(move)
        match move:
            case Hears():
                return bool(self.words)
            case Says():
                return move.key in self.known
            case BreakerMoved():
                return False  # of its moment, too
            case Submit():
                return move.run not in self.journals
            case Fetched():
                return move.run in self.fetching
            case Adopt():
                return False  # a state is of its moment
            case Crash():
                return all(run in self.journals for run in move.keep)
            case TakeUp() | Offline():
                run = move.run if isinstance(move, TakeUp) else move.wish.run
                return run in self.interrupted()
            case GoBack():
                return self._may_go_back(move)
            case ForkOf():
                source = self.folded.get(move.run)
                return (
                    source is not None
                    and move.run not in self.unwritable
                    and move.checkpoint in source.checkpoints
                    and move.copy not in self.journals
                )
            case Unwritable():
                known = self.scheduler.knows(move.run) and move.run not in self.unwritable
                return known and 0 < move.keep <= len(self.journals[move.run].records)
            case CancelRun() | FailRun() | PauseRun() | ResumeRun() | CheckpointRun() | Rollback():
                return move.run in self.folded and move.run not in self.unwritable
        return True

    def _may_say(self, said: Said) -> bool:
        key = (said.run, said.task, said.attempt)
        stage = self.stages.get(key)
        if stage is None:
            return key in self.gone  # late, whatever it is
        if isinstance(said, Started):
            return stage == "spawned"
        is_check = self.parts[key] is not Part.EXECUTE
        if isinstance(said, Answered):
            has_told = stage == "told" or (stage == "started" and key in self.killed)
            return is_check and (has_told or isinstance(said.answer, TaskError))
        if isinstance(said, Ended):
            if is_check:
                return False
            has_told = stage == "told" or (stage == "started" and key in self.killed)
            return said.output is None or has_told
        return stage == "started" and not (is_check and isinstance(said, Saved | Waits))

    def _may_go_back(self, move: GoBack) -> bool:
        state = self.folded.get(move.run)
        if state is None or self.scheduler.knows(move.run) or move.run in self.unwritable:
            return False
        try:
            state.undone_by(move.checkpoint, move.before)
        except UsageError:
            return False
        return True

    # What happens.

    def do(self, now: float, move: Move) -> list[Command]:
        """UsageError as of the core: nothing has changed then."""
        self.did.append((now, move))
        try:
            return self._happens.get(type(move), self.step)(now, move)
        except UsageError:
            self.did.pop()
            raise

    def step(self, now: float, input: Input) -> list[Command]:
        scheduler = self.scheduler
        commands = scheduler.step(now, input)
        self.heard.append((now, input))
        self.answered.append(commands)
        self.judge.watch(now, input, commands)
        self.changed.clear()
        if (take_in := self._take_in.get(type(input))) is not None:
            take_in(input)
        for command in commands:
            if (carry_out := self._carry_out.get(type(command))) is not None:
                carry_out(now, command)
        for run in self.changed - self.unwritable:
            self.compare(run)
        for run in [run for run in self.unwritable if not scheduler.knows(run)]:
            self._let_go(run)
        assert scheduler.deadline() > now, f"due at {scheduler.deadline()}, and it is {now}"
        return commands

    def compare(self, run: str) -> None:
        state = self.states.get(run)
        assert state is None or state == self.folded[run], f"{run}: the fold differs from the state"

    def _append(self, now: float, record: Record) -> None:
        run = record.run
        if run not in self.unwritable:
            self.changed.add(run)
            self.folded[run].apply(self.journals[run].append(record, self.wall + now))

    def _fetched(self, fetched: Fetched) -> None:
        self.folded[fetched.run].give(fetched.outputs)
        self.changed.add(fetched.run)

    def _tell_breaker(self, now: float, word: TellBreaker) -> None:
        self.words.append(word)
        self.known.add(word.key)

    def _say(self, now: float, says: Says) -> list[Command]:
        return self._move_row(now, says.key, says.happening)

    def _jump(self, now: float, jump: WallJumps) -> list[Command]:
        self.wall += jump.by
        return []

    def _fill_up(self, now: float, full: Unwritable) -> list[Command]:
        self.journals[full.run].cut(full.keep)
        self.unwritable.add(full.run)
        return self.step(now, CancelRun(full.run, "its journal cannot be written"))

    def _hear(self, now: float, hears: Hears) -> list[Command]:
        word = self.words.pop(0)
        self.number = word.number
        return self._move_row(now, word.key, word.happening)

    def _move_row(self, now: float, key: str, happening: Happening | None) -> list[Command]:
        row, at = self.rows.get(key, Row()), self.wall + now
        if happening is not None:
            row = self.rows[key] = step(row, at, happening)
        return self.step(now, BreakerMoved(self.number, key, row, at))

    def _begin(self, submit: Submit) -> None:
        run = submit.run
        self.journals[run] = Journal(run)
        folded = self.folded[run] = RunState(run, submit.spec)
        self.states.pop(run, None)
        if self.scheduler.knows(run):
            state = self.states[run] = self.scheduler.state(run)
            assert state.graph == folded.graph
            folded.graph = state.graph  # once equal is enough

    def _told(self, said: Said) -> None:
        key = (said.run, said.task, said.attempt)
        if key in self.stages:
            if isinstance(said, Started):
                self.stages[key] = "started"
            elif isinstance(said, Told):
                self.stages[key] = "told"
            elif isinstance(said, Ended | Answered):
                del self.stages[key]
                self.killed.discard(key)

    def _spawn(self, now: float, spawn: Spawn) -> None:
        """As the engine does: its input is put together, and what its last attempt had saved."""
        run, task = spawn.run, spawn.task
        self.stages[run, task, spawn.attempt] = "spawned"
        self.parts[run, task, spawn.attempt] = spawn.part
        if spawn.part is not Part.EXECUTE:
            return
        self.gone.append((run, task, spawn.attempt))
        outputs = {source: self.scheduler.output(run, source) for source in spawn.upstream}
        saved = self.scheduler.state(run).tasks[task].saved
        assert (outputs, saved) == self.judge.given(run, task), f"{spawn}: what it is given"

    def _crash(self, now: float, crash: Crash) -> list[Command]:
        keep = crash.keep
        self.scheduler = Scheduler(self.max_parallel, self.memory, self.cores)
        self.judge.crash()
        self.stages.clear()
        self.killed.clear()
        self.gone.clear()
        self.fetching.clear()
        self.words.clear()
        self.known.clear()
        self.number = 0
        self.unwritable.clear()
        self.states.clear()
        for run, count in keep.items():
            self.journals[run].cut(count)
        for run in list(self.journals):
            if run in keep or run not in self.judge.runs or not self.folded[run].has_ended:
                self._reread(run)
        return []

    def _let_go(self, run: str) -> None:
        """Nothing lives any more of a run whose journal could not be written: it is interrupted."""
        self.unwritable.remove(run)
        self.states.pop(run, None)
        self.gone = [key for key in self.gone if key[0] != run]  # they were read to their end
        self._reread(run)

    def _reread(self, run: str) -> None:
        journal = self.journals[run]
        if not journal.records:
            del self.journals[run], self.folded[run]  # it never was
            self.reread.discard(run)
            self.judge.forget(run)
            return
        self.folded[run] = journal.state()
        self.reread.add(run)
        self.judge.read(run, journal.spec, journal.records)

    def _take_up(self, now: float, move: TakeUp | GoBack) -> list[Command]:
        run = move.run
        if run not in self.reread:
            self.folded[run] = self.journals[run].state()
        self.reread.discard(run)
        state = self.states[run] = _copied(self.folded[run])
        return self.step(now, Adopt(run, state))

    def _go_back(self, now: float, back: GoBack) -> list[Command]:
        commands = self._take_up(now, back)
        try:
            return commands + self.step(now, Rollback(back.run, back.checkpoint, back.before))
        except UsageError:  # it was being ended: it is taken up all the same
            self.did[-1] = now, TakeUp(back.run)
            return commands

    def _fork(self, now: float, fork: ForkOf) -> list[Command]:
        journal = self.journals[fork.copy] = Journal(fork.copy)
        source = self.journals[fork.run]
        for line, record in zip(source.lines, source.records, strict=True):
            journal.append(msgspec.structs.replace(record, run=fork.copy), line.at)
            data = record.data
            if isinstance(data, CheckpointCreated) and data.checkpoint == fork.checkpoint:
                break
        self._reread(fork.copy)
        self.reread.discard(fork.copy)
        state = self.states[fork.copy] = _copied(self.folded[fork.copy])
        return self.step(now, Adopt(fork.copy, state, fork=(fork.run, fork.checkpoint)))

    def _offline(self, now: float, offline: Offline) -> list[Command]:
        core, wish = Scheduler(1, sys.maxsize), offline.wish
        run = wish.run
        state = self.journals[run].state()
        outputs = self.outputs(run)
        missing = [] if state.unfinished else state.missing_outputs()
        given = {each: outputs[each] for each in missing if each in outputs}
        state.give(given)
        commands = core.step(0.0, Adopt(run, state, held=True))
        commands += core.step(0.0, wish)
        for command in commands:
            is_doing = isinstance(command, Spawn | CancelAttempt | Kill | Freeze | Thaw)
            assert not is_doing, f"{command}: it was held"
            if isinstance(command, Record):
                self.journals[run].append(command, self.wall + now)
        self._reread(run)
        told = _copied(self.folded[run])
        told.give(given)
        assert state == told
        return commands
