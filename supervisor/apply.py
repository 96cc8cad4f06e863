"""Writing what a run changed into the real workspace.

First everything is looked at and nothing written: what differs from the workspace as it is now,
whether somebody else changed it meanwhile, whether every path still is of a kind that can become
what the run made of it, whether every file can be read, and which changes are risky (risky.py).
One refusal names all that stands in the way.

Then, in this order: what is in the way of another kind of thing goes; folders are made, parents
first; files and links are written beside their place under a name of ours, synced and renamed over
it; what is deleted goes, contents before folders; folders get their modes, the deepest first,
since a mode may forbid to write; every folder that was touched is synced.

So each path is old or new at any moment, or absent for a moment where its kind changes. What is as
wanted already is left alone, so that the same apply after a crash makes the rest; the name written
under follows from the path, so that it finds the half-written file of the crash and replaces it.

Neither side is ever reached through a symbolic link (beneath.py). A layer's files are copied, never
linked or moved: flattened layers share their inodes. Nothing gets setuid, setgid or sticky bits
from a run, nor devices, sockets or FIFOs.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from errno import EBADF, ENODATA, ENOTSUP, ENXIO, EPERM
from hashlib import sha256
from pathlib import Path

from ..protocol.errors import CasemateError, UsageError
from ..protocol.limits import KIB, PATHS_NAMED
from ..sandbox import syscalls
from .beneath import Beneath, Found, NotRegularError, OwnBeneath, opened, reason
from .layers import Resolved
from .patch import quoted
from .risky import risk
from .trees import user_attributes

__all__ = ["ALLOW_ALL", "Applied", "ApplyFailed", "ApplyRefused", "apply_changes"]

# As `allow`: the folder that every path is in.
ALLOW_ALL = frozenset({"/"})

_OURS = ".casemate-apply-"
_CHUNK = 256 * KIB


@dataclass(frozen=True, slots=True)
class Applied:
    """What was done: files and links written (and their bytes), files, links and folders removed,
    folders made or changed in mode. What was as wanted already does not count."""

    written: int
    size: int
    removed: int
    folders: int


class ApplyRefused(UsageError):
    """Nothing was written. `changed`: by somebody else since the run began; `unexpected`: what
    cannot be written, and why; `risky`: what must be named first, and why."""

    def __init__(
        self, changed: Iterable[str], unexpected: Mapping[str, str], risky: Mapping[str, str]
    ) -> None:
        self.changed = tuple(sorted(changed, key=os.fsencode))
        self.unexpected = dict(unexpected)
        self.risky = dict(risky)
        sections = []
        if self.changed:
            sections.append(
                "the workspace changed since the run began; look at these paths, then accept that "
                "the run did not know of it (--accept-base):"
                + _listed(quoted(path) for path in self.changed)
            )
        if self.unexpected:
            sections.append("these paths cannot be written:" + _listed(_told(self.unexpected)))
        if self.risky:
            sections.append(
                "these changes are risky; look at them, then name those that may be applied "
                "(--allow PATH, or a folder with a slash at its end):" + _listed(_told(self.risky))
            )
        super().__init__("\n".join(["nothing was applied", *sections]))


class ApplyFailed(CasemateError):
    """The disk or a racing change stopped it midway. The same apply again makes the rest."""


def _told(paths: Mapping[str, str]) -> list[str]:
    return [f"{quoted(path)}: {why}" for path, why in paths.items()]


def _listed(lines: Iterable[str]) -> str:
    every = list(lines)
    shown = every[:PATHS_NAMED]
    if len(every) > PATHS_NAMED:
        shown.append(f"and {len(every) - PATHS_NAMED} more")
    return "".join(f"\n  {line}" for line in shown)


def apply_changes(
    base: Path,
    layers: Path,
    changes: Iterable[Resolved],
    *,
    allow: frozenset[str],
    manifest_check: Callable[[], Iterable[str]] | None,
    accept_base: bool = False,
    were_folders: Iterable[str] = (),
    dry_run: bool = False,
) -> Applied:
    """Make `base` what `changes` say. `allow` names risky paths, or folders with a slash at their
    end. `manifest_check` returns the paths that are not as they were when the run began; with
    `accept_base` only those are refused whose kind changed. Without it the caller vouches for the
    base. `were_folders`: what changed since then and was a folder, which an apply that was cut off
    may have removed. `dry_run`: only say what would be done. Raises ApplyRefused, or ApplyFailed
    midway; blocks on the disk."""
    # What an earlier apply closed in the workspace is read to see that it is done.
    with (
        Beneath(base) as old,
        OwnBeneath(base) as present,
        OwnBeneath(layers) as new,
        _locked(old, base),
    ):
        wanted = {change.path: change for change in changes}
        wanted = dict(sorted(wanted.items(), key=lambda item: os.fsencode(item[0])))
        changed = set(manifest_check()) if manifest_check is not None else set()
        plan = _Plan(present, new, wanted, changed, were_folders)
        plan.look(allow)
        foreign = () if accept_base else plan.foreign
        if foreign or plan.unexpected or plan.risky:
            raise ApplyRefused(foreign, plan.unexpected, plan.risky)
        if dry_run:
            return plan.outcome()
        return _Writer(old, new, plan.actions).write()


@contextmanager
def _locked(tree: Beneath, base: Path) -> Iterator[None]:
    """Two at a time would write under the same names."""
    with opened(tree.open("", os.O_RDONLY | os.O_DIRECTORY)) as folder:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"{base}: another apply is writing to it") from None
        yield


@dataclass(frozen=True, slots=True)
class _Action:
    change: Resolved
    found: Found  # what is there now

    @property
    def source(self) -> str:
        return f"{self.change.layer}/upper/{self.change.path}"

    @property
    def mode(self) -> int:
        kept = self.found.mode & 0o7000 if self.change.kind == self.found.kind == "folder" else 0
        return self.change.mode & 0o777 | kept


class _Plan:
    """What there is to do, and what stands in its way. Only reads."""

    def __init__(
        self,
        old: Beneath,
        new: Beneath,
        wanted: Mapping[str, Resolved],
        changed: set[str],
        were_folders: Iterable[str],
    ) -> None:
        self._old = old
        self._new = new
        self._wanted = wanted
        self._changed = changed
        self._parents: dict[str, Found] = {}
        self._was_folder = {
            path.rpartition("/")[0] for path, change in wanted.items() if change.kind == "absent"
        }.union(were_folders)
        self.actions: list[_Action] = []
        self.foreign: set[str] = set()
        self.unexpected: dict[str, str] = {}
        self.risky: dict[str, str] = {}

    def look(self, allow: frozenset[str]) -> None:
        for path, change in self._wanted.items():
            if change.kind == "absent" and path.rpartition("/")[2].startswith(_OURS):
                continue  # what a crash left in a folder that the run replaced: see _write
            try:
                found = self._old.look(path)
                why = self._obstacle(change, found)
                if why is None and not self._is_done(_Action(change, found)):
                    self.actions.append(_Action(change, found))
            except (OSError, NotRegularError) as error:
                why = reason(error)
            if why is not None:
                self.unexpected[path] = why
        for action in self.actions:
            change = action.change
            why = risk(
                change.path, action.found, Found(change.kind, change.mode, target=change.target)
            )
            if why is not None and not _is_allowed(change.path, allow):
                self.risky[change.path] = why
        self.foreign = {path for path in self._changed if not self._is_ours(path)}

    def outcome(self) -> Applied:
        """What carrying it out would come to."""
        kinds = Counter(action.change.kind for action in self.actions)
        size = sum(
            self._new.look(action.source).size
            for action in self.actions
            if action.change.kind == "file"
        )
        return Applied(kinds["file"] + kinds["link"], size, kinds["absent"], kinds["folder"])

    def _obstacle(self, change: Resolved, found: Found) -> str | None:
        """Why this cannot become what is wanted; None where it can."""
        path = change.path
        if any(part.startswith(_OURS) for part in path.split("/")):
            return "a name that apply itself writes under"
        why = self._obstacle_above(change)
        if why is not None:
            return why
        if found.is_odd:
            return f"is {found.kind} now"
        if found.kind in ("absent", change.kind):
            return None
        if path in self._changed and not self._may_be_halfway(path, found):
            return f"is a {found.kind} now, since the run began"
        if found.kind == "folder":
            for name in self._old.names(path):
                below = self._wanted.get(f"{path}/{name}")
                if below is None or below.kind != "absent":
                    return f"holds {quoted(name)}, of which the run knows nothing"
        return None

    def _obstacle_above(self, change: Resolved) -> str | None:
        above = change.path
        while "/" in above:
            above = above.rpartition("/")[0]
            if above not in self._parents:
                self._parents[above] = self._old.look(above)
            found = self._parents[above]
            if found.kind == "folder":
                # what is above a folder is one
                return None
            becomes = self._wanted.get(above)
            is_made = becomes is not None and becomes.kind == "folder"
            if found.kind == "absent":
                if change.kind == "absent" or is_made:
                    continue
                return f"its folder {quoted(above)} is gone"
            if is_made and (above not in self._changed or self._may_be_halfway(above, found)):
                continue
            if change.kind == "absent" and becomes is not None and becomes.kind == found.kind:
                continue  # gone, with the folder that was there
            return f"{quoted(above)} is {_article(found.kind)} now"
        return None

    def _is_done(self, action: _Action) -> bool:
        change, found = action.change, action.found
        if change.kind == "link":
            return found.kind == "link" and found.target == change.target
        if change.kind == "absent":
            return found.kind == "absent"
        if change.kind == "folder":
            return (
                found.kind == "folder"
                and found.mode == action.mode
                and self._folder_attributes(self._new, action.source)
                == self._folder_attributes(self._old, change.path)
            )
        with self._new.file(action.source) as source:  # also to know now that it can be read
            if found.kind != "file" or found.mode & 0o777 != action.mode:
                return False
            try:
                with self._old.file(change.path) as present:
                    return _attributes(source) == _attributes(present) and _is_same(source, present)
            except (OSError, NotRegularError):
                return False

    def _folder_attributes(self, tree: Beneath, path: str) -> dict[str, bytes]:
        try:
            folder = tree.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except PermissionError:
            return {}  # a folder of mode 000 is made all the same
        with opened(folder):
            return _attributes(folder)

    def _is_ours(self, path: str) -> bool:
        """A change that an earlier apply of the same made."""
        if path.rpartition("/")[2].startswith(_OURS):
            return True
        change = self._wanted.get(path)
        if change is None:
            return False
        try:
            found = self._old.look(path)
            return self._may_be_halfway(path, found) or self._is_done(_Action(change, found))
        except (OSError, NotRegularError):
            return False

    def _may_be_halfway(self, path: str, found: Found) -> bool:
        """As an apply that was cut off leaves it: a folder without its mode, or nothing, where
        something of another kind was in the way."""
        change = self._wanted[path]
        if change.kind == "folder":
            return found.kind in ("folder", "absent")
        if change.kind in ("file", "link"):
            return found.kind in ("folder", "absent") and path in self._was_folder
        return False


def _article(kind: str) -> str:
    return {"file": "a file", "link": "a symbolic link"}.get(kind, kind)


def _is_allowed(path: str, allow: frozenset[str]) -> bool:
    return (
        "/" in allow
        or path in allow
        or any(f"{above}/" in allow for above in [path, *_ancestors(path)])
    )


def _ancestors(path: str) -> Iterator[str]:
    while "/" in path:
        path = path.rpartition("/")[0]
        yield path


class _Writer:
    def __init__(self, old: Beneath, new: Beneath, actions: list[_Action]) -> None:
        self._old = old
        self._new = new
        self._actions = actions
        self._touched: set[str] = set()
        self._widened: dict[str, int] = {}
        self._size = 0
        # What is made belongs to whom the workspace belongs, not to root.
        root = os.fstat(old.root)
        self._owner = (root.st_uid, root.st_gid) if os.geteuid() == 0 else None

    def write(self) -> Applied:
        def some(*kinds: str) -> list[_Action]:
            return [action for action in self._actions if action.change.kind in kinds]

        folders, contents, absent = some("folder"), some("file", "link"), some("absent")
        replaced = {a.change.path for a in contents if a.found.kind == "folder"}
        first = [a for a in absent if not replaced.isdisjoint(_ancestors(a.change.path))]
        blocked = [a for a in folders if a.found.kind in ("file", "link")]
        last = [a for a in absent if replaced.isdisjoint(_ancestors(a.change.path))]
        cleared = [a for a in contents if a.found.kind == "folder"]
        try:
            # in reverse order of paths contents come before their folder
            for step, actions in (
                (self._remove, first[::-1]),
                (self._remove, cleared[::-1]),
                (self._remove, blocked),
                (self._make_folder, [a for a in folders if a.found.kind != "folder"]),
                (self._write, contents),
                (self._remove, last[::-1]),
                (self._finish_folder, folders[::-1]),
            ):
                for action in actions:
                    with self._named(action.change.path):
                        step(action)
            self._restore()
            for folder in sorted(self._touched, key=os.fsencode):
                with self._named(folder or "."):
                    self._sync(folder)
        finally:
            # after a failure too, as far as it goes: the failure is what is told
            with contextlib.suppress(OSError):
                self._restore()
        return Applied(len(contents), self._size, len(absent), len(folders))

    @contextmanager
    def _named(self, path: str) -> Iterator[None]:
        try:
            yield
        except (OSError, NotRegularError) as error:
            raise ApplyFailed(
                f"{quoted(path)}: {reason(error)}; the changes are applied in part, "
                "the same apply again makes the rest"
            ) from error

    @contextmanager
    def _place(self, path: str) -> Iterator[tuple[int, bytes]]:
        """The folder around it, which may be written to, and its name there."""
        above = path.rpartition("/")[0]
        with self._old.parent(path) as (folder, name):
            seen = os.fstat(folder)
            if not seen.st_mode & 0o200 and seen.st_uid == os.geteuid() != 0:
                self._widened[above] = seen.st_mode & 0o7777
                os.chmod(f"/proc/self/fd/{folder}", seen.st_mode & 0o7777 | 0o200)
            self._touched.add(above)
            yield folder, name

    def _remove(self, action: _Action) -> None:
        with self._place(action.change.path) as (folder, name):
            if action.found.kind == "folder":
                os.rmdir(name, dir_fd=folder)
            else:
                os.unlink(name, dir_fd=folder)

    def _make_folder(self, action: _Action) -> None:
        path = action.change.path
        with self._place(path) as (folder, name):
            os.mkdir(name, 0o700, dir_fd=folder)
        with opened(self._old.open(path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW)) as made:
            self._give(made)

    def _finish_folder(self, action: _Action) -> None:
        path = action.change.path
        self._widened.pop(path, None)
        self._touched.add(path)
        flags = os.O_DIRECTORY | os.O_NOFOLLOW
        is_open = True
        try:
            folder = self._old.open(path, os.O_RDONLY | flags)
        except PermissionError:  # of a mode that forbids it, which is about to change
            folder = self._old.open(path, os.O_PATH | flags)
            is_open = False
        with opened(folder):
            with (
                contextlib.suppress(PermissionError),
                opened(self._new.open(action.source, os.O_RDONLY | flags)) as source,
            ):
                _carry_attributes(source, folder)
            # not fchmod, which O_PATH does not allow
            os.chmod(f"/proc/self/fd/{folder}", action.mode)
            if is_open:
                os.fsync(folder)

    def _write(self, action: _Action) -> None:
        path = action.change.path
        building = _OURS.encode() + sha256(os.fsencode(path)).hexdigest()[:16].encode()
        with self._place(path) as (folder, name):
            # what a crash left
            with contextlib.suppress(FileNotFoundError):
                os.unlink(building, dir_fd=folder)
            try:
                if action.change.kind == "link":
                    self._build_link(action, folder, building)
                else:
                    self._build_file(action, folder, building)
                os.rename(building, name, src_dir_fd=folder, dst_dir_fd=folder)
            except OSError:
                with contextlib.suppress(OSError):
                    os.unlink(building, dir_fd=folder)
                raise

    def _build_link(self, action: _Action, folder: int, building: bytes) -> None:
        assert action.change.target is not None
        os.symlink(os.fsencode(action.change.target), building, dir_fd=folder)
        if self._owner is not None:
            with opened(
                os.open(building, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
            ) as made:
                self._give(made)

    def _build_file(self, action: _Action, folder: int, building: bytes) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with (
            self._new.file(action.source) as source,
            opened(os.open(building, flags, 0o600, dir_fd=folder)) as made,
        ):
            self._size += _copy(source, made)
            _carry_attributes(source, made)
            self._give(made)
            os.fchmod(made, action.mode)
            os.fsync(made)

    def _give(self, descriptor: int) -> None:
        # By descriptor: a name could be made to stand for something else in between.
        if self._owner is not None:
            syscalls.syscall("fchownat", descriptor, b"", *self._owner, syscalls.AT_EMPTY_PATH)

    def _restore(self) -> None:
        while self._widened:
            path, mode = self._widened.popitem()
            # else it was removed meanwhile, or replaced
            if not path or self._old.look(path).kind == "folder":
                with opened(self._old.open(path, os.O_RDONLY | os.O_DIRECTORY)) as folder:
                    os.fchmod(folder, mode)

    def _sync(self, path: str) -> None:
        # gone or replaced by now: then the folder above holds what counts
        if path and self._old.look(path).kind != "folder":
            return
        # of a mode that forbids it: synced before it got that (see _finish_folder)
        with (
            contextlib.suppress(PermissionError),
            opened(self._old.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)) as folder,
        ):
            os.fsync(folder)


# --- contents ------------------------------------------------------------------------------------


def _is_same(one: int, other: int) -> bool:
    if os.fstat(one).st_size != os.fstat(other).st_size:
        return False
    while True:
        chunk = os.read(one, _CHUNK)
        if chunk != os.read(other, _CHUNK):
            return False
        if not chunk:
            return True


def _copy(source: int, target: int) -> int:
    """The content with its holes; its size."""
    size = os.fstat(source).st_size
    at = 0
    while at < size:
        try:
            start = os.lseek(source, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno != ENXIO:
                raise
            break  # a hole up to the end
        end = os.lseek(source, start, os.SEEK_HOLE)
        at = start
        while at < end:
            chunk = os.pread(source, min(_CHUNK, end - at), at)
            if not chunk:
                raise OSError(ENODATA, "its layer's file is shorter than it was")
            view = memoryview(chunk)
            while view:
                written = os.pwrite(target, view, at)
                view = view[written:]
                at += written
    os.ftruncate(target, size)
    return size


def _attributes(descriptor: int) -> dict[str, bytes]:
    try:
        return user_attributes(descriptor)
    except OSError as error:
        if error.errno == EBADF:  # O_PATH, of a folder whose mode forbids more
            return {}
        raise


def _carry_attributes(source: int, target: int) -> None:
    wanted, present = _attributes(source), _attributes(target)
    try:
        for name in present.keys() - wanted.keys():
            os.removexattr(target, name)
        for name, value in wanted.items():
            if present.get(name) != value:
                os.setxattr(target, name, value)
    except OSError as error:
        # A file system without them takes the content all the same.
        if error.errno not in (ENOTSUP, EPERM, EBADF):
            raise
