"""The core with a fake clock, spoken to in lines of text; and a judge that watches every step.

Tests and the transcripts in `scripts/` share one small language. Declarations:

    host parallel=2 memory=100 cores=2  the scheduler's own limits
    run one fail_fast timeout=60 parallel=1 priority=5 checkpoints=every-task
    task a wall=10 retry=3              of the run declared last (`r` if none was)
    task a parallel=1 bulkhead=api:2 rate=10/min rate=api:10/min priority=5 cores=0.5
    task b needs=a
    task c reads=a                      its stream
    task d needs=a always validate recover fallbacks=x,y
    task e rules=error:retry:2;crash:skip:7;timeout:fallback:x;memory:rollback:a;pids:fail

(checkpoints: `none` unless said, `every-task`, `after:a,b`, `every:30`) and then, each at a time,
what the core is told: `submit r`, `started a#1`, `active a#1`, `saved a#1 7`, `used a#1 cpu=2`,
`waits a#1`, `flows a#1`, `told a#1`, `ended a#1 output=7`, `ended a#1 error=crash boom`, `tick`,
`answered a#1 ok`, `answered a#1 bad too short`, `answered a#1 skip 7` (or retry, fallback,
rollback, fail, nothing, error crash boom),
`cancel r why`, `fail r why`, `pause r [drain]`, `resume r`, `checkpoint r`, `rollback r c1`,
`rollback r before b`, `fetched r`, `fork r copy c1`. `adopt r` is a crash: the scheduler, its other
runs and all that lived are gone, a new one takes the run over as its journal tells it. Tasks of a
run other than `r` are written `one/a#1`. Answers are lines as well, see `show`.

After every step `Simulated` folds the records that came out into a state of its own and compares
it with the live one, and `Judge` checks from the commands alone what must never happen.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import msgspec
from casemate.protocol.answers import Action, RecoveryAction, ValidationResult
from casemate.protocol.events import (
    KIND_OF,
    CheckpointCreated,
    ErrorKind,
    RunCancelled,
    RunCompleted,
    RunFailed,
    RunForked,
    RunPaused,
    RunRecovered,
    RunRolledBack,
    RunStarted,
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
from casemate.protocol.limits import RETRY_BUDGET, ROLLBACK_BUDGET
from casemate.protocol.messages import Part
from casemate.protocol.pipeline import (
    Bulkhead,
    Checkpoints,
    CommandEntry,
    Edge,
    Limits,
    PipelineSpec,
    Rate,
    Retry,
    Rule,
    TaskSpec,
    Timeouts,
)
from casemate.protocol.units import parse_rate
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
    Tick,
    Told,
    Used,
    Waits,
)
from casemate.supervisor.core.scheduler import Scheduler
from casemate.supervisor.core.state import RunState
from msgspec import Raw

ENDINGS = (
    TaskCompleted,
    TaskSkipped,
    TaskRetrying,
    TaskRecovered,
    TaskFailed,
    TaskCancelled,
    TaskRestarted,
)
COMPLETIONS = (TaskCompleted, TaskSkipped)
NO_CHECKPOINTS = Checkpoints(every_task=False)
RUN_ENDINGS = (RunCompleted, RunFailed, RunCancelled)


def raw(value: object) -> Raw:
    return Raw(msgspec.msgpack.encode(value))


NIL = raw(None)


def make_task(
    name: str,
    *,
    memory: int = 1,
    start: float = 10,
    wall: float | None = None,
    idle: float | None = None,
    cpu: float | None = None,
    grace: float = 0,
    retry: int = 1,
    delay: float = 1,
    backoff: float = 2,
    cap: float = 60,
    jitter: float = 0,
    on: tuple[str, ...] = ("error", "crash", "timeout"),
    cores: float | None = None,
    parallel: int | None = None,
    bulkhead: str | None = None,
    rate: str | None = None,
    priority: int = 0,
    validate: bool = False,
    recover: bool = False,
    rules: tuple[Rule, ...] = (),
    fallbacks: tuple[str, ...] = (),
    always: bool = False,
) -> TaskSpec:
    command = CommandEntry(argv=("true",))
    return TaskSpec(
        id=name,
        execute=command,
        spec=NIL,
        sources=(),
        env={},
        limits=Limits(memory=memory, cpu=cores, pids=1, files=1, tmp=1, disk=1, output=1),
        timeouts=Timeouts(start=start, wall=wall, idle=idle, cpu=cpu, grace=grace),
        retry=Retry(
            attempts=retry, delay=delay, backoff=backoff, max_delay=cap, jitter=jitter, on=on
        ),
        max_parallel=parallel,
        bulkhead=None if bulkhead is None else _bulkhead(bulkhead),
        rate=None if rate is None else _rate(rate),
        priority=priority,
        validate=command if validate else None,
        recover=command if recover else None,
        rules=rules,
        fallbacks=dict.fromkeys(fallbacks, command),
        always=always,
    )


def _bulkhead(text: str) -> Bulkhead:
    key, _, limit = text.rpartition(":")
    return Bulkhead(key=key, max_parallel=int(limit))


def _rate(text: str) -> Rate:
    key, _, written = text.rpartition(":")
    limit, period = parse_rate(written)
    return Rate(limit=limit, period=period, key=key or None)


def make_pipeline(
    tasks: Iterable[TaskSpec],
    edges: Iterable[tuple[str, str]] = (),
    *,
    streams: Iterable[tuple[str, str]] = (),
    checkpoints: Checkpoints = NO_CHECKPOINTS,
    fail_fast: bool = False,
    timeout: float | None = None,
    max_parallel: int | None = None,
    priority: int = 0,
    retry_budget: int = RETRY_BUDGET,
    rollback_budget: int = ROLLBACK_BUDGET,
) -> PipelineSpec:
    return PipelineSpec(
        name="p",
        tasks=tuple(tasks),
        edges=(
            *(Edge(source, to) for source, to in edges),
            *(Edge(source, to, stream=True) for source, to in streams),
        ),
        checkpoints=checkpoints,
        root="/",
        fail_fast=fail_fast,
        timeout=timeout,
        max_parallel=max_parallel,
        priority=priority,
        retry_budget=retry_budget,
        rollback_budget=rollback_budget,
    )


def submit(run: str, spec: PipelineSpec, seed: int = 1) -> Submit:
    return Submit(run, spec, NIL, raw(spec), seed)


class Judge:
    """What must never happen, seen from outside: from what the core is told and what it answers."""

    def __init__(self, max_parallel: int, memory: int, cores: float = math.inf) -> None:
        self.max_parallel = max_parallel
        self.memory = memory
        self.cores = cores
        self.checking: set[tuple[str, str]] = set()  # what lives is a check: no key binds it
        self.starts: dict[str, list[float]] = {}  # by key of a rate
        self.specs: dict[str, PipelineSpec] = {}
        self.live: dict[tuple[str, str], int] = {}
        self.attempts: dict[tuple[str, str], int] = {}  # the latest made ready
        self.completed: dict[tuple[str, str], int] = {}  # and by which attempt
        self.held: dict[tuple[str, str], dict[str, int]] = {}  # the same of a run, by checkpoint
        self.ended: set[tuple[str, str, int]] = set()
        self.killed: set[tuple[str, str, int]] = set()
        self.asked: dict[tuple[str, str, int], tuple[float, ErrorKind]] = {}
        self.told: set[tuple[str, str, int]] = set()
        self.over: set[str] = set()
        self.paused: set[str] = set()
        self.frozen: set[tuple[str, str, int]] = set()
        self.drained: set[str] = set()  # of those that are paused
        self.read: dict[tuple[str, str], tuple[tuple[str, int], ...]] = {}

    def crash(self) -> None:
        """All that lived is dead, and the scheduler that knew of it gone."""
        self.live.clear()
        self.frozen.clear()
        self.starts.clear()

    def watch(self, now: float, input: Input, commands: list[Command]) -> None:
        if isinstance(input, Submit):
            self.specs[input.run] = input.spec
        if isinstance(input, Told):
            self.told.add((input.run, input.task, input.attempt))
        ending = None
        if (
            isinstance(input, Ended | Answered)
            and self.live.get((input.run, input.task)) == input.attempt
        ):
            ending = (input.run, input.task, input.attempt)
            del self.live[ending[:2]]
            self.frozen.discard(ending)
            # A check that follows is another process.
            self.killed.discard(ending)
            self.asked.pop(ending, None)
            self.told.discard(ending)
        for command in commands:
            match command:
                case Record():
                    self._record(command)
                case Spawn():
                    self._spawn(now, command)
                case CancelAttempt():
                    key = self._live_key(command)
                    assert key not in self.asked and key not in self.killed
                    self.asked[key] = (now, command.reason)
                case Kill():
                    self._kill(now, command, self._begin_again(input, commands))
                case Freeze():
                    key = self._live_key(command)
                    assert key not in self.frozen and key not in self.killed
                    self.frozen.add(key)
                case Thaw():
                    key = self._live_key(command)
                    assert key in self.frozen and key not in self.killed
                    self.frozen.remove(key)
        if ending is not None and not self.reads_on(ending[:2]) and not self.is_checked(ending):
            assert ending in self.ended, f"{ending} ended and nothing was recorded"

    def is_checked(self, ending: tuple[str, str, int]) -> bool:
        """It may be that what came of it is looked at first."""
        spec = self._spec(*ending[:2])
        return spec.validate is not None or spec.recover is not None

    def reads_on(self, key: tuple[str, str]) -> bool:
        """Its result is provisional: somebody whose stream it reads has not completed."""
        run, task = key
        sources = (e.source for e in self.specs[run].edges if e.to == task and e.stream)
        return any((run, source) not in self.completed for source in sources)

    def remember(self, record: Record) -> None:
        """What happened elsewhere, to the run that this one is copied from."""
        key = (record.run, record.task or "")
        if isinstance(record.data, TaskReady):
            self.attempts[key] = record.attempt or 0
        elif isinstance(record.data, CheckpointCreated):
            self.held[record.run, record.data.checkpoint] = self._completed(record.run)
        elif isinstance(record.data, RunRolledBack | RunForked):
            self._go_back(record.run, record.data)
        elif isinstance(record.data, ENDINGS) and record.attempt is not None:
            self.ended.add((*key, record.attempt))
            if isinstance(record.data, COMPLETIONS):
                self.completed[key] = record.attempt

    def _completed(self, run: str) -> dict[str, int]:
        return {task: number for (other, task), number in self.completed.items() if other == run}

    def _go_back(self, run: str, data: RunRolledBack | RunForked) -> None:
        restored = data.restored if isinstance(data, RunRolledBack) else ()
        for task in (*data.undone, *restored):
            self.completed.pop((run, task), None)
            assert (run, task) not in self.live, f"{run}: {data}: {task} may be alive"
        if data.checkpoint is not None:
            held = self.held[run, data.checkpoint]
            self.completed |= {(run, task): held[task] for task in restored}
            assert self._completed(run) == held, f"{run}: {data}: not what the checkpoint holds"

    def _live_key(self, command: CancelAttempt | Kill | Freeze | Thaw) -> tuple[str, str, int]:
        key = (command.run, command.task, command.attempt)
        assert self.live.get(key[:2]) == command.attempt, f"{command}: not alive"
        return key

    def _begin_again(self, input: Input, commands: list[Command]) -> set[tuple[str, str]]:
        """Tasks that a step may end without their grace, for they are done anew: all of a run that
        is rolled back, and who reads from a task that begins again, however far."""
        if isinstance(input, Rollback):
            return {(input.run, task.id) for task in self.specs[input.run].tasks}
        found = [
            (record.run, record.task or "")
            for record in commands
            if isinstance(record, Record) and isinstance(record.data, TaskRestarted | TaskRetrying)
        ]
        for run, source in found:  # grows while it is walked
            edges = self.specs[run].edges
            found += [(run, e.to) for e in edges if e.stream and e.source == source]
        return set(found)

    def _kill(self, now: float, kill: Kill, anew: set[tuple[str, str]]) -> None:
        key = self._live_key(kill)
        assert key not in self.killed, f"{kill}: killed twice"
        self.killed.add(key)
        if key in self.asked:
            asked, reason = self.asked[key]
            assert kill.reason is reason, f"{kill}: the first cause was {reason}"
            grace = self._spec(kill.run, kill.task).timeouts.grace
            is_over = key in self.told or key in self.frozen or now >= asked + grace
            assert is_over or key[:2] in anew, f"{kill}: within its grace"
        elif kill.reason is None:
            assert key in self.told

    def _spec(self, run: str, task: str) -> TaskSpec:
        return next(spec for spec in self.specs[run].tasks if spec.id == task)

    def _spawn(self, now: float, spawn: Spawn) -> None:
        key = (spawn.run, spawn.task)
        spec = self.specs[spawn.run]
        assert spawn.run not in self.over
        assert key not in self.live, f"{spawn}: a live attempt already"
        assert self.attempts[key] == spawn.attempt, f"{spawn}: not the attempt made ready"
        assert (*key, spawn.attempt) not in self.ended
        if spawn.part is not Part.EXECUTE:
            assert spawn.run not in self.paused or spawn.run in self.drained
            self._check(spawn)
            return
        always = self._spec(*key).always
        assert spawn.run not in self.paused or always, f"{spawn}: while its run is paused"
        edges = [edge for edge in spec.edges if edge.to == spawn.task]
        upstream = tuple(sorted(edge.source for edge in edges if not edge.stream))
        if always:
            assert not any((spawn.run, source) in self.live for source in upstream)
            upstream = tuple(name for name in upstream if (spawn.run, name) in self.completed)
        assert spawn.upstream == upstream
        streams = tuple(sorted(edge.source for edge in edges if edge.stream))
        assert tuple(name for name, _ in spawn.streams) == streams
        for name, number in spawn.streams:
            speaker = spawn.run, name
            assert self.completed.get(speaker, self.attempts[speaker]) == number
            is_over = (spawn.run, name, number) in self.ended
            assert not is_over or (spawn.run, name) in self.completed, f"{spawn}: {name} is over"
        for source in upstream:
            assert (spawn.run, source) in self.completed, f"{spawn}: before its input {source}"
        self._add(spawn)
        self.checking.discard(key)
        bound = [self._spec(*each) for each in self.live if each not in self.checking]
        self._check_keys(now, self._spec(*key), bound)

    def _check(self, spawn: Spawn) -> None:
        spec = self._spec(spawn.run, spawn.task)
        assert not spawn.upstream and not spawn.streams and spawn.value is not None
        if spawn.part is Part.VALIDATE:
            assert isinstance(spawn.value, Raw) and spec.validate is not None
        else:
            assert isinstance(spawn.value, TaskError) and spec.recover is not None
        self.checking.add((spawn.run, spawn.task))
        self._add(spawn)

    def _add(self, spawn: Spawn) -> None:
        spec = self.specs[spawn.run]
        self.live[spawn.run, spawn.task] = spawn.attempt
        assert len(self.live) <= self.max_parallel
        if spec.max_parallel is not None:
            assert sum(run == spawn.run for run, _ in self.live) <= spec.max_parallel
        living = [self._spec(*each) for each in self.live]
        assert sum(each.limits.memory for each in living) <= self.memory
        cores = sum(min(each.limits.cpu or 0, self.cores) for each in living)
        assert cores <= self.cores + 1e-9

    def _check_keys(self, now: float, spec: TaskSpec, living: list[TaskSpec]) -> None:
        """Of what has just been spawned, among all that is bound by the same key. All pipelines
        here have one name, so that the id of a task is a key as well."""
        if spec.max_parallel is not None:
            names = [each.id for each in living if each.max_parallel is not None]
            assert names.count(spec.id) <= spec.max_parallel
        if spec.bulkhead is not None:
            keys = [each.bulkhead.key for each in living if each.bulkhead is not None]
            assert keys.count(spec.bulkhead.key) <= spec.bulkhead.max_parallel
        if spec.rate is not None:
            key = f"task {spec.id}" if spec.rate.key is None else f"key {spec.rate.key}"
            starts = self.starts.setdefault(key, [])
            starts.append(now)
            recent = sum(start + spec.rate.period > now for start in starts)
            assert recent <= spec.rate.limit, f"{key}: {starts}"

    def _record(self, record: Record) -> None:
        data = record.data
        if isinstance(data, RunRolledBack | RunForked):
            self.over.discard(record.run)
            self._go_back(record.run, data)
        assert record.run not in self.over, f"{record}: after the run's last event"
        kind = KIND_OF[type(data)]
        if kind == "run.paused":
            self.paused.add(record.run)
            if isinstance(data, RunPaused) and data.drain:
                self.drained.add(record.run)
        elif kind in ("run.resumed", "run.completed", "run.failed", "run.cancelled"):
            self.paused.discard(record.run)
            self.drained.discard(record.run)
        if isinstance(data, RUN_ENDINGS):
            assert not any(run == record.run for run, _ in self.live), f"{record}: something lives"
            self.over.add(record.run)
        if isinstance(data, CheckpointCreated):
            self.held[record.run, data.checkpoint] = self._completed(record.run)
        if record.task is None:
            return
        key = (record.run, record.task)
        if isinstance(data, TaskReady):
            assert record.attempt == self.attempts.get(key, 0) + 1
            self.attempts[key] = record.attempt
        elif isinstance(data, TaskStarted):
            assert self.live[key] == record.attempt
        elif isinstance(data, ENDINGS):
            if record.attempt is not None:
                assert key not in self.live, f"{record}: its tree may be alive"
                assert (*key, record.attempt) not in self.ended, f"{record}: ended twice"
                self.ended.add((*key, record.attempt))
            if isinstance(data, TaskSkipped):
                self.completed[key] = record.attempt or 0
            if isinstance(data, TaskCompleted):
                assert not self.reads_on(key), f"{record}: what it reads may begin again"
                self.completed[key] = record.attempt or 0

    def check_every_attempt_ended(self) -> None:
        made = {
            (*key, number)
            for key, latest in self.attempts.items()
            for number in range(1, latest + 1)
        }
        assert made == self.ended


class Simulated:
    """A scheduler, its judge, its journal, and the fold of that journal beside it."""

    def __init__(self, *lines: str) -> None:
        """Declarations; the runs in them are submitted at 0 by `start`, or by hand."""
        self.max_parallel = 8
        self.memory = 1000
        self.cores = math.inf
        self.runs: dict[str, _Declared] = {}
        self.journal: list[Record] = []
        self.heard: list[tuple[float, Input]] = []
        self.answered: list[list[Command]] = []
        self.folded: dict[str, RunState] = {}
        self.states: dict[str, RunState] = {}
        self._scheduler: Scheduler | None = None
        self._judge: Judge | None = None
        for line in lines:
            self.declare(line)

    @classmethod
    def start(cls, *lines: str) -> Simulated:
        simulated = cls(*lines)
        for run in simulated.runs:
            simulated.at(0, f"submit {run}")
        return simulated

    @property
    def scheduler(self) -> Scheduler:
        if self._scheduler is None:
            self._scheduler = Scheduler(self.max_parallel, self.memory, self.cores)
        return self._scheduler

    @property
    def judge(self) -> Judge:
        if self._judge is None:
            self._judge = Judge(self.max_parallel, self.memory, self.cores)
        return self._judge

    def declare(self, line: str) -> None:
        what, *words = line.split()
        flags = {word for word in words if "=" not in word}
        options = dict(word.split("=", 1) for word in words if "=" in word)
        if what == "host":
            self.max_parallel = int(options.get("parallel", self.max_parallel))
            self.memory = int(options.get("memory", self.memory))
            self.cores = float(options.get("cores", self.cores))
        elif what == "run":
            self.runs[words[0]] = _Declared(
                fail_fast="fail_fast" in flags,
                timeout=float(options["timeout"]) if "timeout" in options else None,
                max_parallel=int(options["parallel"]) if "parallel" in options else None,
                priority=int(options.get("priority", 0)),
                checkpoints=_strategy(options.get("checkpoints", "none")),
                retry_budget=int(options.get("retries", RETRY_BUDGET)),
                rollback_budget=int(options.get("rollbacks", ROLLBACK_BUDGET)),
            )
        elif what == "task":
            run = list(self.runs.values())[-1] if self.runs else None
            if run is None:
                run = self.runs["r"] = _Declared()
            for source in filter(None, options.pop("needs", "").split(",")):
                run.edges.append((source, words[0]))
            for source in filter(None, options.pop("reads", "").split(",")):
                run.streams.append((source, words[0]))
            texts = {key: options.pop(key) for key in ("bulkhead", "rate") if key in options}
            whole = {
                key: int(options.pop(key))
                for key in ("memory", "retry", "parallel", "priority")
                if key in options
            }
            on = tuple(filter(None, options.pop("on", "error,crash,timeout").split(",")))
            rules = tuple(map(_rule, filter(None, options.pop("rules", "").split(";"))))
            fallbacks = tuple(filter(None, options.pop("fallbacks", "").split(",")))
            seconds = {key: float(value) for key, value in options.items()}
            # mypy cannot know the keys; a wrong one is a TypeError, which is what we want.
            task = make_task(
                words[0],
                on=on,
                rules=rules,
                fallbacks=fallbacks,
                validate="validate" in flags,
                recover="recover" in flags,
                always="always" in flags,
                **texts,  # type: ignore[arg-type]  # a wrong key is a TypeError
                **whole,  # type: ignore[arg-type]
                **seconds,  # type: ignore[arg-type]
            )
            run.tasks.append(task)
        else:
            raise ValueError(f"not a declaration: {line}")

    def at(self, now: float, line: str = "tick") -> list[str]:
        """Tell the core one thing and show what it answers."""
        return [show(command) for command in self.step(now, self.parse(line))]

    def step(self, now: float, input: Input) -> list[Command]:
        if isinstance(input, Adopt):
            if input.fork is None:
                self._scheduler = Scheduler(self.max_parallel, self.memory, self.cores)
                self.states.clear()
                self.judge.crash()
            self.states[input.run] = input.state
            self.folded.setdefault(input.run, self.fold(input.run))
        commands = self.scheduler.step(now, input)
        self.heard.append((now, input))
        self.answered.append(commands)
        self.judge.watch(now, input, commands)
        if isinstance(input, Submit):
            self.folded[input.run] = RunState(input.run, input.spec)
            if input.run not in self.judge.over:
                self.states[input.run] = self.scheduler.state(input.run)
        elif isinstance(input, Fetched):
            self.folded[input.run].give(input.outputs)
        for command in commands:
            if isinstance(command, Record):
                self.journal.append(command)
                self.folded[command.run].apply(command)
            elif isinstance(command, Spawn):
                for source in command.upstream:  # as the engine does, to put its input together
                    self.scheduler.output(command.run, source)
        for run, state in self.states.items():
            assert state == self.folded[run], f"{run}: the fold differs from the live state"
        return commands

    def parse(self, line: str) -> Input:
        verb, _, rest = line.partition(" ")
        if verb == "tick":
            return Tick()
        if verb == "submit":
            return submit(rest, self.runs[rest].spec())
        if verb == "cancel":
            run, _, reason = rest.partition(" ")
            return CancelRun(run, reason or "asked to")
        if verb in (
            "adopt",
            "fork",
            "fail",
            "pause",
            "resume",
            "checkpoint",
            "rollback",
            "fetched",
        ):
            return self._parse_wish(verb, *rest.split())
        subject, _, rest = rest.partition(" ")
        if (found := re.fullmatch(r"(?:([\w-]+)/)?([\w-]+)#(\d+)", subject)) is None:
            raise ValueError(f"not an attempt: {subject}")
        run, task, attempt = found[1] or "r", found[2], int(found[3])
        match verb, rest.partition("="):
            case "started", _:
                return Started(run, task, attempt, pid=100)
            case "active", _:
                return Active(run, task, attempt)
            case "saved", (value, _, _):
                return Saved(run, task, attempt, raw(msgspec.json.decode(value)))
            case "waits" | "flows", _:
                return Waits(run, task, attempt, is_waiting=verb == "waits")
            case "used", ("cpu", _, cpu):
                return Used(run, task, attempt, cpu=float(cpu))
            case "told", _:
                return Told(run, task, attempt)
            case "ended", ("output", _, value):
                output = raw(msgspec.json.decode(value))
                return Ended(run, task, attempt, output=output, error=None)
            case "ended", ("error", _, error):
                kind, _, message = error.partition(" ")
                failure = TaskError(kind=ErrorKind(kind), message=message or "it broke")
                return Ended(run, task, attempt, output=None, error=failure)
            case "ended", _:
                return Ended(run, task, attempt, output=None, error=None)
            case "answered", (answer, _, _):
                return Answered(run, task, attempt, _answer(answer))
        raise ValueError(f"not an input: {line}")

    def _parse_wish(self, verb: str, run: str, *words: str) -> Input:
        match verb, words:
            case "adopt", _:
                return Adopt(run, self.fold(run))
            case "fork", (copy, checkpoint):
                self.copy(run, copy, checkpoint)
                return Adopt(copy, self.fold(copy), fork=(run, checkpoint))
            case "fail", _:
                return FailRun(run, TaskError(kind=ErrorKind.DISK, message=" ".join(words)))
            case "pause", _:
                return PauseRun(run, drain="drain" in words)
            case "resume", _:
                return ResumeRun(run)
            case "checkpoint", _:
                return CheckpointRun(run)
            case "rollback", ("before", task):
                return Rollback(run, None, task)
            case "rollback", (checkpoint,):
                return Rollback(run, checkpoint, None)
            case "fetched", _:
                return Fetched(run, self.outputs(run))
        raise ValueError(f"not an input: {verb} {run} {words}")

    def copy(self, run: str, copy: str, checkpoint: str) -> None:
        """The history of a run up to a checkpoint, as that of another."""
        self.judge.specs[copy] = self.judge.specs[run]
        for record in [record for record in self.journal if record.run == run]:
            self.journal.append(replace(record, run=copy))
            self.judge.remember(self.journal[-1])
            if isinstance(record.data, CheckpointCreated) and record.data.checkpoint == checkpoint:
                return

    def fold(self, run: str) -> RunState:
        """The run as its journal tells it."""
        first = next(record.data for record in self.journal if record.run == run)
        assert isinstance(first, RunStarted)
        state = RunState(run, msgspec.msgpack.decode(first.spec, type=PipelineSpec))
        for record in self.journal:
            if record.run == run:
                state.apply(record)
        return state

    def outputs(self, run: str) -> dict[tuple[str, int], Raw]:
        """Every output that the journal holds, by task and attempt."""
        return {
            (record.task or "", record.attempt or 0): record.data.output
            for record in self.journal
            if record.run == run and isinstance(record.data, COMPLETIONS)
        }


@dataclass
class _Declared:
    fail_fast: bool = False
    timeout: float | None = None
    max_parallel: int | None = None
    priority: int = 0
    tasks: list[TaskSpec] = field(default_factory=list)
    edges: list[tuple[str, str]] = field(default_factory=list)
    streams: list[tuple[str, str]] = field(default_factory=list)
    checkpoints: Checkpoints = NO_CHECKPOINTS
    retry_budget: int = RETRY_BUDGET
    rollback_budget: int = ROLLBACK_BUDGET

    def spec(self) -> PipelineSpec:
        return make_pipeline(
            self.tasks,
            self.edges,
            streams=self.streams,
            checkpoints=self.checkpoints,
            fail_fast=self.fail_fast,
            timeout=self.timeout,
            max_parallel=self.max_parallel,
            priority=self.priority,
            retry_budget=self.retry_budget,
            rollback_budget=self.rollback_budget,
        )


def _rule(text: str) -> Rule:
    """`error:retry:2`, `crash,timeout:skip:7`, `error:fallback:x`, `memory:rollback:a`..."""
    kinds, do, *what = text.split(":")
    on = tuple(kinds.split(","))
    match Action(do), what:
        case Action.RETRY, [after]:
            return Rule(on=on, do=Action.RETRY, after=float(after))
        case Action.SKIP, [output]:
            return Rule(on=on, do=Action.SKIP, output=raw(msgspec.json.decode(output)))
        case (Action.FALLBACK | Action.ROLLBACK) as do_it, [to]:
            return Rule(on=on, do=do_it, to=to)
        case (Action.RETRY | Action.FAIL) as do_it, []:
            return Rule(on=on, do=do_it)
    raise ValueError(f"not a rule: {text}")


def _answer(text: str) -> ValidationResult | RecoveryAction | TaskError | None:
    verb, _, rest = text.partition(" ")
    match verb:
        case "ok":
            return ValidationResult(True)
        case "bad":
            return ValidationResult(False, (rest,) if rest else ())
        case "nothing":
            return None
        case "error":
            kind, _, message = rest.partition(" ")
            return TaskError(kind=ErrorKind(kind), message=message or "it broke")
    rule = _rule(f"error:{verb}" + (f":{rest}" if rest else ""))
    return RecoveryAction(do=rule.do, after=rule.after, output=rule.output, to=rule.to)


def _strategy(text: str) -> Checkpoints:
    kind, _, what = text.partition(":")
    return Checkpoints(
        every_task=kind == "every-task",
        after=tuple(what.split(",")) if kind == "after" else (),
        every=float(what) if kind == "every" else None,
    )


def show(command: Command) -> str:
    """A command as one line: `record a#1 ready`, `spawn a#1`, `ask a#1: timeout.wall`, ..."""
    if isinstance(command, TellBreaker):
        what = "look" if command.happening is None else type(command.happening).__name__
        return f"tell breaker {command.key}: {what}"
    if isinstance(command, ForgetBreaker):
        return f"forget breaker {command.key}"
    prefix = "" if command.run == "r" else f"{command.run}/"
    if isinstance(command, Record):
        return f"record {_show_record(prefix, command)}"
    if isinstance(command, Fetch):
        return f"fetch {command.run}: {', '.join(f'{t}#{n}' for t, n in command.outputs)}"
    subject = f"{prefix}{command.task}#{command.attempt}"
    match command:
        case Spawn(value=Raw() as value, part=part):
            return f"check {subject} {part} {_show_value(value)}"
        case Spawn(value=TaskError() as value, part=part):
            return f"check {subject} {part} {_show_error(value)}"
        case Spawn():
            given = f" given {', '.join(command.upstream)}" if command.upstream else ""
            if command.streams:
                given += f" reading {', '.join(f'{t}#{n}' for t, n in command.streams)}"
            return f"spawn {subject}{given}"
        case CancelAttempt():
            return f"ask {subject}: {command.reason}"
        case Freeze():
            return f"freeze {subject}"
        case Thaw():
            return f"thaw {subject}"
        case Kill():
            return f"kill {subject}" + ("" if command.reason is None else f": {command.reason}")


def _show_record(prefix: str, record: Record) -> str:
    data = record.data
    kind = KIND_OF[type(data)].removeprefix("run.").removeprefix("task.")
    if record.task is None:
        text = f"{record.run} {kind}"
    elif record.attempt is None:
        text = f"{prefix}{record.task} {kind}"
    else:
        text = f"{prefix}{record.task}#{record.attempt} {kind}"
    match data:
        case TaskCompleted():
            return f"{text} {_show_value(data.output)} in {data.seconds:g} s"
        case TaskRetrying():
            return f"{text} in {data.delay:g} s: {_show_error(data.error)}"
        case TaskSkipped():
            return f"{text} with {_show_value(data.output)}: {_show_error(data.error)}"
        case TaskRecovered():
            return f"{text} by {data.action} {data.to}: {_show_error(data.error)}"
        case TaskFailed() | TaskCancelled():
            return f"{text}: {_show_error(data.error)}"
        case RunCompleted():
            outputs = [f"{task}={_show_value(value)}" for task, value in data.outputs.items()]
            return " ".join([text, *outputs])
        case RunFailed():
            return f"{text}: {_show_error(data.error)} [{', '.join(data.tasks)}]"
        case RunCancelled() | TaskRestarted():
            return f"{text}: {data.reason}"
        case TaskSaved():
            return f"{text} {_show_value(data.state)}"
        case RunRecovered():
            return f"{text} [{', '.join(data.lost)}]"
        case CheckpointCreated():
            upon = f" upon {data.parent}" if data.parent else ""
            return f"{text} {data.checkpoint}{upon}: {', '.join(data.tasks) or '-'} ({data.total})"
        case RunRolledBack():
            to = data.checkpoint or f"before {data.before}"
            back = f", restored: {', '.join(data.restored)}" if data.restored else ""
            undone = ", ".join(data.undone) or "-"
            return f"{text} to {to} as {data.generation}, undone: {undone}{back}"
        case RunForked():
            return f"{text} of {data.source} at {data.checkpoint}, undone: {', '.join(data.undone)}"
    return text


def _show_error(error: TaskError) -> str:
    return f"{error.kind}: {error.message}"


def _show_value(value: Raw) -> str:
    return msgspec.json.encode(msgspec.msgpack.decode(value)).decode()


def show_deadline(scheduler: Scheduler) -> str | None:
    deadline = scheduler.deadline()
    return None if deadline == math.inf else f"until {deadline:g}"
