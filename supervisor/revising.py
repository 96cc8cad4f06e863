"""A run of a changed pipeline, which begins with what another one's run has completed.

It is a run of its own: one run has one pipeline and one snapshot of sources, from its first event
to its last, and everything that reads a journal (recovery, `show`, `diff`, observers) may rely on
that. What is kept of the other run is told anew in the new one's journal, in the old order and with
the old times: for each task all events of the attempt that completed, which is attempt 1 here.
Layers and values are hard links. A checkpoint holds what was kept, and `run.forked` names what was
changed. Nobody sees the run before it is whole.

The run that it goes on from is told to end first, and what that had completed by then counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection

import msgspec
from msgspec import Raw

from ..protocol.errors import CasemateError, UsageError
from ..protocol.events import CheckpointCreated, EventData, RunStarted
from ..protocol.pipeline import PipelineSpec
from .core.graph import build
from .core.state import RunState
from .core.task import Standing
from .files import fork_files, layer_name
from .journal import Journal, copy_attempts
from .recovery import Recovered, link_tree, read_run
from .sources import snapshot
from .state import OwnedRun, RunDirectory, StateDirectory

__all__ = ["revise"]


def revise(
    state: StateDirectory,
    source: RunDirectory,
    spec: PipelineSpec,
    seed: int,
    digest: str,
    same: Collection[str],
    stop: Callable[[], None],
) -> tuple[OwnedRun, Recovered]:
    """A new run, owned by us. `digest`: of the sources that it was made of. `same`: tasks of both
    that give what they gave. `stop`: called once all is there that the run needs, and returns when
    `source` has ended. Raises UsageError where the sources have changed again."""

    def fill(run: RunDirectory) -> None:
        if snapshot(spec, run.sources).digest != digest:
            raise UsageError(f"pipeline {spec.name}: its sources have changed again meanwhile")
        stop()
        old = read_run(source).state
        kept = _kept(old, spec, same)
        link_tree(source.values, run.values)
        _tell(run, spec, old.input, seed)
        copy_attempts(source.journal, run.journal, {name: old.tasks[name].done for name in kept})
        found = read_run(run)
        _append(run, found.last_seq, _checkpoint(found.state))
        names = {layer_name(name, 1): layer_name(name, old.tasks[name].done) for name in kept}
        fork_files(source, run, read_run(run).state, names)

    owned = state.create_run(fill)
    try:
        return owned, read_run(owned.directory)
    except BaseException:
        owned.ownership.release()
        raise


def _kept(old: RunState, spec: PipelineSpec, same: Collection[str]) -> list[str]:
    """Those that have completed, with all that they depend on."""
    kept: list[str] = []
    graph = build(spec)
    for name in graph.order:
        was = old.tasks.get(name)
        if (
            name in same
            and was is not None
            and was.standing is Standing.COMPLETED
            and name not in old.loose
            and set(kept).issuperset(graph.upstream[name])
        ):
            kept.append(name)
    return kept


def _tell(run: RunDirectory, spec: PipelineSpec, input: Raw, seed: int) -> None:
    started = RunStarted(
        pipeline=spec.name, input=input, seed=seed, spec=Raw(msgspec.msgpack.encode(spec))
    )
    empty = CheckpointCreated(checkpoint="c0", parent=None, tasks=(), total=0, files=0, bytes=0)
    _append(run, 0, started, empty)


def _checkpoint(state: RunState) -> CheckpointCreated:
    return CheckpointCreated(
        checkpoint="c1",
        parent="c0",
        tasks=tuple(state.fresh),
        total=state.completed,
        files=state.files,
        bytes=state.bytes,
    )


def _append(run: RunDirectory, last_seq: int, *data: EventData) -> None:
    problems: list[Exception] = []
    journal = Journal(lambda _: None, lambda _, error: problems.append(error))
    try:
        now = time.time()
        journal.open(run, last_seq=last_seq)
        journal.append(run.id, [(None, None, now, each) for each in data])
    finally:
        journal.close()
    if problems:
        raise CasemateError(f"run {run.id}: its journal cannot be written: {problems[0]}")
