"""What a run's workspace is: a base that nobody writes to, and the layers of what was completed.

    base: live       the workspace itself. What it was at the start is noted (`base.manifest`), so
                     that it can be told when others change it while the run lives.
    base: snapshot   a copy, made at the start: `runs/<id>/base`

A task sees the base and over it the layers of all that had to complete before it could start, in
the order of the graph: what it depends on, however far, but of a task whose stream it reads only
what that one saw, not what it is writing meanwhile. Two layers, neither of which was made in sight
of the other, may have changed the same path: that is a conflict, found in the manifests before the
task starts.

All of it blocks on the disk and belongs into threads; calls for different attempts may run at the
same time. There is one `Workspace` for a run, in the supervisor that owns it.
"""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import msgspec
from msgspec import Struct

from ..protocol.errors import LocalViolation, UsageError
from ..protocol.events import Layer, WorkspaceChanged
from ..protocol.limits import PATHS_NAMED
from ..protocol.pipeline import Base, Conflict, PipelineSpec
from .copying import Copies, copy_view
from .core.graph import Graph
from .layers import (
    UPPER,
    Change,
    DamagedLayerError,
    Kind,
    LayerStore,
    Resolved,
    View,
    are_in_conflict,
    folders_above,
    hides,
    resolve,
)
from .state import RunDirectory, fsync_directory
from .trees import Moment, Syncer, Walk, open_folder, remove_tree

__all__ = ["Clash", "Prepared", "Workspace"]

_MANIFEST = "base.manifest"
_UNFINISHED = ".unfinished"
_VERSION = 1


@dataclass(frozen=True, slots=True)
class Prepared:
    """Where an attempt works. With overlayfs the fields of a LayerSpec; else `copy`, a folder to be
    bound writable."""

    name: str
    base: str
    folder: str
    lower: tuple[str, ...]
    upper: str
    copy: str | None = None


@dataclass(frozen=True, slots=True)
class Clash:
    """Paths (all of them, in order, as they can be printed) that two branches changed, and the
    first two tasks that did."""

    paths: tuple[str, ...]
    tasks: tuple[str, str]

    @property
    def message(self) -> str:
        named = ", ".join(self.paths[:PATHS_NAMED])
        more = len(self.paths) - PATHS_NAMED
        return f"tasks {self.tasks[0]} and {self.tasks[1]} both changed {named}" + (
            f" and {more} more" if more > 0 else ""
        )


class _Fact(Struct, frozen=True, array_like=True):
    """One path of the base: enough to tell that it was changed. Of a folder, kind and mode."""

    mode: int  # with the kind
    size: int = 0
    modified: int = 0
    inode: int = 0


class _BaseManifest(Struct, frozen=True):
    version: int
    facts: dict[bytes, _Fact]


class Workspace:
    """`overlay`: whether sandboxes can mount one; else they work in copies. `owner`: whom layers
    belong to on disk (root only). `state`: the state directory, which a workspace may contain."""

    def __init__(
        self,
        run: RunDirectory,
        spec: PipelineSpec,
        *,
        overlay: bool = True,
        owner: tuple[int, int] | None = None,
        state: Path | None = None,
    ) -> None:
        if spec.workspace is None:
            raise LocalViolation(f"run {run.id}: its pipeline has no workspace")
        self.run = run
        self.spec = spec
        self.overlay = overlay
        self.store = LayerStore(run.path / "layers", owner)
        self.original = Path(spec.workspace)
        self.base = self.original if spec.base is Base.LIVE else run.path / "base"
        self._state = state
        self._copies = Copies(self.store)
        self._manifest: dict[bytes, _Fact] | None = None
        self._sights: tuple[Graph, dict[str, int]] | None = None
        self._clashes: dict[tuple[str, ...], Clash | None] = {}
        self._lock = threading.Lock()

    # --- the base ------------------------------------------------------------------------------

    def is_begun(self) -> bool:
        """Whether `begin_run` has come to its end once."""
        if self.spec.base is Base.SNAPSHOT:
            return self.base.is_dir()
        return (self.run.path / _MANIFEST).is_file()

    def begin_run(self) -> None:
        """Note or copy the base, durably. Once a run; a second time after it failed."""
        if not self.original.is_dir():
            raise UsageError(f"workspace {self.original}: no such folder")
        if self.spec.base is Base.SNAPSHOT:
            self._snapshot(self.original)
        else:
            self.accept_base()

    def begin_fork(self, source: Workspace, layers: Mapping[str, str]) -> None:
        """The base as it was for `source`, and layers by our names and its own; durable. Nothing of
        `source` is changed: a layer never is, and a manifest is only ever replaced."""
        if not source.is_begun():  # before there were layers, tasks only read their workspace
            self.begin_run()
        elif self.spec.base is Base.SNAPSHOT:
            self._snapshot(source.base)
        else:
            os.link(source.run.path / _MANIFEST, self.run.path / _MANIFEST)
            fsync_directory(self.run.path)
        for name, theirs in layers.items():
            self.store.adopt(source.store, name, theirs)

    def accept_base(self) -> None:
        """From now on the base counts as unchanged. A snapshot always does."""
        if self.spec.base is Base.SNAPSHOT:
            return
        facts = self._look(self.original)
        path = self.run.path / _MANIFEST
        building = path.with_name(_MANIFEST + _UNFINISHED)
        with building.open("wb") as file:
            file.write(msgspec.msgpack.encode(_BaseManifest(_VERSION, facts)))
            file.flush()
            os.fsync(file.fileno())
        building.rename(path)
        fsync_directory(self.run.path)
        self._manifest = facts

    def changes_of_base(self) -> list[str]:
        """Paths of the base that others changed since the run began, in order; never of a
        snapshot."""
        if self.spec.base is Base.SNAPSHOT:
            return []
        return _differing(self._noted(), self._look(self.original))

    def changes_of_original(self) -> dict[str, int | None]:
        """Paths of the workspace itself that are not as the run began with, in order, and the mode
        (with the kind) that each had then; None: it was not there. Of a snapshot's original what
        counts is what a copy can share with it."""
        before, now = self._noted(), self._look(self.original)
        if self.spec.base is Base.SNAPSHOT:
            before, now = _copyable(before), _copyable(now)
        return {
            path: None if (fact := before.get(os.fsencode(path))) is None else fact.mode
            for path in _differing(before, now)
        }

    def _noted(self) -> dict[bytes, _Fact]:
        if self._manifest is None:
            if self.spec.base is Base.SNAPSHOT:
                self._manifest = self._look(self.base)
                return self._manifest
            path = self.run.path / _MANIFEST
            try:
                read = msgspec.msgpack.decode(path.read_bytes(), type=_BaseManifest)
            except (FileNotFoundError, msgspec.DecodeError) as error:
                raise DamagedLayerError(f"{path}: {error}") from None
            self._manifest = read.facts
        return self._manifest

    def changed(self) -> WorkspaceChanged | None:
        """The same, as it is told; None: nothing was changed."""
        paths = self.changes_of_base()
        if not paths:
            return None
        return WorkspaceChanged(
            paths=tuple(printable(path) for path in paths[:PATHS_NAMED]), total=len(paths)
        )

    def _look(self, root: Path) -> dict[bytes, _Fact]:
        facts: dict[bytes, _Fact] = {}
        without = self._without()
        base = open_folder(root.resolve())
        try:
            walk = Walk(base, needs=0, tolerant=True)
            for step in walk:
                if step.moment is Moment.LEAVE:
                    continue
                status = step.status
                if step.moment is Moment.ENTRY:
                    fact = _Fact(status.st_mode, status.st_size, status.st_mtime_ns, status.st_ino)
                elif (status.st_dev, status.st_ino) in without:
                    walk.skip()
                    continue
                else:
                    fact = _Fact(status.st_mode)
                facts[os.fsencode(step.path)] = fact
        finally:
            os.close(base)
        return facts

    def _without(self) -> set[tuple[int, int]]:
        """Folders of ours that may lie in the workspace."""
        found = set()
        for path in (self._state, self.run.path.parent, self.run.path):
            if path is not None and path.is_dir():
                status = path.stat()
                found.add((status.st_dev, status.st_ino))
        return found

    def _snapshot(self, origin: Path) -> None:
        if self.base.is_dir():
            return
        at = open_folder(self.run.path)
        building = self.base.name + _UNFINISHED
        syncer = Syncer()
        try:
            remove_tree(at, building)
            os.mkdir(building, 0o700, dir_fd=at)
            target = open_folder(building, at)
            try:
                with View(self.store, origin, ()) as view:
                    copy_view(
                        view,
                        target,
                        owner=None,
                        without=self._without(),
                        is_whole=True,
                        syncer=syncer,
                    )
                status = origin.stat()
                if os.geteuid() == 0:
                    os.fchown(target, status.st_uid, status.st_gid)
                os.fchmod(target, stat.S_IMODE(status.st_mode))
                syncer.finish()
                os.fsync(target)
            finally:
                os.close(target)
            os.rename(building, self.base.name, src_dir_fd=at, dst_dir_fd=at)
            os.fsync(at)
        finally:
            syncer.drop()
            os.close(at)

    # --- what a task sees ----------------------------------------------------------------------

    def stack(self, graph: Graph, task: str, layers: Mapping[str, str]) -> tuple[str, ...]:
        """The layers below a task's own, bottom-up. `layers`: by task, of all that completed and
        changed files."""
        return tuple(layers[above] for above in self._above(graph, task, layers))

    def whole_stack(self, graph: Graph, layers: Mapping[str, str]) -> tuple[str, ...]:
        """All layers of a run, bottom-up: what its files have come to."""
        return tuple(layers[task] for task in graph.order if task in layers)

    def _above(self, graph: Graph, task: str, layers: Iterable[str]) -> list[str]:
        """The tasks among `layers` whose files `task` sees, in the order of the graph."""
        sight = self._sight(graph)[task]
        return sorted(
            (other for other in layers if sight >> graph.position[other] & 1),
            key=graph.position.__getitem__,
        )

    def _sight(self, graph: Graph) -> dict[str, int]:
        """Of each task, a bit for the position of every task whose files it sees."""
        with self._lock:
            if self._sights is None or self._sights[0] is not graph:
                sights: dict[str, int] = {}
                before: dict[str, int] = {}  # all that a task depends on
                for task in graph.order:
                    sights[task] = before[task] = 0
                    for source in graph.inputs[task]:
                        sights[task] |= before[source] | 1 << graph.position[source]
                    for source in graph.streams[task]:
                        sights[task] |= sights[source]
                    for source in graph.upstream[task]:
                        before[task] |= before[source] | 1 << graph.position[source]
                self._sights = graph, sights
            return self._sights[1]

    def check(self, graph: Graph, task: str, layers: Mapping[str, str]) -> Clash | None:
        """Where branches that meet in `task` changed the same path; None with `conflict: last`."""
        if self.spec.conflict is Conflict.LAST:
            return None
        return self._check(graph, self._above(graph, task, layers), layers)

    def check_whole(self, graph: Graph, layers: Mapping[str, str]) -> Clash | None:
        """The same of all that a run changed, also where branches never meet."""
        tasks = sorted(layers, key=graph.position.__getitem__)
        return self._check(graph, tasks, layers)

    def _check(self, graph: Graph, tasks: Sequence[str], layers: Mapping[str, str]) -> Clash | None:
        sight, place = self._sight(graph), graph.position
        if all(sight[after] >> place[before] & 1 for before, after in pairwise(tasks)):
            return None  # each saw all before it
        key = tuple(layers[task] for task in tasks)
        with self._lock:
            if key in self._clashes:
                return self._clashes[key]
        found = self._find_clash(graph, tasks, layers)
        with self._lock:
            while len(self._clashes) >= 64:
                self._clashes.pop(next(iter(self._clashes)))
            self._clashes[key] = found
        return found

    def _find_clash(
        self, graph: Graph, tasks: Sequence[str], layers: Mapping[str, str]
    ) -> Clash | None:
        sight, place = self._sight(graph), graph.position
        by_path: dict[str, list[tuple[str, Change]]] = {}
        for task in tasks:
            for path, change in self.store.manifest(layers[task]).items():
                by_path.setdefault(path, []).append((task, change))
        hiding = {
            path: [task for task, change in found if hides(change)]
            for path, found in by_path.items()
        }
        paths: list[str] = []
        first: tuple[str, str] | None = None

        def strangers(earlier: str, later: str) -> bool:
            a, b = sorted((earlier, later), key=place.__getitem__)
            return a != b and not sight[b] >> place[a] & 1

        for path in sorted(by_path):
            pairs = [
                (a, b)
                for number, (b, theirs) in enumerate(by_path[path])
                for a, ours in by_path[path][:number]
                if are_in_conflict(ours, theirs) and strangers(a, b)
            ]
            for folder in folders_above(path):
                pairs += [
                    (a, b)
                    for a in hiding.get(folder, ())
                    for b, change in by_path[path]
                    if change.kind is not Kind.PASSAGE and strangers(a, b)
                ]
            if pairs:
                a, b = min(tuple(sorted(pair, key=place.__getitem__)) for pair in pairs)
                first = first or (a, b)
                paths.append(printable(path))
        return None if first is None else Clash(tuple(paths), first)

    # --- one attempt ---------------------------------------------------------------------------

    def begin(self, name: str, stack: Sequence[str]) -> Prepared:
        """Make what an attempt works in."""
        below = (self.store.root / stack[-1] / UPPER) if stack else self.base
        mode = stat.S_IMODE(below.stat().st_mode) & 0o1777
        base, folder = str(self.base.resolve()), str(self.store.root)
        if not self.overlay:
            with View(self.store, self.base, stack) as view:
                copy = self._copies.begin(name, view, mode, self._without())
            return Prepared(name, base, folder, (), name, str(copy))
        lower = self.store.lower(stack, self.base)
        self.store.begin(name, mode)
        return Prepared(name, base, folder, lower, name)

    def undo(self, name: str) -> None:
        """Unmake it, however far it was begun."""
        self.store.discard(name)
        self._copies.forget(name)

    def commit(self, name: str, stack: Sequence[str]) -> Layer | None:
        """What the attempt wrote, durable; None: nothing. May be called again where it failed."""
        with View(self.store, self.base, stack) as view:
            if not self.overlay:
                self._copies.gather(name, view)
            layer = self.store.commit(name, view)
        self._copies.forget(name)
        return layer

    def keep(self, name: str, stack: Sequence[str]) -> None:
        """A failed attempt's files stay for inspection, and join nothing."""
        with View(self.store, self.base, stack) as view:
            if not self.overlay:
                self._copies.gather(name, view)
            self.store.keep(name, view)
        self._copies.forget(name)

    def resolve(self, stack: Sequence[str]) -> list[Resolved]:
        """How what `stack` shows differs from the base. The topmost may be one that was kept."""
        return resolve(self.store, self.base, stack)


def _differing(before: Mapping[bytes, _Fact], now: Mapping[bytes, _Fact]) -> list[str]:
    changed = [path for path, fact in now.items() if before.get(path) != fact]
    changed += [path for path in before if path not in now]
    return [os.fsdecode(path) for path in sorted(changed)]


def _copyable(facts: Mapping[bytes, _Fact]) -> dict[bytes, _Fact]:
    """Sockets and devices are in no copy, and inode numbers are another's."""
    return {
        path: msgspec.structs.replace(fact, inode=0)
        for path, fact in facts.items()
        if stat.S_IFMT(fact.mode) in (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO)
    }


def printable(path: str) -> str:
    """A path as text: events are UTF-8, names need not be."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
