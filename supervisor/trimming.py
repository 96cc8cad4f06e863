"""What a run that is kept does not need any more.

    attempts   the layer of each that failed, was restarted or cut off: it joined nothing. Of what a
               rollback has undone only where no checkpoint holds it: from one a fork can be made,
               and `diff` can look at it
    flats      caches, made again when an attempt needs them
    values     files of events that came to nothing, and of what a fork did not take over

The journal stays whole. Its own files and those that it speaks of are never touched, and nothing is
while a supervisor lives that owns the run. A trimming that is killed is finished by the next.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..protocol.errors import CasemateError
from .files import kept_layers
from .journal import JournalReader
from .layers import LayerStore
from .recovery import fold
from .state import Ownership, RunDirectory
from .values import ValueStore

__all__ = ["Trimmed", "disk_space", "trim"]


@dataclass(frozen=True, slots=True)
class Trimmed:
    """`attempts` as TASK/NUMBER, `values` how many. `problem`: why there is more to be done."""

    run: str
    attempts: tuple[str, ...]
    values: int
    bytes: int
    problem: str | None = None


def trim(run: RunDirectory, *, dry_run: bool = False) -> Trimmed | None:
    """None: there is nothing to be done, or somebody owns the run. Blocks on the disk."""
    try:
        if run.is_owned() or not any(_find(run)):  # so that a lock is seldom taken
            return None
        if dry_run:
            layers, values = _find(run)
            return _told(run, layers, values, disk_space([*_paths(run, layers), *values]))
        ownership = Ownership.take(run)
    except (CasemateError, FileNotFoundError):
        # Owned since then, dropped since then, never begun, or damaged: `ps` and `show` tell that.
        return None
    freed, problem = 0, None
    gone: list[str] = []
    deleted: list[Path] = []
    try:
        layers, values = _find(run)
        for name in layers:
            freed += _store(run).discard(name)
            gone.append(name)
        for file in values:
            freed += disk_space([file])
            file.unlink()
            deleted.append(file)
    except OSError as error:
        problem = f"{error.strerror} ({error.filename})"
    finally:
        ownership.release()
    return _told(run, gone, deleted, freed, problem)


def _find(run: RunDirectory) -> tuple[list[str], list[Path]]:
    """Names in the folder of layers, and files of values."""
    with JournalReader(run) as reader:
        state = fold(reader, run.id, reader.last_seq())
        values = ValueStore(run.values).leftovers(reader.digests())
    return _store(run).superfluous(kept_layers(state)), values


def _store(run: RunDirectory) -> LayerStore:
    return LayerStore(run.path / "layers")


def _paths(run: RunDirectory, layers: Iterable[str]) -> list[Path]:
    return [_store(run).root / name for name in layers]


def _told(
    run: RunDirectory, layers: list[str], values: list[Path], freed: int, problem: str | None = None
) -> Trimmed:
    attempts = tuple(
        "/".join(name.rsplit(".", 1)) for name in layers if "." in name and name[0] != "."
    )
    return Trimmed(run.id, attempts, len(values), freed, problem)


def disk_space(paths: Iterable[Path]) -> int:
    """What removing all of them would free: a file that has a name elsewhere stays. Folders that
    deny us entry are not looked into."""
    found: dict[tuple[int, int], tuple[int, os.stat_result]] = {}

    def count(path: str) -> None:
        try:
            seen = os.lstat(path)
        except OSError:
            return
        names, _ = found.get((seen.st_dev, seen.st_ino), (0, seen))
        found[seen.st_dev, seen.st_ino] = names + 1, seen

    for path in paths:
        if not path.is_dir() or path.is_symlink():
            count(str(path))
        for folder, _, files in os.walk(path):
            for file in files:
                count(os.path.join(folder, file))
    return sum(seen.st_blocks * 512 for names, seen in found.values() if names >= seen.st_nlink)
