"""Dropping old runs, and of those that are kept what they do not need (`trimming.py`).

A run goes in three steps: its ownership lock is taken (so nobody resumes it meanwhile) and its
standing read again; its directory is renamed to a name that nobody looks for; that is taken apart.
A gc that is killed leaves such names behind, and the next one finishes them. So it does with a run
that was never made whole (see `create_run`), once nobody holds its lock: its maker is dead.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..protocol.control import RunState, RunSummary
from ..protocol.errors import UsageError
from .overview import summarise
from .state import BUILDING, Ownership, RunDirectory, StateDirectory, fsync_directory
from .trees import remove_tree
from .trimming import Trimmed, disk_space, trim

__all__ = ["Dropped", "collect_garbage"]

# How many ended runs are kept where the operator says nothing.
KEPT = 20

_ENDED = {RunState.COMPLETED, RunState.FAILED, RunState.CANCELLED}
_GONE = ".gone-"


@dataclass(frozen=True, slots=True)
class Dropped:
    """`run` is None for what one who was killed had left. `problem`: it could not be dropped, or
    not wholly: the next gc tries again."""

    run: str | None
    pipeline: str | None
    state: RunState | None
    bytes: int
    problem: str | None = None


def collect_garbage(
    state: StateDirectory,
    *,
    keep: int | None = None,
    older: float | None = None,
    runs: Sequence[str] = (),
    dry_run: bool = False,
) -> Iterator[Dropped | Trimmed]:
    """Drop the runs named (interrupted and damaged ones too), and nothing else. Without names: drop
    those that ended and are both beyond the newest `keep` and `older` than so many seconds, and
    trim all the others that are `older`. Never one that somebody owns."""
    try:
        guard = os.open(state.runs, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        try:
            fcntl.flock(guard, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"state directory {state.path}: another gc is at work") from None
        if not dry_run:
            yield from _sweep(state, guard)
        for run, is_dropped in _chosen(state, keep, older, runs):
            done: Dropped | Trimmed | None
            if is_dropped:
                done = _drop(state, guard, run, bool(runs), dry_run)
            else:
                done = trim(run, dry_run=dry_run)
            if done is not None:
                yield done
    finally:
        os.close(guard)


def _chosen(
    state: StateDirectory, keep: int | None, older: float | None, runs: Sequence[str]
) -> Iterator[tuple[RunDirectory, bool]]:
    """Runs, and whether they go whole."""
    if runs:
        found = {run.id: run for run in map(state.find_run, runs)}
        yield from ((run, True) for run in found.values())
        return
    if keep is None:
        keep = KEPT if older is None else 0
    ended = 0
    for run_id in reversed(state.run_ids()):
        run = state.run(run_id)
        summary = summarise(run)
        has_ended = summary.state in _ENDED
        ended += has_ended
        age = time.time() - (summary.ended or summary.started or 0.0)
        if older is None or age > older:
            yield run, has_ended and ended > keep


def _drop(
    state: StateDirectory, runs: int, run: RunDirectory, named: bool, dry_run: bool
) -> Dropped | None:
    if dry_run:
        summary = summarise(run)
        if run.is_owned():
            return _kept(summary, "owned by a living supervisor") if named else None
        return Dropped(run.id, summary.pipeline, summary.state, disk_space([run.path]))
    try:
        ownership = Ownership.take(run)
    except UsageError as error:
        return _kept(summarise(run), str(error)) if named else None
    except FileNotFoundError:
        return None
    try:
        # Again, now that nobody can change it. Our own lock makes what has not ended look alive.
        summary = summarise(run)
        if not named and summary.state not in _ENDED:
            return None
        gone = f"{_GONE}{run.id}"
        try:
            os.rename(run.id, gone, src_dir_fd=runs, dst_dir_fd=runs)
            fsync_directory(state.runs)
            freed = remove_tree(runs, gone)
        except OSError as error:
            return _kept(summary, f"{error.strerror} ({error.filename})")
    finally:
        ownership.release()
    return Dropped(run.id, summary.pipeline, summary.state, freed)


def _kept(summary: RunSummary, problem: str) -> Dropped:
    return Dropped(summary.id, summary.pipeline, summary.state, 0, problem)


def _sweep(state: StateDirectory, runs: int) -> Iterator[Dropped]:
    for name in sorted(os.listdir(runs)):
        if name.startswith(BUILDING):
            name = _disown(state, runs, name)
        if name.startswith(_GONE):
            problem, freed = None, 0
            try:
                freed = remove_tree(runs, name)
            except OSError as error:
                problem = f"{error.strerror} ({error.filename})"
            yield Dropped(None, None, None, freed, problem)


def _disown(state: StateDirectory, runs: int, name: str) -> str:
    """The name that nobody looks for, of what nobody makes any more; else the same name."""
    run_id = name.removeprefix(BUILDING)
    with contextlib.suppress(UsageError, OSError):  # somebody makes it, or is done meanwhile
        ownership = Ownership.take(RunDirectory(run_id, state.runs / name))
        try:
            gone = f"{_GONE}{run_id}"
            os.rename(name, gone, src_dir_fd=runs, dst_dir_fd=runs)
            return gone
        finally:
            ownership.release()
    return name
