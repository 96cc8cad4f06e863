"""Deciding what runs, what is killed, and what is recorded.

`step(now, input)` returns what is to be done, in order; `deadline()` says when to call
`step(now, Tick())` if nothing else happens. One step is: the input, then every clock that has run
out (in that order: a late engine never fails a task that has answered), then admission.

Per run there are two halves. `RunState` is durable and changes only by the records emitted here.
`Run` (`run.py`) is volatile: attempts that live, tasks in line, clocks. An attempt is known by run,
task and number; what is said of one that is over is ignored, what is said of one that never was is
a bug.

A run can be taken over (`Adopt`) at any point of its journal, between any two records of one step:
`_catch_up` draws every consequence that is not recorded yet, and does nothing where all are.

To go back is to kill first. A rollback waits until the attempts it undoes are dead, each of them
recorded as restarted, and is recorded then; what a task begins again for, after the producer of
its stream has failed, takes the same road. Nothing is started for them meanwhile.

The reader of a stream may finish before who speaks on it. Its result is provisional then: not
recorded until every such task has completed, and dropped if one of them begins again.

No step walks over all tasks. What starts when, of all that is ready, is in `admission.py`. Clocks
stand in a queue by time; an attempt has one entry, and activity only
writes down the time: the idle clock moves when its old time comes. Only submitting and stopping a
run are linear in its tasks, and a failure in the dependants it takes along; each happens once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from msgspec import Raw, structs

from ...protocol.answers import Action, RecoveryAction, ValidationResult
from ...protocol.errors import LocalViolation, UsageError
from ...protocol.events import (
    CheckpointCreated,
    ErrorKind,
    EventData,
    RunCancelled,
    RunCompleted,
    RunFailed,
    RunForked,
    RunPaused,
    RunRecovered,
    RunResumed,
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
from ...protocol.pipeline import Breaker, OnOpen
from .admission import Admission, Grant, Line, check
from .attempt import Attempt, Check, Clock, Phase
from .breaker import Probe, Row
from .breakers import Breakers, KeyClock, news
from .commands import CancelAttempt, Command, Fetch, Freeze, Kill, Record, Spawn, Thaw
from .events import (
    Active,
    Adopt,
    Answered,
    BreakerMoved,
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
    Slots,
    Started,
    Submit,
    Tick,
    Told,
    Used,
    Waits,
)
from .gates import Gate
from .look import Look
from .priority import PriorityQueue
from .recovering import (
    by_rule,
    invalid_output,
    not_validated,
    noted,
    refused,
    unanswered,
    used_up,
    with_failure,
)
from .retry import BLAMELESS, BLAMELESS_RETRIES, FINAL, backoff_delay, retry_delay
from .run import Alarm, Backoff, Deadline, Every, Patience, Rolling, Run
from .state import OVER, RunStanding, RunState
from .task import Standing

__all__ = ["Scheduler"]


def _reads_anew(source: str) -> str:
    return f"{source}, whose stream it reads, begins again"


def _stopped(cause: TaskError) -> TaskError:
    """What the tasks of a run that is being ended are told."""
    timed_out = cause.kind is ErrorKind.TIMEOUT_RUN
    kind = ErrorKind.TIMEOUT_RUN if timed_out else ErrorKind.CANCELLED
    return TaskError(kind=kind, message=cause.message)


class Scheduler:
    def __init__(self, max_parallel: int, memory_budget: int, cpu_budget: float = math.inf) -> None:
        self._runs: dict[str, Run] = {}
        self._clocks: PriorityQueue[float, Clock] = PriorityQueue()
        self._admission = Admission(
            max_parallel, memory_budget, cpu_budget, self._clocks, self._lets
        )
        self._breakers = Breakers(self._clocks, self._may_start, self._is_current, self._is_moving)
        self._commands: list[Command] = []
        self._is_draining = False
        # Any: each function takes the one type it is listed under.
        self._take: dict[type[Input], Callable[[float, Any], None]] = {
            Submit: self._submit,
            Adopt: self._adopt,
            Started: self._started,
            Saved: self._saved,
            Waits: self._waits,
            Used: self._used,
            Told: self._told,
            Ended: self._ended,
            Answered: self._answered,
            CancelRun: self._cancel,
            FailRun: self._fail_run,
            PauseRun: self._pause,
            ResumeRun: self._resume,
            CheckpointRun: self._checkpoint_run,
            Rollback: self._rollback,
            Drain: self._drain,
            Slots: lambda now, slots: self._admission.resize(slots.most),
            Fetched: self._fetched,
            BreakerMoved: self._breaker_moved,
            Tick: lambda now, tick: None,
        }

    def step(self, now: float, input: Input) -> list[Command]:
        """What follows from `input` at `now` (monotonic seconds). `UsageError` refuses what a
        person wishes (`Submit` and the like), `LocalViolation` an input that cannot be; either way
        nothing has changed."""
        commands: list[Command] = []
        self._commands = commands
        if type(input) is Active:  # once per batch of a task's items: the step that must cost least
            run = self._runs.get(input.run)
            attempt = run.live.get(input.task) if run is not None else None
            if attempt is not None and attempt.number == input.attempt:
                attempt.active = now
        else:
            self._take[type(input)](now, input)
        if self._expire(now) or type(input) is not Active:
            self._breakers.tidy()
            self._admit(now)
            commands += self._breakers.words()
        return commands

    def deadline(self) -> float:
        """When to step with a `Tick` at the latest; infinity if nothing is under way. Never late,
        and at most once per idle limit too early."""
        first = self._clocks.first()
        return math.inf if first is None else first[0]

    def output(self, run: str, task: str) -> Raw:
        """What a completed task gave: there for as long as a dependant may be spawned, and for
        sinks until the run ends."""
        value = self.state(run).tasks[task].output
        if value is None:
            raise LocalViolation(f"task {run}/{task}: its output is not there, or no longer needed")
        return value

    def knows(self, run: str) -> bool:
        """Whether a run is under way."""
        return run in self._runs

    def state(self, run: str) -> RunState:
        """The durable state of a run that has not ended: to be read, not changed."""
        try:
            return self._runs[run].state
        except KeyError:
            raise LocalViolation(f"run {run}: not one that is under way") from None

    @property
    def free_memory(self) -> int:
        """Of the budget, what the limits of all that lives leave."""
        return self._admission.memory_budget - self._admission.memory

    def look(self, run: str, task: str) -> Look | None:
        """What there is to say of a task beyond its journal; None: its run is not under way."""
        found = self._runs.get(run)
        if found is None or task not in found.state.tasks:
            return None
        state, rolling = found.state, found.rolling
        dying = () if rolling is None else tuple(sorted(found.live.keys() & rolling.touched))
        sources = state.graph.streams[task]
        speakers = sources if task in found.provisional else ()
        doomed = {name for name, attempt in found.live.items() if attempt.is_doomed}
        admission = self._admission
        return Look(
            memory=state.specs[task].limits.memory,
            live=tuple(sorted(found.live)),
            attempt=found.live.get(task),
            check=found.checks.get(task),
            stop=found.stop,
            dying=dying,
            speakers=tuple(
                each for each in speakers if state.tasks[each].standing is not Standing.COMPLETED
            ),
            restarting=tuple(each for each in sources if each in doomed),
            kept_by=found.held[task].breaker.key if task in found.held else None,
            is_fetching=found.is_fetching,
            is_draining=self._is_draining,
            in_line=admission.before(found.line, task),
            held=admission.held(found.line, task),
            most=state.spec.max_parallel,
            all_live=admission.live,
            all_most=admission.slots,
            all_memory=admission.memory,
            memory_budget=admission.memory_budget,
            all_cpu=admission.cpu / 1000,
            cpu_budget=admission.cpu_budget / 1000,
            cpu=state.specs[task].limits.cpu or 0.0,
        )

    # Inputs.

    def _submit(self, now: float, submit: Submit) -> None:
        spec = submit.spec
        if submit.run in self._runs:
            raise LocalViolation(f"run {submit.run}: submitted twice")
        check(spec)
        run = self._run(now, RunState(submit.run, spec))
        self._record(
            run,
            None,
            None,
            RunStarted(
                pipeline=spec.name, input=submit.input, seed=submit.seed, spec=submit.spec_bytes
            ),
        )
        self._catch_up(now, run)

    def _adopt(self, now: float, adopt: Adopt) -> None:
        if adopt.run in self._runs:
            raise LocalViolation(f"run {adopt.run}: adopted, and is under way here")
        run = self._run(now, adopt.state)
        run.is_held = adopt.held
        state = run.state
        if adopt.fork is not None:
            source, checkpoint = adopt.fork
            undone = state.all_but(state.held_by(checkpoint))
            self._restart_lost(run, f"it ran when {source} was forked")
            data = RunForked(
                source=source,
                checkpoint=checkpoint,
                undone=undone,
                generation=state.generation + 1,
                changed=adopt.changed,
            )
            self._record(run, None, None, data)
        elif state.has_ended or run.is_held:
            return  # a rollback follows, or whatever it is held for
        else:
            lost = [t for t, s in state.tasks.items() if s.standing is Standing.RUNNING]
            self._record(run, None, None, RunRecovered(lost=tuple(sorted(lost))))
            self._restart_lost(run, "its supervisor died")
        if run.is_held:
            return
        if state.standing is RunStanding.PAUSED:
            run.stopped = now
        self._catch_up(now, run)

    def _run(self, now: float, state: RunState) -> Run:
        line = self._admission.line(now, state.run, state.spec, state.graph, state.specs)
        run = self._runs[state.run] = Run(state, line)
        return run

    def _restart_lost(self, run: Run, reason: str) -> None:
        """Attempts that the journal tells of and that nobody has."""
        for name in run.state.graph.order:
            task = run.state.tasks[name]
            if task.standing in (Standing.READY, Standing.RUNNING) and name not in run.live:
                self._record(run, name, task.attempt, TaskRestarted(reason=reason))

    def _catch_up(self, now: float, run: Run) -> None:
        """Everything that follows from the state of a run and is not recorded yet: of a new one, of
        one taken over, of one rolled back."""
        state, spec = run.state, run.state.spec
        for key, row in self._breakers.enter(state.run, spec.tasks):
            self._tell_of_breaker(run, key, row, None)
        if spec.timeout is not None and run.deadline is None:
            run.deadline = Deadline(run, now + spec.timeout)
            self._arm(now, run, run.deadline)
        if spec.checkpoints.every is not None and run.every is None:
            run.every = Every(run, now + spec.checkpoints.every)
            self._arm(now, run, run.every)
        if not state.checkpoints:
            self._checkpoint(run)
        if any(self._wants_checkpoint(run, task) for task in state.fresh):
            self._checkpoint(run)
        for task in state.graph.order:
            if state.tasks[task].standing is Standing.BACKOFF and task not in run.backoffs:
                if (source := state.silent_source(task)) is not None:
                    self._record(run, task, None, TaskRestarted(reason=_reads_anew(source)))
                else:
                    self._back_off(now, run, task, state.tasks[task].delay)
        for task in state.graph.order:
            standing = state.tasks[task].standing
            if standing is Standing.FAILED and task in state.failures:
                self._fail_dependants(now, run, task, state.failures[task].error)
            elif (why := self._admission.refusal(state.specs[task])) is not None:
                self._refuse(now, run, task, why)
        if state.cancelled is not None:
            self._stop(now, run, state.cancelled)
        elif state.failures and spec.fail_fast:
            self._stop_fast(now, run, next(iter(state.failures)))
        self._return(now, run)
        missing = tuple(state.missing_outputs())
        if missing:
            run.is_fetching = True
            self._commands.append(Fetch(state.run, missing))
        for task in state.graph.order:
            self._make_ready_if_due(run, task)
        self._settle(now, run)

    def _refuse(self, now: float, run: Run, task: str, why: str) -> None:
        """A task that the whole budget could not hold. Told at once rather than when its turn
        comes: not run alone, for then the host is in danger, and not left to wait for ever."""
        state, number = run.state.tasks[task], None
        if state.standing is Standing.READY:  # an `always` task whose upstream was refused before
            self._withdraw(run, task)
            number = state.attempt
        elif state.standing is not Standing.WAITING:
            return  # it has ended
        self._fail(now, run, task, number, TaskError(kind=ErrorKind.SETUP, message=why))

    def _started(self, now: float, started: Started) -> None:
        attempt = self._find(started)
        if attempt is None:
            return
        attempt.move(Started)
        if attempt.phase is Phase.RUNNING:
            run = self._runs[started.run]
            attempt.start(run.stopped if run.frozen and run.stopped is not None else now)
            self._reset(attempt)
            if attempt.check is not None:
                return
            data = TaskStarted(pid=started.pid, walls=started.walls)
            self._record(run, started.task, started.attempt, data)
            for reader in run.state.graph.readers[started.task]:
                self._make_ready_if_due(run, reader)
            self._queue(run)

    def _saved(self, now: float, saved: Saved) -> None:
        attempt = self._find(saved)
        if attempt is None or attempt.started is None:
            return
        if attempt.restart is not None:
            return  # the next attempt begins with what there was before this one's input changed
        attempt.active = now
        run = self._runs[saved.run]
        self._record(run, saved.task, saved.attempt, TaskSaved(state=saved.state))

    def _waits(self, now: float, waits: Waits) -> None:
        attempt = self._find(waits)
        if attempt is not None and attempt.is_waiting is not waits.is_waiting:
            attempt.is_waiting = waits.is_waiting
            attempt.active = now
            if attempt.phase is Phase.RUNNING:
                self._reset(attempt)

    def _used(self, now: float, used: Used) -> None:
        attempt = self._find(used)
        if attempt is None or attempt.phase is not Phase.RUNNING:
            return
        limit = attempt.spec.timeouts.cpu
        if limit is not None and used.cpu >= limit:
            message = f"used {used.cpu:g} s of cpu, and timeouts.cpu is {limit:g} s"
            self._doom(now, attempt, ErrorKind.TIMEOUT_CPU, message)

    def _told(self, now: float, told: Told) -> None:
        attempt = self._find(told)
        if attempt is None:
            return
        is_killed = attempt.phase is Phase.KILLING
        attempt.move(Told)
        if not is_killed:
            attempt.told = now
            self._kill(attempt)

    def _ended(self, now: float, ended: Ended) -> None:
        attempt = self._find(ended)
        if attempt is None:
            return
        name = f"task {ended.run}/{ended.task} (attempt {ended.attempt})"
        if (ended.output is None) == (ended.error is None):
            raise LocalViolation(f"{name}: Ended needs either an output or an error")
        if attempt.check is not None:
            raise LocalViolation(f"{name}: Ended while a check of it lives")
        if ended.output is not None and attempt.started is None and attempt.reason is None:
            raise LocalViolation(f"{name}: Ended with an output while {attempt.phase.name}")
        run = self._bury(attempt)
        error = attempt.verdict(ended.error)
        if self._overruled(now, run, attempt, error):
            pass
        elif error is not None:
            self._attempt_failed(now, run, ended.task, ended.attempt, error)
        else:
            assert ended.output is not None  # checked above
            data = TaskCompleted(
                output=ended.output, seconds=attempt.seconds(now), layer=ended.layer
            )
            if not run.state.specs[ended.task].is_validated:
                self._accept(run, ended.task, data)
            elif run.goes_on(ended.task):
                self._check(run, ended.task, Check(ended.attempt, completion=data))
            else:  # it was too late to be looked at
                assert run.stop is not None
                cancelled = TaskCancelled(error=_stopped(run.stop))
                self._record(run, ended.task, ended.attempt, cancelled)
        self._after_end(now, run)

    def _answered(self, now: float, answered: Answered) -> None:
        attempt = self._find(answered)
        if attempt is None:
            return
        check, answer = attempt.check, answered.answer
        if check is None:
            name = f"task {answered.run}/{answered.task} (attempt {answered.attempt})"
            raise LocalViolation(f"{name}: Answered by the attempt itself")
        run = self._bury(attempt)
        error = attempt.verdict(answer if isinstance(answer, TaskError) else None)
        if self._overruled(now, run, attempt, error):
            pass
        elif check.error is not None:
            failure = check.error
            if error is not None:
                failure = unanswered(failure, error)
            wish = answer if error is None and isinstance(answer, RecoveryAction) else None
            self._recover(now, run, answered.task, answered.attempt, failure, wish)
        elif error is not None:
            failure = error if error.kind in BLAMELESS else not_validated(error)
            self._attempt_failed(now, run, answered.task, answered.attempt, failure)
        elif isinstance(answer, ValidationResult) and answer.ok:
            assert check.completion is not None
            self._accept(run, answered.task, check.completion)
        else:
            reasons = tuple(answer.reasons) if isinstance(answer, ValidationResult) else ()
            failure = invalid_output(reasons)
            self._attempt_failed(now, run, answered.task, answered.attempt, failure)
        self._after_end(now, run)

    def _check(self, run: Run, task: str, check: Check) -> None:
        run.checks[task] = check
        self._admission.enter(run.line, task, is_check=True)

    def _bury(self, attempt: Attempt) -> Run:
        """Nothing of it is alive any more."""
        attempt.move(Ended)
        run = self._runs[attempt.run]
        del run.live[attempt.spec.id]
        self._admission.leave(attempt.grant)
        self._clocks.discard(attempt)
        return run

    def _overruled(self, now: float, run: Run, attempt: Attempt, error: TaskError | None) -> bool:
        """Whether something else than what it came to decides what becomes of it, and has."""
        task, number = attempt.spec.id, attempt.number
        lost = self._lost_upstream(run, task)
        is_held_back = attempt.reason is ErrorKind.BREAKER_OPEN
        is_gone = error is None or attempt.restart is not None or is_held_back
        if lost is not None and run.stop is None and is_gone:
            self._fail(now, run, task, number, with_failure(lost, attempt.failure))
        elif attempt.restart is not None and run.goes_on(task):
            self._restart(now, run, task, number, attempt.restart)
        elif error is not None and attempt.reason in (ErrorKind.CANCELLED, ErrorKind.TIMEOUT_RUN):
            cancelled = TaskCancelled(error=with_failure(error, attempt.failure))
            self._record(run, task, number, cancelled)
        elif error is not None and attempt.reason is ErrorKind.UPSTREAM_FAILED:
            self._fail(now, run, task, number, with_failure(error, attempt.failure))
        elif error is not None and is_held_back:
            if run.goes_on(task):
                self._try_again(now, run, task, number, error, 0.0, held_back=True)
            else:
                assert run.stop is not None
                self._record(run, task, number, TaskCancelled(error=_stopped(run.stop)))
        else:
            return False
        return True

    def _accept(self, run: Run, task: str, data: TaskCompleted) -> None:
        if (breaker := run.state.specs[task].breaker) is not None:
            self._breakers.succeeded(breaker, self._attempt_of(run, task))
        run.provisional[task] = data
        self._complete_if_final(run, task)

    def _after_end(self, now: float, run: Run) -> None:
        if run.rolling is not None and run.live.keys().isdisjoint(run.rolling.touched):
            self._finish_rollback(now, run, run.rolling)
        if run.stop is not None and not run.live:
            # Results that were told in time, of readers whose speaker was not: nobody will confirm
            # them any more.
            for name in sorted(run.provisional, key=run.state.graph.position.__getitem__):
                number = run.state.tasks[name].attempt
                self._record(run, name, number, TaskCancelled(error=_stopped(run.stop)))
            run.provisional.clear()
        self._settle(now, run)

    def _cancel(self, now: float, cancel: CancelRun) -> None:
        run = self._runs.get(cancel.run)
        if run is not None:
            # Who says it again does not want to wait for what cleans up.
            run.is_abandoned = cancel.at_once or run.is_cancelled
            run.is_cancelled = True
            self._stop(now, run, TaskError(kind=ErrorKind.CANCELLED, message=cancel.reason))
            self._settle(now, run)

    def _fail_run(self, now: float, fail: FailRun) -> None:
        run = self._runs.get(fail.run)
        if run is not None:
            if run.is_fetching:  # it may be just this that cannot be had: nobody will answer
                run.is_fetching = False
                run.is_abandoned = True  # nor could what cleans up be given its input
            self._stop(now, run, fail.error)
            self._settle(now, run)

    def _find(
        self, said: Started | Saved | Waits | Used | Told | Ended | Answered
    ) -> Attempt | None:
        """The attempt that something is said of; None: it is over."""
        run = self._runs.get(said.run)
        if run is None:
            return None
        attempt = run.live.get(said.task)
        if attempt is not None and attempt.number == said.attempt:
            return attempt
        task = run.state.tasks.get(said.task)
        if (
            task is None
            or said.attempt > task.attempt
            or (
                said.attempt == task.attempt
                and task.standing is Standing.READY
                and said.task not in run.checks
                and said.task not in run.provisional
            )
        ):
            raise LocalViolation(
                f"task {said.run}/{said.task} (attempt {said.attempt}): "
                f"{type(said).__name__} of an attempt that was never spawned"
            )
        return None

    # Clocks.

    def _expire(self, now: float) -> bool:
        """Everything whose time has come. True if something was."""
        is_any = False
        while (first := self._clocks.first()) is not None and first[0] <= now:
            clock = first[1]
            if (due := clock.due()) > now:
                self._clocks.put(due, clock)
                continue
            is_any = True
            if isinstance(clock, Attempt):
                if clock.phase is Phase.ASKED:
                    clock.move(Kill)
                    self._kill(clock)
                else:
                    self._doom(now, clock, *clock.overrun(now))
            elif isinstance(clock, Backoff):
                self._clocks.discard(clock)
                del clock.run.backoffs[clock.task]
                self._make_ready(clock.run, clock.task)
                self._settle(now, clock.run)
            elif isinstance(clock, Patience):
                self._lose_patience(now, clock)
            elif isinstance(clock, KeyClock):
                self._breakers.expired(now, clock)
            elif isinstance(clock, Deadline):
                self._clocks.discard(clock)
                limit = clock.run.state.spec.timeout
                message = f"the run took longer than {limit:g} s (its timeout)"
                self._stop(now, clock.run, TaskError(kind=ErrorKind.TIMEOUT_RUN, message=message))
                self._settle(now, clock.run)
            elif isinstance(clock, Every):
                if clock.run.state.fresh:
                    self._checkpoint(clock.run)
                clock.until = now + (clock.run.state.spec.checkpoints.every or math.inf)
                self._clocks.put(clock.until, clock)
            elif isinstance(clock, Gate):
                self._admission.opened(clock)
        return is_any

    def _arm(self, now: float, run: Run, alarm: Alarm) -> None:
        """Its time is counted from now on, or from when the run's clocks go again."""
        if run.stopped is None:
            self._clocks.put(alarm.until, alarm)
        else:
            alarm.until -= now - run.stopped

    def _reset(self, attempt: Attempt) -> None:
        due = attempt.due()
        if due == math.inf or self._runs[attempt.run].frozen:
            self._clocks.discard(attempt)
        else:
            self._clocks.put(due, attempt)

    # Attempts.

    def _admit(self, now: float) -> None:
        while (grant := self._admission.next(now)) is not None:
            self._spawn(now, self._runs[grant.line.run], grant)

    def _spawn(self, now: float, run: Run, grant: Grant) -> None:
        state, spec = run.state, run.state.specs[grant.task]
        check = run.checks.pop(spec.id, None)
        number = state.tasks[spec.id].attempt
        attempt = Attempt(state.run, spec, number, now, grant, check)
        run.live[spec.id] = attempt
        self._reset(attempt)
        if check is not None:
            value = check.error if check.completion is None else check.completion.output
            self._commands.append(
                Spawn(state.run, spec.id, attempt.number, (), part=check.part, value=value)
            )
            return
        speakers = ((each, state.tasks[each]) for each in state.graph.streams[spec.id])
        streams = tuple((each, speaker.done or speaker.attempt) for each, speaker in speakers)
        upstream = state.graph.inputs[spec.id]
        if spec.always:
            upstream = tuple(t for t in upstream if state.tasks[t].standing is Standing.COMPLETED)
        self._commands.append(Spawn(state.run, spec.id, attempt.number, upstream, streams))

    def _doom(self, now: float, attempt: Attempt, reason: ErrorKind, message: str) -> None:
        """End an attempt, politely where it has a grace period and someone to ask."""
        if attempt.phase not in (Phase.SPAWNING, Phase.RUNNING):
            return  # the first cause wins
        attempt.reason = reason
        attempt.message = message
        has_grace = attempt.spec.timeouts.grace > 0 and not self._runs[attempt.run].frozen
        if attempt.phase is Phase.RUNNING and has_grace:
            attempt.move(CancelAttempt)
            attempt.asked = now
            self._reset(attempt)
            self._commands.append(
                CancelAttempt(attempt.run, attempt.spec.id, attempt.number, reason)
            )
        else:
            attempt.move(Kill)
            self._kill(attempt)

    def _kill(self, attempt: Attempt) -> None:
        self._clocks.discard(attempt)
        self._commands.append(Kill(attempt.run, attempt.spec.id, attempt.number, attempt.reason))

    def _begin_again(self, attempt: Attempt, reason: str) -> None:
        """End an attempt whose task is done anew, whatever it says from now on."""
        if attempt.restart is not None:
            return
        attempt.restart = reason
        if attempt.phase is not Phase.KILLING:
            attempt.reason = attempt.reason or ErrorKind.CANCELLED
            attempt.message = attempt.message or reason
            attempt.move(Kill)
            self._kill(attempt)

    # Tasks.

    def _make_ready(self, run: Run, task: str) -> None:
        self._record(run, task, run.state.tasks[task].attempt + 1, TaskReady())
        self._admission.enter(run.line, task)

    def _make_ready_if_due(self, run: Run, task: str) -> None:
        if not run.goes_on(task) or not run.state.is_due(task):
            return
        if run.rolling is not None and task in run.rolling.touched:
            return
        for source in run.state.graph.streams[task]:
            speaker, check = run.live.get(source), run.checks.get(source)
            if speaker is not None and speaker.is_doomed:
                return  # there will be another
            if check is not None and check.error is not None:
                return
        self._make_ready(run, task)

    def _complete_if_final(self, run: Run, task: str) -> None:
        """Record what an attempt gave, once nobody it read a stream of can begin again."""
        state, pending = run.state, [task]
        for name in pending:  # grows while it is walked
            sources = state.graph.streams[name]
            if name not in run.provisional or any(
                state.tasks[source].standing is not Standing.COMPLETED for source in sources
            ):
                continue
            data = run.provisional.pop(name)
            self._completed(run, name, state.tasks[name].attempt, data)
            pending += state.graph.readers[name]

    def _completed(
        self, run: Run, task: str, attempt: int, data: TaskCompleted | TaskSkipped
    ) -> None:
        self._record(run, task, attempt, data)
        if self._wants_checkpoint(run, task):
            self._checkpoint(run)
        for dependant in run.state.graph.dependants[task]:
            self._make_ready_if_due(run, dependant)

    def _restart(self, now: float, run: Run, task: str, attempt: int | None, reason: str) -> None:
        """A task whose attempt is over begins again, and so do the readers of its stream."""
        self._record(run, task, attempt, TaskRestarted(reason=reason))
        self._restart_readers(now, run, task)
        self._make_ready_if_due(run, task)

    def _lost_upstream(self, run: Run, task: str) -> TaskError | None:
        """Why a task that reads streams cannot go on, where one of those who speak has failed."""
        for source in run.state.graph.streams[task]:
            if run.state.tasks[source].standing is Standing.FAILED:
                failure = run.state.failures.get(source)
                why = f"failed: {failure.error.kind}" if failure is not None else "cannot run"
                return TaskError(kind=ErrorKind.UPSTREAM_FAILED, message=f"upstream {source} {why}")
        return None

    def _restart_readers(self, now: float, run: Run, task: str) -> None:
        """What read from an attempt that did not complete has to read it all anew."""
        for reader in run.state.graph.readers[task]:
            state = run.state.tasks[reader]
            reason = _reads_anew(task)
            if (attempt := run.live.get(reader)) is not None:
                self._begin_again(attempt, reason)
                self._restart_readers(now, run, reader)
            elif state.standing in (Standing.READY, Standing.RUNNING):
                self._withdraw(run, reader)
                self._restart(now, run, reader, state.attempt, reason)
            elif state.standing is Standing.BACKOFF:
                self._clocks.discard(run.backoffs.pop(reader))
                self._restart(now, run, reader, None, reason)

    def _withdraw(self, run: Run, task: str) -> None:
        """Take a task that has no live attempt out of every line."""
        run.provisional.pop(task, None)
        run.checks.pop(task, None)
        self._unhold(run, task)
        self._admission.withdraw(run.line, task)

    def _attempt_failed(
        self, now: float, run: Run, task: str, attempt: int, error: TaskError
    ) -> None:
        """Its `recover` is asked first; where it has no answer, the retry policy."""
        spec, state = run.state.specs[task], run.state.tasks[task]
        if spec.breaker is not None:
            self._breakers.failed(spec.breaker, self._attempt_of(run, task), error.kind)
        if error.kind in FINAL or not run.goes_on(task) or self._lost_upstream(run, task):
            self._fail(now, run, task, attempt, error)
        elif error.kind in BLAMELESS and state.blameless < BLAMELESS_RETRIES:
            self._retry_or_fail(now, run, task, attempt, error)
        elif spec.recover is not None:
            self._check(run, task, Check(attempt, error=error))
        else:
            wish = by_rule(spec.rules, error.kind, state.tried)
            self._recover(now, run, task, attempt, error, wish)

    def _recover(
        self,
        now: float,
        run: Run,
        task: str,
        attempt: int,
        error: TaskError,
        wish: RecoveryAction | None,
    ) -> None:
        """Do about an error what is wished, where that can be; without a wish the retry policy
        decides."""
        if not run.goes_on(task) or self._lost_upstream(run, task):
            self._fail(now, run, task, attempt, error)  # it was too late for an answer
            return
        problem = None if wish is None else refused(run.state, task, wish)
        if problem is not None:
            error, wish = noted(error, f"recover gave no answer that can be: {problem}"), None
        if wish is None:
            self._retry_or_fail(now, run, task, attempt, error)
            return
        state, spec = run.state.tasks[task], run.state.specs[task]
        spent = used_up(run.state, wish.do)
        if spent is not None:
            self._fail(now, run, task, attempt, noted(error, f"recover: {spent}"))
        elif wish.do is Action.RETRY:
            delay = wish.after
            if delay is None:
                delay = backoff_delay(
                    spec.retry,
                    failures=state.failures,
                    seed=run.state.seed,
                    task=task,
                    attempt=attempt,
                )
            self._try_again(now, run, task, attempt, error, delay)
        elif wish.do is Action.SKIP:
            run.provisional[task] = TaskSkipped(error=error, output=wish.output)
            self._complete_if_final(run, task)
        elif wish.do is Action.FAIL:
            self._fail(now, run, task, attempt, error)
        else:
            assert wish.to is not None  # of a fallback, of a rollback
            data = TaskRecovered(error=error, action=wish.do, to=wish.to)
            self._record(run, task, attempt, data)
            self._restart_readers(now, run, task)
            self._make_ready_if_due(run, task)
            self._return(now, run)

    def _retry_or_fail(
        self, now: float, run: Run, task: str, attempt: int, error: TaskError
    ) -> None:
        state, spec = run.state.tasks[task], run.state.specs[task]
        delay = retry_delay(
            spec.retry,
            error.kind,
            failures=state.failures,
            blameless=state.blameless,
            seed=run.state.seed,
            task=task,
            attempt=attempt,
            asked=error.retry_after,
        )
        spent = None if error.kind in BLAMELESS else used_up(run.state, Action.RETRY)
        if delay is not None and spent is None:
            self._try_again(now, run, task, attempt, error, delay)
        else:
            is_spent = delay is not None and spent is not None
            self._fail(now, run, task, attempt, noted(error, f"{spent}") if is_spent else error)

    def _try_again(
        self,
        now: float,
        run: Run,
        task: str,
        attempt: int,
        error: TaskError,
        delay: float,
        held_back: bool = False,
    ) -> None:
        data = TaskRetrying(error=error, delay=delay, held_back=held_back)
        self._record(run, task, attempt, data)
        self._back_off(now, run, task, delay)
        self._restart_readers(now, run, task)

    def _back_off(self, now: float, run: Run, task: str, delay: float) -> None:
        backoff = run.backoffs[task] = Backoff(run, task, now + delay)
        self._arm(now, run, backoff)

    def _fail(self, now: float, run: Run, task: str, attempt: int | None, error: TaskError) -> None:
        """A task fails for good: so do all that needed it, and with fail_fast the run."""
        self._record(run, task, attempt, TaskFailed(error=error))
        self._fail_dependants(now, run, task, error)
        if run.state.spec.fail_fast and error.kind is not ErrorKind.UPSTREAM_FAILED:
            self._stop_fast(now, run, task)

    def _fail_dependants(self, now: float, run: Run, task: str, error: TaskError) -> None:
        """All that cannot run any more because a task has failed. What reads a stream at this
        moment is killed first, and takes its own dependants along when it is dead."""
        tasks, dependants = run.state.tasks, run.state.graph.dependants
        lost, seen = [task], {task}
        for upstream in lost:  # grows while it is walked
            for dependant in dependants[upstream]:
                standing = tasks[dependant].standing
                if dependant in seen or standing in (Standing.COMPLETED, Standing.CANCELLED):
                    continue
                if run.state.specs[dependant].always:
                    continue
                seen.add(dependant)
                if error.kind is ErrorKind.UPSTREAM_FAILED:
                    message = f"upstream {task} cannot run: {error.message}"
                elif upstream == task:
                    message = f"upstream {task} failed: {error.kind}"
                else:
                    message = f"upstream {upstream} cannot run, because {task} failed: {error.kind}"
                if (live := run.live.get(dependant)) is not None:
                    self._doom(now, live, ErrorKind.UPSTREAM_FAILED, message)
                    continue
                lost.append(dependant)
                if standing is Standing.FAILED:
                    continue
                number = None
                if standing in (Standing.READY, Standing.RUNNING):
                    self._withdraw(run, dependant)
                    number = tasks[dependant].attempt
                elif standing is Standing.BACKOFF:
                    self._clocks.discard(run.backoffs.pop(dependant))
                failure = TaskError(kind=ErrorKind.UPSTREAM_FAILED, message=message)
                self._record(run, dependant, number, TaskFailed(error=failure))

    # Runs.

    def _stop_fast(self, now: float, run: Run, task: str) -> None:
        message = f"fail_fast: task {task} failed"
        self._stop(now, run, TaskError(kind=ErrorKind.UPSTREAM_FAILED, message=message))

    def _stop(self, now: float, run: Run, cause: TaskError) -> None:
        """End a run: what lives is killed, what waits is cancelled, but for its `always` tasks
        where it is not abandoned. The run's last event comes when the last attempt has ended."""
        if run.stop is not None and not run.is_abandoned:
            return
        run.stop = run.stop or cause
        run.rolling = None
        error = _stopped(run.stop)
        for name in [name for name in run.backoffs if not run.goes_on(name)]:
            self._clocks.discard(run.backoffs.pop(name))
        order = run.state.graph.order
        unasked: dict[str, TaskError | None] = {}
        for name in [name for name in order if not run.goes_on(name)]:
            if (check := run.checks.pop(name, None)) is not None:
                unasked[name] = check.error
            self._admission.withdraw(run.line, name)
        for name in [name for name in run.held if not run.goes_on(name)]:
            self._unhold(run, name)
        run.provisional.clear()
        for name in order:
            task = run.state.tasks[name]
            if run.goes_on(name):
                continue
            if (attempt := run.live.get(name)) is not None:
                self._doom(now, attempt, error.kind, cause.message)
                if run.frozen and attempt.phase is Phase.ASKED:  # its grace would never be over
                    attempt.move(Kill)
                    self._kill(attempt)
            elif task.standing in (Standing.READY, Standing.RUNNING):
                cancelled = TaskCancelled(error=with_failure(error, unasked.get(name)))
                self._record(run, name, task.attempt, cancelled)
            elif task.standing in (Standing.WAITING, Standing.BACKOFF):
                self._record(run, name, None, TaskCancelled(error=error))
        if run.has_cleanup and run.stopped is not None:
            self._wake(now, run)  # a pause does not keep what cleans up
        if run.has_cleanup:
            for name in order:  # what a rollback that is given up kept from starting
                if run.state.specs[name].always:
                    self._make_ready_if_due(run, name)

    def _settle(self, now: float, run: Run) -> None:
        """After anything that may have ended a run or changed its place in the line."""
        state = run.state
        if self._runs.get(state.run) is not run:
            return  # it has ended in this very step
        is_closing = run.stop is None and self._breakers.is_closing(state.run)
        if state.unfinished or run.rolling is not None or run.is_fetching or is_closing:
            self._queue(run)
            return
        self._record(run, None, None, self._outcome(run))
        self._admission.forget(run.line)
        for clock in run.clocks():
            self._clocks.discard(clock)
        self._breakers.leave(state.run, state.spec.tasks)
        del self._runs[state.run]

    def _outcome(self, run: Run) -> EventData:
        state = run.state
        if state.completed == len(state.tasks) and not state.missing_outputs():
            # Even if it was to be stopped: it was too late.
            return RunCompleted(outputs=state.outputs())
        failed = tuple(sorted(state.failures))
        stop = run.stop
        if stop is not None and stop.kind is ErrorKind.CANCELLED:
            return RunCancelled(reason=stop.message)
        if stop is not None and stop.kind is not ErrorKind.UPSTREAM_FAILED:
            return RunFailed(error=stop, tasks=failed)
        first = state.first_failure
        if first is None:
            raise LocalViolation(f"run {state.run}: ended without a cause")
        where = f"task {first.task}"
        if first.attempt is not None:
            where += f" (attempt {first.attempt})"
        error = structs.replace(first.error, message=f"{where}: {first.error.message}")
        return RunFailed(error=error, tasks=failed)

    # Breakers.

    def _breaker_moved(self, now: float, moved: BreakerMoved) -> None:
        found = self._breakers.moved(now, moved)
        if found is None:
            return
        for name in found.runs:
            self._tell_of_breaker(self._runs[name], moved.key, moved.row, found.before)
        for name in found.runs if found.is_opened else ():
            run = self._runs[name]
            for task in sorted(run.live, key=run.state.graph.position.__getitem__):
                self._kill_for_breaker(now, run.live[task], moved.key, moved.row)
        for attempt in found.freed:
            run = self._runs[attempt.run]
            self._clocks.discard(run.held.pop(attempt.task))
            self._admission.enter(run.line, attempt.task)
        for name in found.runs:
            self._settle(now, self._runs[name])

    def _tell_of_breaker(self, run: Run, key: str, row: Row, before: Row | None) -> None:
        for data in news(key, row, run.state.breakers.get(key), before):
            self._record(run, None, None, data)

    def _kill_for_breaker(self, now: float, attempt: Attempt, key: str, row: Row) -> None:
        """A check asks nothing of what the breaker protects, and is let be."""
        policy = attempt.spec.breaker
        if policy is None or policy.key != key or attempt.check is not None:
            return
        is_probe = row.probe == Probe(attempt.run, attempt.spec.id, attempt.number)
        if policy.on_open is OnOpen.KILL and not is_probe:
            message = f"its breaker {key} opened; the task waits until it lets attempts through"
            self._doom(now, attempt, ErrorKind.BREAKER_OPEN, message)

    def _lets(self, now: float, line: Line, task: str) -> bool:
        """Asked when a task could start: whether its breaker lets it."""
        run = self._runs[line.run]
        breaker, attempt = run.state.specs[task].breaker, self._attempt_of(run, task)
        if breaker is None or self._breakers.lets(breaker.key, attempt):
            return True
        self._hold(now, run, breaker, attempt)
        return False

    def _hold(self, now: float, run: Run, breaker: Breaker, attempt: Probe) -> None:
        """Out of the line, so that nothing waits behind it."""
        until = math.inf if breaker.wait is None else now + breaker.wait
        patience = run.held[attempt.task] = Patience(run, attempt, breaker, until)
        if breaker.wait is not None:
            self._arm(now, run, patience)
        self._breakers.hold(now, breaker.key, attempt)

    def _unhold(self, run: Run, task: str) -> None:
        if (patience := run.held.pop(task, None)) is not None:
            self._clocks.discard(patience)
            self._breakers.unhold(patience.breaker.key, patience.attempt)

    def _lose_patience(self, now: float, patience: Patience) -> None:
        run, attempt, breaker = patience.run, patience.attempt, patience.breaker
        self._unhold(run, attempt.task)
        message = f"its breaker {breaker.key} has let no attempt through for {breaker.wait:g} s"
        error = TaskError(kind=ErrorKind.BREAKER_OPEN, message=message)
        self._attempt_failed(now, run, attempt.task, attempt.attempt, error)
        self._settle(now, run)

    def _attempt_of(self, run: Run, task: str) -> Probe:
        return Probe(run.state.run, task, run.state.tasks[task].attempt)

    def _may_start(self, attempt: Probe) -> bool:
        run = self._runs[attempt.run]
        return run.stopped is None and not run.is_fetching

    def _is_current(self, attempt: Probe) -> bool:
        run = self._runs.get(attempt.run)
        task = run.state.tasks.get(attempt.task) if run is not None else None
        is_open = task is not None and task.standing in (Standing.READY, Standing.RUNNING)
        return is_open and task is not None and task.attempt == attempt.attempt

    def _is_moving(self, attempt: Probe) -> bool:
        run = self._runs[attempt.run]
        return run.stopped is None or (attempt.task in run.live and not run.frozen)

    # Checkpoints, and the way back.

    def _wants_checkpoint(self, run: Run, task: str) -> bool:
        strategy = run.state.spec.checkpoints
        is_due = strategy.every_task or task in strategy.after
        return is_due and task not in run.state.loose

    def _checkpoint(self, run: Run) -> None:
        state = run.state
        data = CheckpointCreated(
            checkpoint=f"c{len(state.checkpoints)}",
            parent=state.head,
            tasks=tuple(state.fresh),
            total=state.completed - len(state.loose),
            files=state.files,
            bytes=state.bytes,
        )
        self._record(run, None, None, data)

    def _checkpoint_run(self, now: float, checkpoint: CheckpointRun) -> None:
        run = self._under_way(checkpoint.run)
        if run.state.fresh or run.state.head is None:
            self._checkpoint(run)

    def _rollback(self, now: float, rollback: Rollback) -> None:
        run = self._under_way(rollback.run)
        state = run.state
        if run.stop is not None:
            raise UsageError(f"run {state.run} is being ended: {run.stop.message}")
        if run.rolling is not None:
            raise UsageError(f"run {state.run} is being rolled back already")
        self._begin_rollback(now, run, rollback.checkpoint, rollback.before)

    def _return(self, now: float, run: Run) -> None:
        """Begin a rollback that a task asked for; one that is under way goes before it."""
        if run.state.returning and run.rolling is None and run.stop is None:
            self._begin_rollback(now, run, None, next(iter(run.state.returning.values())))

    def _begin_rollback(
        self, now: float, run: Run, checkpoint: str | None, before: str | None
    ) -> None:
        state = run.state
        undone = state.undone_by(checkpoint, before)
        restored = () if checkpoint is None else state.restored_by(checkpoint)
        run.rolling = Rolling(checkpoint, before, undone, restored)
        for task in (*undone, *restored):
            if (attempt := run.live.get(task)) is not None:
                self._begin_again(attempt, "rolled back")
        self._queue(run)
        if run.live.keys().isdisjoint(run.rolling.touched):
            self._finish_rollback(now, run, run.rolling)

    def _finish_rollback(self, now: float, run: Run, rolling: Rolling) -> None:
        state = run.state
        for name in state.graph.order:
            if name in rolling.touched:
                task = state.tasks[name]
                if task.standing in (Standing.READY, Standing.RUNNING):
                    self._withdraw(run, name)
                    self._record(run, name, task.attempt, TaskRestarted(reason="rolled back"))
                elif task.standing is Standing.BACKOFF and name in run.backoffs:
                    self._clocks.discard(run.backoffs.pop(name))
        data = RunRolledBack(
            checkpoint=rolling.checkpoint,
            before=rolling.before,
            undone=rolling.undone,
            restored=rolling.restored,
            generation=state.generation + 1,
        )
        self._record(run, None, None, data)
        run.rolling = None
        if not run.is_held:
            self._catch_up(now, run)

    def _fetched(self, now: float, fetched: Fetched) -> None:
        run = self._runs.get(fetched.run)
        if run is not None and run.is_fetching:
            run.state.give(fetched.outputs)
            run.is_fetching = bool(run.state.missing_outputs())  # others are under way
            self._settle(now, run)

    def _pause(self, now: float, pause: PauseRun) -> None:
        run = self._under_way(pause.run)
        if run.state.standing is RunStanding.PAUSED or run.stop is not None:
            return
        self._record(run, None, None, RunPaused(drain=pause.drain))
        run.stopped = now
        run.frozen = not pause.drain
        for alarm in run.clocks():
            self._clocks.discard(alarm)
        if run.frozen:
            for attempt in run.live.values():
                if attempt.phase is not Phase.KILLING:
                    self._clocks.discard(attempt)
                    self._commands.append(Freeze(attempt.run, attempt.spec.id, attempt.number))
        self._queue(run)

    def _resume(self, now: float, resume: ResumeRun) -> None:
        run = self._under_way(resume.run)
        if run.state.standing is not RunStanding.PAUSED:
            return
        self._record(run, None, None, RunResumed())
        self._wake(now, run)
        self._queue(run)

    def _wake(self, now: float, run: Run) -> None:
        """Its clocks go again, and what was frozen does."""
        since, was_frozen = run.stopped, run.frozen
        run.stopped, run.frozen = None, False
        if since is not None:
            for alarm in run.clocks():
                alarm.until += now - since
                self._clocks.put(alarm.until, alarm)
            for attempt in run.live.values() if was_frozen else ():
                if attempt.phase is not Phase.KILLING:
                    attempt.skip(since, now)
                    self._reset(attempt)
                    self._commands.append(Thaw(attempt.run, attempt.spec.id, attempt.number))
        self._breakers.wake(now, run.state.run)

    def _drain(self, now: float, drain: Drain) -> None:
        self._is_draining = True
        for run in self._runs.values():
            self._queue(run)

    def _under_way(self, run: str) -> Run:
        found = self._runs.get(run)
        if found is None:
            raise UsageError(f"run {run} is not under way")
        return found

    def _queue(self, run: Run) -> None:
        """After anything that may have changed whether its tasks may start."""
        is_rolling = run.rolling is not None  # until what that undoes is dead
        is_shut = run.is_fetching or run.is_held or run.frozen or is_rolling
        # of what is left, a check is a part
        is_drained = run.stopped is not None or self._is_draining
        if (is_shut, is_drained) != (run.line.is_shut, run.line.is_drained):
            self._admission.shut(run.line, is_shut, is_drained)

    def _record(self, run: Run, task: str | None, attempt: int | None, data: EventData) -> None:
        record = Record(run.state.run, task, attempt, data)
        run.state.apply(record)
        self._commands.append(record)
        if run.has_cleanup and task is not None and run.state.tasks[task].standing in OVER:
            for taker in run.state.graph.takers[task]:
                if run.state.specs[taker].always:
                    self._make_ready_if_due(run, taker)
