"""One run's layers on disk: what an attempt wrote, over what it was given.

    layers/<task>.<attempt>/upper     an overlayfs upper directory: files, folders, links, whiteouts
                                      (character device 0/0), opaque folders (user.overlay.opaque)
    layers/<task>.<attempt>/work      overlayfs's own, while the attempt lives
    layers/<task>.<attempt>/copy      the whole workspace instead, where there is no overlayfs
    layers/<task>.<attempt>/changes   the manifest; that it exists says that the layer is committed
    layers/<task>.<attempt>/kept      the manifest of an attempt that failed
    layers/flat-<16 hex>/             several layers as one over those below, of hard links: a cache

Commit: tidy `upper` (no setuid, no sockets, FIFOs or devices) → write the manifest under another
name → sync all of it together, with the folders above → rename → sync the folder. Whatever is
pulled out of the wall in between, the layer is whole or not there, and a second commit does it. A
committed layer never changes.

The tree in `upper` is read once, at commit. All that is asked of layers later (what a task sees,
where branches conflict, what a stack of them comes to) is answered from the manifests, which no
task can touch, and from the base.

`View` is the semantics of overlayfs in one place: a path is looked up a folder at a time from the
topmost layer down, and what is no folder, is opaque, or is a whiteout ends the search beneath it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import secrets
import stat
import threading
from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

import msgspec
from msgspec import Struct

from ..protocol.errors import CasemateError, LocalViolation
from ..protocol.events import Layer
from .state import fsync_directory, read_boot_id
from .trees import (
    ENTRIES,
    Moment,
    Step,
    Syncer,
    UnkeepableTree,
    Walk,
    change_mode,
    copy_attributes,
    copy_content,
    is_out_of_reach,
    open_folder,
    open_regular,
    opened,
    remove_tree,
    user_attributes,
    with_access,
)

__all__ = [
    "STACK_LAYERS",
    "Change",
    "DamagedLayerError",
    "Kind",
    "LayerStore",
    "Place",
    "Resolved",
    "View",
    "conflicts",
    "resolve",
]

UPPER, WORK, COPY = "upper", "work", "copy"
_CHANGES, _KEPT, _UNFINISHED = "changes", "kept", ".unfinished"
_FLAT = re.compile(r"flat-[0-9a-f]{16}")
_LAYER = re.compile(r"[A-Za-z0-9_-]{1,64}\.[0-9]{1,19}")
_OPAQUE = "user.overlay.opaque"
_VERSION = 1

# Layers merged into one at a time. A mount takes 0.01 ms for each layer and a walk slows down with
# every one (50 layers: twice as slow); merging costs a link for each changed file, once in 16.
STACK_LAYERS = 16
_GROUP = STACK_LAYERS**2

# Changes held in memory of all manifests that were read: some 300 bytes each.
_REMEMBERED = 200_000

_T = TypeVar("_T")


class DamagedLayerError(CasemateError):
    """A layer that should be there is not, or its manifest cannot be read."""


class Kind(StrEnum):
    FILE = "file"
    LINK = "link"
    FOLDER = "folder"  # made, or its mode changed; what is below it shows
    PASSAGE = "passage"  # a folder that was there, unchanged, on the way to what changed
    OPAQUE = "opaque"  # a folder in the place of what was there
    WHITEOUT = "whiteout"  # what was there is gone


FOLDERS = frozenset({Kind.FOLDER, Kind.PASSAGE, Kind.OPAQUE})


class Change(Struct, frozen=True):
    """One path of a layer, relative to the workspace; odd bytes by surrogateescape."""

    path: str
    kind: Kind
    mode: int = 0  # permission bits of a file or folder
    size: int = 0  # of a file
    target: str | None = None  # of a link


class _Noted(Struct, frozen=True, array_like=True):
    """A `Change` on disk: bytes, for not every name is text."""

    path: bytes
    kind: Kind
    mode: int
    size: int
    target: bytes | None


class _Manifest(Struct, frozen=True):
    version: int
    changes: list[_Noted]
    dropped: list[bytes] = []  # sockets, FIFOs and devices that were removed
    names: list[str] = []  # of a flat: what it was made of
    boot: str = ""  # of a flat


@dataclass(frozen=True, slots=True)
class Resolved:
    """What became of one path of the base below a stack of layers."""

    path: str  # relative to the workspace, surrogateescape
    kind: str  # "file" | "folder" | "link" | "absent"
    mode: int  # permission bits (files, folders); 0 of what is absent or a link
    layer: str | None  # folder name below the layers' root that holds it; None when absent
    target: str | None  # of a link


@dataclass(frozen=True, slots=True)
class Place:
    """What a view shows at a path. `layers`: of a folder, those that share in it, the topmost
    first; else the one that has it; none: it is the base's. `base_shows`: what the base has at or
    beneath this path can be seen (`is_hiding`: it could, but for this very entry)."""

    kind: Kind
    mode: int
    layers: tuple[str, ...]
    base_shows: bool
    is_hiding: bool
    change: Change | None


class LayerStore:
    """`owner`: whom layers belong to on disk, under root; None: whoever we are."""

    def __init__(self, root: Path, owner: tuple[int, int] | None = None) -> None:
        self.root = root
        self.owner = owner
        self._manifests: OrderedDict[str, dict[str, Change]] = OrderedDict()
        self._remembered = 0
        self._flats: set[str] = set()
        self._lock = threading.Lock()
        self._building = threading.Lock()

    # --- one attempt ---------------------------------------------------------------------------

    def begin(self, name: str, mode: int = 0o755, *, copying: bool = False) -> Path:
        """Make the folders of an attempt's layer; `mode` is the workspace's own. The folder the
        attempt writes to."""
        _check(name)
        if not self.root.is_dir():
            self.root.mkdir(mode=0o711, exist_ok=True)
            self.root.chmod(0o711)
        folder = self.root / name
        try:
            folder.mkdir(mode=0o711)
        except FileExistsError:
            raise LocalViolation(f"layer {name}: begun twice") from None
        # umask takes bits from mkdir; the owner of the layers must get through, under root
        folder.chmod(0o711)
        for below, bits in ((COPY, 0o700),) if copying else ((UPPER, mode), (WORK, 0o700)):
            path = folder / below
            path.mkdir(mode=0o700)
            if self.owner is not None:
                os.chown(path, *self.owner)
            path.chmod(bits)
        return folder / (COPY if copying else UPPER)

    def commit(self, name: str, below: View) -> Layer | None:
        """Make the layer durable, once nothing of the attempt lives. None: nothing was changed,
        and there is no such layer. `below` is what the attempt was given."""
        _check(name)
        try:
            at = open_folder(self.root / name)
        except FileNotFoundError:
            return None
        syncer = Syncer()
        try:
            with opened(self.root) as root:
                if not _exists(at, _CHANGES):
                    changes, dropped = self._tidy(at, below, syncer, keep=False)
                    if not changes:
                        remove_tree(root, name)
                        os.fsync(root)
                        return None
                    manifest = _Manifest(_VERSION, _note(changes), dropped)
                    building = self._write(at, _CHANGES, manifest, syncer)
                    syncer.add(at)
                    syncer.add(root)
                    syncer.finish()
                    os.rename(building, _CHANGES, src_dir_fd=at, dst_dir_fd=at)
                os.fsync(at)
                # again, after a commit that failed at it; else it costs nothing
                os.fsync(root)
            # These may come back after a power loss: whoever takes the run over sweeps them.
            for leftover in (WORK, COPY):
                remove_tree(at, leftover)
        finally:
            syncer.drop()
            os.close(at)
        return self.facts(name)

    def keep(self, name: str, below: View) -> None:
        """A failed attempt's layer stays for whoever wants to look: its folders are opened up, and
        a manifest tells what it changed. Not durable; can be called again."""
        _check(name)
        try:
            at = open_folder(self.root / name)
        except FileNotFoundError:
            return
        try:
            if not _exists(at, _KEPT) and not _exists(at, _CHANGES):
                with contextlib.suppress(UnkeepableTree):  # then it stays as it is
                    changes, dropped = self._tidy(at, below, None, keep=True)
                    manifest = _Manifest(_VERSION, _note(changes), dropped)
                    building = self._write(at, _KEPT, manifest, None)
                    os.rename(building, _KEPT, src_dir_fd=at, dst_dir_fd=at)
            for leftover in (WORK, COPY):
                remove_tree(at, leftover)
        finally:
            os.close(at)

    def superfluous(self, wanted: Collection[str]) -> list[str]:
        """What is here beside the layers `wanted`; flats and what is half-made first, for they
        share files with layers. For the owner of a run of which no attempt lives."""
        names = self._names()
        remade = [name for name in names if name.startswith(".") or _FLAT.fullmatch(name)]
        return remade + [n for n in names if _LAYER.fullmatch(n) and n not in wanted]

    def discard(self, name: str) -> int:
        """Remove a layer, and the flats that it is in; or a flat. The bytes that frees."""
        flats = [each for each in self._names() if _FLAT.fullmatch(each)]
        doomed = [flat for flat in flats if name in self._ingredients(flat)]
        freed = 0
        with opened(self.root) as root:
            for each in (*doomed, name):
                self._forget(each)
                self._flats.discard(each)
                gone = each
                if not each.startswith("."):
                    # at once: half a layer must not be taken for one
                    gone = f".{each}"
                    freed += remove_tree(root, gone)
                    with contextlib.suppress(FileNotFoundError):
                        os.rename(each, gone, src_dir_fd=root, dst_dir_fd=root)
                freed += remove_tree(root, gone)
        return freed

    def size(self, name: str, most: int = ENTRIES) -> tuple[int, int]:
        """(bytes on disk, files and folders) of what a living attempt wrote so far. Counting ends
        at `most` entries. What is moved meanwhile may be missed once."""
        taken = entries = 0
        linked: set[int] = set()

        def count(at: int, _: str) -> None:
            nonlocal taken, entries
            for step in Walk(at, paths=False, needs=0o500, tolerant=True, most=most):
                if step.moment is Moment.LEAVE:
                    continue
                entries += 1
                if step.moment is Moment.ENTRY and step.status.st_nlink > 1:
                    if step.status.st_ino in linked:
                        continue
                    linked.add(step.status.st_ino)
                taken += step.status.st_blocks * 512

        for below in (UPPER, COPY):
            try:
                with opened(self.root / name) as at:
                    with_access(at, f"{below}/.", count)
            except UnkeepableTree:
                entries = most + 1
            except OSError as error:
                if error.errno != errno.ESTALE and not is_out_of_reach(error):
                    raise
        return taken, entries

    # --- what is there -------------------------------------------------------------------------

    def changes(self, name: str) -> list[Change]:
        """What a committed, kept or flat layer changed, by path."""
        return list(self.manifest(name).values())

    def facts(self, name: str) -> Layer:
        """Changed paths, and the bytes of the files among them."""
        changed = [change for change in self.changes(name) if change.kind is not Kind.PASSAGE]
        return Layer(len(changed), sum(change.size for change in changed))

    def manifest(self, name: str) -> Mapping[str, Change]:
        with self._lock:
            if (found := self._manifests.get(name)) is not None:
                self._manifests.move_to_end(name)
                return found
        read = self._read(name)
        changes = {
            (path := os.fsdecode(noted.path)): Change(
                path,
                noted.kind,
                noted.mode,
                noted.size,
                None if noted.target is None else os.fsdecode(noted.target),
            )
            for noted in read.changes
        }
        with self._lock:
            if name not in self._manifests:
                self._manifests[name] = changes
                self._remembered += len(changes) + 1
            while self._remembered > _REMEMBERED and len(self._manifests) > 1:
                _, gone = self._manifests.popitem(last=False)
                self._remembered -= len(gone) + 1
        return changes

    def dropped(self, name: str) -> list[str]:
        """What could not stay in a layer: sockets, FIFOs, devices."""
        return [os.fsdecode(path) for path in self._read(name).dropped]

    def attempts(self) -> list[str]:
        """Every attempt of which there is a layer, whatever became of it."""
        return [name for name in self._names() if _LAYER.fullmatch(name)]

    def committed(self) -> set[str]:
        """Layers that are whole on disk; whether they count is for the journal to say."""
        return {
            name
            for name in self._names()
            if not _FLAT.fullmatch(name) and (self.root / name / _CHANGES).is_file()
        }

    def sweep(self, journaled: set[str]) -> set[str]:
        """Clean up after a dead owner: half-made flats go, attempts that were under way lose what
        only a living one needs. What is on disk and not journaled never came to be: it is kept as a
        failed attempt is. Those journaled that are not there, which is damage."""
        if not self.root.is_dir():
            return set(journaled)
        with opened(self.root) as root:
            for name in self._names():
                if name.startswith("."):
                    remove_tree(root, name)
                elif _FLAT.fullmatch(name):
                    continue
                else:
                    self._sweep_layer(root, name, name in journaled)
        return journaled - self.committed()

    def _sweep_layer(self, root: int, name: str, is_journaled: bool) -> None:
        with contextlib.suppress(NotADirectoryError), opened(name, root) as at:
            for leftover in (_CHANGES + _UNFINISHED, _KEPT + _UNFINISHED, WORK, COPY):
                remove_tree(at, leftover)
            if not is_journaled and _exists(at, _CHANGES):
                os.rename(_CHANGES, _KEPT, src_dir_fd=at, dst_dir_fd=at)

    def open_file(self, layer: str, path: str) -> int:
        """A file of a layer for reading, be it or a folder above it closed (mode 000)."""
        with opened(self.root / layer / UPPER) as upper:
            return with_access(upper, path, lambda at, name: open_regular(name, at))

    # --- stacks --------------------------------------------------------------------------------

    def lower(self, stack: Sequence[str], base: Path) -> tuple[str, ...]:
        """The folders that show `stack` (bottom-up) over `base` to a mount, the topmost first: at
        most 31.

        Sixteen at a time become one flat, of the ordered names: the prefixes of a chain share
        theirs. All that is older than the last 256 becomes one.
        """
        names = list(stack)
        oldest = len(names) // _GROUP * _GROUP
        found: list[str] = []
        for end in range(_GROUP, oldest + 1, _GROUP):
            for start in range(end - _GROUP, end, STACK_LAYERS):
                found.append(self._flat(names[start : start + STACK_LAYERS], found, base))
            found = [self._flat(found, [], base)]
        rest = len(names) // STACK_LAYERS * STACK_LAYERS
        for start in range(oldest, rest, STACK_LAYERS):
            found.append(self._flat(names[start : start + STACK_LAYERS], found, base))
        found += names[rest:]
        return tuple(reversed(found))

    def adopt(self, other: LayerStore, name: str, theirs: str | None = None) -> None:
        """A committed layer of another run (which calls it `theirs`, if not the same), into this
        one: by hard links, and durable."""
        if (self.root / name / _CHANGES).is_file():
            return
        self._build(name, other, [theirs or name], None, sync=True)
        fsync_directory(self.root)

    def _flat(self, names: list[str], below: list[str], base: Path) -> str:
        """`names` as one, to lie upon `below` and the base: what is below decides what it has to
        hide."""
        whole = "\0".join([*below, "", *names])
        flat = "flat-" + hashlib.sha256(whole.encode()).hexdigest()[:16]
        with self._building:
            if flat in self._flats:
                return flat
            try:
                found = self._read(flat)
                # not synced: after a power loss its name may be there and what is in it not
                is_good = found.names == names and found.boot == read_boot_id()
            except DamagedLayerError:
                is_good = False
            if not is_good:
                self._forget(flat)
                with View(self, base, below) as view:
                    self._build(flat, self, names, view, sync=False)
            self._flats.add(flat)
        return flat

    def _build(
        self, name: str, other: LayerStore, names: list[str], below: View | None, *, sync: bool
    ) -> None:
        """`names` of `other` as one layer of ours, under a name that nobody looks for until it is
        whole."""
        self.root.mkdir(mode=0o711, exist_ok=True)
        self.root.chmod(0o711)
        building = f".{name}-{secrets.token_hex(4)}"
        syncer = Syncer() if sync else None
        with opened(self.root) as root:
            try:
                os.mkdir(building, 0o711, dir_fd=root)
                with opened(building, root) as at:
                    os.fchmod(at, 0o711)
                    changes = _Merge(other, names, below, at, self.owner, syncer).make()
                    if sync:
                        manifest = _Manifest(_VERSION, _note(other.changes(names[0])))
                    else:
                        boot = read_boot_id()
                        manifest = _Manifest(_VERSION, _note(changes), names=names, boot=boot)
                    written = self._write(at, _CHANGES, manifest, syncer)
                    os.rename(written, _CHANGES, src_dir_fd=at, dst_dir_fd=at)
                    if syncer is not None:
                        syncer.add(at)
                        syncer.finish()
                try:
                    os.rename(building, name, src_dir_fd=root, dst_dir_fd=root)
                except OSError as error:
                    if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                        raise
                    # of an earlier boot, or damaged: nobody alive has it mounted
                    stale = f".{name}-{secrets.token_hex(4)}"
                    os.rename(name, stale, src_dir_fd=root, dst_dir_fd=root)
                    os.rename(building, name, src_dir_fd=root, dst_dir_fd=root)
                    remove_tree(root, stale)
            except BaseException:
                if syncer is not None:
                    syncer.drop()
                with contextlib.suppress(OSError):
                    remove_tree(root, building)
                raise

    # --- inside --------------------------------------------------------------------------------

    def _tidy(
        self, at: int, below: View, syncer: Syncer | None, *, keep: bool
    ) -> tuple[list[Change], list[bytes]]:
        try:
            mode = stat.S_IMODE(os.stat(UPPER, dir_fd=at, follow_symlinks=False).st_mode)
        except FileNotFoundError:
            return [], []  # an empty layer, half removed
        is_closed = mode & 0o700 != 0o700
        if is_closed:
            change_mode(at, UPPER, mode | 0o700)
        try:
            with opened(UPPER, at) as upper:
                return _Tidying(upper, below, syncer, keep=keep).run()
        finally:
            if is_closed and not keep:
                # A task that closes the whole workspace does not close it to those after it.
                change_mode(at, UPPER, mode | 0o500)

    def _write(self, at: int, name: str, manifest: _Manifest, syncer: Syncer | None) -> str:
        """Under another name, which is for the caller to rename."""
        building = name + _UNFINISHED
        remove_tree(at, building)
        fd = os.open(
            building,
            os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC,
            0o600,
            dir_fd=at,
        )
        try:
            rest = memoryview(msgspec.msgpack.encode(manifest))
            while rest:
                rest = rest[os.write(fd, rest) :]
            if syncer is not None:
                syncer.add(fd)
        finally:
            os.close(fd)
        return building

    def _read(self, name: str) -> _Manifest:
        for file in (_CHANGES, _KEPT):
            try:
                read = msgspec.msgpack.decode(
                    (self.root / name / file).read_bytes(), type=_Manifest
                )
            except (FileNotFoundError, NotADirectoryError):
                continue
            except msgspec.DecodeError as error:
                raise DamagedLayerError(f"layer {name}: its manifest is damaged: {error}") from None
            if read.version != _VERSION:
                raise DamagedLayerError(
                    f"layer {name}: written by another version of casemate ({read.version})"
                )
            return read
        raise DamagedLayerError(f"layer {name}: not in {self.root}, or not whole")

    def _ingredients(self, flat: str) -> set[str]:
        """The layers in a flat, through the flats it was made of."""
        found: set[str] = set()
        pending = [flat]
        while pending:
            try:
                names = self._read(pending.pop()).names
            except DamagedLayerError:
                continue
            for name in names:
                if name not in found:
                    found.add(name)
                    if _FLAT.fullmatch(name):
                        pending.append(name)
        return found

    def _names(self) -> list[str]:
        try:
            return sorted(os.listdir(self.root))
        except FileNotFoundError:
            return []

    def _forget(self, name: str) -> None:
        with self._lock:
            if (gone := self._manifests.pop(name, None)) is not None:
                self._remembered -= len(gone) + 1


class View:
    """What is seen over `base` through the layers of `stack` (bottom-up). `base` None: layers
    alone, as when some of them become one. For one thread."""

    def __init__(self, store: LayerStore, base: Path | None, stack: Sequence[str]) -> None:
        self.store = store
        self.base = base
        self.stack = tuple(stack)
        self._base = -1 if base is None else os.open(base, os.O_RDONLY | os.O_DIRECTORY)
        top = tuple(reversed(self.stack))
        self._seen: dict[str, Place | None] = {"": Place(Kind.FOLDER, 0, top, True, False, None)}

    def __enter__(self) -> View:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._base >= 0:
            os.close(self._base)
            self._base = -1

    def find(self, path: str) -> Place | None:
        """What is there; None where there is nothing, or a whiteout."""
        found = self.look(path)
        return None if found is None or found.kind is Kind.WHITEOUT else found

    def look(self, path: str) -> Place | None:
        """The same, with whiteouts."""
        # Down from the nearest folder that is known: a path may have two thousand of them.
        pending: list[str] = []
        known = path
        while known not in self._seen:
            pending.append(known)
            known = known.rpartition("/")[0]
        place = self._seen[known]
        while pending:
            below = pending.pop()
            is_folder = place is not None and place.kind in FOLDERS
            place = self._look(place, below) if place is not None and is_folder else None
            # leaves are asked for once, what is above them again and again
            if pending or place is None or place.kind in FOLDERS:
                self._seen[below] = place
        return place

    def may_have(self, path: str) -> bool:
        """Whether something is there, or nobody can tell, in a folder that is closed to us."""
        if self.find(path) is not None:
            return True
        if self._base < 0:
            return False
        try:
            os.stat(path, dir_fd=self._base, follow_symlinks=False)
        except PermissionError:
            return True
        except (FileNotFoundError, NotADirectoryError):
            pass
        return False

    def _look(self, folder: Place, path: str) -> Place | None:
        sharing: list[str] = []
        top: Change | None = None
        shows = folder.base_shows
        is_new = False
        for layer in folder.layers:
            change = self.store.manifest(layer).get(path)
            if change is None:
                continue
            if change.kind not in FOLDERS:
                if top is None:
                    return Place(change.kind, change.mode, (layer,), False, shows, change)
                shows = False
                break
            sharing.append(layer)
            top = top or change
            is_new = is_new or change.kind is not Kind.PASSAGE
            if change.kind is Kind.OPAQUE:
                shows = False
                break
        if top is None:
            return self._look_in_base(path) if folder.base_shows else None
        kind = Kind.FOLDER if is_new else Kind.PASSAGE
        is_hiding = folder.base_shows and not shows
        if is_hiding:
            kind = Kind.OPAQUE
        return Place(kind, top.mode, tuple(sharing), shows, is_hiding, top)

    def hides(self, path: str) -> bool:
        """Whether the layers leave nothing at `path`, whatever the base has there, or had."""
        place = self.look(path)
        if place is not None:
            return place.kind is Kind.WHITEOUT
        for folder in folders_above(path):
            if (above := self.look(folder)) is not None:
                return above.kind not in FOLDERS or not above.base_shows
        return False

    def base_status(self, path: str) -> os.stat_result | None:
        """What the base has there, which the caller has seen to be beneath true folders."""
        if self._base < 0:
            return None
        try:
            return os.stat(path, dir_fd=self._base, follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            return None

    def open_base(self, path: str) -> int:
        """A file of the base, where the caller has found one."""
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        return os.open(path, flags, dir_fd=self._base)

    def attributes(self, path: str, layers: Sequence[str]) -> dict[str, bytes]:
        """A task's own, of a folder: as the first of `layers` has it, or the base. None where that
        is closed to us."""
        if layers:
            with opened(self.store.root / layers[0] / UPPER) as upper:
                return with_access(upper, f"{path}/.", _attributes_of_folder)
        try:
            return _attributes_of_folder(self._base, path)
        except PermissionError:
            return {}

    def _look_in_base(self, path: str) -> Place | None:
        status = self.base_status(path)
        if status is None or is_whiteout(status):
            return None
        kind = (
            Kind.FOLDER
            if stat.S_ISDIR(status.st_mode)
            else Kind.LINK
            if stat.S_ISLNK(status.st_mode)
            else Kind.FILE
        )
        mode = 0 if kind is Kind.LINK else stat.S_IMODE(status.st_mode)
        return Place(kind, mode, (), True, False, None)

    def paths(self) -> list[str]:
        """Every path that any of the layers has, folders before what is in them."""
        found: set[str] = set()
        for layer in self.stack:
            found.update(self.store.manifest(layer))
        return sorted(found)

    def beneath(self, path: str) -> Iterator[str]:
        """What the base has beneath a folder of its own."""
        try:
            at = open_folder(path, self._base)
        except OSError as error:
            if is_out_of_reach(error):
                return
            raise
        try:
            for step in Walk(at, needs=0, tolerant=True):
                if step.moment is not Moment.LEAVE and not is_whiteout(step.status):
                    yield f"{path}/{step.path}"
        finally:
            os.close(at)


class _Tidying:
    """One walk through an upper folder: out goes what may not stay, the rest is told and synced."""

    def __init__(self, upper: int, below: View, syncer: Syncer | None, *, keep: bool) -> None:
        self._upper = upper
        self._below = below
        self._syncer = syncer
        self._keep = keep
        self._changes: list[Change] = []
        self._dropped: list[bytes] = []
        # of the folders we are in: what was found of them, and whether anything beneath changed
        self._open: list[tuple[Kind, int]] = []
        self._busy: list[bool] = [False]

    def run(self) -> tuple[list[Change], list[bytes]]:
        for step in Walk(self._upper):
            if step.moment is Moment.ENTER:
                self._enter(step)
            elif step.moment is Moment.LEAVE:
                self._leave(step)
            else:
                self._entry(step)
        if self._syncer is not None:
            self._syncer.add(self._upper)
        self._changes.sort(key=lambda change: change.path)
        return self._changes, sorted(self._dropped)

    def _note(self, change: Change) -> None:
        self._busy[-1] = True
        self._changes.append(change)

    def _enter(self, step: Step) -> None:
        mode = stat.S_IMODE(step.status.st_mode)
        below = self._below.find(step.path)
        if _is_opaque(step.inside):
            kind = Kind.OPAQUE
            if below is None:
                # Kernels may mark every new folder so, since nothing is below it to be shown. Here
                # it may come to lie over another branch's folder of that name.
                os.removexattr(step.inside, _OPAQUE)
                kind = Kind.FOLDER
        elif below is None:
            kind = Kind.FOLDER
        elif below.kind not in FOLDERS:
            kind = Kind.OPAQUE
        elif below.mode == mode and user_attributes(step.inside) == self._below.attributes(
            step.path, below.layers
        ):
            kind = Kind.PASSAGE
        else:
            kind = Kind.FOLDER
        self._open.append((kind, mode))
        self._busy.append(False)

    def _leave(self, step: Step) -> None:
        kind, mode = self._open.pop()
        if not self._busy.pop() and kind is Kind.PASSAGE:
            # Copied up for something that is gone again. It would bring back to life a folder that
            # another branch removed.
            os.rmdir(step.name, dir_fd=step.at)
            return
        self._note(Change(step.path, kind, mode))
        if self._keep and mode & 0o700 != 0o700:
            os.fchmod(step.inside, mode | 0o700)
        if self._syncer is not None:
            self._syncer.add(step.inside)

    def _entry(self, step: Step) -> None:
        status = step.status
        if stat.S_ISLNK(status.st_mode):
            target = os.readlink(step.name, dir_fd=step.at)
            self._note(Change(step.path, Kind.LINK, 0, 0, target))
        elif is_whiteout(status):
            self._note(Change(step.path, Kind.WHITEOUT))
        elif stat.S_ISREG(status.st_mode):
            self._file(step)
        else:
            os.unlink(step.name, dir_fd=step.at)
            self._dropped.append(os.fsencode(step.path))
            if self._below.find(step.path) is not None:
                # what it took the place of must not come back
                make_whiteout(step.name, step.at)
                if (owner := self._below.store.owner) is not None:
                    os.chown(step.name, *owner, dir_fd=step.at, follow_symlinks=False)
                self._note(Change(step.path, Kind.WHITEOUT))

    def _file(self, step: Step) -> None:
        mode = stat.S_IMODE(step.status.st_mode)
        if self._syncer is not None or mode & (stat.S_ISUID | stat.S_ISGID):
            fd = open_regular(step.name, step.at)
            try:
                if mode & (stat.S_ISUID | stat.S_ISGID):
                    mode &= ~(stat.S_ISUID | stat.S_ISGID)
                    os.fchmod(fd, mode)
                if self._syncer is not None:
                    self._syncer.add(fd)
            finally:
                os.close(fd)
        self._note(Change(step.path, Kind.FILE, mode, step.status.st_size))


class _Merge:
    """Several layers as one, in a folder `at` of ours. Files are hard links, for layers never
    change; folders are made with the mode, owner, times and attributes of the topmost. `below`:
    what it shall lie upon; None: what they lay upon."""

    def __init__(
        self,
        store: LayerStore,
        names: list[str],
        below: View | None,
        at: int,
        owner: tuple[int, int] | None,
        syncer: Syncer | None,
    ) -> None:
        self._store = store
        self._names = names
        self._below = below
        self._at = at
        self._owner = owner
        self._syncer = syncer
        self._uppers: dict[str, int] = {}

    def make(self) -> list[Change]:
        try:
            for name in self._names:
                self._uppers[name] = open_folder(self._store.root / name / UPPER)
            os.mkdir(UPPER, 0o700, dir_fd=self._at)
            with opened(UPPER, self._at) as upper, View(self._store, None, self._names) as view:
                changes = self._fill(upper, view)
                self._finish(upper, self._uppers[self._names[-1]])
                if self._syncer is not None:
                    self._syncer.add(upper)
        finally:
            for fd in self._uppers.values():
                os.close(fd)
        return changes

    def _fill(self, upper: int, view: View) -> list[Change]:
        changes: list[Change] = []
        folders: list[tuple[str, Place]] = []
        for path in view.paths():
            place = view.look(path)
            if place is None or place.change is None:
                continue  # beneath what a higher layer put in the place of its folder
            if place.kind is Kind.WHITEOUT and not self._hides(place, path):
                continue
            if place.kind in FOLDERS:
                os.mkdir(path, 0o700, dir_fd=upper)
                folders.append((path, place))
            else:
                self._link(place.layers[0], path, upper, place.kind)
            changes.append(msgspec.structs.replace(place.change, kind=place.kind))
        # Backwards: a folder's time and mode change with what is made in it.
        for path, place in reversed(folders):
            with opened(path, upper) as target:
                if place.kind is Kind.OPAQUE:
                    os.setxattr(target, _OPAQUE, b"y")

                def finish(at: int, name: str, target: int = target) -> None:
                    with _unlocked(name, at) as source:
                        self._finish(target, source)

                with_access(self._uppers[place.layers[0]], path, finish)
                os.fchmod(target, place.mode)
                if self._syncer is not None:
                    self._syncer.add(target)
        return changes

    def _hides(self, place: Place, path: str) -> bool:
        """A whiteout with nothing to hide must not stay. In a folder that only one layer has, a
        mount lists the layer's own entries, whiteouts too: names that are there and are not
        (Linux 6.18)."""
        if not place.is_hiding:
            return False  # its folder shows nothing of what is below
        return self._below is None or self._below.may_have(path)

    def _link(self, layer: str, path: str, upper: int, kind: Kind) -> None:
        source = self._uppers[layer]

        def link(at: int, name: str) -> None:
            try:
                os.link(name, path, src_dir_fd=at, dst_dir_fd=upper, follow_symlinks=False)
            except OSError as error:
                # ext4 stops at 65 000 names. Overlayfs links its whiteouts to one another.
                if error.errno not in (errno.EMLINK, errno.EXDEV):
                    raise
                self._copy(at, name, path, upper, kind)

        try:
            os.link(path, path, src_dir_fd=source, dst_dir_fd=upper, follow_symlinks=False)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EMLINK, errno.EXDEV):
                raise
            with_access(source, path, link)

    def _copy(self, at: int, name: str, path: str, upper: int, kind: Kind) -> None:
        if kind is Kind.WHITEOUT:
            make_whiteout(path, upper)
        elif kind is Kind.LINK:
            os.symlink(os.readlink(name, dir_fd=at), path, dir_fd=upper)
        else:
            source = open_regular(name, at)
            try:
                copy_file(source, path, upper, self._owner, self._syncer)
            finally:
                os.close(source)
            return
        if self._owner is not None:
            os.chown(path, *self._owner, dir_fd=upper, follow_symlinks=False)

    def _finish(self, target: int, source: int) -> None:
        copy_attributes(source, target)
        status = os.fstat(source)
        if self._owner is not None:
            os.fchown(target, *self._owner)
        os.fchmod(target, stat.S_IMODE(status.st_mode))
        os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))


def conflicts(a: Sequence[Change], b: Sequence[Change]) -> list[str]:
    """Paths that two branches changed, neither of which saw the other's, in order."""
    found: set[str] = set()
    ours = {change.path: change for change in a}
    theirs = {change.path: change for change in b}
    for path in ours.keys() & theirs.keys():
        if are_in_conflict(ours[path], theirs[path]):
            found.add(path)
    for one, other in ((ours, theirs), (theirs, ours)):
        hiding = {path for path, change in one.items() if hides(change)}
        if hiding:
            found.update(
                path
                for path, change in other.items()
                if change.kind is not Kind.PASSAGE
                and any(folder in hiding for folder in folders_above(path))
            )
    return sorted(found)


def are_in_conflict(a: Change, b: Change) -> bool:
    """Of the same path on two branches. Both removed it, or both have a folder there of the same
    mode: then it does not matter which comes last. What matters beneath them shows there."""
    kinds = {a.kind, b.kind}
    if kinds == {Kind.WHITEOUT}:
        return False
    if kinds <= {Kind.FOLDER, Kind.PASSAGE}:
        return a.mode != b.mode
    return Kind.PASSAGE not in kinds


def hides(change: Change) -> bool:
    """Whether nothing from below shows beneath it."""
    return change.kind not in (Kind.FOLDER, Kind.PASSAGE)


def folders_above(path: str) -> Iterator[str]:
    end = path.rfind("/")
    while end > 0:
        yield path[:end]
        end = path.rfind("/", 0, end)


def resolve(store: LayerStore, base: Path, stack: Sequence[str]) -> list[Resolved]:
    """How what `stack` shows differs from `base`, by path. Whole: of a folder that is gone every
    path beneath is told. A file that a layer has is told even if it equals the base's."""
    found: dict[str, Resolved] = {}
    with View(store, base, stack) as view:
        for path in view.paths():
            place = view.look(path)
            if place is None or place.change is None:
                continue
            status = view.base_status(path) if place.base_shows or place.is_hiding else None
            was_folder = status is not None and stat.S_ISDIR(status.st_mode)
            if place.kind is Kind.WHITEOUT:
                if status is not None:
                    found[path] = Resolved(path, "absent", 0, None, None)
            elif place.kind not in FOLDERS:
                kind, target = place.kind.value, place.change.target
                found[path] = Resolved(path, kind, place.mode, place.layers[0], target)
            elif (
                not was_folder
                or status is None
                or stat.S_IMODE(status.st_mode) != place.mode
                or view.attributes(path, place.layers) != view.attributes(path, ())
            ):
                found[path] = Resolved(path, "folder", place.mode, place.layers[0], None)
            if place.is_hiding and was_folder:
                for below in view.beneath(path):
                    if view.find(below) is None:
                        found[below] = Resolved(below, "absent", 0, None, None)
    return [found[path] for path in sorted(found)]


# --- small pieces --------------------------------------------------------------------------------


def _attributes_of_folder(at: int, name: str) -> dict[str, bytes]:
    with opened(name, at) as folder:
        return user_attributes(folder)


def is_whiteout(status: os.stat_result) -> bool:
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def make_whiteout(path: str, at: int) -> None:
    try:
        os.mknod(path, stat.S_IFCHR | 0o600, 0, dir_fd=at)
    except PermissionError as error:
        raise OSError(
            error.errno,
            "a whiteout (character device 0/0) cannot be made here: it takes Linux 5.8 and a file "
            "system that is not mounted from another user namespace",
            path,
        ) from None


def copy_file(
    source: int, path: str, at: int, owner: tuple[int, int] | None, syncer: Syncer | None
) -> None:
    """A regular file with its content, mode, times and attributes."""
    status = os.fstat(source)
    target = os.open(
        path,
        os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC,
        0o600,
        dir_fd=at,
    )
    try:
        copy_content(source, target)
        copy_attributes(source, target)
        if owner is not None:
            os.fchown(target, *owner)
        os.fchmod(target, stat.S_IMODE(status.st_mode) & ~(stat.S_ISUID | stat.S_ISGID))
        os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))
        if syncer is not None:
            syncer.add(target)
    finally:
        os.close(target)


def _is_opaque(folder: int) -> bool:
    try:
        return os.getxattr(folder, _OPAQUE) == b"y"
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.EOPNOTSUPP):
            return False
        raise


def _note(changes: Iterable[Change]) -> list[_Noted]:
    return [
        _Noted(
            os.fsencode(change.path),
            change.kind,
            change.mode,
            change.size,
            None if change.target is None else os.fsencode(change.target),
        )
        for change in changes
    ]


def _check(name: str) -> None:
    if _LAYER.fullmatch(name) is None:
        raise LocalViolation(f"{name!r}: not the name of an attempt's layer")


def _exists(at: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=at, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


@contextlib.contextmanager
def _unlocked(name: str, at: int) -> Iterator[int]:
    """A folder for reading what it is, be it closed to us."""
    found: list[int] = []
    with_access(at, f"{name}/.", lambda fd, _: found.append(os.dup(fd)))
    try:
        yield found[0]
    finally:
        os.close(found[0])
