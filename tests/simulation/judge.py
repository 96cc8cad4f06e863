"""What must never happen, seen from outside: from what the core is told and what it answers.

The judge keeps a memory of its own, written from the contract and not from the core's tables. Of a
run it remembers what a journal holds (`_Told`), so that after a crash it reads the journal anew, as
a supervisor does; of what lives (`_Live`) it forgets everything then. After every step it checks:

    inputs       a task starts when its inputs have completed and who speaks to it has begun, with
                 the very outputs that were recorded
    one life     at most one live attempt of a task, numbered 1, 2, 3; each ends once, when dead
    the dead     what an attempt says that is over, or was killed, changes nothing
    first cause  nobody is asked or killed twice, nor within the grace after being asked
    checks       look at what the attempt gave, after it is dead, before anything is recorded of it
    budgets      parallel attempts (all, of a run, by name and by key), memory, cores, rates;
                 retries and the delay before them, retries and rollbacks of the whole run
    clocks       no limit has run out without a kill, no kill tells of one that has not
    breakers     nothing starts that a row does not let through, as far as was told of it
    no idling    what could start has started
    endings      of a run: nothing lives, every task has ended, nothing follows but a rollback
    checkpoints  hold what had completed, closed downwards; a rollback gives exactly that
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

from casemate.protocol.answers import Action, ValidationResult
from casemate.protocol.events import (
    CheckpointCreated,
    ErrorKind,
    EventData,
    Layer,
    RunCancelled,
    RunCompleted,
    RunFailed,
    RunForked,
    RunPaused,
    RunResumed,
    RunRolledBack,
    TaskCancelled,
    TaskCompleted,
    TaskError,
    TaskFailed,
    TaskReady,
    TaskRecovered,
    TaskRestarted,
    TaskRetrying,
    TaskSaved,
    TaskSkipped,
    TaskStarted,
)
from casemate.protocol.limits import CHECK_WALL
from casemate.protocol.messages import Part
from casemate.protocol.pipeline import OnOpen, PipelineSpec, TaskSpec
from casemate.supervisor.core.breaker import Row
from casemate.supervisor.core.breaker import Standing as BreakerStanding
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
    Drain,
    Ended,
    Fetched,
    Input,
    Rollback,
    Saved,
    Slots,
    Started,
    Submit,
    Tick,
    Told,
    Used,
    Waits,
)
from casemate.supervisor.core.retry import BLAMELESS, BLAMELESS_RETRIES, FINAL, is_covered
from msgspec import Raw

__all__ = ["COMPLETIONS", "ENDINGS", "RUN_ENDINGS", "Judge"]

COMPLETIONS = (TaskCompleted, TaskSkipped)
AGAIN = (TaskRetrying, TaskRecovered, TaskRestarted)
ENDINGS: frozenset[type[EventData]] = frozenset({*COMPLETIONS, *AGAIN, TaskFailed, TaskCancelled})
RUN_ENDINGS: frozenset[type[EventData]] = frozenset({RunCompleted, RunFailed, RunCancelled})
_UNDOING = (RunRolledBack, RunForked)
Streams = tuple[tuple[str, int], ...]
Said = Started | Active | Saved | Waits | Used | Told | Ended | Answered
_SAID = (Started, Active, Saved, Waits, Used, Told, Ended, Answered)
_DEATHS = (Ended, Answered)
_CLOCKS = (ErrorKind.TIMEOUT_START, ErrorKind.TIMEOUT_WALL, ErrorKind.TIMEOUT_IDLE)
# Clocks that stood still for a while are sums, and so are ours, in another order.
_ROUNDING = 1e-6


class _Told:
    """Of one run, what its journal holds."""

    def __init__(self, run: str, spec: PipelineSpec) -> None:
        self.run = run
        self.spec = spec
        self.tasks: dict[str, TaskSpec] = {task.id: task for task in spec.tasks}
        self.inputs: dict[str, tuple[str, ...]] = {}
        self.streams: dict[str, tuple[str, ...]] = {}
        for name in self.tasks:
            edges = sorted(edge for edge in spec.edges if edge.to == name)
            self.inputs[name] = tuple(edge.source for edge in edges if not edge.stream)
            self.streams[name] = tuple(edge.source for edge in edges if edge.stream)
        self.attempts: dict[str, int] = {}  # the latest made ready
        self.ended: set[tuple[str, int]] = set()
        self.completed: dict[str, int] = {}  # and by which attempt
        self.outputs: dict[tuple[str, int], Raw] = {}
        self.layers: dict[tuple[str, int], Layer] = {}
        self.held: dict[str, dict[str, int]] = {}  # what had completed, by checkpoint
        self.closed: set[str] = set()  # tasks that have ended
        self.failed: set[str] = set()
        self.line: set[str] = set()  # made ready, and neither spawned nor over
        self.checking: set[str] = set()  # what came of the attempt is to be looked at, or is
        self.returning: set[str] = set()  # tasks that wait for a rollback
        self.is_rolling = False
        self.retries = self.rollbacks = 0
        self.failures: dict[str, int] = {}
        self.blameless: dict[str, int] = {}
        self.delays: dict[str, float] = {}  # of tasks between two attempts
        self.not_before: dict[str, float] = {}
        # What an attempt left for the next, and whom it had read: void if that one begins again.
        self.saved: dict[str, tuple[Raw, Streams]] = {}
        self.is_over = False
        self.is_paused = self.is_drained = False
        self.is_fetching = False

    def speakers(self, task: str) -> Streams:
        """The attempts whose streams it would be sent now."""
        numbers = self.completed, self.attempts
        return tuple((s, numbers[0].get(s, numbers[1].get(s, 0))) for s in self.streams[task])

    def reads_on(self, task: str) -> bool:
        """Its result is provisional: somebody whose stream it reads has not completed."""
        return any(source not in self.completed for source in self.streams[task])

    def readers(self, of: Iterable[str]) -> set[str]:
        """Who reads a stream of one of these, however far, and these."""
        found = list(of)
        for task in found:  # grows while it is walked
            found += [
                r for r, sources in self.streams.items() if task in sources and r not in found
            ]
        return set(found)

    def hear(self, record: Record, now: float) -> None:
        """One more fact; -inf: it is read from the journal."""
        if (hear := _HEAR.get(type(record.data))) is not None:
            hear(self, record, record.data, now)

    def _ready(self, record: Record, data: TaskReady, now: float) -> None:
        name, number = record.task or "", record.attempt
        assert number == self.attempts.get(name, 0) + 1, f"{record}: out of order"
        assert now >= self.not_before.pop(name, 0) - _ROUNDING or now == -math.inf, (
            f"{record}: before its delay was over"
        )
        self.delays.pop(name, None)
        assert name not in self.closed, f"{record}: it has ended"
        assert name not in self.returning, f"{record}: it waits for a rollback"
        self.attempts[name] = number
        self.line.add(name)

    def _saved(self, record: Record, data: TaskSaved, now: float) -> None:
        name = record.task or ""
        assert (name, record.attempt) not in self.ended, f"{record}: it is over"
        self.saved[name] = (data.state, self.speakers(name))

    def _pause(self, record: Record, data: RunPaused, now: float) -> None:
        self.is_paused = True
        self.is_drained = data.drain

    def _resume(self, record: Record, data: RunResumed, now: float) -> None:
        self.is_paused = False

    def _end(self, record: Record, data: EventData, now: float) -> None:
        name, number = record.task or "", record.attempt
        assert name not in self.closed, f"{record}: it has ended"
        if number is not None:
            assert number == self.attempts.get(name), f"{record}: not its latest attempt"
            assert (name, number) not in self.ended, f"{record}: ended twice"
            self.ended.add((name, number))
        else:
            made = self.attempts.get(name, 0)
            assert not made or (name, made) in self.ended, f"{record}: attempt {made} is open"
            assert not isinstance(data, (TaskRetrying, TaskRecovered, *COMPLETIONS))
        self.line.discard(name)
        self.checking.discard(name)
        self.delays.pop(name, None)
        self.not_before.pop(name, None)
        if isinstance(data, TaskRetrying):
            self._retry(record, data, now)
        elif isinstance(data, TaskRecovered):
            self._recover(record, data)
        if isinstance(data, AGAIN):
            return
        self.closed.add(name)
        self.saved.pop(name, None)
        if isinstance(data, COMPLETIONS):
            assert number is not None
            assert not self.reads_on(name), f"{record}: what it reads may begin again"
            self.completed[name] = number
            self.outputs[name, number] = data.output
            if isinstance(data, TaskCompleted) and data.layer is not None:
                self.layers[name, number] = data.layer
        elif isinstance(data, TaskFailed):
            self.failed.add(name)
            if data.error.kind is ErrorKind.UPSTREAM_FAILED:
                assert self._upstream_failed(name), f"{record}: none of its upstream did"

    def _upstream_failed(self, task: str) -> bool:
        pending = [task]
        for name in pending:  # grows while it is walked
            above = (*self.inputs[name], *self.streams[name])
            if not self.failed.isdisjoint(above):
                return True
            pending += [source for source in above if source not in pending]
        return False

    def _retry(self, record: Record, data: TaskRetrying, now: float) -> None:
        name, kind = record.task or "", data.error.kind
        policy = self.tasks[name].retry
        assert kind not in FINAL, f"{record}: what the run ended is not tried again"
        if data.held_back:
            assert kind is ErrorKind.BREAKER_OPEN and not data.delay, f"{record}: who held it back"
            assert self.tasks[name].breaker is not None, f"{record}: whose"
            is_blameless = True
        elif kind in BLAMELESS:
            self.blameless[name] = self.blameless.get(name, 0) + 1
            is_blameless = self.blameless[name] <= BLAMELESS_RETRIES
            assert is_blameless or self.is_recovered(name), f"{record}: too many"
        else:
            is_blameless = False
            self.failures[name] = self.failures.get(name, 0) + 1
            if not self.is_recovered(name):
                assert self.failures[name] < policy.attempts, f"{record}: too many"
                assert is_covered(kind, policy.on), f"{record}: not covered by {policy.on}"
                most = policy.max_delay * (1 + policy.jitter)
                assert 0 <= data.delay <= most + _ROUNDING, f"{record}: its delay"
        if not is_blameless:
            self.retries += 1
            assert self.retries <= self.spec.retry_budget, f"{record}: the budget of the run"
        self.delays[name] = data.delay
        self.not_before[name] = now + data.delay

    def is_recovered(self, task: str) -> bool:
        """It has a say of its own in whether it is tried again."""
        return self.tasks[task].recover is not None or bool(self.tasks[task].rules)

    def _recover(self, record: Record, data: TaskRecovered) -> None:
        name = record.task or ""
        assert self.is_recovered(name), f"{record}: by whom"
        if data.action is Action.FALLBACK:
            assert data.to in self.tasks[name].fallbacks, f"{record}: it has none such"
            self.failures.pop(name, None)
            self.retries += 1
            assert self.retries <= self.spec.retry_budget, f"{record}: the budget of the run"
        else:
            self.returning.add(name)
            self.is_rolling = True
            self.rollbacks += 1
            assert self.rollbacks <= self.spec.rollback_budget, f"{record}: the budget of the run"

    def _checkpoint(self, record: Record, data: CheckpointCreated, now: float) -> None:
        held = {name: number for name, number in self.completed.items() if self._is_whole(name)}
        assert data.total == len(held), f"{record}: {len(held)} have completed"
        before = self.held[data.parent] if data.parent is not None else {}
        added = {name for name in held if held[name] != before.get(name)}
        assert set(data.tasks) == added, f"{record}: adds {sorted(added)}"
        layers = [self.layers[each] for each in held.items() if each in self.layers]
        size = (sum(each.files for each in layers), sum(each.bytes for each in layers))
        assert (data.files, data.bytes) == size, f"{record}: {size} in all its layers"
        self.held[data.checkpoint] = held

    def _is_whole(self, task: str) -> bool:
        """It has completed, and all above it: an `always` task may have without that."""
        above = (*self.inputs[task], *self.streams[task])
        return task in self.completed and all(map(self._is_whole, above))

    def _go_back(self, record: Record, data: RunRolledBack | RunForked, now: float) -> None:
        restored = data.restored if isinstance(data, RunRolledBack) else ()
        self.is_over = False
        self.is_paused = self.is_paused and isinstance(data, RunRolledBack)
        for name in (*data.undone, *restored):
            assert (name, self.attempts.get(name, 0)) in self.ended or name not in self.attempts, (
                f"{record}: {name} may be alive"
            )
            self.completed.pop(name, None)
            self.closed.discard(name)
            self.failed.discard(name)
            self.returning.discard(name)
            for counted in (self.failures, self.blameless, self.delays, self.not_before):
                counted.pop(name, None)
            self.saved.pop(name, None)
        self.is_rolling = bool(self.returning)
        if data.checkpoint is not None:
            held = self.held[data.checkpoint]
            self.completed |= {name: held[name] for name in restored}
            self.closed.update(restored)
            assert self.completed == held, f"{record}: not what the checkpoint holds"
            held_outside = self.closed - held.keys()
            assert not held_outside, f"{record}: {sorted(held_outside)} stay as they ended"

    def _close(self, record: Record, data: EventData, now: float) -> None:
        assert self.closed == self.tasks.keys(), f"{record}: not all of its tasks have ended"
        if isinstance(data, RunCompleted):
            assert self.completed.keys() == self.tasks.keys()
            given = {name for sources in self.inputs.values() for name in sources}
            given |= {name for sources in self.streams.values() for name in sources}
            sinks = {t: self.outputs[t, n] for t, n in self.completed.items() if t not in given}
            assert data.outputs == sinks, f"{record}: {sinks} were told"
        else:
            # Whether it was is not in the journal: who reads it anew has seen it happen.
            is_unread = self.is_fetching or now == -math.inf
            is_unreadable = is_unread and isinstance(data, RunFailed)
            assert self.completed.keys() != self.tasks.keys() or is_unreadable, f"{record}: all did"
        self.is_over = True
        self.is_fetching = False
        self.is_paused = False


# Any: each function takes the data types it is listed under.
_HEAR: dict[type[EventData], Callable[[_Told, Record, Any, float], None]] = {
    TaskReady: _Told._ready,
    TaskSaved: _Told._saved,
    **dict.fromkeys(ENDINGS, _Told._end),
    CheckpointCreated: _Told._checkpoint,
    RunRolledBack: _Told._go_back,
    RunForked: _Told._go_back,
    **dict.fromkeys(RUN_ENDINGS, _Told._close),
    RunPaused: _Told._pause,
    RunResumed: _Told._resume,
}


class _Live:
    """One attempt's tree."""

    __slots__ = (
        "active",
        "asked",
        "frozen",
        "is_killed",
        "is_told",
        "is_waiting",
        "number",
        "part",
        "reason",
        "spawned",
        "spec",
        "started",
        "streams",
    )

    def __init__(
        self, spec: TaskSpec, number: int, part: Part, streams: Streams, now: float
    ) -> None:
        self.spec = spec
        self.part = part
        self.streams = streams
        self.number = number
        self.spawned = self.active = now
        self.started: float | None = None
        self.asked: float | None = None
        self.reason: ErrorKind | None = None
        self.frozen: float | None = None
        self.is_killed = self.is_told = self.is_waiting = False

    def limits(self) -> dict[ErrorKind, float]:
        """When its clocks run out."""
        timeouts = self.spec.timeouts
        if self.started is None:
            return {ErrorKind.TIMEOUT_START: self.spawned + timeouts.start}
        if self.part is not Part.EXECUTE:
            most = CHECK_WALL if timeouts.wall is None else min(CHECK_WALL, timeouts.wall)
            return {ErrorKind.TIMEOUT_WALL: self.started + most}
        due = {}
        if timeouts.wall is not None:
            due[ErrorKind.TIMEOUT_WALL] = self.started + timeouts.wall
        if timeouts.idle is not None and not self.is_waiting:
            due[ErrorKind.TIMEOUT_IDLE] = self.active + timeouts.idle
        return due

    def thaw(self, now: float) -> None:
        since = self.frozen
        assert since is not None
        gap = now - since
        self.spawned = min(self.spawned, since) + gap
        self.active = min(self.active, since) + gap
        if self.started is not None:
            self.started = min(self.started, since) + gap
        if self.asked is not None:
            self.asked += gap
        self.frozen = None


def _is_gated(task: TaskSpec) -> bool:
    gates = (task.breaker, task.bulkhead, task.rate, task.max_parallel)
    return any(gate is not None for gate in gates)


class Judge:
    def __init__(self, max_parallel: int, memory: int, cores: float = math.inf) -> None:
        self.max_parallel = max_parallel
        self.memory = memory
        self.cores = cores
        self.starts: dict[str, list[float]] = {}  # by key of a rate
        self.rows: dict[str, Row] = {}  # of breakers, as told
        self.runs: dict[str, _Told] = {}
        self.live: dict[tuple[str, str], _Live] = {}
        self.is_draining = False
        self.input: Input = Tick()  # of the step that is looked at, and all that it answered
        self.commands: list[Command] = []
        # Any: each function takes the one type it is listed under.
        self._take_in: dict[type[Input], Callable[[float, Any], bool]] = {
            **dict.fromkeys(_SAID, self._hear),
            Submit: self._submit,
            BreakerMoved: self._breaker_moved,
            Rollback: self._roll_back,
            Fetched: self._fetched,
            Adopt: self._adopt,
            Drain: self._drain,
            Slots: self._slots,
        }
        self._look: dict[type[Command], Callable[[float, Any], None]] = {
            Record: self._record,
            Spawn: self._spawn,
            Kill: self._kill,
            CancelAttempt: self._ask,
            Freeze: self._freeze,
            Thaw: self._thaw,
            Fetch: self._fetch,
        }

    @property
    def over(self) -> set[str]:
        return {name for name, run in self.runs.items() if run.is_over}

    @property
    def paused(self) -> set[str]:
        return {name for name, run in self.runs.items() if run.is_paused}

    # What is not a step.

    def crash(self) -> None:
        """All that lived is dead, and the scheduler that knew of it gone."""
        self.live.clear()
        self.starts.clear()
        self.rows.clear()
        self.is_draining = False

    def read(self, run: str, spec: PipelineSpec, records: Iterable[Record]) -> None:
        """A run as its journal has it, whatever was seen of it before."""
        told = self.runs[run] = _Told(run, spec)
        for record in records:
            told.hear(record, -math.inf)
        told.line.clear()
        told.checking.clear()

    def forget(self, run: str) -> None:
        del self.runs[run]

    # A step.

    def watch(self, now: float, input: Input, commands: list[Command]) -> None:
        self.input, self.commands = input, commands
        is_heard = False
        if (take_in := self._take_in.get(type(input))) is not None:
            is_heard = take_in(now, input)
        for command in commands:
            if (look := self._look.get(type(command))) is not None:
                look(now, command)
        if is_heard and isinstance(input, _DEATHS):
            self._is_recorded(input)
        self._check_clocks(now)
        self._check_line()

    def _submit(self, now: float, submit: Submit) -> bool:
        self.runs[submit.run] = _Told(submit.run, submit.spec)
        return False

    def _breaker_moved(self, now: float, moved: BreakerMoved) -> bool:
        self.rows[moved.key] = moved.row
        return False

    def _roll_back(self, now: float, rollback: Rollback) -> bool:
        self.runs[rollback.run].is_rolling = True
        return False

    def _slots(self, now: float, slots: Slots) -> bool:
        self.max_parallel = slots.most
        return False

    def _drain(self, now: float, drain: Drain) -> bool:
        self.is_draining = True
        return False

    def _fetch(self, now: float, fetch: Fetch) -> None:
        self.runs[fetch.run].is_fetching = True

    def _fetched(self, now: float, fetched: Fetched) -> bool:
        self.runs[fetched.run].is_fetching = False
        return False

    def _adopt(self, now: float, adopt: Adopt) -> bool:
        run = self.runs[adopt.run]
        run.not_before = {task: now + delay for task, delay in run.delays.items()}
        return False

    def _freeze(self, now: float, freeze: Freeze) -> None:
        live = self._alive(freeze)
        assert live.frozen is None and not live.is_killed, f"{freeze}: why"
        live.frozen = now

    def _thaw(self, now: float, thaw: Thaw) -> None:
        live = self._alive(thaw)
        assert live.frozen is not None and not live.is_killed, f"{thaw}: why"
        live.thaw(now)

    def _hear(self, now: float, said: Said) -> bool:
        """True: it counts."""
        key = (said.run, said.task)
        live = self.live.get(key)
        is_alive = live is not None and live.number == said.attempt
        if (
            not is_alive
            or live is None
            or (live.is_killed and not isinstance(said, Saved | Ended | Answered))
        ):
            run = self.runs.get(said.run)
            over = run.ended if run is not None else set()
            if not is_alive and (said.task, said.attempt) not in over:  # it is being looked at,
                return False  # so that a clock may have had its say in the same step
            for command in self.commands:
                if isinstance(command, Fetch | TellBreaker | ForgetBreaker):
                    continue
                about = (command.run, command.task, command.attempt)
                assert about != (said.run, said.task, said.attempt), (
                    f"{said}: of what is over, and yet {command}"
                )
            return False
        if isinstance(said, Ended | Answered):
            assert isinstance(said, Ended) is (live.part is Part.EXECUTE)
            del self.live[key]
            if self._is_checked(said, live):
                self.runs[said.run].checking.add(said.task)
        elif isinstance(said, Told):
            live.is_told = True
        elif isinstance(said, Started):
            live.started = live.active = live.frozen if live.frozen is not None else now
        elif isinstance(said, Active):
            live.active = now
        elif isinstance(said, Waits):
            if live.is_waiting is not said.is_waiting:
                live.active = now
            live.is_waiting = said.is_waiting
        elif isinstance(said, Saved) and live.started is not None:
            live.active = now
        return True

    def _is_checked(self, ending: Ended | Answered, live: _Live) -> bool:
        """Somebody is to look at what came of it first, unless it is recorded at once."""
        if live.reason is None:
            if isinstance(ending, Ended) and ending.output is not None:
                return live.spec.is_validated
            if live.part is Part.RECOVER:
                return False
            if isinstance(ending, Answered) and isinstance(ending.answer, ValidationResult):
                return not ending.answer.ok and live.spec.recover is not None
        return live.spec.recover is not None and live.part is not Part.RECOVER

    def _is_recorded(self, ending: Ended | Answered) -> None:
        run, key = self.runs[ending.run], (ending.run, ending.task)
        if (ending.task, ending.attempt) in run.ended or key in self.live:
            return
        is_provisional = run.reads_on(ending.task) and ending.task not in run.checking
        assert is_provisional or ending.task in run.checking, f"{ending}: nothing was recorded"

    def _alive(self, command: CancelAttempt | Kill | Freeze | Thaw) -> _Live:
        live = self.live.get((command.run, command.task))
        assert live is not None and live.number == command.attempt, f"{command}: not alive"
        return live

    def _ask(self, now: float, command: CancelAttempt) -> None:
        live = self._alive(command)
        assert live.asked is None and not live.is_killed, f"{command}: once is enough"
        assert live.started is not None and live.frozen is None, f"{command}: nobody hears it"
        self._is_due(now, live, command)
        live.asked, live.reason = now, command.reason

    def _kill(self, now: float, kill: Kill) -> None:
        live = self._alive(kill)
        assert not live.is_killed, f"{kill}: killed twice"
        if kill.reason is ErrorKind.BREAKER_OPEN:
            policy = live.spec.breaker
            assert policy is not None and policy.on_open is OnOpen.KILL, f"{kill}: whose"
        live.is_killed = True
        live.reason = live.reason or kill.reason
        if live.asked is not None:
            assert kill.reason is live.reason, f"{kill}: the first cause was {live.reason}"
            is_over = live.is_told or now >= live.asked + live.spec.timeouts.grace - _ROUNDING
            if not is_over and live.frozen is None:
                assert (kill.run, kill.task) in self._anew(), f"{kill}: within its grace"
        elif kill.reason is None:
            assert live.is_told, f"{kill}: without a reason"
        else:
            self._is_due(now, live, kill)

    def _is_due(self, now: float, live: _Live, command: Kill | CancelAttempt) -> None:
        """A limit is given as the reason only where it has run out."""
        if command.reason in _CLOCKS:
            due = live.limits().get(command.reason, math.inf)
            assert now >= due - _ROUNDING, f"{command}: at {now}, due at {due}"

    def _anew(self) -> set[tuple[str, str]]:
        """Tasks that this step may end without their grace, for they are done anew: all of a run
        that is rolled back, by whomever, and who reads from a task that begins again, however far.
        """
        if isinstance(self.input, Rollback):
            return {(self.input.run, task) for task in self.runs[self.input.run].tasks}
        found: set[tuple[str, str]] = set()
        for record in self.commands:
            if isinstance(record, Record) and isinstance(record.data, AGAIN):
                run, anew = self.runs[record.run], [record.task or ""]
                if isinstance(record.data, TaskRecovered) and record.data.action is Action.ROLLBACK:
                    anew = list(run.tasks)
                found |= {(record.run, reader) for reader in run.readers(anew)}
        return found

    def _spawn(self, now: float, spawn: Spawn) -> None:
        key, run = (spawn.run, spawn.task), self.runs[spawn.run]
        spec = run.tasks[spawn.task]
        assert not run.is_over and not run.is_fetching, f"{spawn}: not now"
        assert not run.is_rolling or spec.always, f"{spawn}: while its run is rolled back"
        assert key not in self.live, f"{spawn}: a live attempt already"
        assert run.attempts[spawn.task] == spawn.attempt, f"{spawn}: not the attempt made ready"
        assert (spawn.task, spawn.attempt) not in run.ended, f"{spawn}: that one is over"
        if spawn.part is Part.EXECUTE:
            self._check_input(spawn, run)
        else:
            is_kept_back = spec.breaker is not None and spawn.task in run.line
            assert spawn.task in run.checking or is_kept_back, f"{spawn}: nothing to look at"
            assert not spawn.upstream and not spawn.streams
            is_error = isinstance(spawn.value, TaskError)
            assert spawn.value is not None and is_error is (spawn.part is Part.RECOVER)
            assert spec.recover is not None if is_error else spec.is_validated
            run.checking.discard(spawn.task)
            run.line.discard(spawn.task)
        self.live[key] = _Live(spec, spawn.attempt, spawn.part, spawn.streams, now)
        assert len(self.live) <= self.max_parallel, f"{spawn}: too many"
        most = run.spec.max_parallel
        if most is not None:
            assert self._alive_of(spawn.run) <= most, f"{spawn}: too many of its run"
        assert self._used_memory() <= self.memory, f"{spawn}: too much memory"
        assert self._used_cores() <= self.cores + _ROUNDING, f"{spawn}: too much cpu"
        if spawn.part is Part.EXECUTE:
            self._check_keys(now, spec)

    def _check_input(self, spawn: Spawn, run: _Told) -> None:
        task = spawn.task
        always = run.tasks[task].always
        assert task in run.line, f"{spawn}: not made ready"
        assert not self.is_draining, f"{spawn}: of a supervisor that is about to end"
        assert not run.is_paused or always, f"{spawn}: while its run is paused"
        run.line.remove(task)
        assert run.closed.issuperset(run.inputs[task]), f"{spawn}: before its inputs"
        completed = tuple(source for source in run.inputs[task] if source in run.completed)
        assert spawn.upstream == completed, f"{spawn}: its inputs are {completed}"
        assert always or completed == run.inputs[task], f"{spawn}: not all of its inputs"
        assert spawn.streams == run.speakers(task), f"{spawn}: not who speaks now"
        for name, number in spawn.streams:
            is_over = (name, number) in run.ended and name not in run.completed
            assert not is_over, f"{spawn}: {name} is over"

    def given(self, run: str, task: str) -> tuple[dict[str, Raw], Raw | None]:
        """What an attempt that is spawned now has to be told: its input, and what was saved."""
        told = self.runs[run]
        sources = [source for source in told.inputs[task] if source in told.completed]
        outputs = {source: told.outputs[source, told.completed[source]] for source in sources}
        saved, read = told.saved.get(task, (None, ()))
        return outputs, saved if read == told.speakers(task) else None

    def _alive_of(self, run: str) -> int:
        return sum(key[0] == run for key in self.live)

    def _used_memory(self) -> int:
        return sum(live.spec.limits.memory for live in self.live.values())

    def _used_cores(self) -> float:
        return sum(min(live.spec.limits.cpu or 0, self.cores) for live in self.live.values())

    def _check_keys(self, now: float, spec: TaskSpec) -> None:
        """Of what has just been spawned, among all that is bound by the same key; a check is bound
        by none. All pipelines here have one name, so that the id of a task is a key as well."""
        bound = [live.spec for live in self.live.values() if live.part is Part.EXECUTE]
        if spec.breaker is not None:
            row = self.rows[spec.breaker.key]
            is_probe = row.probe is not None and row.probe.task == spec.id
            assert row.standing is BreakerStanding.CLOSED or is_probe, f"{spec.id}: {row}"
        if spec.max_parallel is not None:
            alike = sum(each.id == spec.id and each.max_parallel is not None for each in bound)
            assert alike <= spec.max_parallel, f"{spec.id}: too many of this task"
        if spec.bulkhead is not None:
            keys = [each.bulkhead.key for each in bound if each.bulkhead is not None]
            assert keys.count(spec.bulkhead.key) <= spec.bulkhead.max_parallel, f"{spec.bulkhead}"
        if spec.rate is not None:
            key = f"task {spec.id}" if spec.rate.key is None else f"key {spec.rate.key}"
            starts = self.starts.setdefault(key, [])
            starts.append(now)
            recent = sum(start + spec.rate.period > now for start in starts)
            assert recent <= spec.rate.limit, f"{key}: {starts}"

    def _record(self, now: float, record: Record) -> None:
        run, data, kind = self.runs[record.run], record.data, type(record.data)
        about = (record.run, record.task or "")
        if isinstance(data, _UNDOING):
            restored = data.restored if isinstance(data, RunRolledBack) else ()
            for task in (*data.undone, *restored):
                assert (record.run, task) not in self.live, f"{record}: {task} may be alive"
        else:
            assert not run.is_over, f"{record}: after the run's last event"
        if kind in ENDINGS and record.attempt is not None:
            live = self.live.get(about)
            assert live is None or live.number != record.attempt, f"{record}: it may be alive"
        elif kind is TaskStarted:
            live = self.live.get(about)
            assert live is not None and live.number == record.attempt, f"{record}: not alive"
            assert live.part is Part.EXECUTE, f"{record}: it is a check"
            assert not live.is_killed, f"{record}: killed before"
        elif kind in RUN_ENDINGS:
            assert not self._alive_of(record.run), f"{record}: something lives"
        run.hear(record, now)
        if isinstance(data, TaskSaved):
            run.saved[about[1]] = (data.state, self.live[about].streams)

    def _check_clocks(self, now: float) -> None:
        for key, live in self.live.items():
            if live.is_killed or live.frozen is not None:
                continue
            if live.asked is not None:
                due = live.asked + live.spec.timeouts.grace
            else:
                due = min(live.limits().values(), default=math.inf)
            assert now < due + _ROUNDING, f"{key}: still there at {now}, due at {due}"

    def _check_line(self) -> None:
        """Whoever could start has. One that does not fit into the host holds back all others; what
        is behind a gate may have to wait for it."""
        if len(self.live) >= self.max_parallel:
            return
        line: list[TaskSpec] = []
        ahead: list[TaskSpec] = []
        for name, run in self.runs.items():
            waiting = run.line | run.checking
            if self.is_draining:
                waiting = set(run.checking)
            if not waiting:
                continue
            if run.is_paused or run.is_rolling:
                # What cleans up stands in line for all that, if the run was cancelled since; and
                # what waited for its breaker too long, unseen, to be asked what becomes of it.
                waiters = [run.tasks[task] for task in waiting]
                ahead += [each for each in waiters if each.always or each.breaker is not None]
                waiting = run.checking if run.is_drained and not run.is_rolling else set()
            most = run.spec.max_parallel
            if not run.is_fetching and (most is None or self._alive_of(name) < most):
                line += [run.tasks[task] for task in sorted(waiting)]
        if all(map(_is_gated, line)):
            return
        memory, cores = self.memory - self._used_memory(), self.cores - self._used_cores()
        does_not_fit = any(
            each.limits.memory > memory or min(each.limits.cpu or 0, self.cores) > cores - _ROUNDING
            for each in (*line, *ahead)
        )
        assert does_not_fit, f"of {[task.id for task in line]} one could start"

    def check_every_attempt_ended(self) -> None:
        for name, run in self.runs.items():
            made = {(t, n) for t, latest in run.attempts.items() for n in range(1, latest + 1)}
            assert made == run.ended, f"run {name}: {sorted(made - run.ended)} never ended"
