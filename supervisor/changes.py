"""What became of a run's files: for `diff` to show, for `apply` to write into the workspace.

Which layers count is read from the run's journal, by the one fold, up to the moment asked about:

    now              the layer of every task that is completed
    at a checkpoint  those of the tasks it holds, as they were when it was made: after a rollback
                     their attempts are others
    one attempt      its own layer, be it committed or kept after a failure, over what it was given
                     when it became ready

A patch is made against the workspace as it is now (`base: snapshot`: against the copy), so that
`git apply` takes it there. After an `apply` nothing is left to tell.

An apply may have been killed half-way: what it removed is then missing from the workspace that the
layers are held against, and folders that it made are there. So the paths that changed since the run
began are looked at once more. What is gone, and hidden by the layers, is what the run removed; a
folder as the run made it is the run's; one that was opened up to write into it gets its mode back.
"""

from __future__ import annotations

import io
import re
import stat
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import msgspec

from ..protocol.control import RunState as Shown
from ..protocol.errors import CasemateError, UsageError
from ..protocol.events import CheckpointCreated, TaskCompleted
from ..protocol.limits import MIB, PATCH_SIZE
from ..protocol.pipeline import Base, Conflict
from .apply import Applied, apply_changes
from .core.state import RunStanding, RunState
from .files import layer_name, layer_owner, present_layers
from .journal import JournalReader
from .layers import COPY, UPPER, DamagedLayerError, Kind, Resolved, View
from .overview import summarise
from .patch import Summary, write_patch
from .recovery import fold
from .state import Ownership, RunDirectory, StateDirectory
from .workspace import Clash, Workspace

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

__all__ = ["Diff", "RunFiles", "apply_run", "diff_run", "find_files"]

# A supervisor closes the journal of a run that has ended, and lets go: a fsync or two.
_LET_GO = 5.0

_ATTEMPT = re.compile(r"([A-Za-z0-9_-]{1,64})(?:/([0-9]{1,18}))?")


@dataclass(frozen=True, slots=True)
class RunFiles:
    """What changed of the workspace, or of what an attempt was given (`given`). `layers`: by task,
    bottom-up; of an attempt only its own. `clash`: where branches that never met did the same."""

    workspace: Workspace
    layers: Mapping[str, str]
    changes: list[Resolved]
    given: list[Resolved]
    clash: Clash | None

    def write_patch(self, out: BinaryIO | None) -> Summary:
        """Without `out`: only what would be in it."""
        base, store = self.workspace.base.resolve(), self.workspace.store
        if not self.layers:
            return Summary(0, 0, 0, {}, {}, {})
        return write_patch(base, store.root, self.changes, out, self.given)

    def changed_by_others(self, summary: Summary) -> list[str]:
        """Paths in the patch that were changed in the workspace since the run began: the patch
        would undo that."""
        told = {entry.path for entry in summary.entries}
        return [path for path in self.workspace.changes_of_base() if path in told]


@dataclass(frozen=True, slots=True)
class Diff:
    """What a run changed, for a program. `patch`: for `git apply`. `paths`: all that differs, also
    what the patch cannot say (`left_out`: why). `risky`: what wants a look before it is applied.
    `clash`: paths of which branches that never met made different things; taken are those that come
    last in the order of the graph. `changed_by_others`: since the run began."""

    run: str
    patch: bytes
    paths: tuple[str, ...]
    left_out: Mapping[str, str]
    risky: Mapping[str, str]
    clash: tuple[str, ...]
    changed_by_others: tuple[str, ...]


class _Bounded(io.BytesIO):
    def write(self, data: ReadableBuffer, /) -> int:
        if self.tell() + memoryview(data).nbytes > PATCH_SIZE:
            raise UsageError(
                f"the patch has more than {PATCH_SIZE // MIB} MiB; `casemate diff` prints it"
            )
        return super().write(data)


def diff_run(
    state: StateDirectory,
    run: RunDirectory,
    *,
    checkpoint: str | None = None,
    attempt: str | None = None,
) -> Diff:
    """The patch whole. Blocks on the disk. UsageError as `find_files`, and where it is too large to
    be held."""
    files = find_files(state, run, checkpoint=checkpoint, attempt=attempt)
    out = _Bounded()
    summary = files.write_patch(out)
    return Diff(
        run=run.id,
        patch=out.getvalue(),
        paths=tuple(entry.path for entry in summary.entries),
        left_out=summary.left_out,
        risky=summary.risky,
        clash=() if files.clash is None else tuple(files.clash.paths),
        changed_by_others=tuple(files.changed_by_others(summary)),
    )


def find_files(
    state: StateDirectory,
    run: RunDirectory,
    *,
    checkpoint: str | None = None,
    attempt: str | None = None,
) -> RunFiles:
    """Blocks on the disk. UsageError where there is no such thing, or nothing to compare it to."""
    if checkpoint is not None and attempt is not None:
        raise UsageError("diff: give a checkpoint or an attempt, not both")
    with JournalReader(run) as reader:
        now = fold(reader, run.id, reader.last_seq())
        workspace = _workspace(state, run, now)
        if attempt is not None:
            return _files_of_attempt(reader, workspace, now, attempt)
        layers = present_layers(now)
        if checkpoint is not None:
            layers = _at_checkpoint(reader, now, checkpoint)
    stack = workspace.whole_stack(now.graph, layers)
    clash = workspace.check_whole(now.graph, layers)
    ordered = {task: layers[task] for task in now.graph.order if task in layers}
    return RunFiles(workspace, ordered, workspace.resolve(stack), [], clash)


def apply_run(
    state: StateDirectory,
    run: RunDirectory,
    *,
    checkpoint: str | None = None,
    allow: Iterable[str] = (),
    accept_base: bool = False,
    last: bool = False,
    dry_run: bool = False,
) -> tuple[RunStanding, Applied]:
    """Write a run's files into its workspace. Only of a run that has ended, under its lock: a task
    of a living one would see them in its base. `last`: although branches clash. How the run ended,
    and what was done."""
    ownership = _take_ended(run)
    try:
        with JournalReader(run) as reader:
            now = fold(reader, run.id, reader.last_seq())
        if not now.has_ended:
            word = "paused" if now.standing is RunStanding.PAUSED else "interrupted"
            raise UsageError(
                f"run {run.id} is {word}: its files are applied when it has ended; "
                f"`casemate resume {run.id}` goes on with it, `cancel` ends it"
            )
        files = find_files(state, run, checkpoint=checkpoint)
        workspace = files.workspace
        if not workspace.original.is_dir():
            raise UsageError(f"run {run.id}: workspace {workspace.original}: no such folder")
        if files.clash is not None and not last and workspace.spec.conflict is Conflict.FAIL:
            raise UsageError(
                f"nothing was applied\n{files.clash.message}; neither saw the other's files "
                "(--last takes those that come last in the order of the graph)"
            )
        if not files.layers:
            return now.standing, Applied(0, 0, 0, 0)
        changed = workspace.changes_of_original()
        applied = apply_changes(
            workspace.original.resolve(),
            workspace.store.root,
            [*files.changes, *_cut_off(files, changed)],
            allow=frozenset(allow),
            manifest_check=lambda: changed,
            accept_base=accept_base,
            were_folders=[path for path, mode in changed.items() if mode and stat.S_ISDIR(mode)],
            dry_run=dry_run,
        )
        return now.standing, applied
    finally:
        ownership.release()


def _take_ended(run: RunDirectory) -> Ownership:
    """Who has just seen a run's last event may come before its supervisor has let go of it."""
    give_up = time.monotonic() + _LET_GO
    while True:
        try:
            return Ownership.take(run)
        except UsageError:
            standing = summarise(run).state
            if standing in (Shown.RUNNING, Shown.PAUSED):
                raise UsageError(
                    f"run {run.id} is {standing}: its files are applied when it has ended"
                ) from None
            if time.monotonic() > give_up:
                raise
        time.sleep(0.02)


def _cut_off(files: RunFiles, changed: Mapping[str, int | None]) -> list[Resolved]:
    """What an apply that was killed leaves to be known: see above."""
    known = {change.path for change in files.changes}
    around = {path.rpartition("/")[0] for path in known}
    workspace = files.workspace
    found: list[Resolved] = []
    with View(workspace.store, workspace.base.resolve(), tuple(files.layers.values())) as view:
        for path, mode in changed.items():
            if path in known:
                continue
            now, place = _mode(workspace.original / path), view.look(path)
            if now is None and view.hides(path):
                found.append(Resolved(path, "absent", 0, None, None))
            elif now is not None and stat.S_ISDIR(now) and place is not None and place.layers:
                is_made = place.kind is not Kind.PASSAGE
                if not is_made and (mode is None or path not in around):
                    continue  # not ours
                bits = place.mode if is_made else stat.S_IMODE(mode or 0)
                if stat.S_IMODE(now) in (bits, bits | stat.S_IWUSR):
                    found.append(Resolved(path, "folder", bits, place.layers[0], None))
    return found


def _mode(path: Path) -> int | None:
    try:
        return path.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None


def _workspace(state: StateDirectory, run: RunDirectory, found: RunState) -> Workspace:
    if found.spec.workspace is None:
        raise UsageError(f"run {run.id}: its pipeline has no workspace, so it has no files")
    workspace = Workspace(run, found.spec, owner=layer_owner(), state=state.path)
    if not workspace.base.is_dir():
        what = "the copy of its workspace" if found.spec.base is Base.SNAPSHOT else "its workspace"
        raise UsageError(f"run {run.id}: {what}, {workspace.base}, is gone")
    return workspace


def _at(reader: JournalReader, now: RunState, is_it: Callable[..., bool]) -> RunState | None:
    """The run as it was at its first such event."""
    for event, _ in reader.decisions():
        if is_it(event):
            return fold(reader, now.run, event.seq)
    return None


def _at_checkpoint(reader: JournalReader, now: RunState, checkpoint: str) -> dict[str, str]:
    held = now.held_by(checkpoint)
    then = _at(
        reader,
        now,
        lambda event: (
            event.kind == "checkpoint.created"
            and msgspec.msgpack.decode(event.data, type=CheckpointCreated).checkpoint == checkpoint
        ),
    )
    assert then is not None  # it is among those that the same journal has told
    return {task: layer for task, layer in present_layers(then).items() if task in held}


def _files_of_attempt(
    reader: JournalReader, workspace: Workspace, now: RunState, text: str
) -> RunFiles:
    task, number = _parse(now, text)
    then = _at(
        reader,
        now,
        lambda event: (event.kind, event.task, event.attempt) == ("task.ready", task, number),
    )
    if then is None:
        raise UsageError(f"run {now.run}: task {task} has no attempt {number}")
    below = workspace.stack(now.graph, task, present_layers(then))
    name = layer_name(task, number)
    if not (workspace.store.root / name).is_dir():
        if not _wrote_nothing(reader, workspace, task, number):
            raise UsageError(
                f"run {now.run}: the files of attempt {task}/{number} are gone: `gc` drops those "
                "that no checkpoint holds, and a fork is made without them"
            )
        return RunFiles(workspace, {}, [], [], None)
    _make_readable(workspace, name, below)
    given = workspace.resolve(below)
    changes = _difference(workspace, below, name, given)
    return RunFiles(workspace, {task: name}, changes, given, None)


def _parse(now: RunState, text: str) -> tuple[str, int]:
    match = _ATTEMPT.fullmatch(text)
    if match is None:
        raise UsageError(f"{text!r}: an attempt is written TASK/NUMBER, as in analyze/2")
    task, number = match[1], match[2]
    if task not in now.tasks:
        raise UsageError(f"run {now.run} has no task {task!r}")
    latest = now.tasks[task].attempt
    if not latest:
        raise UsageError(f"run {now.run}: task {task} was not attempted yet")
    if number is not None and not 1 <= int(number) <= latest:
        raise UsageError(
            f"run {now.run}: task {task} has no attempt {number}; its latest is {latest}"
        )
    return task, int(number or latest)


def _wrote_nothing(reader: JournalReader, workspace: Workspace, task: str, number: int) -> bool:
    """Of an attempt that has no layer: whether it had none to begin with."""
    if not workspace.is_begun():
        return True  # made before there were layers
    told = [
        event for event, _ in reader.decisions() if (event.task, event.attempt) == (task, number)
    ]
    return not any(event.kind == "task.started" for event in told) or any(
        event.kind == "task.completed"
        and msgspec.msgpack.decode(event.data, type=TaskCompleted).layer is None
        for event in told
    )


def _make_readable(workspace: Workspace, name: str, below: Sequence[str]) -> None:
    """An attempt that died with its supervisor has no manifest yet; it gets the one of an attempt
    that failed. Under the run's lock: else its supervisor lives, and so may the attempt."""
    try:
        workspace.store.manifest(name)
        return
    except DamagedLayerError:
        folder = workspace.store.root / name
        if not (folder / UPPER).is_dir() and not (folder / COPY).is_dir():
            raise
    try:
        ownership = Ownership.take(workspace.run)
    except UsageError as error:
        raise UsageError(f"attempt {name.replace('.', '/')} is still at work: {error}") from error
    try:
        if (folder / COPY).is_dir():
            raise CasemateError(
                f"attempt {name.replace('.', '/')}: what it changed in its copy of the workspace "
                "was known to its supervisor alone, and died with it"
            )
        workspace.keep(name, below)
    finally:
        ownership.release()


def _difference(
    workspace: Workspace, below: Sequence[str], name: str, given: Sequence[Resolved]
) -> list[Resolved]:
    """What the topmost layer made of what those below it come to. Both are told against the base:
    what only `given` tells of has gone again, or is as in the base again."""
    before = {change.path: change for change in given}
    after = {change.path: change for change in workspace.resolve((*below, name))}
    found = {path: change for path, change in after.items() if before.get(path) != change}
    with View(workspace.store, workspace.base.resolve(), (*below, name)) as view:
        for path in before.keys() - after.keys():
            place = view.find(path)
            if place is None:
                found[path] = Resolved(path, "absent", 0, None, None)
            elif place.layers:  # a folder: files of a layer are always told
                found[path] = Resolved(path, "folder", place.mode, place.layers[0], None)
    return [found[path] for path in sorted(found)]
