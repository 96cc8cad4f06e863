"""Taking a run up again: its state by the one fold, from its journal and nothing else.

`read_run` gives what a supervisor needs to go on with a run whose owner is gone, or that has ended
and is rolled back. `fork` makes a new run of the history up to a checkpoint: its journal is a copy
that ends there, its values, sources and layers are hard links (none of them ever changes).
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import msgspec
from msgspec import Raw

from ..protocol.errors import UsageError
from ..protocol.events import DATA, CheckpointCreated, RunStarted, TaskCompleted, TaskSaved
from ..protocol.pipeline import PipelineSpec
from .core.commands import Record
from .core.state import RunState
from .files import fork_files, layer_name
from .journal import JournalError, JournalReader
from .state import OwnedRun, RunDirectory, StateDirectory, fsync_directory

__all__ = ["Recovered", "fold", "fork", "read_outputs", "read_run"]


class Recovered(msgspec.Struct, frozen=True):
    """`last_seq`: of the last event that `state` follows from. `layers`: names of all that attempts
    which completed may have left, undone since or not."""

    state: RunState
    last_seq: int
    layers: frozenset[str]


def read_run(run: RunDirectory) -> Recovered:
    """A run as its journal tells it. UsageError where it never began; JournalError where the
    journal is damaged."""
    with JournalReader(run) as reader:
        # Its owner may be writing: what comes after this seq is another state's.
        last_seq = reader.last_seq()
        layers = frozenset(layer_name(*each) for each in reader.completions())
        return Recovered(fold(reader, run.id, last_seq), last_seq, layers)


def fold(reader: JournalReader, run: str, last_seq: int) -> RunState:
    """Outputs that are large are left where they are (`RunState.missing_outputs`)."""
    state: RunState | None = None
    for event, omitted in reader.decisions():
        if event.seq > last_seq:
            break
        kind = DATA.get(event.kind)
        if kind is None:
            raise JournalError(f"run {run}: event {event.seq} is of the unknown kind {event.kind}")
        raw = event.data
        if omitted and kind in (RunStarted, TaskSaved):
            raw = reader.events(event.seq - 1, 1)[0].data
        data = msgspec.msgpack.decode(raw, type=kind)
        if state is None:
            if not isinstance(data, RunStarted):
                raise JournalError(f"run {run}: its journal begins with {event.kind}")
            state = RunState(run, msgspec.msgpack.decode(data.spec, type=PipelineSpec))
        state.apply(Record(run, event.task, event.attempt, data))
        if omitted and isinstance(data, TaskCompleted) and event.task is not None:
            state.tasks[event.task].output = None
    if state is None:
        raise UsageError(f"run {run} never began: there is nothing to go on with")
    return state


def read_outputs(
    run: RunDirectory, wanted: tuple[tuple[str, int], ...]
) -> dict[tuple[str, int], Raw]:
    """Outputs by (task, attempt), each from the event that told it."""
    found: dict[tuple[str, int], Raw] = {}
    with JournalReader(run) as reader:
        for task, attempt in wanted:
            event = reader.completion(task, attempt)
            if event is None:
                raise JournalError(f"run {run.id}: no output of task {task} (attempt {attempt})")
            found[task, attempt] = msgspec.msgpack.decode(event.data, type=TaskCompleted).output
    return found


def fork(
    state: StateDirectory, source: RunDirectory, checkpoint: str
) -> tuple[OwnedRun, Recovered]:
    """A new run, owned by us, with the history of `source` up to the making of `checkpoint`."""
    with JournalReader(source) as reader:
        cut = next(
            (
                event.seq
                for event, _ in reader.decisions()
                if event.kind == "checkpoint.created"
                and msgspec.msgpack.decode(event.data, type=CheckpointCreated).checkpoint
                == checkpoint
            ),
            None,
        )
    if cut is None:
        raise UsageError(
            f"run {source.id} has no checkpoint {checkpoint!r}; `casemate checkpoints {source.id}` "
            "lists them"
        )
    owned = state.create_run()
    try:
        _copy_journal(source.journal, owned.directory, cut)
        for name in ("values", "sources"):
            _link_tree(source.path / name, owned.directory.path / name)
        found = read_run(owned.directory)
        fork_files(source, owned.directory, found.state)
    except BaseException:
        owned.ownership.release()
        raise
    return owned, found


def _copy_journal(source: Path, copy: RunDirectory, cut: int) -> None:
    with (
        closing(sqlite3.connect(f"file:{source}?mode=ro", uri=True)) as old,
        closing(sqlite3.connect(copy.journal)) as new,
    ):
        os.chmod(copy.journal, 0o600)
        old.backup(new)
        new.execute("DELETE FROM events WHERE seq > ?", (cut,))
        new.execute("UPDATE run SET id = ?", (copy.id,))
        new.commit()
    with open(copy.journal, "rb") as file:  # noqa: PTH123 - for its descriptor
        os.fsync(file.fileno())
    fsync_directory(copy.path)


def _link_tree(source: Path, target: Path) -> None:
    """Ours alone on both sides: no task ever wrote there."""
    for folder, folders, files in os.walk(source):
        below = target / os.path.relpath(folder, source)
        below.mkdir(mode=0o700, exist_ok=True)
        if folder == str(source):
            folders[:] = [name for name in folders if name != "tmp"]  # being written
        for name in files:
            os.link(os.path.join(folder, name), below / name, follow_symlinks=False)
        fsync_directory(below)
