"""Why a task is as it is: plain words over a run's durable state and the facts of its journal.

Whoever reads a journal shows each record to `Facts`, which keeps those that concern one task: all
of its own, the latest of every other, and what befell the run. `explain` then gives an answer and
what it rests on: first why the task is as it stands, then what led there. Each reason names its
event, where it has one, and the time; a time to come is when something is due, counted as the
scheduler counts it (a pause stops the clocks, a new supervisor begins them anew).

What only the scheduler knows (who holds a slot, whether an attempt is being killed) comes in as
`live`, in words of its own. Without it the journal's part still stands by itself.

There are three tables: what is said of each standing, of each event by which an attempt ends, and
of each kind of error. Something new in the journal is a line in one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from msgspec import Struct

from ...protocol.answers import Action
from ...protocol.events import (
    BreakerClosed,
    BreakerHalfOpen,
    BreakerOpened,
    CheckpointCreated,
    ErrorKind,
    EventData,
    RunForked,
    RunPaused,
    RunRecovered,
    RunResumed,
    RunRolledBack,
    TaskCancelled,
    TaskCompleted,
    TaskError,
    TaskFailed,
    TaskRecovered,
    TaskRestarted,
    TaskRetrying,
    TaskSkipped,
    TaskStarted,
    Usage,
)
from ...protocol.pipeline import PipelineSpec, Retry, Rule, TaskSpec
from ...protocol.units import format_size
from .commands import Record
from .recovering import used_up
from .retry import BLAMELESS, BLAMELESS_RETRIES, FINAL, is_covered, retry_delay
from .state import OVER, RunStanding, RunState
from .task import Standing

__all__ = ["Fact", "Facts", "Reason", "explain"]

# Of a list of tasks, or of what a task has been through: more is `show --all`.
_NAMED = 8


class Reason(Struct, frozen=True, kw_only=True):
    """One short sentence or two. `at`: wall clock, when it happened or is due; `seq` of its event;
    `task`: whom it is about, where that is another one."""

    text: str
    at: float | None = None
    seq: int | None = None
    task: str | None = None


class Fact(NamedTuple):
    """A record as the journal has it."""

    seq: int
    at: float  # wall clock
    attempt: int | None
    data: EventData


_OF_RUN = (RunPaused, RunResumed, RunRecovered, RunRolledBack, RunForked)


class Facts:
    """What a journal tells that bears upon one task."""

    def __init__(self, task: str) -> None:
        self.task = task
        self.own: list[Fact] = []
        self.latest: dict[str, Fact] = {}
        self.run: list[Fact] = []
        self.breakers: dict[str, Fact] = {}  # the latest of each
        self.checkpoint: Fact | None = None  # the first that holds its completion

    def see(self, seq: int, at: float, record: Record) -> None:
        data = record.data
        fact = Fact(seq, at, record.attempt, data)
        if record.task is not None:
            self.latest[record.task] = fact
            if record.task == self.task:
                self.own.append(fact)
                self.checkpoint = None
            return
        if isinstance(data, _OF_RUN):
            self.run.append(fact)
        if isinstance(data, BreakerOpened | BreakerHalfOpen | BreakerClosed):
            self.breakers[data.key] = fact
        elif isinstance(data, RunRolledBack | RunForked):
            touched = (*data.undone, *getattr(data, "restored", ()))
            self.latest.update(dict.fromkeys(touched, fact))
            if self.task in touched:
                self.own.append(fact)
                self.checkpoint = None
        elif isinstance(data, CheckpointCreated) and self.task in data.tasks:
            self.checkpoint = self.checkpoint or fact


def explain(
    state: RunState, facts: Facts, *, is_owned: bool, live: Sequence[str] = ()
) -> tuple[Reason, ...]:
    """`is_owned`: whether a supervisor has the run; `live`: what that one adds."""
    asked = _Asked(state, facts, is_owned, live)
    return tuple(_STANDINGS[asked.own.standing](asked))


class _Asked:
    """The question, and what there is to answer it from."""

    def __init__(self, state: RunState, facts: Facts, is_owned: bool, live: Sequence[str]) -> None:
        self.state = state
        self.facts = facts
        self.live = live
        self.task = facts.task
        self.spec = state.specs[facts.task]
        self.own = state.tasks[facts.task]
        self.is_interrupted = not is_owned and not state.has_ended

    # What is said of each standing.

    def waiting(self) -> Iterator[Reason]:
        state, task = self.state, self.task
        needed = state.graph.inputs[task]
        is_enough = OVER if self.spec.always else {Standing.COMPLETED}
        missing = [each for each in needed if state.tasks[each].standing not in is_enough]
        silent = [
            each
            for each in state.graph.streams[task]
            if state.tasks[each].standing not in (Standing.RUNNING, Standing.COMPLETED)
        ]
        if missing:
            of = f", {len(missing)} of the {len(needed)} that it needs"
            all_of = "" if len(missing) == len(needed) else of
            to = " to end, however that is (always)" if self.spec.always else ""
            yield Reason(text=f"It waits for {_names(missing)}{all_of}{to}.")
        if silent:
            also = " also" if missing else ""
            yield Reason(
                text=f"It{also} waits for {_names(silent)} to speak, whose stream it reads."
            )
        if task in state.returning:
            yield Reason(
                text=f"It asked to go back to before {state.returning[task]}, which waits until "
                "what that undoes is dead."
            )
        elif not missing and not silent:
            yield Reason(text="All that it needs is there.")
        yield from self._stopped()
        yield from self._said_live()
        yield from self._doing([*missing, *silent])
        yield from self._past(len(self.facts.own))

    def ready(self) -> Iterator[Reason]:
        fact = self.facts.own[-1]
        yield _reason(
            fact, f"Attempt {fact.attempt} is ready: all that it needs is there. It has not begun."
        )
        yield from self._fallback()
        yield from self._kept_back()
        yield from self._stopped()
        yield from self._said_live()
        is_going = self.state.standing is RunStanding.RUNNING and not self.is_interrupted
        if is_going and not self.live:
            yield from self._others_running()
        yield from self._past(len(self.facts.own) - 1)

    def running(self) -> Iterator[Reason]:
        index = self._index(TaskStarted)
        fact = self.facts.own[index]
        was = "was running when its supervisor ended, and died with it"
        yield _reason(
            fact, f"Attempt {fact.attempt} {was if self.is_interrupted else 'is running'}."
        )
        yield from self._fallback()
        yield from self._stopped()
        yield from self._said_live()
        timeouts = self.spec.timeouts
        due = None if timeouts.wall is None else self._due(fact, timeouts.wall, RunStanding.RUNNING)
        if due is not None and not self.live and not self.is_interrupted:
            yield Reason(text=f"timeouts.wall, {_seconds(timeouts.wall)}, would end it.", at=due)
        yield from self._past(index)

    def backoff(self) -> Iterator[Reason]:
        fact = self.facts.own[-1]
        assert isinstance(fact.data, TaskRetrying)
        error, delay, own = fact.data.error, fact.data.delay, self.own
        yield from self._failure(fact, error)
        yield Reason(text=self._again(fact.data))
        if error.retry_after is not None:
            yield Reason(text=f"The error asked to wait {_seconds(error.retry_after)}.")
        yield from self._stopped()
        yield from self._said_live()
        due = self._due(fact, delay, RunStanding.PAUSED)
        if due is not None and not self.is_interrupted:
            yield Reason(text=f"Attempt {own.attempt + 1} is due, {_seconds(delay)} after.", at=due)
        yield from self._past(len(self.facts.own) - 1)

    def completed(self) -> Iterator[Reason]:
        fact = self.facts.own[-1]
        if isinstance(fact.data, TaskSkipped):
            yield from self._failure(fact, fact.data.error)
            yield Reason(text=f"{self._recover(fact.data.error, Action.SKIP)} says skip.")
        elif isinstance(fact.data, RunRolledBack):  # it gave back what had been
            text = f"It has completed, in attempt {self.own.done}: {_rollback(fact.data)} gave"
            yield _reason(fact, f"{text} that back.")
        else:
            yield _reason(fact, _ended(fact, None))
        if self.facts.checkpoint is not None:
            made = self.facts.checkpoint
            assert isinstance(made.data, CheckpointCreated)
            yield _reason(made, f"Checkpoint {made.data.checkpoint} holds it.")
        elif isinstance(fact.data, TaskCompleted | TaskSkipped):
            yield Reason(text="No checkpoint holds it yet.")
        yield from self._past(len(self.facts.own) - 1)

    def failed(self) -> Iterator[Reason]:
        fact = self.facts.own[-1]
        assert isinstance(fact.data, TaskFailed)
        error = fact.data.error
        if error.kind is ErrorKind.UPSTREAM_FAILED:
            yield from self._blocked(fact, error)
        else:
            yield from self._failure(fact, error)
            yield Reason(text=self._not_again(fact, error))
            if self.spec.recover is not None and fact.attempt is not None:
                yield Reason(text="Its recover function was asked first, and gave no way on.")
        yield from self._past(len(self.facts.own) - 1)

    def cancelled(self) -> Iterator[Reason]:
        fact = self.facts.own[-1]
        assert isinstance(fact.data, TaskCancelled)
        error = fact.data.error
        if fact.attempt is None:
            had = "between two attempts" if self.own.attempt else "before it began"
            yield _reason(fact, f"It was cancelled {had}: {_told(error)}.")
        else:
            yield from self._failure(fact, error)
        first = self.state.first_failure
        if error.kind is ErrorKind.TIMEOUT_RUN:
            limit = self.state.spec.timeout
            yield Reason(
                text=f"The run had to end: its timeout is {_seconds(limit)}. Nothing that it ends "
                "is tried again."
            )
        elif first is not None and error.message.startswith("fail_fast"):
            latest = self.facts.latest[first.task]
            yield _reason(
                latest, f"{first.task} failed: {_told(first.error)}. fail_fast is on, which ends "
                "the run at the first failure.", first.task,
            )  # fmt: skip
        else:
            yield Reason(text="The whole run was cancelled; nothing of it is tried again.")
        yield from self._past(len(self.facts.own) - 1)

    # Pieces of these.

    def _fallback(self) -> Iterator[Reason]:
        if self.own.fallback is not None:
            yield Reason(text=f"Its fallback {self.own.fallback} is called in place of execute.")

    def _rule(self, kind: ErrorKind) -> tuple[int, Rule] | None:
        """The rule that counts, but for fallbacks that are used up."""
        tried = self.own.tried
        for number, rule in enumerate(self.spec.rules, 1):
            if is_covered(kind, rule.on) and not (rule.do is Action.FALLBACK and rule.to in tried):
                return number, rule
        return None

    def _recover(self, error: TaskError, do: Action) -> str:
        """Who said what is to be done."""
        for number, rule in enumerate(self.spec.rules, 1):
            if is_covered(error.kind, rule.on) and rule.do is do:
                return f"Rule {number} of its recover, on {_listed(rule.on)},"
        return "Its recover function"

    def _again(self, data: TaskRetrying) -> str:
        """Why there will be another attempt."""
        own, retry, kind = self.own, self.spec.retry, data.error.kind
        if data.held_back:
            return "That is not the task's fault: it is tried again, uncounted."
        found = self._rule(kind)
        counts = kind not in BLAMELESS or self._blameless_retries() > BLAMELESS_RETRIES
        if found is not None and found[1].do is Action.RETRY and counts:
            number, budget = found[0], self.state.spec.retry_budget
            return (
                f"Rule {number} of its recover has it tried again. {self.state.retries} of the "
                f"run's retry_budget of {budget} are used."
            )
        if not counts:
            return (
                f"{kind} is not the task's fault: it is tried again, uncounted, "
                f"{own.blameless} of at most {BLAMELESS_RETRIES} times."
            )
        asked = "" if self.spec.recover is None else " Its recover function was asked first."
        return (
            f"It is tried again: {own.failures} of its {retry.attempts} attempts "
            f"{'has' if own.failures == 1 else 'have'} failed. {_policy(retry)}{asked}"
        )

    def _stopped(self) -> Iterator[Reason]:
        """Why nothing goes on in the whole run."""
        run = self.state.run
        if self.state.standing is RunStanding.PAUSED:
            fact = next(each for each in reversed(self.facts.run) if type(each.data) is RunPaused)
            assert isinstance(fact.data, RunPaused)
            stands = "what runs is left to end" if fact.data.drain else "what runs is frozen"
            text = f"The run is paused: nothing is started, {stands}, clocks stand still. "
            yield _reason(fact, f"{text}`casemate resume {run}` goes on.")
        if self.is_interrupted:
            yield Reason(
                text="No living supervisor has the run: nothing happens until "
                f"`casemate resume {run}`."
            )

    def _kept_back(self) -> Iterator[Reason]:
        """By its breaker, as the journal tells it."""
        breaker = self.spec.breaker
        fact = None if breaker is None else self.facts.breakers.get(breaker.key)
        if breaker is None or fact is None or isinstance(fact.data, BreakerClosed):
            return
        assert isinstance(fact.data, BreakerOpened | BreakerHalfOpen)
        limit = (
            "as long as it takes" if breaker.wait is None else f"{_seconds(breaker.wait)} at most"
        )
        if isinstance(fact.data, BreakerOpened):
            count = fact.data.failures
            after = f"after {count} failure{'' if count == 1 else 's'}" if count else "by hand"
            wait = _seconds(fact.data.open_for)
            stands = f"was opened {after}, and lets one attempt through {wait} later"
        else:
            stands = "lets one attempt through, and the others when that has succeeded"
        yield _reason(fact, f"Its breaker {breaker.key} {stands}. It waits for that, {limit}.")

    def _said_live(self) -> Iterator[Reason]:
        return (Reason(text=each) for each in self.live)

    def _doing(self, tasks: Sequence[str]) -> Iterator[Reason]:
        """What each of these does, and what that hangs on in the end."""
        for each in tasks[:_NAMED]:
            yield self._about(each)
        if len(tasks) > _NAMED:
            yield Reason(text=f"And {len(tasks) - _NAMED} more.")
        seen, deeper, ends = set(tasks), list(tasks), []
        for each in deeper:  # grows while it is walked
            if self.state.tasks[each].standing is not Standing.WAITING:
                continue
            for source in self.state.graph.upstream[each]:
                if source not in seen and not self._has_completed(source):
                    seen.add(source)
                    deeper.append(source)
                    if self.state.tasks[source].standing is not Standing.WAITING:
                        ends.append(source)
        for each in ends[:_NAMED]:
            yield self._about(each, "In the end it hangs on ")
        if len(ends) > _NAMED:
            yield Reason(text=f"And on {len(ends) - _NAMED} more.")

    def _about(self, task: str, before: str = "") -> Reason:
        own = self.state.tasks[task]
        fact = self.facts.latest.get(task)
        match own.standing:
            case Standing.WAITING:
                text = f"{task}, which waits itself."
            case Standing.READY:
                text = f"{task}, which is ready and has not begun (attempt {own.attempt})."
            case Standing.BACKOFF:
                assert fact is not None and isinstance(fact.data, TaskRetrying)
                data = fact.data
                text = (
                    f"{task}, which is between two attempts: attempt {fact.attempt} "
                    f"{_KINDS[data.error.kind].verb}: {_told(data.error)}. The next is due "
                    f"{_seconds(data.delay)} after."
                )
            case Standing.RUNNING:
                was = (
                    "was running when the supervisor ended" if self.is_interrupted else "is running"
                )
                text = f"{task}, which {was} (attempt {own.attempt})."
            case _:
                text = f"{task}, which is {own.standing.name.lower()}."
        return Reason(
            text=before + text,
            at=None if fact is None else fact.at,
            seq=None if fact is None else fact.seq,
            task=task,
        )

    def _others_running(self) -> Iterator[Reason]:
        running = [
            task for task in self.state.graph.order
            if self.state.tasks[task].standing is Standing.RUNNING
        ]  # fmt: skip
        most = self.state.spec.max_parallel
        limit = "" if most is None else f"; max_parallel of the run is {most}"
        yield Reason(text=f"Of this run {_names(running) or 'nothing'} is running{limit}.")
        yield Reason(text="What else holds it back only its supervisor knows: it did not answer.")

    def _failure(self, fact: Fact, error: TaskError) -> Iterator[Reason]:
        """How an attempt ended, and by which limit."""
        yield _reason(fact, _ended(fact, self._began(fact)))
        limit = _KINDS[error.kind].limit
        if limit is not None:
            yield Reason(text=f"{limit(self.spec, self.state.spec)}.")
        if limit is not None and error.usage is not None:
            used = list(_used(error.usage))
            if used:
                yield Reason(text=f"It had used {_listed(used)}.")
        if error.refused:
            yield Reason(text=f"Refused to it: {', '.join(error.refused[:_NAMED])}.")

    def _not_again(self, fact: Fact, error: TaskError) -> str:
        """Why a failure was the last."""
        retry, own, kind = self.spec.retry, self.own, error.kind
        if kind in FINAL:
            return f"What ends with {kind} is never tried again."
        if fact.attempt is None:
            return "It was refused before it began: to try again would change nothing."
        found = self._rule(kind)
        if found is not None:
            number, rule = found
            spent = used_up(self.state, rule.do)
            if rule.do is Action.FAIL:
                return f"Rule {number} of its recover, on {_listed(rule.on)}, says fail."
            if spent is not None:
                return f"Rule {number} of its recover says {rule.do}, but {spent}."
        if kind in BLAMELESS:
            if own.blameless >= BLAMELESS_RETRIES:
                return (
                    f"{kind} is not the task's fault: it was tried again {own.blameless} times, "
                    "uncounted, and that is the most."
                )
        elif kind is ErrorKind.BREAKER_OPEN:
            wait = None if self.spec.breaker is None else self.spec.breaker.wait
            return f"breaker.wait is {_seconds(wait)}: it does not let itself be kept back longer."
        elif not is_covered(kind, retry.on):
            return f"It is not tried again: retry.on is {_listed(retry.on)}, without {kind}."
        elif retry.attempts == 1:
            return "It is not tried again: retry.attempts is 1."
        elif own.failures + 1 >= retry.attempts:
            return (
                f"It is not tried again: {own.failures + 1} attempts have failed, and "
                f"retry.attempts is {retry.attempts}."
            )
        silent = [
            each for each in self.state.graph.streams[self.task]
            if self.state.tasks[each].standing is Standing.FAILED
        ]  # fmt: skip
        spent = used_up(self.state, Action.RETRY)
        if spent is not None and kind not in BLAMELESS:
            return f"Its policy would have tried it again, but {spent}."
        if silent:
            return f"It is not tried again: {_names(silent)} failed, whose stream it reads."
        if self.spec.recover is not None and self._would_retry(fact, kind):
            return "Its recover function ended it, or the run was being ended."
        return "Its policy would have tried it again, but the run was being ended."

    def _would_retry(self, fact: Fact, kind: ErrorKind) -> bool:
        return None is not retry_delay(
            self.spec.retry,
            kind,
            failures=self.own.failures,
            blameless=self.own.blameless,
            seed=self.state.seed,
            task=self.task,
            attempt=fact.attempt or 0,
        )

    def _blocked(self, fact: Fact, error: TaskError) -> Iterator[Reason]:
        """The way from a task that cannot run to the failure that keeps it from it."""
        if fact.attempt is None:
            yield _reason(fact, f"It cannot run: {_told(error)}.")
        else:
            yield _reason(fact, _ended(fact, self._began(fact)))
        task, seen = self.task, {self.task}
        while True:
            blocking = [
                each for each in self.state.graph.upstream[task]
                if self.state.tasks[each].standing is Standing.FAILED and each not in seen
            ]  # fmt: skip
            if not blocking:
                return
            # By its own doing, where there is one: that is the root.
            name = next((each for each in blocking if each in self.state.failures), blocking[0])
            seen.add(name)
            latest = self.facts.latest[name]
            failure = self.state.failures.get(name)
            who = "It" if task == self.task else task
            if failure is not None:
                where = "" if failure.attempt is None else f" (attempt {failure.attempt})"
                text = f"{who} needs {name}, which failed{where}: {_told(failure.error)}."
                yield _reason(latest, text, name)
                return
            yield _reason(latest, f"{who} needs {name}, which cannot run either.", name)
            task = name

    def _past(self, until: int) -> Iterator[Reason]:
        """What the task had been through before its `until`-th fact."""
        past = [fact for fact in self.facts.own[:until] if type(fact.data) in _ENDINGS]
        if len(past) > _NAMED:
            text = f"Before that: {len(past) - _NAMED} more, which `show --all` has."
            yield Reason(text=text)
        for fact in past[-_NAMED:]:
            yield _reason(fact, "Before: " + _ended(fact, self._began(fact)))

    def _blameless_retries(self) -> int:
        """Its tries again, since it was last undone, for what is not its fault."""
        count = 0
        for fact in self.facts.own:
            if isinstance(fact.data, RunRolledBack | RunForked):
                count = 0
            elif isinstance(fact.data, TaskRetrying):
                count += fact.data.error.kind in BLAMELESS
        return count

    def _has_completed(self, task: str) -> bool:
        return self.state.tasks[task].standing is Standing.COMPLETED

    def _index(self, kind: type[EventData]) -> int:
        facts = self.facts.own
        return max(n for n, fact in enumerate(facts) if type(fact.data) is kind)

    def _began(self, ending: Fact) -> Fact | None:
        """When an attempt that ended had begun."""
        for fact in self.facts.own:
            if type(fact.data) is TaskStarted and fact.attempt == ending.attempt:
                return fact
        return None

    def _due(self, fact: Fact, seconds: float, of: RunStanding) -> float | None:
        """When so many seconds after a fact are over, by clocks that stand still while the run is
        paused; None: they do. `of` RUNNING: an attempt's clock, which goes on in a drain."""
        left, since, stands = seconds, fact.at, False
        for each in self.facts.run:
            is_later = each.seq > fact.seq
            if isinstance(each.data, RunPaused) and not stands:
                if of is RunStanding.RUNNING and each.data.drain:
                    continue
                stands = True
                if is_later:
                    left -= each.at - since
            elif isinstance(each.data, RunResumed) and stands:
                stands = False
                since = each.at if is_later else since
            elif isinstance(each.data, RunRecovered) and is_later:
                left, since = seconds, each.at  # its clock died with the supervisor
        return None if stands else since + left


_STANDINGS: dict[Standing, Callable[[_Asked], Iterator[Reason]]] = {
    Standing.WAITING: _Asked.waiting,
    Standing.READY: _Asked.ready,
    Standing.RUNNING: _Asked.running,
    Standing.BACKOFF: _Asked.backoff,
    Standing.COMPLETED: _Asked.completed,
    Standing.FAILED: _Asked.failed,
    Standing.CANCELLED: _Asked.cancelled,
}


# How an attempt ends.


def _ended(fact: Fact, began: Fact | None) -> str:
    """What an ending says. `began`: its attempt's beginning, where that is worth telling."""
    after = "" if began is None else f" {_seconds(fact.at - began.at)} after it began"
    return _ENDINGS[type(fact.data)](fact.attempt, fact.data, after)


def _retried(attempt: int | None, data: TaskRetrying, after: str) -> str:
    return f"Attempt {attempt} {_failed_with(data.error, after)}."


def _failed(attempt: int | None, data: TaskFailed, after: str) -> str:
    if attempt is None:
        return f"It failed before it began: {_told(data.error)}."
    return f"Attempt {attempt} {_failed_with(data.error, after)}."


def _cancelled(attempt: int | None, data: TaskCancelled, after: str) -> str:
    if attempt is None:
        return f"It was cancelled: {_told(data.error)}."
    return f"Attempt {attempt} {_failed_with(data.error, after)}."


def _restarted(attempt: int | None, data: TaskRestarted, after: str) -> str:
    what = "Its wait for the next attempt" if attempt is None else f"Attempt {attempt}"
    return f"{what} was ended{after}, uncounted: {data.reason}."


def _completed(attempt: int | None, data: TaskCompleted, after: str) -> str:
    return f"Attempt {attempt} completed, after {_seconds(data.seconds)}."


def _recovered(attempt: int | None, data: TaskRecovered, after: str) -> str:
    if data.action is Action.FALLBACK:
        answer = f"it goes on with its fallback {data.to}"
    else:
        answer = f"the run is rolled back to just before {data.to}"
    return f"Attempt {attempt} {_failed_with(data.error, after)}. Its recover answered: {answer}."


def _skipped(attempt: int | None, data: TaskSkipped, after: str) -> str:
    return (
        f"Attempt {attempt} {_failed_with(data.error, after)}. Its recover answered: skip it, with "
        "an output in the place of its own."
    )


def _rolled_back(attempt: int | None, data: RunRolledBack, after: str) -> str:
    return f"{_rollback(data).capitalize()} took it back to its beginning."


def _forked(attempt: int | None, data: RunForked, after: str) -> str:
    return f"The run was forked from {data.source} at {data.checkpoint}, which does not hold it."


# Any: each function takes the data it is listed under.
_ENDINGS: dict[type[EventData], Callable[[int | None, Any, str], str]] = {
    TaskRetrying: _retried,
    TaskRecovered: _recovered,
    TaskSkipped: _skipped,
    TaskFailed: _failed,
    TaskCancelled: _cancelled,
    TaskRestarted: _restarted,
    TaskCompleted: _completed,
    RunRolledBack: _rolled_back,
    RunForked: _forked,
}


def _rollback(data: RunRolledBack) -> str:
    where = f"before {data.before}" if data.checkpoint is None else f"to {data.checkpoint}"
    return f"the rollback {where} (generation {data.generation})"


# What is said of each kind of error: what became of the attempt, and the limit that was met.


class _Kind(NamedTuple):
    verb: str
    limit: Callable[[TaskSpec, PipelineSpec], str] | None = None


_KINDS: dict[ErrorKind, _Kind] = {
    ErrorKind.ERROR: _Kind("failed"),
    ErrorKind.INVALID_OUTPUT: _Kind("gave an output that is not valid"),
    ErrorKind.TIMEOUT_START: _Kind(
        "was killed", lambda task, run: f"timeouts.start is {_seconds(task.timeouts.start)}"
    ),
    ErrorKind.TIMEOUT_WALL: _Kind(
        "was killed", lambda task, run: f"timeouts.wall is {_seconds(task.timeouts.wall)}"
    ),
    ErrorKind.TIMEOUT_IDLE: _Kind(
        "was killed", lambda task, run: f"timeouts.idle is {_seconds(task.timeouts.idle)}"
    ),
    ErrorKind.TIMEOUT_CPU: _Kind(
        "was killed", lambda task, run: f"timeouts.cpu is {_seconds(task.timeouts.cpu)}"
    ),
    ErrorKind.TIMEOUT_RUN: _Kind("was killed"),
    ErrorKind.MEMORY: _Kind(
        "hit a limit", lambda task, run: f"limits.memory is {format_size(task.limits.memory)}"
    ),
    ErrorKind.PIDS: _Kind("hit a limit", lambda task, run: f"limits.pids is {task.limits.pids}"),
    ErrorKind.DISK: _Kind(
        "hit a limit",
        lambda task, run: (
            f"limits.disk is {format_size(task.limits.disk)}, limits.tmp "
            f"{format_size(task.limits.tmp)}"
        ),
    ),
    ErrorKind.OUTPUT_LIMIT: _Kind(
        "was killed", lambda task, run: f"limits.output is {format_size(task.limits.output)}"
    ),
    ErrorKind.CRASH: _Kind("crashed"),
    ErrorKind.VIOLATION: _Kind("was killed"),
    ErrorKind.CONFLICT: _Kind("could not begin"),
    ErrorKind.PROTOCOL: _Kind("was killed"),
    ErrorKind.SETUP: _Kind("could not begin"),
    ErrorKind.BREAKER_OPEN: _Kind("was ended"),
    ErrorKind.UPSTREAM_FAILED: _Kind("was killed"),
    ErrorKind.CANCELLED: _Kind("was killed"),
    ErrorKind.LOST: _Kind("was lost"),
}


# Words.


def _reason(fact: Fact, text: str, task: str | None = None) -> Reason:
    return Reason(text=text, at=fact.at, seq=fact.seq, task=task)


def _failed_with(error: TaskError, after: str) -> str:
    return f"{_KINDS[error.kind].verb}{after}: {_told(error)}"


def _told(error: TaskError) -> str:
    """The kind, and what there is to it; whose text a sentence ends after."""
    what = error.message if error.type is None else f"{error.type}: {error.message}"
    return f"{error.kind}: {what}".removesuffix(".")


def _used(usage: Usage) -> Iterator[str]:
    if usage.memory is not None:
        yield f"{format_size(usage.memory)} of memory"
    if usage.cpu is not None:
        yield f"{_seconds(usage.cpu)} of cpu"
    if usage.pids is not None:
        yield f"{usage.pids} process{'' if usage.pids == 1 else 'es'}"
    if usage.disk is not None:
        yield f"{format_size(usage.disk)} of disk"


def _policy(retry: Retry) -> str:
    wait = f"waits {_seconds(min(retry.delay, retry.max_delay))}"
    if retry.backoff != 1 and retry.attempts > 2:
        wait += f", then {retry.backoff:g} times the last, at most {_seconds(retry.max_delay)}"
    if retry.jitter:
        wait += f", ± {retry.jitter * 100:g} %"
    return f"Its policy {wait}, on {_listed(retry.on)}."


def _seconds(seconds: float | None) -> str:
    if seconds is None:
        return "no limit"
    return f"{seconds:.0f} s" if seconds >= 100 else f"{round(seconds, 2):g} s"


def _names(tasks: Sequence[str]) -> str:
    if len(tasks) <= _NAMED:
        return _listed(tasks)
    return f"{', '.join(tasks[:_NAMED])} and {len(tasks) - _NAMED} more"


def _listed(words: Iterable[str]) -> str:
    *most, last = words or [""]
    return f"{', '.join(most)} and {last}" if most else last
