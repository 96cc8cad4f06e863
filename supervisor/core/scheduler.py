"""Deciding what runs, what is killed, and what is recorded.

`step(now, input)` returns what is to be done, in order; `deadline()` says when to call
`step(now, Tick())` if nothing else happens. One step is: the input, then every clock that has run
out (in that order: a late engine never fails a task that has answered), then admission.

Per run there are two halves. `RunState` is durable and changes only by the records emitted here.
`_Run` is volatile: attempts that live, tasks in line, clocks. An attempt is known by run, task and
number; what is said of one that is over is ignored, what is said of one that never was is a bug.

No step walks over all tasks. A run's ready tasks stand in a heap by topological, then id order.
Runs with something to start stand in a queue by how many attempts they have alive, then by who was
served longest ago. Clocks stand in a queue by time; an attempt has one entry, and activity only
writes down the time: the idle clock moves when its old time comes. Only submitting and stopping a
run are linear in its tasks, and a failure in the dependants it takes along; each happens once.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from typing import Any

from msgspec import Raw

from ...protocol.errors import LocalViolation, UsageError
from ...protocol.events import (
    ErrorKind,
    EventData,
    RunCancelled,
    RunCompleted,
    RunFailed,
    RunStarted,
    TaskCancelled,
    TaskCompleted,
    TaskError,
    TaskFailed,
    TaskReady,
    TaskRetrying,
    TaskStarted,
)
from ...protocol.pipeline import TaskSpec
from .attempt import Attempt, Clock, Phase
from .commands import CancelAttempt, Command, Kill, Record, Spawn
from .events import Active, CancelRun, Ended, Input, Started, Submit, Tick, Told, Used
from .priority import PriorityQueue, Queued
from .retry import retry_delay
from .state import RunState
from .task import Standing

__all__ = ["Scheduler"]

_MIB = 1024 * 1024


class _Run(Queued):
    """Queued where a run with something to start waits for its turn."""

    __slots__ = ("backoffs", "deadline", "live", "ready", "served", "state", "stop", "stop_message")

    def __init__(self, state: RunState) -> None:
        super().__init__()
        self.state = state
        self.live: dict[str, Attempt] = {}
        self.ready: list[int] = []  # a heap of positions in the graph's order
        self.backoffs: dict[str, _Backoff] = {}
        self.deadline: _Deadline | None = None
        self.served = 0  # the number of the admission that last served it
        self.stop: ErrorKind | None = None  # why it is being ended; the first cause wins
        self.stop_message = ""

    def is_held(self) -> bool:
        """Nothing to start, or as much running as the run allows itself."""
        most = self.state.spec.max_parallel
        return not self.ready or (most is not None and len(self.live) >= most)


class _Backoff(Clock):
    """A task between two attempts."""

    __slots__ = ("run", "task", "until")

    def __init__(self, run: _Run, task: str, until: float) -> None:
        super().__init__()
        self.run = run
        self.task = task
        self.until = until

    def due(self) -> float:
        return self.until


class _Deadline(Clock):
    """Of a whole run."""

    __slots__ = ("run", "until")

    def __init__(self, run: _Run, until: float) -> None:
        super().__init__()
        self.run = run
        self.until = until

    def due(self) -> float:
        return self.until


class Scheduler:
    def __init__(self, max_parallel: int, memory_budget: int) -> None:
        if max_parallel < 1:
            raise LocalViolation(f"scheduler: max_parallel is {max_parallel}, expected at least 1")
        self._max_parallel = max_parallel
        self._memory_budget = memory_budget
        self._runs: dict[str, _Run] = {}
        self._live = 0
        self._memory = 0  # the sum of limits of what lives
        self._admissions = 0
        self._turns: PriorityQueue[tuple[int, int], _Run] = PriorityQueue()
        self._clocks: PriorityQueue[float, Clock] = PriorityQueue()
        self._commands: list[Command] = []
        # Any: each function takes the one type it is listed under.
        self._take: dict[type[Input], Callable[[float, Any], None]] = {
            Submit: self._submit,
            Started: self._started,
            Used: self._used,
            Told: self._told,
            Ended: self._ended,
            CancelRun: self._cancel,
            Tick: lambda now, tick: None,
        }

    def step(self, now: float, input: Input) -> list[Command]:
        """What follows from `input` at `now` (monotonic seconds). `UsageError` refuses a `Submit`,
        `LocalViolation` an input that cannot be; either way nothing has changed."""
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
            self._admit(now)
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

    def state(self, run: str) -> RunState:
        """The durable state of a run that has not ended: to be read, not changed."""
        try:
            return self._runs[run].state
        except KeyError:
            raise LocalViolation(f"run {run}: not one that is under way") from None

    # Inputs.

    def _submit(self, now: float, submit: Submit) -> None:
        spec = submit.spec
        if submit.run in self._runs:
            raise LocalViolation(f"run {submit.run}: submitted twice")
        if spec.max_parallel is not None and spec.max_parallel < 1:
            raise UsageError(
                f"pipeline {spec.name}: max_parallel is {spec.max_parallel}, expected at least 1"
            )
        run = self._runs[submit.run] = _Run(RunState(submit.run, spec))
        self._record(
            run,
            None,
            None,
            RunStarted(
                pipeline=spec.name, input=submit.input, seed=submit.seed, spec=submit.spec_bytes
            ),
        )
        if spec.timeout is not None:
            run.deadline = _Deadline(run, now + spec.timeout)
            self._clocks.put(run.deadline.until, run.deadline)
        for task in run.state.graph.order:
            if run.state.specs[task].limits.memory > self._memory_budget:
                self._refuse(now, run, task)
        for task in run.state.graph.sources:
            if run.state.tasks[task].standing is Standing.WAITING:
                self._make_ready(run, task)
        self._settle(run)

    def _refuse(self, now: float, run: _Run, task: str) -> None:
        """A task that the whole budget could not hold. Told at once rather than when its turn
        comes: not run alone, for then the host is in danger, and not left to wait for ever."""
        if run.state.tasks[task].standing is not Standing.WAITING:
            return  # its upstream was refused before
        needed = run.state.specs[task].limits.memory / _MIB
        error = TaskError(
            kind=ErrorKind.SETUP,
            message=f"limits.memory is {needed:g} MiB, and the host's memory budget for all tasks "
            f"is {self._memory_budget / _MIB:g} MiB: lower the limit or raise the budget",
        )
        self._fail(now, run, task, None, error)

    def _started(self, now: float, started: Started) -> None:
        attempt = self._find(started)
        if attempt is None:
            return
        attempt.move(Started)
        if attempt.phase is Phase.RUNNING:
            attempt.start(now)
            self._reset(attempt)
            data = TaskStarted(pid=started.pid, walls=started.walls)
            self._record(self._runs[started.run], started.task, started.attempt, data)

    def _used(self, now: float, used: Used) -> None:
        attempt = self._find(used)
        if attempt is None or attempt.phase is not Phase.RUNNING:
            return
        limit = attempt.spec.timeouts.cpu
        if limit is not None and used.cpu >= limit:
            message = f"used {used.cpu:g} s of cpu, its limit is {limit:g} s"
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
        if ended.output is not None and attempt.started is None and attempt.reason is None:
            raise LocalViolation(f"{name}: Ended with an output while {attempt.phase.name}")
        attempt.move(Ended)
        run = self._runs[ended.run]
        del run.live[ended.task]
        self._live -= 1
        self._memory -= attempt.spec.limits.memory
        self._clocks.discard(attempt)

        error = attempt.verdict(ended.output, ended.error)
        if error is None:
            assert ended.output is not None  # checked above
            data = TaskCompleted(output=ended.output, seconds=attempt.seconds(now))
            self._record(run, ended.task, ended.attempt, data)
            self._make_dependants_ready(run, ended.task)
        elif attempt.reason in (ErrorKind.CANCELLED, ErrorKind.TIMEOUT_RUN):
            self._record(run, ended.task, ended.attempt, TaskCancelled(error=error))
        else:
            self._retry_or_fail(now, run, attempt, error)
        self._settle(run)

    def _cancel(self, now: float, cancel: CancelRun) -> None:
        run = self._runs.get(cancel.run)
        if run is not None:
            self._stop(now, run, ErrorKind.CANCELLED, cancel.reason)
            self._settle(run)

    def _find(self, said: Started | Used | Told | Ended) -> Attempt | None:
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
            or (said.attempt == task.attempt and task.standing is Standing.READY)
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
            elif isinstance(clock, _Backoff):
                self._clocks.discard(clock)
                del clock.run.backoffs[clock.task]
                self._make_ready(clock.run, clock.task)
                self._settle(clock.run)
            elif isinstance(clock, _Deadline):
                self._clocks.discard(clock)
                limit = clock.run.state.spec.timeout
                message = f"the run took longer than {limit:g} s"
                self._stop(now, clock.run, ErrorKind.TIMEOUT_RUN, message)
                self._settle(clock.run)
        return is_any

    def _reset(self, attempt: Attempt) -> None:
        due = attempt.due()
        if due == math.inf:
            self._clocks.discard(attempt)
        else:
            self._clocks.put(due, attempt)

    # Attempts.

    def _admit(self, now: float) -> None:
        """Start what may be started. A task that does not fit into what is left of the memory
        holds back all behind it: were smaller ones let past, it could wait for ever."""
        while self._live < self._max_parallel:
            turn = self._turns.first()
            if turn is None:
                return
            run = turn[1]
            task = run.state.graph.order[run.ready[0]]
            spec = run.state.specs[task]
            if self._memory + spec.limits.memory > self._memory_budget:
                return
            heapq.heappop(run.ready)
            self._spawn(now, run, spec)

    def _spawn(self, now: float, run: _Run, spec: TaskSpec) -> None:
        state = run.state
        attempt = Attempt(state.run, spec, state.tasks[spec.id].attempt, now)
        run.live[spec.id] = attempt
        self._live += 1
        self._memory += spec.limits.memory
        self._admissions += 1
        run.served = self._admissions
        self._reset(attempt)
        self._queue(run)
        upstream = state.graph.upstream[spec.id]
        self._commands.append(Spawn(state.run, spec.id, attempt.number, upstream))

    def _doom(self, now: float, attempt: Attempt, reason: ErrorKind, message: str) -> None:
        """End an attempt, politely where it has a grace period and someone to ask."""
        if attempt.phase not in (Phase.SPAWNING, Phase.RUNNING):
            return  # the first cause wins
        attempt.reason = reason
        attempt.message = message
        if attempt.phase is Phase.RUNNING and attempt.spec.timeouts.grace > 0:
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

    # Tasks.

    def _make_ready(self, run: _Run, task: str) -> None:
        self._record(run, task, run.state.tasks[task].attempt + 1, TaskReady())
        heapq.heappush(run.ready, run.state.graph.position[task])

    def _make_dependants_ready(self, run: _Run, task: str) -> None:
        for dependant in run.state.graph.dependants[task]:
            state = run.state.tasks[dependant]
            if not state.waits and state.standing is Standing.WAITING:
                self._make_ready(run, dependant)

    def _retry_or_fail(self, now: float, run: _Run, attempt: Attempt, error: TaskError) -> None:
        task = attempt.spec.id
        state = run.state.tasks[task]
        delay = None
        if run.stop is None:
            delay = retry_delay(
                attempt.spec.retry,
                error.kind,
                failures=state.failures,
                blameless=state.blameless,
                seed=run.state.seed,
                task=task,
                attempt=attempt.number,
            )
        if delay is None:
            self._fail(now, run, task, attempt.number, error)
            return
        self._record(run, task, attempt.number, TaskRetrying(error=error, delay=delay))
        backoff = run.backoffs[task] = _Backoff(run, task, now + delay)
        self._clocks.put(backoff.until, backoff)

    def _fail(
        self, now: float, run: _Run, task: str, attempt: int | None, error: TaskError
    ) -> None:
        """A task fails for good: so do all that needed it, and with fail_fast the run."""
        self._record(run, task, attempt, TaskFailed(error=error))
        tasks, dependants = run.state.tasks, run.state.graph.dependants
        lost = [task]
        for upstream in lost:  # grows while it is walked
            for dependant in dependants[upstream]:
                if tasks[dependant].standing is Standing.WAITING:
                    message = f"upstream {task} failed: {error.kind}"
                    if upstream != task:
                        message = (
                            f"upstream {upstream} cannot run, because {task} failed: {error.kind}"
                        )
                    failure = TaskError(kind=ErrorKind.UPSTREAM_FAILED, message=message)
                    self._record(run, dependant, None, TaskFailed(error=failure))
                    lost.append(dependant)
        if run.state.spec.fail_fast:
            self._stop(now, run, ErrorKind.UPSTREAM_FAILED, f"fail_fast: task {task} failed")

    # Runs.

    def _stop(self, now: float, run: _Run, cause: ErrorKind, message: str) -> None:
        """End a run: what lives is killed, what waits is cancelled. The run's last event comes
        when the last attempt has ended."""
        if run.stop is not None:
            return
        run.stop = cause
        run.stop_message = message
        kind = ErrorKind.TIMEOUT_RUN if cause is ErrorKind.TIMEOUT_RUN else ErrorKind.CANCELLED
        for backoff in run.backoffs.values():
            self._clocks.discard(backoff)
        run.ready.clear()
        error = TaskError(kind=kind, message=message)
        for task in run.state.graph.order:
            standing = run.state.tasks[task].standing
            if (attempt := run.live.get(task)) is not None:
                self._doom(now, attempt, kind, message)
            elif standing is Standing.READY:
                self._record(run, task, run.state.tasks[task].attempt, TaskCancelled(error=error))
            elif standing in (Standing.WAITING, Standing.BACKOFF):
                self._record(run, task, None, TaskCancelled(error=error))

    def _settle(self, run: _Run) -> None:
        """After anything that may have ended a run or changed its place in the line."""
        state = run.state
        if state.unfinished:
            self._queue(run)
            return
        self._record(run, None, None, self._outcome(run))
        self._turns.discard(run)
        if run.deadline is not None:
            self._clocks.discard(run.deadline)
        del self._runs[state.run]

    def _outcome(self, run: _Run) -> EventData:
        state = run.state
        if state.completed == len(state.tasks):  # even if it was to be stopped: it was too late
            return RunCompleted(outputs=state.outputs())
        failed = tuple(sorted(state.failed))
        if run.stop is ErrorKind.CANCELLED:
            return RunCancelled(reason=run.stop_message)
        if run.stop is ErrorKind.TIMEOUT_RUN:
            error = TaskError(kind=ErrorKind.TIMEOUT_RUN, message=run.stop_message)
            return RunFailed(error=error, tasks=failed)
        first = state.first_failure
        if first is None:
            raise LocalViolation(f"run {state.run}: ended without a cause")
        where = f"task {first.task}"
        if first.attempt is not None:
            where += f" (attempt {first.attempt})"
        error = TaskError(
            kind=first.error.kind,
            message=f"{where}: {first.error.message}",
            type=first.error.type,
            traceback=first.error.traceback,
            refused=first.error.refused,
            usage=first.error.usage,
        )
        return RunFailed(error=error, tasks=failed)

    def _queue(self, run: _Run) -> None:
        if run.is_held():
            self._turns.discard(run)
        else:
            self._turns.put((len(run.live), run.served), run)

    def _record(self, run: _Run, task: str | None, attempt: int | None, data: EventData) -> None:
        record = Record(run.state.run, task, attempt, data)
        run.state.apply(record)
        self._commands.append(record)
