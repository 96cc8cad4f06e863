"""What is wished of a run that nobody owns: recorded in its journal, for `resume` to go on with.

The same core decides as in an engine. It is given the run as its journal tells it, held: nothing is
started. Its records are appended under the run's lock, and are durable on return.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable

from ..protocol.errors import CasemateError, UsageError
from .core.commands import Command, Record
from .core.events import Adopt, CancelRun, CheckpointRun, Input, PauseRun, Rollback
from .core.scheduler import Scheduler
from .core.state import RunState
from .files import check_base
from .journal import Entry, Journal
from .recovery import fork, read_outputs, read_run
from .state import OwnedRun, StateDirectory

__all__ = ["cancel_run", "checkpoint_run", "fork_run", "pause_run", "rollback_run"]


def pause_run(state: StateDirectory, run: str, drain: bool) -> None:
    """It stays paused when it is taken up again, until it is resumed once more."""
    _record(state, run, lambda found: _unless_ended(found, PauseRun(run, drain)))


def cancel_run(state: StateDirectory, run: str, reason: str) -> None:
    cause = reason or "cancelled while nobody ran it"
    _record(state, run, lambda found: _unless_ended(found, CancelRun(run, cause)))


def checkpoint_run(state: StateDirectory, run: str) -> str:
    """Of what had completed; the id of the latest checkpoint, where there is nothing new."""
    found = _record(state, run, lambda found: _unless_ended(found, CheckpointRun(run)))
    return found.head or ""


def rollback_run(
    state: StateDirectory,
    run: str,
    checkpoint: str | None,
    before: str | None,
    accept_base: bool = False,
) -> None:
    """UsageError also where others changed the workspace meanwhile, unless that is accepted."""

    def wish(found: RunState) -> Input:
        found.undone_by(checkpoint, before)  # refused before anything is changed
        check_base(state.run(run), found.spec, accept_base)
        return Rollback(run, checkpoint, before)

    _record(state, run, wish)


def fork_run(state: StateDirectory, run: str, checkpoint: str) -> str:
    """A new run, interrupted at that checkpoint; its id."""
    source = state.run(run)
    owned, found = fork(state, source, checkpoint)
    copy = owned.directory.id
    try:
        adopt = Adopt(copy, found.state, fork=(run, checkpoint), held=True)
        _append(owned, found.last_seq, Scheduler(1, sys.maxsize).step(0.0, adopt))
    finally:
        owned.ownership.release()
    return copy


def _unless_ended(found: RunState, wish: Input) -> Input:
    if found.has_ended:
        raise UsageError(f"run {found.run} has ended ({found.standing.name.lower()})")
    return wish


def _record(state: StateDirectory, run: str, wish: Callable[[RunState], Input]) -> RunState:
    owned = state.own_run(run)
    try:
        found = read_run(owned.directory)
        asked = wish(found.state)
        if not found.state.unfinished:
            _give_outputs(owned, found.state)
        core = Scheduler(1, sys.maxsize)
        commands = core.step(0.0, Adopt(run, found.state, held=True))
        commands += core.step(0.0, asked)
        _append(owned, found.last_seq, commands)
    finally:
        owned.ownership.release()
    return found.state


def _give_outputs(owned: OwnedRun, state: RunState) -> None:
    """All that is left of the run is its end, which may tell outputs that a rollback gave back."""
    # One that cannot be read is no reason to refuse: the run then ends as was wished.
    with contextlib.suppress(OSError, CasemateError):
        state.give(read_outputs(owned.directory, tuple(state.missing_outputs())))


def _append(owned: OwnedRun, last_seq: int, commands: list[Command]) -> None:
    problems: list[Exception] = []
    journal = Journal(lambda _commit: None, lambda _run, error: problems.append(error))
    try:
        now = time.time()
        entries: list[Entry] = [
            (each.task, each.attempt, now, each.data)
            for each in commands
            if isinstance(each, Record)
        ]
        journal.open(owned.directory, last_seq=last_seq)
        journal.append(owned.directory.id, entries)
    finally:
        journal.close()
    if problems:
        raise CasemateError(
            f"run {owned.directory.id}: its journal cannot be written: {problems[0]}"
        )
