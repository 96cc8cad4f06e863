"""Dropping old runs.

A run goes in three steps: its ownership lock is taken (so nobody resumes it meanwhile) and its
standing read again; its directory is renamed to a name that nobody looks for; that is taken apart.
A gc that is killed leaves such names behind, and the next one finishes them.

Taking apart follows no link and needs no recursion: every folder is moved up to the top before it
is emptied, so that a tree of any depth costs a handful of descriptors. Folders that deny us entry
(overlayfs leaves its work folder mode 000) are opened as O_PATH and chmodded by that handle.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import stat
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..protocol.control import RunState, RunSummary
from ..protocol.errors import UsageError
from .overview import summarise
from .state import Ownership, RunDirectory, StateDirectory, fsync_directory

__all__ = ["Dropped", "collect_garbage"]

# How many ended runs are kept where the operator says nothing.
KEPT = 20

_ENDED = {RunState.COMPLETED, RunState.FAILED, RunState.CANCELLED}
_GONE = ".gone-"


@dataclass(frozen=True, slots=True)
class Dropped:
    """`run` is None for what a killed gc had left. `problem`: it could not be dropped, or not
    wholly: the next gc tries again."""

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
) -> Iterator[Dropped]:
    """Drop the runs named (interrupted and damaged ones too), else those that ended and are both
    beyond the newest `keep` and `older` than so many seconds. Never one that somebody owns."""
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
            yield from _sweep(guard)
        for run, named in _chosen(state, keep, older, runs):
            dropped = _drop(state, guard, run, named, dry_run)
            if dropped is not None:
                yield dropped
    finally:
        os.close(guard)


def _chosen(
    state: StateDirectory, keep: int | None, older: float | None, runs: Sequence[str]
) -> Iterator[tuple[RunDirectory, bool]]:
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
        if summary.state not in _ENDED:
            continue
        ended += 1
        age = time.time() - (summary.ended or summary.started or 0.0)
        if ended > keep and (older is None or age > older):
            yield run, False


def _drop(
    state: StateDirectory, runs: int, run: RunDirectory, named: bool, dry_run: bool
) -> Dropped | None:
    if dry_run:
        summary = summarise(run)
        if run.is_owned():
            return _kept(summary, "owned by a living supervisor") if named else None
        return Dropped(run.id, summary.pipeline, summary.state, _size(run))
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
            freed = _take_apart(runs, gone)
        except OSError as error:
            return _kept(summary, f"{error.strerror} ({error.filename})")
    finally:
        ownership.release()
    return Dropped(run.id, summary.pipeline, summary.state, freed)


def _kept(summary: RunSummary, problem: str) -> Dropped:
    return Dropped(summary.id, summary.pipeline, summary.state, 0, problem)


def _sweep(runs: int) -> Iterator[Dropped]:
    for name in sorted(os.listdir(runs)):
        if name.startswith(_GONE):
            problem, freed = None, 0
            try:
                freed = _take_apart(runs, name)
            except OSError as error:
                problem = f"{error.strerror} ({error.filename})"
            yield Dropped(None, None, None, freed, problem)


def _take_apart(runs: int, name: str) -> int:
    """Remove the folder `name` and all that is in it; how many bytes that freed."""
    freed = 0
    top = _enter(runs, name)
    try:
        # Names that a killed gc has moved up here are not given again.
        taken = set(os.listdir(top))
        numbers = (f".{n}" for n in itertools.count() if f".{n}" not in taken)
        waiting = sorted(taken)
        while waiting:
            one = waiting.pop()
            below, moved = _empty(top, one, numbers)
            freed += below
            waiting += moved
    finally:
        os.close(top)
    os.rmdir(name, dir_fd=runs)
    return freed


def _empty(top: int, name: str, numbers: Iterator[str]) -> tuple[int, list[str]]:
    """Remove one entry of `top`, after its folders were moved up: the bytes, and those folders."""
    if (freed := _unlink(top, name)) is not None:
        return freed, []
    freed, moved = 0, []
    folder = _enter(top, name)
    try:
        for entry in os.listdir(folder):
            below = _unlink(folder, entry)
            if below is None:
                os.close(_enter(folder, entry))  # a folder moves only where we may write to it
                higher = next(numbers)
                os.rename(entry, higher, src_dir_fd=folder, dst_dir_fd=top)
                moved.append(higher)
            else:
                freed += below
    finally:
        os.close(folder)
    os.rmdir(name, dir_fd=top)
    return freed, moved


def _unlink(folder: int, name: str) -> int | None:
    """The bytes it freed; None for a folder, which is left."""
    seen = os.lstat(name, dir_fd=folder)
    if stat.S_ISDIR(seen.st_mode):
        return None
    os.unlink(name, dir_fd=folder)
    # Layers share files by hard links: the last name frees them.
    return seen.st_blocks * 512 if seen.st_nlink == 1 else 0


def _enter(parent: int, name: str) -> int:
    """Open a folder, after making it ours to change."""
    flags = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    handle = os.open(name, os.O_PATH | flags, dir_fd=parent)
    try:
        if os.fstat(handle).st_mode & 0o700 != 0o700:
            os.chmod(f"/proc/self/fd/{handle}", 0o700)
        return os.open(name, os.O_RDONLY | flags, dir_fd=parent)
    finally:
        os.close(handle)


def _size(run: RunDirectory) -> int:
    """About what dropping it would free: folders that deny us entry are not looked into."""
    seen: dict[tuple[int, int], int] = {}
    for folder, _, files in os.walk(run.path, onerror=None):
        for file in files:
            with contextlib.suppress(OSError):
                found = os.lstat(os.path.join(folder, file))
                seen[found.st_dev, found.st_ino] = found.st_blocks * 512
    return sum(seen.values())
