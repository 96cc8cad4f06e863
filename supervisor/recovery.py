"""A run's state by the one fold, from its journal and nothing else.

`read_run` gives what a supervisor needs to go on with a run whose owner is gone, or that has ended
and is rolled back. `fork` makes a new run of the history up to a checkpoint: its journal is a copy
that ends there, its values, sources and layers are hard links (none of them ever changes). Nobody
sees it before it is whole.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import msgspec
from msgspec import Raw

from ..protocol.errors import LocalViolation, UsageError
from ..protocol.events import (
    DATA,
    CheckpointCreated,
    RunStarted,
    TaskCompleted,
    TaskSaved,
    TaskSkipped,
)
from ..protocol.pipeline import PipelineSpec
from .core.commands import Record
from .core.state import RunState
from .files import fork_files, layer_name
from .journal import JournalError, JournalReader, NotBegunError, Outline
from .state import OwnedRun, RunDirectory, StateDirectory, fsync_directory, fsync_file

__all__ = [
    "Recovered",
    "Witness",
    "fold",
    "fork",
    "link_tree",
    "read_outputs",
    "read_run",
    "read_spec",
]


class Recovered(msgspec.Struct, frozen=True):
    """`last_seq`: of the last event that `state` follows from. `layers`: names of all that attempts
    which completed may have left, undone since or not."""

    state: RunState
    last_seq: int
    layers: frozenset[str]


# Told of every record that was applied: the state after it, and the record as the journal has it.
Witness = Callable[[RunState, Record, Outline], None]


def read_run(run: RunDirectory) -> Recovered:
    """A run as its journal tells it. NotBegunError where it has none; JournalError where the
    journal is damaged."""
    saves: dict[str, int] = {}  # seq of what a task saved last, where that is large

    def witness(_: RunState, record: Record, told: Outline) -> None:
        if isinstance(record.data, TaskSaved) and record.task is not None:
            saves.pop(record.task, None)
            if told.omitted:
                saves[record.task] = told.event.seq

    with JournalReader(run) as reader:
        # Its owner may be writing: what comes after this seq is another state's.
        last_seq = reader.last_seq()
        layers = frozenset(layer_name(*each) for each in reader.completions())
        state = fold(reader, run.id, last_seq, witness)
        for name, seq in saves.items():
            if state.tasks[name].saved is not None:
                saved = msgspec.msgpack.decode(reader.events(seq - 1, 1)[0].data, type=TaskSaved)
                state.tasks[name].saved = saved.state
        return Recovered(state, last_seq, layers)


def read_spec(run: RunDirectory) -> PipelineSpec:
    """The pipeline of a run."""
    with JournalReader(run) as reader:
        first = reader.events(0, 1)
    if not first:
        raise NotBegunError(run.id)
    started = msgspec.msgpack.decode(first[0].data, type=RunStarted)
    return msgspec.msgpack.decode(started.spec, type=PipelineSpec)


def fold(
    reader: JournalReader, run: str, last_seq: int, witness: Witness | None = None
) -> RunState:
    """Large values are left where they are: outputs (`RunState.missing_outputs`), and nil stands
    for what was saved."""
    state: RunState | None = None
    for told in reader.decisions():
        event, omitted = told
        if event.seq > last_seq:
            break
        kind = DATA.get(event.kind)
        if kind is None:
            raise JournalError(f"run {run}: event {event.seq} is of the unknown kind {event.kind}")
        raw = event.data
        if omitted and kind is RunStarted:
            raw = reader.events(event.seq - 1, 1)[0].data
        try:
            data = msgspec.msgpack.decode(raw, type=kind)
            if state is None:
                if not isinstance(data, RunStarted):
                    raise JournalError(f"run {run}: its journal begins with {event.kind}")
                state = RunState(run, msgspec.msgpack.decode(data.spec, type=PipelineSpec))
            if event.task is not None and event.task not in state.tasks:
                raise JournalError(f"run {run}: event {event.seq} is of a task it does not have")
            record = Record(run, event.task, event.attempt, data)
            state.apply(record)
        except (LocalViolation, UsageError, msgspec.MsgspecError, ValueError) as error:
            # What we would never have written: somebody else did, or the disk.
            raise JournalError(f"run {run}: event {event.seq} cannot be: {error}") from error
        if omitted and isinstance(data, TaskCompleted | TaskSkipped) and event.task is not None:
            state.tasks[event.task].output = None
        if witness is not None:
            witness(state, record, told)
    if state is None:
        raise NotBegunError(run)
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
            data = msgspec.msgpack.decode(event.data, type=DATA[event.kind])
            assert isinstance(data, TaskCompleted | TaskSkipped)
            found[task, attempt] = data.output
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

    def fill(copy: RunDirectory) -> None:
        _copy_journal(source.journal, copy, cut)
        for name in ("values", "sources"):
            link_tree(source.path / name, copy.path / name)
        fork_files(source, copy, read_run(copy).state)

    owned = state.create_run(fill)
    try:
        return owned, read_run(owned.directory)
    except BaseException:
        owned.ownership.release()
        raise


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
    fsync_file(copy.journal)
    fsync_directory(copy.path)


def link_tree(source: Path, target: Path) -> None:
    """Ours alone on both sides: no task ever wrote there."""
    for folder, folders, files in os.walk(source):
        below = target / os.path.relpath(folder, source)
        below.mkdir(mode=0o700, exist_ok=True)
        if folder == str(source):
            folders[:] = [name for name in folders if name != "tmp"]  # being written
        for name in files:
            os.link(os.path.join(folder, name), below / name, follow_symlinks=False)
        fsync_directory(below)
