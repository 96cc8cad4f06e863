"""One run's files, as the engine handles them: what an attempt is given, and what it leaves.

    given     which layers it sees is said on the loop, by the run's state at that moment
    begin     where branches that meet in it changed the same path: no start; else its own layer
    complete  its layer is durable before its completion is told
    keep      anything else: the layer joins nothing, and stays for whoever wants to look

All but `given` block on the disk and belong into threads; calls for different attempts may run at
the same time.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..protocol.errors import CasemateError, UsageError
from ..protocol.events import ErrorKind, Layer, TaskError, WorkspaceChanged
from ..protocol.limits import DISK_RESERVE, MIB
from ..protocol.pipeline import PipelineSpec
from ..protocol.units import format_size
from ..sandbox.probe import hands_out_ids, overlay_works
from ..sandbox.spec import LAYER_OWNER, LayerSpec
from .core.graph import Graph
from .core.state import RunState
from .core.task import Standing
from .layers import DamagedLayerError
from .state import RunDirectory
from .trees import ENTRIES, UnkeepableTree
from .workspace import Prepared, Workspace

__all__ = [
    "ClashError",
    "Files",
    "Given",
    "Overlays",
    "begin_files",
    "check_base",
    "fork_files",
    "kept_layers",
    "layer_name",
    "layer_owner",
    "layer_spec",
    "present_layers",
]

# Files and folders of a layer are bounded too, for each takes an inode of the disk, empty or not:
# as many as blocks of the usual size that limits.disk allows, a quarter of a million by default.
BYTES_PER_ENTRY = 4096
LEAST_ENTRIES = 1024


def layer_name(task: str, attempt: int) -> str:
    return f"{task}.{attempt}"


def present_layers(state: RunState) -> dict[str, str]:
    """Of each task that has completed and changed files, the name of its layer."""
    return {
        name: layer_name(name, task.done)
        for name, task in state.tasks.items()
        if task.layer is not None and task.standing is Standing.COMPLETED
    }


def kept_layers(state: RunState) -> set[str]:
    """The names of all layers that may count again: those that do, and what checkpoints hold."""
    held = {
        layer_name(task, done.attempt)
        for checkpoint in state.checkpoints.values()
        for task, done in checkpoint.tasks.items()
        if done.layer is not None
    }
    return held.union(present_layers(state).values())


class ClashError(CasemateError):
    """Branches that changed the same path meet in a task."""


@dataclass(frozen=True, slots=True)
class Given:
    """What an attempt's layer lies upon."""

    task: str
    name: str
    graph: Graph
    layers: Mapping[str, str]
    stack: tuple[str, ...]


def layer_owner() -> tuple[int, int] | None:
    """Whom layers belong to on disk: under root to nobody, else to us."""
    return (LAYER_OWNER, LAYER_OWNER) if hands_out_ids() else None


class Overlays:
    """Whether layers can be mounted over a base: a trial of 0.1 s, once for each base."""

    def __init__(self) -> None:
        self._known: dict[Path, str | None] = {}
        self._lock = threading.Lock()

    def work(self, folder: Path, base: Path) -> bool:
        base = base.resolve()
        with self._lock:
            if base not in self._known:
                self._known[base] = overlay_works(folder, base)
            return self._known[base] is None


class Files:
    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self._given: dict[str, Given] = {}

    @classmethod
    def of_run(
        cls, run: RunDirectory, spec: PipelineSpec, overlays: Overlays, state: Path
    ) -> Files | None:
        """Of a run whose files are begun; None: it has no workspace. UsageError where that is
        gone."""
        if spec.workspace is None:
            return None
        workspace = Workspace(run, spec, owner=layer_owner(), state=state)
        if not workspace.base.is_dir():
            raise UsageError(f"run {run.id}: its workspace {workspace.base} is gone")
        workspace.overlay = overlays.work(run.path, workspace.base)
        return cls(workspace)

    @classmethod
    def recover(
        cls,
        run: RunDirectory,
        state: RunState,
        journaled: frozenset[str],
        overlays: Overlays,
        state_directory: Path,
    ) -> Files | None:
        """Of a run that is taken over: what its last owner left half-made is cleared away.
        `journaled`: every layer that its journal ever told of. DamagedLayerError where one that
        counts is gone, UsageError where the base is."""
        if state.spec.workspace is None:
            return None
        workspace = Workspace(run, state.spec, owner=layer_owner(), state=state_directory)
        for name in workspace.store.attempts():
            task, _, number = name.rpartition(".")
            if task not in state.tasks or int(number) > state.tasks[task].attempt:
                # Its layer was begun before its number was durable: that will be given again.
                workspace.store.discard(name)
        missing = workspace.store.sweep(set(journaled)) & set(present_layers(state).values())
        if missing:
            raise DamagedLayerError(
                f"run {run.id}: the files of {', '.join(sorted(missing))} are gone from "
                f"{workspace.store.root}; roll back to before them is all that is left"
            )
        if not workspace.is_begun():
            workspace.begin_run()
        return cls.of_run(run, state.spec, overlays, state_directory)

    # --- one attempt ---------------------------------------------------------------------------

    def given(self, state: RunState, task: str, attempt: int) -> Given:
        layers = present_layers(state)
        stack = self.workspace.stack(state.graph, task, layers)
        return Given(task, layer_name(task, attempt), state.graph, layers, stack)

    def begin(self, given: Given) -> Prepared:
        """ClashError names the paths."""
        clash = self.workspace.check(given.graph, given.task, given.layers)
        if clash is not None:
            raise ClashError(
                f"{clash.message}; let one of them need the other, or say `conflict: last`"
            )
        self._given[given.name] = given
        return self.workspace.begin(given.name, given.stack)

    def undo(self, given: Given) -> None:
        """As if it had never been begun: nobody worked in it, or what did is not to count."""
        self._given.pop(given.name, None)
        self.workspace.undo(given.name)

    def complete(self, name: str, limit: int) -> Layer | TaskError | None:
        """Its layer, durable; None: it changed nothing; or why it cannot be kept, and then it has
        failed. OSError where the disk does."""
        given = self._given[name]
        taken, excess = self.weigh(name, limit)
        if excess is None and taken >= MIB:  # a smaller one is not what fills the disk
            excess = self.crowded()
        try:
            if excess is not None:
                raise UnkeepableTree(excess)
            layer = self.workspace.commit(name, given.stack)
        except UnkeepableTree as error:
            self.keep(name)
            return TaskError(kind=ErrorKind.DISK, message=str(error))
        del self._given[name]
        return layer

    def keep(self, name: str) -> None:
        """Nothing happens to an attempt that was never begun."""
        given = self._given.pop(name, None)
        if given is not None:
            self.workspace.keep(name, given.stack)

    def weigh(self, name: str, limit: int) -> tuple[int, str | None]:
        """(bytes on disk of what an attempt wrote so far, why that is too much)"""
        most = min(max(limit // BYTES_PER_ENTRY, LEAST_ENTRIES), ENTRIES)
        taken, entries = self.workspace.store.size(name, most)
        if taken > limit:
            found = f"its files are {format_size(taken)} on disk"
        elif entries > most:
            found = f"it wrote more than {most} files and folders"
        else:
            return taken, None
        return taken, f"{found}, and limits.disk is {format_size(limit)}"

    def crowded(self) -> str | None:
        """Why no layer may grow any more: what their file system has to keep free."""
        found = os.statvfs(self.workspace.store.root)
        free = found.f_bavail * found.f_frsize
        reserve = min(DISK_RESERVE, found.f_blocks * found.f_frsize // 20)
        if free >= reserve:
            return None
        return (
            f"the file system of the state directory has {format_size(free)} left, and "
            f"{format_size(reserve)} are kept for journals and outputs"
        )

    # --- the base ------------------------------------------------------------------------------

    def changed(self) -> WorkspaceChanged | None:
        return self.workspace.changed()

    def check_base(self, accept: bool) -> None:
        _check_base(self.workspace, accept)


def check_base(run: RunDirectory, spec: PipelineSpec, accept: bool) -> None:
    """Before a way back: UsageError where others changed the base, unless that is accepted."""
    if spec.workspace is not None:
        _check_base(Workspace(run, spec), accept)


def _check_base(workspace: Workspace, accept: bool) -> None:
    if accept:
        workspace.accept_base()
        return
    changed = workspace.changed()
    if changed is not None:
        more = changed.total - len(changed.paths)
        raise UsageError(
            f"the workspace {workspace.original} was changed since the run began: "
            + ", ".join(changed.paths)
            + (f" and {more} more" if more else "")
            + "; what is returned to lies upon it. --accept-base goes on with it as it is now"
        )


def begin_files(run: RunDirectory, spec: PipelineSpec, state: Path) -> None:
    """What a new run needs of its workspace, durable. UsageError where it is not to be had."""
    if spec.workspace is not None:
        try:
            Workspace(run, spec, owner=layer_owner(), state=state).begin_run()
        except OSError as error:
            raise UsageError(f"workspace {spec.workspace} cannot be taken in: {error}") from error


def layer_spec(prepared: Prepared) -> LayerSpec:
    return LayerSpec(
        base=prepared.base, folder=prepared.folder, lower=prepared.lower, upper=prepared.upper
    )


def fork_files(
    source: RunDirectory,
    copy: RunDirectory,
    state: RunState,
    names: Mapping[str, str] | None = None,
) -> None:
    """Give a copy of a run what `state`, which is the copy's, knows of files. `names`: of its
    layers, as the source calls them, where that is otherwise. Durable."""
    if state.spec.workspace is None:
        return
    theirs = Workspace(source, state.spec, owner=layer_owner())
    ours = Workspace(copy, state.spec, owner=layer_owner())
    kept = sorted(kept_layers(state))
    ours.begin_fork(theirs, {name: (names or {}).get(name, name) for name in kept})
