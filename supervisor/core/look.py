"""What the scheduler knows of a task beyond its journal, in plain words.

The journal tells that a task is ready; who holds the slots at this moment, only the scheduler does.
It fills in a `Look`, and `words` says what follows. Nothing is decided by it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from ...protocol.events import TaskError
from ...protocol.messages import Part
from ...protocol.units import format_size
from .attempt import Attempt, Check, Phase

__all__ = ["Look", "words"]

# Of a list of tasks; a number stands for the others.
_NAMED = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """One task at one moment. What does not apply is left as it is."""

    memory: int  # what the task's limits ask for
    live: tuple[str, ...]  # tasks of its run that have an attempt alive
    attempt: Attempt | None = None  # its own
    check: Check | None = None  # that its attempt has come to, and waits for a slot
    stop: TaskError | None = None  # why the run is being ended
    dying: tuple[str, ...] = ()  # tasks whose attempts a rollback of the run waits for
    speakers: tuple[str, ...] = ()  # its result is there, and counts when these have completed
    restarting: tuple[str, ...] = ()  # of those whose streams it reads, and who begin again
    kept_by: str | None = None  # the key of the breaker that keeps it back
    is_fetching: bool = False  # outputs that were dropped
    is_draining: bool = False  # its supervisor is
    in_line: tuple[int, str | None] | None = None  # how many are before it in its run, the first
    most: int | None = None  # attempts of its run at once
    all_live: int = 0
    all_most: int = 0
    all_memory: int = 0
    memory_budget: int = 0
    cpu: float = 0.0  # what the task's limits ask for
    all_cpu: float = 0.0
    cpu_budget: float = math.inf
    held: str | None = None  # by a limit under a key, in words


def words(look: Look) -> tuple[str, ...]:
    return tuple(_words(look))


def _words(look: Look) -> Iterator[str]:
    if look.stop is not None:
        yield f"The run is being ended: {look.stop.message}."
    if look.dying:
        yield f"The run is being rolled back, which waits for the death of {_names(look.dying)}."
    if look.restarting:
        yield f"{_names(look.restarting)}, whose stream it reads, is being killed and begins again."
    if look.attempt is not None:
        yield from _of_attempt(look.attempt)
    if look.check is not None:
        yield f"{_checking(look.check)}, once there is a slot for that."
    if look.kept_by is not None:
        yield f"Its breaker {look.kept_by} lets nothing through at this moment but a probe."
    if look.speakers:
        yield (
            "It has given its result, which counts when all whose streams it read have completed: "
            f"{_names(look.speakers)} has not."
        )
    if look.in_line is not None and look.stop is None and not look.dying:
        yield from _in_line(look, *look.in_line)


def _of_attempt(attempt: Attempt) -> Iterator[str]:
    if attempt.check is not None and attempt.phase in (Phase.SPAWNING, Phase.RUNNING):
        yield f"{_checking(attempt.check)}, in a sandbox of its own."
        return
    why = attempt.message
    if attempt.reason is not None:
        why = f"{attempt.reason}: {attempt.message}"
    match attempt.phase:
        case Phase.SPAWNING:
            yield "It has its slot: its sandbox is being made."
        case Phase.ASKED:
            grace = attempt.spec.timeouts.grace
            yield f"It was asked to end and has {grace:g} s of grace for that: {why}."
        case Phase.KILLING if attempt.restart is not None:
            yield f"It is being killed, and its task begins again: {attempt.restart}."
        case Phase.KILLING if attempt.reason is None:
            yield "It has given its result; what is left of its processes is being ended."
        case Phase.KILLING:
            yield f"It is being killed: {why}."
        case _ if attempt.is_waiting:
            yield "It waits for items of the streams it reads; its idle clock stands still."


def _checking(check: Check) -> str:
    if check.part is Part.VALIDATE:
        return "It has given its result: whether that is valid is looked at"
    error = check.error
    assert error is not None  # the other part has one
    return f"It has failed ({error.kind}: {error.message}): its recover function is asked"


def _in_line(look: Look, before: int, first: str | None) -> Iterator[str]:
    if look.is_fetching:
        yield "Outputs that the run needs again are being read from its journal."
    if look.is_draining:
        yield "Its supervisor is about to end and starts nothing new."
        return
    if look.held is not None:
        yield look.held
        return
    if look.most is not None and len(look.live) >= look.most:
        yield (
            f"The run may have {look.most} attempt{_s(look.most)} at once (max_parallel of the "
            f"pipeline), and has: {_names(look.live)}."
        )
    elif look.all_live >= look.all_most:
        others = look.all_live - len(look.live)
        yield (
            f"The supervisor may have {look.all_most} attempt{_s(look.all_most)} at once "
            f"(max_parallel), and has: of this run {_names(look.live) or 'none'}, of others "
            f"{others}."
        )
    elif look.all_memory + look.memory > look.memory_budget:
        yield (
            f"It needs {format_size(look.memory)} (limits.memory); of the memory budget of "
            f"{format_size(look.memory_budget)} attempts that live have "
            f"{format_size(look.all_memory)}."
        )
    elif look.all_cpu + min(look.cpu, look.cpu_budget) > look.cpu_budget:
        yield (
            f"It needs {look.cpu:g} cores (limits.cpu); of the host's {look.cpu_budget:g} attempts "
            f"that live have {look.all_cpu:g}."
        )
    if before:
        yield f"In its run {before} stand{'s' if before == 1 else ''} before it, {first} first."


def _names(tasks: tuple[str, ...]) -> str:
    more = len(tasks) - _NAMED
    return ", ".join(tasks[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _s(count: int) -> str:
    return "" if count == 1 else "s"
