"""What the two kinds of check answer: whether an output is good, and what to do about a failure.

Both come from a task's author, out of a sandbox, and mean something to the supervisor: the codec
checks their form, the core whether they may be.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from msgspec import Struct

__all__ = ["Action", "RecoveryAction", "ValidationResult"]


class Action(StrEnum):
    """What a `recover` may ask for (DESIGN §5)."""

    RETRY = "retry"
    SKIP = "skip"
    FALLBACK = "fallback"
    ROLLBACK = "rollback"
    FAIL = "fail"


class ValidationResult(Struct, frozen=True):
    """What `validate(output)` returns: `ValidationResult(False, ["no score", "no author"])`."""

    ok: bool
    reasons: tuple[str, ...] | list[str] = ()  # a list, where a person wrote one


class RecoveryAction(Struct, frozen=True, kw_only=True):
    """What `recover(error)` returns, made by one of its functions. None instead of one is no
    answer: the task's retry policy decides."""

    do: Action
    after: float | None = None  # seconds; None: as the retry policy says
    output: Any = None  # the user's data
    to: str | None = None  # the fallback's name, or the task to roll back to

    @classmethod
    def retry(cls, after: float | None = None) -> RecoveryAction:
        """Try again, after so many seconds; by default as long as the retry policy waits."""
        return cls(do=Action.RETRY, after=after)

    @classmethod
    def skip(cls, output: Any = None) -> RecoveryAction:
        """Take this for the task's output and go on."""
        return cls(do=Action.SKIP, output=output)

    @classmethod
    def fallback(cls, name: str) -> RecoveryAction:
        """Go on with one of the task's declared `fallbacks` in the place of its `execute`."""
        return cls(do=Action.FALLBACK, to=name)

    @classmethod
    def rollback(cls, task: str) -> RecoveryAction:
        """Undo this task (upstream of the one that failed, or that one itself) and all that
        depends on it, and do it again."""
        return cls(do=Action.ROLLBACK, to=task)

    @classmethod
    def fail(cls) -> RecoveryAction:
        """Fail for good, whatever the retry policy says."""
        return cls(do=Action.FAIL)
