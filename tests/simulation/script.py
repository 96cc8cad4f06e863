"""A history in the language of `tests/core/scripts`: declarations, and what happened, line by line.

Written to be played there as it is (`casemate`'s core answers are then filled in by
`pytest tests/core --regenerate`), so that what a seed found becomes a transcript that stays.
"""

from __future__ import annotations

import msgspec
from casemate.protocol.answers import RecoveryAction, ValidationResult
from casemate.protocol.events import TaskError
from casemate.protocol.pipeline import Checkpoints, PipelineSpec, Rule, TaskSpec
from casemate.supervisor.core.breaker import Forced
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
from core.simulated import make_pipeline, make_task
from msgspec import Raw

from .world import (
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

__all__ = ["declared", "script", "tell"]


def script(world: World, moves: list[tuple[float, Move]]) -> str:
    lines = [f"host parallel={world.max_parallel} memory={world.memory} cores={world.cores:g}"]
    for _, move in moves:
        if isinstance(move, Submit):
            lines += declared(move.run, move.spec)
    lines += [f"{now!r} {tell(move)}" for now, move in moves]
    return "\n".join(lines) + "\n"


def declared(run: str, spec: PipelineSpec) -> list[str]:
    usual = make_pipeline(())
    words = ["run", run]
    if spec.fail_fast:
        words.append("fail_fast")
    if spec.timeout is not None:
        words.append(f"timeout={spec.timeout:g}")
    if spec.max_parallel is not None:
        words.append(f"parallel={spec.max_parallel}")
    if spec.priority:
        words.append(f"priority={spec.priority}")
    if spec.checkpoints != usual.checkpoints:
        words.append(f"checkpoints={_strategy(spec.checkpoints)}")
    if spec.retry_budget != usual.retry_budget:
        words.append(f"retries={spec.retry_budget}")
    if spec.rollback_budget != usual.rollback_budget:
        words.append(f"rollbacks={spec.rollback_budget}")
    return [" ".join(words), *(_task(spec, task) for task in spec.tasks)]


def _strategy(checkpoints: Checkpoints) -> str:
    if checkpoints.every_task:
        return "every-task"
    if checkpoints.every is not None:
        return f"every:{checkpoints.every:g}"
    return f"after:{','.join(checkpoints.after)}"


def _task(spec: PipelineSpec, task: TaskSpec) -> str:
    usual = make_task(task.id)
    told = {
        "memory": (task.limits.memory, usual.limits.memory),
        "cores": (task.limits.cpu, None),
        "parallel": (task.max_parallel, None),
        "priority": (task.priority, 0),
        "start": (task.timeouts.start, usual.timeouts.start),
        "wall": (task.timeouts.wall, None),
        "idle": (task.timeouts.idle, None),
        "cpu": (task.timeouts.cpu, None),
        "grace": (task.timeouts.grace, usual.timeouts.grace),
        "retry": (task.retry.attempts, usual.retry.attempts),
        "delay": (task.retry.delay, usual.retry.delay),
        "cap": (task.retry.max_delay, usual.retry.max_delay),
        "jitter": (task.retry.jitter, usual.retry.jitter),
    }
    words = ["task", task.id]
    for kind, is_stream in (("needs", False), ("reads", True)):
        if sources := [e.source for e in spec.edges if e.to == task.id and e.stream is is_stream]:
            words.append(f"{kind}={','.join(sources)}")
    words += [f"{name}={value:g}" for name, (value, normal) in told.items() if value != normal]
    if task.retry.on != usual.retry.on:
        words.append(f"on={','.join(task.retry.on)}")
    if task.bulkhead is not None:
        words.append(f"bulkhead={task.bulkhead.key}:{task.bulkhead.max_parallel}")
    if task.rate is not None:
        key = "" if task.rate.key is None else f"{task.rate.key}:"
        words.append(f"rate={key}{task.rate.limit}/{task.rate.period:g}s")
    if (breaker := task.breaker) is not None:
        policy = [breaker.key, f"{breaker.failures}", f"{breaker.open_for:g}", breaker.on_open]
        policy += [] if breaker.wait is None else [f"{breaker.wait:g}"]
        words.append(f"breaker={':'.join(policy)}")
    if task.rules:
        words.append(f"rules={';'.join(map(_rule, task.rules))}")
    if task.fallbacks:
        words.append(f"fallbacks={','.join(task.fallbacks)}")
    flags = {"validate": task.validate, "recover": task.recover, "always": task.always or None}
    return " ".join([*words, *(name for name, value in flags.items() if value is not None)])


def _rule(rule: Rule) -> str:
    return ":".join([",".join(rule.on), rule.do, *_what(rule)])


def _what(wish: Rule | RecoveryAction) -> list[str]:
    if wish.to is not None:
        return [wish.to]
    if wish.after is not None:
        return [f"{wish.after:g}"]
    return [_value(wish.output)] if wish.do == "skip" else []


def _value(value: Raw) -> str:
    return msgspec.json.encode(msgspec.msgpack.decode(value)).decode()


def tell(move: Move) -> str:
    match move:
        case Tick():
            return "tick"
        case Drain():
            return "drain"
        case Slots():
            return f"slots {move.most}"
        case Submit():
            return f"submit {move.run}"
        case Crash(keep=keep):
            return " ".join(["crash", *(f"{run}={count}" for run, count in keep.items())])
        case Hears():
            return "hears"
        case WallJumps():
            return f"wall {move.by:g}"
        case Says(key=key, happening=Forced(open_for=open_for)):
            return f"open {key} {open_for:g}"
        case Says():
            return f"reset {move.key}"
        case TakeUp():
            return f"take {move.run}"
        case ForkOf():
            return f"fork {move.run} {move.copy} {move.checkpoint}"
        case Unwritable():
            return f"unwritable {move.run} {move.keep}"
        case Offline(wish=wish):
            verb, run, *words = tell(wish).split()
            return " ".join(["offline", run, verb, *words])
        case Rollback() | GoBack():
            verb = "rollback" if isinstance(move, Rollback) else "back"
            to = f"before {move.before}" if move.checkpoint is None else move.checkpoint
            return f"{verb} {move.run} {to}"
        case CancelRun():
            return f"cancel {move.run} {move.reason}"
        case FailRun():
            return f"fail {move.run} {move.error.message}"
        case PauseRun():
            return f"pause {move.run}{' drain' * move.drain}"
        case ResumeRun():
            return f"resume {move.run}"
        case CheckpointRun():
            return f"checkpoint {move.run}"
        case Fetched():
            return f"fetched {move.run}"
        case Started() | Active() | Told() | Saved() | Used() | Waits() | Ended() | Answered():
            verb, said = _said(move)
            return f"{verb} {move.run}/{move.task}#{move.attempt} {said}".rstrip()
    raise ValueError(f"{move}: there is no line for it")


def _said(
    said: Started | Active | Told | Saved | Used | Waits | Ended | Answered,
) -> tuple[str, str]:
    match said:
        case Saved():
            return "saved", _value(said.state)
        case Used():
            return "used", f"cpu={said.cpu:g}"
        case Waits():
            return "waits" if said.is_waiting else "flows", ""
        case Ended():
            if said.output is not None:
                return "ended", f"output={_value(said.output)}"
            assert said.error is not None
            return "ended", f"error={_error(said.error)}"
        case Answered():
            return "answered", _answer(said.answer)
    return type(said).__name__.lower(), ""


def _error(error: TaskError) -> str:
    after = "" if error.retry_after is None else f"after={error.retry_after:g} "
    return f"{error.kind} {after}{error.message}"


def _answer(answer: ValidationResult | RecoveryAction | TaskError | None) -> str:
    match answer:
        case None:
            return "nothing"
        case ValidationResult():
            return "ok" if answer.ok else " ".join(["bad", *answer.reasons])
        case TaskError():
            return f"error {_error(answer)}"
    return " ".join([answer.do, *_what(answer)])
