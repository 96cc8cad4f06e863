"""The core with a fake clock, spoken to in lines of text.

Tests and the transcripts in `scripts/` share one small language. Declarations:

    host parallel=2 memory=100 cores=2  the scheduler's own limits
    run one fail_fast timeout=60 parallel=1 priority=5 checkpoints=every-task
    task a wall=10 retry=3              of the run declared last (`r` if none was)
    task a breaker=key:2:10:kill:5      two failures open it for 10 s; kept back for 5 s at most
    task a parallel=1 bulkhead=api:2 rate=10/min rate=api:10/min priority=5 cores=0.5
    task b needs=a
    task c reads=a                      its stream
    task d needs=a always validate recover fallbacks=x,y
    task e rules=error:retry:2;crash:skip:7;timeout:fallback:x;memory:rollback:a;pids:fail

(checkpoints: `none` unless said, `every-task`, `after:a,b`, `every:30`) and then, each at a time,
what the core is told: `submit r`, `started a#1`, `active a#1`, `saved a#1 7`, `used a#1 cpu=2`,
`waits a#1`, `flows a#1`, `told a#1`, `ended a#1 output=7`, `ended a#1 error=crash boom`, `tick`,
`drain`, `slots 3`, `answered a#1 ok`, `answered a#1 bad too short`, `answered a#1 skip 7` (or
retry, fallback, rollback, fail, nothing, error crash boom),
`cancel r why`, `fail r why`, `pause r [drain]`, `resume r`, `checkpoint r`, `rollback r c1`,
`rollback r before b`, `fetched r`, `fork r copy c1`. `crash r=5` is the end of a supervisor: all
that lived is gone, and of the run's journal what comes after its fifth record. `take r` takes a run
over that nobody has, as its journal tells it; `adopt r` is a crash that loses no record, and that.
`back r c1` takes over and rolls back at once, `offline r pause` wishes something of a run that
nobody has, and after `unwritable r 5` nothing more reaches the run's journal. `hears`: what is told
a breaker comes to its row, and back; `open key 3` and `reset key`, a person does. `wall 3600`: wall
time jumps. Tasks of a run other than `r` are written `one/a#1`. Answers are lines as well, see
`show`.

It is the world of `tests/simulation` that is spoken to: its judge and its fold watch every step.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

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
    RunRecovered,
    RunRolledBack,
    TaskCancelled,
    TaskCompleted,
    TaskError,
    TaskFailed,
    TaskRecovered,
    TaskRestarted,
    TaskRetrying,
    TaskSaved,
    TaskSkipped,
)
from casemate.protocol.limits import RETRY_BUDGET, ROLLBACK_BUDGET
from casemate.protocol.pipeline import (
    Breaker,
    Bulkhead,
    Checkpoints,
    CommandEntry,
    Edge,
    Limits,
    OnOpen,
    PipelineSpec,
    Rate,
    Retry,
    Rule,
    TaskSpec,
    Timeouts,
)
from casemate.protocol.units import parse_rate
from casemate.supervisor.core.breaker import Forced, Reset
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
    Answered,
    CancelRun,
    CheckpointRun,
    Drain,
    Ended,
    FailRun,
    Fetched,
    PauseRun,
    ResumeRun,
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
from casemate.supervisor.core.scheduler import Scheduler
from msgspec import Raw
from simulation.world import (
    Crash,
    ForkOf,
    GoBack,
    Hears,
    Move,
    Offline,
    Says,
    TakeUp,
    Unwritable,
    WallJumps,
    World,
)

NO_CHECKPOINTS = Checkpoints(every_task=False)


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
    breaker: str | None = None,
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
        breaker=None if breaker is None else _breaker(breaker),
        validate=command if validate else None,
        recover=command if recover else None,
        rules=rules,
        fallbacks=dict.fromkeys(fallbacks, command),
        always=always,
    )


def _breaker(text: str) -> Breaker:
    key, failures, open_for, on_open, *wait = text.split(":")
    return Breaker(
        key=key,
        failures=int(failures),
        window=60,
        open_for=float(open_for),
        backoff=2,
        max_open_for=100,
        on_open=OnOpen(on_open),
        wait=float(wait[0]) if wait else None,
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


class Simulated(World):
    """A world that is spoken to in lines."""

    def __init__(self, *lines: str) -> None:
        """Declarations; the runs in them are submitted at 0 by `start`, or by hand."""
        super().__init__()
        self.runs: dict[str, _Declared] = {}
        for line in lines:
            self.declare(line)

    @classmethod
    def start(cls, *lines: str) -> Simulated:
        simulated = cls(*lines)
        for run in simulated.runs:
            simulated.at(0, f"submit {run}")
        return simulated

    def declare(self, line: str) -> None:
        what, *words = line.split()
        flags = {word for word in words if "=" not in word}
        options = dict(word.split("=", 1) for word in words if "=" in word)
        if what == "host":
            parallel = int(options.get("parallel", self.max_parallel))
            memory = int(options.get("memory", self.memory))
            self.set_up(parallel, memory, float(options.get("cores", self.cores)))
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
            texts = {
                key: options.pop(key) for key in ("bulkhead", "rate", "breaker") if key in options
            }
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
        """Let one thing happen and show what the core answers."""
        verb, _, run = line.partition(" ")
        if verb == "adopt":
            self.do(now, Crash({}))
            return [show(command) for command in self.do(now, TakeUp(run))]
        return [show(command) for command in self.do(now, self.parse(line))]

    def parse(self, line: str) -> Move:
        verb, _, rest = line.partition(" ")
        if verb == "tick":
            return Tick()
        if verb == "drain":
            return Drain()
        if verb == "slots":
            return Slots(int(rest))
        if verb == "submit":
            return submit(rest, self.runs[rest].spec())
        if verb == "cancel":
            run, _, reason = rest.partition(" ")
            return CancelRun(run, reason or "asked to")
        if verb == "hears":
            return Hears()
        if verb == "wall":
            return WallJumps(float(rest))
        if verb in ("open", "reset"):
            key, _, seconds = rest.partition(" ")
            return Says(key, Forced(float(seconds)) if verb == "open" else Reset())
        if verb == "crash":
            kept = dict(word.split("=", 1) for word in rest.split())
            return Crash({run: int(keep) for run, keep in kept.items()})
        if verb in _WISHES:
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
                return Ended(run, task, attempt, output=None, error=_failure(error))
            case "ended", _:
                return Ended(run, task, attempt, output=None, error=None)
            case "answered", (answer, _, _):
                return Answered(run, task, attempt, _answer(answer))
        raise ValueError(f"not an input: {line}")

    def _parse_wish(self, verb: str, run: str, *words: str) -> Move:
        match verb, words:
            case "take", _:
                return TakeUp(run)
            case "fork", (copy, checkpoint):
                return ForkOf(run, copy, checkpoint)
            case "unwritable", (keep,):
                return Unwritable(run, int(keep))
            case "fail", _:
                return FailRun(run, TaskError(kind=ErrorKind.DISK, message=" ".join(words)))
            case "pause", _:
                return PauseRun(run, drain="drain" in words)
            case "resume", _:
                return ResumeRun(run)
            case "checkpoint", _:
                return CheckpointRun(run)
            case (("rollback" | "back"), ("before", task)):
                return (Rollback if verb == "rollback" else GoBack)(run, None, task)
            case (("rollback" | "back"), (checkpoint,)):
                return (Rollback if verb == "rollback" else GoBack)(run, checkpoint, None)
            case "fetched", _:
                return Fetched(run, self.outputs(run))
            case "offline", _:
                wish = self.parse(" ".join((words[0], run, *words[1:])))
                assert isinstance(wish, CancelRun | PauseRun | CheckpointRun | Rollback)
                return Offline(wish)
        raise ValueError(f"not an input: {verb} {run} {words}")


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


_WISHES = {
    "take", "fork", "unwritable", "fail", "pause", "resume", "checkpoint", "rollback", "back",
    "fetched", "offline",
}  # fmt: skip


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
            return _failure(rest)
    rule = _rule(f"error:{verb}" + (f":{rest}" if rest else ""))
    return RecoveryAction(do=rule.do, after=rule.after, output=rule.output, to=rule.to)


def _failure(text: str) -> TaskError:
    """`crash`, `crash boom`, `error after=2 too busy`."""
    kind, _, message = text.partition(" ")
    after = None
    if message.startswith("after="):
        asked, _, message = message.removeprefix("after=").partition(" ")
        after = float(asked)
    return TaskError(kind=ErrorKind(kind), message=message or "it broke", retry_after=after)


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
