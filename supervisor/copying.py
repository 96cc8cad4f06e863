"""The workspace as a copy, where there is no overlayfs: the same layers by another way.

    begin    base and layers, as an overlay would show them → runs/<id>/layers/<name>/copy, where
             the task works; what was made is noted with its inode numbers and times
    gather   what differs from what was noted → runs/<id>/layers/<name>/upper, as overlayfs would
             have left it, by hard links out of the copy; from then on it is a layer like any other

Gathering begins anew each time, so that it can fail anywhere and be done again. A changed inode
number or time only makes us look: what then has the content, mode and attributes it had is not a
change. (Overlayfs calls everything a change that was opened for writing.)

What cannot be copied is left out, and not taken for removed later: sockets and devices. What we may
not read of the base is there, empty and closed.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import defaultdict
from collections.abc import Callable, Collection
from pathlib import Path
from typing import NamedTuple

from ..protocol.errors import LocalViolation, UsageError
from .layers import COPY, FOLDERS, UPPER, Kind, LayerStore, Place, View, copy_file, make_whiteout
from .trees import (
    Moment,
    Step,
    Syncer,
    UnkeepableTree,
    Walk,
    change_mode,
    copy_attributes,
    is_out_of_reach,
    open_folder,
    open_regular,
    opened,
    overlay_attributes,
    remove_tree,
    user_attributes,
    with_access,
)

__all__ = ["Copies", "copy_view"]

_CHUNK = 1 << 20


class _Seen(NamedTuple):
    """What the copy had when the task was given it. Of a folder kind, mode and attributes count."""

    kind: int
    mode: int
    size: int = 0
    modified: int = 0
    changed: int = 0
    inode: int = 0
    target: str | None = None
    attributes: tuple[tuple[str, bytes], ...] = ()


def copy_view(
    view: View,
    target: int,
    *,
    owner: tuple[int, int] | None,
    without: Collection[tuple[int, int]] = (),
    is_whole: bool = False,
    syncer: Syncer | None = None,
) -> None:
    """Make what `view` shows in the open, empty folder `target`. `without`: folders (device, inode)
    of the base to be left out. `is_whole`: owners too, and refuse what cannot be read."""
    _Copying(view, target, owner, set(without), is_whole, syncer).run()


class _Copying:
    def __init__(
        self,
        view: View,
        target: int,
        owner: tuple[int, int] | None,
        without: set[tuple[int, int]],
        is_whole: bool,
        syncer: Syncer | None,
    ) -> None:
        self._view = view
        self._target = target
        self._owner = owner
        self._without = without
        self._is_whole = is_whole
        self._syncer = syncer
        self._folders: dict[str, tuple[int, os.stat_result]] = {}  # mode, and whose times

    def run(self) -> None:
        if self._view.base is not None:
            with opened(self._view.base.resolve()) as base:
                self._take_base(base)
        self._take_layers()
        # Backwards: a folder's time and mode change with what is made in it.
        for path, (mode, status) in sorted(self._folders.items(), reverse=True):
            fd = open_folder(path, self._target)
            try:
                self._give(fd, status)
                os.fchmod(fd, mode)
                os.utime(fd, ns=(status.st_atime_ns, status.st_mtime_ns))
                if self._syncer is not None:
                    self._syncer.add(fd)
            finally:
                os.close(fd)

    def _give(self, fd: int, status: os.stat_result) -> None:
        owner = self._owner_of(status)
        if owner is not None:
            os.fchown(fd, *owner)

    def _owner_of(self, status: os.stat_result) -> tuple[int, int] | None:
        if self._is_whole and os.geteuid() == 0:
            return status.st_uid, status.st_gid
        return self._owner

    def _take_base(self, base: int) -> None:
        walk = Walk(base, needs=0, tolerant=True)
        has_layers = bool(self._view.stack)
        for step in walk:
            if step.moment is Moment.LEAVE:
                continue
            is_folder = step.moment is Moment.ENTER
            if is_folder and (step.status.st_dev, step.status.st_ino) in self._without:
                walk.skip()
                continue
            place = self._view.look(step.path) if has_layers else None
            if has_layers and (place is None or (place.change and place.kind not in FOLDERS)):
                if is_folder:
                    walk.skip()
            elif place is not None and place.change is not None:
                if is_folder:
                    self._layer_folder(step.path, place)
                    if not place.base_shows:
                        walk.skip()
            elif is_folder:
                self._base_folder(step)
            else:
                self._base_entry(step)

    def _base_folder(self, step: Step) -> None:
        os.mkdir(step.path, 0o700, dir_fd=self._target)
        mode = stat.S_IMODE(step.status.st_mode)
        if step.inside < 0:
            self._refuse(step.path)
            mode = 0
        else:
            self._attributes(step.inside, step.path)
        self._folders[step.path] = (mode, step.status)

    def _base_entry(self, step: Step) -> None:
        status = step.status
        if stat.S_ISLNK(status.st_mode):
            os.symlink(os.readlink(step.name, dir_fd=step.at), step.path, dir_fd=self._target)
            self._mark(step.path, status)
        elif stat.S_ISFIFO(status.st_mode):
            os.mkfifo(step.path, stat.S_IMODE(status.st_mode), dir_fd=self._target)
            self._mark(step.path, status)
        elif stat.S_ISREG(status.st_mode):
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            try:
                source = os.open(step.name, flags, dir_fd=step.at)
            except FileNotFoundError:
                return
            except PermissionError:
                self._refuse(step.path)
                # as little of it is there as the task could have read
                os.close(os.open(step.path, os.O_CREAT | os.O_EXCL, 0, dir_fd=self._target))
                self._mark(step.path, status)
                return
            try:
                owner = self._owner_of(status)
                copy_file(source, step.path, self._target, owner, self._syncer)
            finally:
                os.close(source)

    def _refuse(self, path: str) -> None:
        if self._is_whole:
            raise UsageError(f"workspace: {path} cannot be read, and so not be copied")

    def _mark(self, path: str, status: os.stat_result) -> None:
        owner = self._owner_of(status)
        if owner is not None:
            os.chown(path, *owner, dir_fd=self._target, follow_symlinks=False)
        times = status.st_atime_ns, status.st_mtime_ns
        os.utime(path, ns=times, dir_fd=self._target, follow_symlinks=False)

    def _attributes(self, source: int, path: str) -> None:
        if attributes := user_attributes(source):
            fd = open_folder(path, self._target)
            try:
                for name, value in attributes.items():
                    os.setxattr(fd, name, value)
            finally:
                os.close(fd)

    def _take_layers(self) -> None:
        for path in self._view.paths():
            place = self._view.find(path)
            if place is None or place.change is None:
                continue
            if place.kind in FOLDERS:
                if path not in self._folders:
                    self._layer_folder(path, place)
            else:
                self._layer_entry(path, place)

    def _layer_folder(self, path: str, place: Place) -> None:
        os.mkdir(path, 0o700, dir_fd=self._target)

        def note(at: int, _: str) -> None:
            self._attributes(at, path)
            self._folders[path] = (place.mode, os.fstat(at))

        self._in_layer(place, f"{path}/.", note)

    def _layer_entry(self, path: str, place: Place) -> None:
        def take(at: int, name: str) -> None:
            if place.kind is Kind.LINK:
                os.symlink(os.readlink(name, dir_fd=at), path, dir_fd=self._target)
                self._mark(path, os.stat(name, dir_fd=at, follow_symlinks=False))
                return
            source = open_regular(name, at)
            try:
                copy_file(source, path, self._target, self._owner, self._syncer)
            finally:
                os.close(source)

        self._in_layer(place, path, take)

    def _in_layer(self, place: Place, path: str, act: Callable[[int, str], None]) -> None:
        with opened(self._view.store.root / place.layers[0] / UPPER) as upper:
            with_access(upper, path, act)


class Copies:
    """The copies that living attempts of one run work in."""

    def __init__(self, store: LayerStore) -> None:
        self._store = store
        self._seen: dict[str, dict[str, _Seen]] = {}

    def begin(self, name: str, view: View, mode: int, without: Collection[tuple[int, int]]) -> Path:
        folder = self._store.begin(name, mode, copying=True)
        target = open_folder(folder)
        try:
            copy_view(view, target, owner=self._store.owner, without=without)
            os.fchmod(target, mode)
            seen: dict[str, _Seen] = {}
            for step in Walk(target):
                if step.moment is not Moment.LEAVE:
                    seen[step.path] = _see(step)
        finally:
            os.close(target)
        self._seen[name] = seen
        return folder

    def gather(self, name: str, view: View) -> None:
        """Once nothing of the attempt lives: what it changed, as a layer's upper folder."""
        try:
            at = open_folder(self._store.root / name)
        except FileNotFoundError:
            return
        try:
            if COPY not in os.listdir(at):
                return  # done, and the copy is gone
            if name not in self._seen:
                raise LocalViolation(f"layer {name}: its copy was made by another supervisor")
            remove_tree(at, UPPER)
            mode = stat.S_IMODE(os.stat(COPY, dir_fd=at, follow_symlinks=False).st_mode)
            change_mode(at, COPY, mode | 0o700)
            os.mkdir(UPPER, 0o700, dir_fd=at)
            try:
                with opened(COPY, at) as copy, opened(UPPER, at) as upper:
                    _Gathering(self._store, view, self._seen[name], copy, upper).run()
                    if self._store.owner is not None:
                        os.fchown(upper, *self._store.owner)
                    os.fchmod(upper, mode)
            finally:
                change_mode(at, COPY, mode)
        finally:
            os.close(at)

    def forget(self, name: str) -> None:
        self._seen.pop(name, None)


class _Gathering:
    def __init__(
        self, store: LayerStore, view: View, seen: dict[str, _Seen], copy: int, upper: int
    ) -> None:
        self._store = store
        self._view = view
        self._seen = seen
        self._copy = copy
        self._upper = upper
        self._made: set[str] = {""}
        self._names: defaultdict[str, list[str]] = defaultdict(list)
        for path in seen:
            folder, _, name = path.rpartition("/")
            self._names[folder].append(name)

    def run(self) -> None:
        self._missing("", self._copy)
        for step in Walk(self._copy):
            if step.moment is Moment.ENTER:
                self._enter(step)
            elif step.moment is Moment.LEAVE:
                self._leave(step)
            else:
                self._entry(step)

    def _missing(self, folder: str, inside: int) -> None:
        for name in self._names.get(folder, ()):
            try:
                os.stat(name, dir_fd=inside, follow_symlinks=False)
            except FileNotFoundError:
                path = f"{folder}/{name}" if folder else name
                self._whiteout(path)

    def _whiteout(self, path: str) -> None:
        self._lead_to(path)
        make_whiteout(path, self._upper)
        self._own(path)

    def _own(self, path: str) -> None:
        if self._store.owner is not None:
            os.chown(path, *self._store.owner, dir_fd=self._upper, follow_symlinks=False)

    def _lead_to(self, path: str) -> None:
        """Make the folders above."""
        end = path.find("/")
        while end > 0:
            self._make(path[:end])
            end = path.find("/", end + 1)

    def _make(self, folder: str) -> None:
        if folder not in self._made:
            os.mkdir(folder, 0o700, dir_fd=self._upper)
            self._made.add(folder)

    def _enter(self, step: Step) -> None:
        had = self._seen.get(step.path)
        if _see(step) != had:
            self._lead_to(step.path)
            self._make(step.path)
        if had is not None and had.kind == stat.S_IFDIR:
            self._missing(step.path, step.inside)

    def _leave(self, step: Step) -> None:
        if step.path not in self._made:
            return
        fd = open_folder(step.path, self._upper)
        try:
            copy_attributes(step.inside, fd)
            if self._store.owner is not None:
                os.fchown(fd, *self._store.owner)
            os.fchmod(fd, stat.S_IMODE(step.status.st_mode))
            os.utime(fd, ns=(step.status.st_atime_ns, step.status.st_mtime_ns))
        finally:
            os.close(fd)

    def _entry(self, step: Step) -> None:
        had = self._seen.get(step.path)
        kind = stat.S_IFMT(step.status.st_mode)
        if kind not in (stat.S_IFREG, stat.S_IFLNK):
            if had is not None and had.kind != kind:
                self._whiteout(step.path)
            return
        now = _see(step)
        if had is not None and (now == had or self._is_as_it_was(step, had, now)):
            return
        self._lead_to(step.path)
        try:
            os.link(
                step.name,
                step.path,
                src_dir_fd=step.at,
                dst_dir_fd=self._upper,
                follow_symlinks=False,
            )
        except OSError as error:
            if error.errno != errno.EMLINK:
                raise
            raise UnkeepableTree(f"{step.path} has too many names") from None
        if kind == stat.S_IFREG:
            self._clean(step)

    def _clean(self, step: Step) -> None:
        fd = open_regular(step.name, step.at)
        try:
            for name in overlay_attributes(fd):
                os.removexattr(fd, name)
        finally:
            os.close(fd)

    def _is_as_it_was(self, step: Step, had: _Seen, now: _Seen) -> bool:
        if (had.kind, had.mode, had.size, had.target) != (now.kind, now.mode, now.size, now.target):
            return False
        if now.kind == stat.S_IFLNK:
            return True
        place = self._view.find(step.path)
        if place is None or place.kind is not Kind.FILE:
            return False
        try:
            if place.layers:
                source = self._store.open_file(place.layers[0], step.path)
            else:
                source = self._view.open_base(step.path)
        except OSError as error:
            if is_out_of_reach(error):
                return False
            raise
        fd = open_regular(step.name, step.at)
        try:
            return _are_equal(fd, source)
        finally:
            os.close(fd)
            os.close(source)


def _see(step: Step) -> _Seen:
    status = step.status
    kind, mode = stat.S_IFMT(status.st_mode), stat.S_IMODE(status.st_mode)
    if kind == stat.S_IFDIR:
        return _Seen(kind, mode, attributes=tuple(sorted(user_attributes(step.inside).items())))
    target = os.readlink(step.name, dir_fd=step.at) if kind == stat.S_IFLNK else None
    return _Seen(
        kind,
        0 if target is not None else mode,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
        status.st_ino,
        target,
    )


def _are_equal(one: int, other: int) -> bool:
    if os.fstat(one).st_size != os.fstat(other).st_size:
        return False
    if user_attributes(one) != user_attributes(other):
        return False
    place = 0
    while piece := os.pread(one, _CHUNK, place):
        if piece != os.pread(other, len(piece), place):
            return False
        place += len(piece)
    return True
