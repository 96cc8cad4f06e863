"""What may be done about a failed attempt: the rules, and what of a `recover`'s answer can be.

An answer comes out of a task's own code: what it names must exist, and what it wants must be in the
budget of the run. What cannot be counts as no answer, and the error says so; a budget that is used
up is the end of the task, for else it would go round for ever by another road.
"""

from __future__ import annotations

from msgspec import structs

from ...protocol.answers import Action, RecoveryAction
from ...protocol.errors import UsageError
from ...protocol.events import ErrorKind, TaskError
from ...protocol.pipeline import Rule
from .retry import is_covered
from .state import RunState

__all__ = [
    "by_rule",
    "invalid_output",
    "not_validated",
    "noted",
    "refused",
    "unanswered",
    "used_up",
    "with_failure",
]


def by_rule(
    rules: tuple[Rule, ...], kind: ErrorKind, tried: tuple[str, ...]
) -> RecoveryAction | None:
    """What the first rule says that covers the kind; a fallback that was tried already is passed
    over, so that several in a row are taken in turn."""
    for rule in rules:
        if is_covered(kind, rule.on) and not (rule.do is Action.FALLBACK and rule.to in tried):
            return RecoveryAction(do=rule.do, after=rule.after, output=rule.output, to=rule.to)
    return None


def refused(state: RunState, task: str, answer: RecoveryAction) -> str | None:
    """Why an answer cannot be; None: it can."""
    spec = state.specs[task]
    if answer.do is Action.FALLBACK:
        if answer.to not in spec.fallbacks:
            return f"it asked for the fallback {answer.to!r}, which the task does not declare"
        if answer.to in state.tasks[task].tried:
            return f"it asked for the fallback {answer.to!r}, which was tried already"
    elif answer.do is Action.ROLLBACK:
        if spec.always:
            return "it asked for a rollback, and an `always` task cannot"
        if answer.to != task and answer.to not in state.upstream_of(task):
            return f"it asked to roll back before {answer.to!r}, which is not upstream of the task"
        try:
            state.undone_by(None, answer.to)
        except UsageError as error:
            return f"it asked for a rollback that cannot be: {error}"
    return None


def used_up(state: RunState, do: Action) -> str | None:
    """Which budget of the run has nothing left for this; None: it has."""
    spec = state.spec
    if do is Action.ROLLBACK and state.rollbacks >= spec.rollback_budget:
        return f"the run's rollback_budget of {spec.rollback_budget} is used up"
    if do in (Action.RETRY, Action.FALLBACK) and state.retries >= spec.retry_budget:
        return f"the run's retry_budget of {spec.retry_budget} is used up"
    return None


def noted(error: TaskError, note: str) -> TaskError:
    """The error, and what came of dealing with it."""
    return structs.replace(error, message=f"{error.message}; {note}")


def invalid_output(reasons: tuple[str, ...]) -> TaskError:
    message = "; ".join(reasons) or "the output is not valid"
    return TaskError(kind=ErrorKind.INVALID_OUTPUT, message=message, reasons=reasons)


def not_validated(error: TaskError) -> TaskError:
    """Of an output that nobody could say was valid, since the validation failed itself."""
    return structs.replace(
        error,
        kind=ErrorKind.INVALID_OUTPUT,
        message=f"its validation gave no answer: {_said(error)}",
        type=None,
    )


def unanswered(error: TaskError, of_recover: TaskError) -> TaskError:
    """An error whose recovery failed itself."""
    return noted(error, f"recover gave no answer: {_said(of_recover)}")


def with_failure(error: TaskError, failure: TaskError | None) -> TaskError:
    """What ended an attempt while its `recover` was asked about a failure, if it was: of both
    there is one event to tell."""
    return error if failure is None else noted(error, f"it had failed with {_said(failure)}")


def _said(error: TaskError) -> str:
    return ": ".join(part for part in (error.kind, error.type, error.message) if part)
