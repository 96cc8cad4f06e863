"""The code a run's tasks may import, copied once when the run is submitted: `runs/<id>/sources/`.

What is copied: for `agents.py:analyze` that file, or the outermost package it is in; for
`package.module:function` the package, where it lies in the pipeline's folder (else it is one of the
interpreter's own, which every sandbox sees); and what `sources` names. Nothing else of the folder:
a sandbox that binds a whole project shows its `.env` too.

A copy, not a bind: what a run does must not change while it lives, and a resumed run must find what
it began with, whose digest is journaled. Copied are contents of regular files, as 0644 in folders
of 0755: no owners, no setuid bits, no links. A symlink counts as what it leads to if that is a file
in the same place; whatever else is odd (a link out, a FIFO, a socket) is refused by name rather
than left out, for a task that misses a file fails far from the cause. Left out, because they are
not sources: bytecode, version control's folders, virtual environments.

Paths are walked a component at a time from open folders, without following links, so that nothing
swapped in between leads outside.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from ..protocol.errors import LocalViolation, UsageError
from ..protocol.limits import KIB, MIB
from ..protocol.pipeline import FileEntry, ModuleEntry, PipelineSpec, TaskSpec
from .reading import shown

__all__ = ["FILES", "LEFT_OUT", "Snapshot", "origins", "places_of", "snapshot"]

# Copied, hashed and synced for every run. All of CPython's standard library with its tests is 5 000
# files and 90 MB; what is larger than that is data, which belongs into the workspace or the input.
FILES = 10_000
SIZE = 128 * MIB

# Deeper trees are made by loops, not by people; each level holds one descriptor open.
DEPTH = 64

_CHUNK = 256 * KIB
LEFT_OUT = {"__pycache__", ".git", ".hg", ".svn"}
_KINDS = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


@dataclass(frozen=True, slots=True)
class Snapshot:
    """`digest`: SHA-256 over every file's path and content, in path order."""

    digest: str
    files: int
    size: int


def snapshot(spec: PipelineSpec, destination: Path, *, is_inside_only: bool = False) -> Snapshot:
    """Copy what the pipeline's tasks import into `destination`, an empty folder or none yet;
    `is_inside_only`: what lies in the pipeline's own folder. Blocks on the disk: call it off the
    loop."""
    destination.mkdir(parents=True, exist_ok=True)
    if any(destination.iterdir()):
        raise LocalViolation(f"{destination} is not empty")
    copier = _Copier(destination)
    for place, origin in sorted(origins(spec).items()):
        if is_inside_only and not _is_inside(place):
            continue
        copier.take(place, origin, Path(spec.root) if _is_inside(place) else origin)
    return copier.finish()


def _is_inside(place: str) -> bool:
    return not place.startswith("/")


def origins(spec: PipelineSpec) -> dict[str, Path]:
    """Where each lies: relative to the pipeline's folder, or absolute for those outside it."""
    root = Path(spec.root)
    places = {place for task in spec.tasks for place in places_of(task, root)}
    return {place: root / place for place in places}


def places_of(task: TaskSpec, root: Path) -> set[str]:
    """What one task names."""
    places = set(task.sources)
    for entry in (task.execute, task.validate, task.recover, *task.fallbacks.values()):
        match entry:
            case FileEntry(file=file):
                places.add(_package_of(root, file))
            case ModuleEntry(module=module):
                top = module.partition(".")[0]
                if (root / top).is_dir():
                    places.add(top)
                elif (root / f"{top}.py").is_file():
                    places.add(f"{top}.py")
            case _:
                pass
    return places


def _package_of(root: Path, file: str) -> str:
    """The outermost package around a file, or the file itself."""
    inside = Path(os.path.normpath(file))
    found = inside
    for folder in inside.parents:
        if folder == Path() or not (root / folder / "__init__.py").is_file():
            break
        found = folder
    return found.as_posix()


class _Copier:
    def __init__(self, destination: Path) -> None:
        self._destination = destination
        self._made: dict[str, tuple[Path, str]] = {}  # place: where it came from, its digest
        self._folders: set[Path] = set()
        self._size = 0

    def take(self, place: str, origin: Path, base: Path) -> None:
        """`origin` and all below it; links may lead anywhere below `base`."""
        target = origin.name if not _is_inside(place) else os.path.normpath(place)
        with self._opened(target, origin, base) as descriptor:
            if stat.S_ISDIR(os.fstat(descriptor).st_mode):
                self._folder("" if target == "." else target, descriptor, origin, base, 0)
            else:
                self._file(target, descriptor, origin)

    def finish(self) -> Snapshot:
        digest = sha256()
        for place, (_, content) in sorted(self._made.items()):
            digest.update(os.fsencode(place) + b"\0" + content.encode() + b"\n")
        # umask has taken bits from what mkdir was asked for
        for folder in {self._destination, *self._folders}:
            folder.chmod(0o755)
            _sync_folder(folder)
        return Snapshot(digest.hexdigest(), len(self._made), self._size)

    def _folder(self, place: str, descriptor: int, origin: Path, base: Path, depth: int) -> None:
        if depth > DEPTH:
            raise UsageError(f"sources: {shown(place)} is more than {DEPTH} folders deep")
        with os.scandir(descriptor) as entries:
            names = sorted(entry.name for entry in entries)
        if "pyvenv.cfg" in names and depth:
            return
        for name in names:
            if name in LEFT_OUT:
                continue
            below = f"{place}/{name}" if place else name
            mode = os.stat(name, dir_fd=descriptor, follow_symlinks=False).st_mode
            if stat.S_ISLNK(mode):
                with self._opened(below, origin / name, base) as found:
                    if stat.S_ISDIR(os.fstat(found).st_mode):
                        raise UsageError(
                            f"sources: {shown(below)} is a symbolic link to a folder; name that "
                            "folder in sources, or put a copy there"
                        )
                    self._file(below, found, origin / name)
                continue
            with _descriptor(_open(below, name, descriptor)) as found:
                if stat.S_ISDIR(mode):
                    self._folder(below, found, origin / name, base, depth + 1)
                else:
                    self._file(below, found, origin / name)

    @contextmanager
    def _opened(self, place: str, origin: Path, base: Path) -> Iterator[int]:
        """What `origin` leads to, if that is below `base`."""
        try:
            found = origin.resolve(strict=True)
        except (OSError, RuntimeError) as error:
            raise UsageError(f"sources: {shown(place)} cannot be found: {error}") from error
        within = base.resolve()
        if not found.is_relative_to(within):
            raise UsageError(
                f"sources: {shown(place)} is a symbolic link to {found}, outside {within}; put a "
                "copy there, or leave it out"
            )
        descriptor = os.open("/", os.O_PATH | os.O_CLOEXEC)
        try:
            *folders, last = found.parts[1:]
            for folder in folders:
                above = descriptor
                descriptor = os.open(
                    folder, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=above
                )
                os.close(above)
            opened = _open(place, last, descriptor)
        finally:
            os.close(descriptor)
        with _descriptor(opened):
            yield opened

    def _file(self, place: str, descriptor: int, origin: Path) -> None:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            kind = _KINDS.get(stat.S_IFMT(mode), "no regular file")
            raise UsageError(f"sources: {shown(place)} is {kind}; leave it out")
        if place in self._made:
            if self._made[place][0] == origin:
                return  # named twice: as a file, and within its package
            raise UsageError(
                f"sources: {origin} and {self._made[place][0]} would both be {shown(place)}; "
                "rename one of them"
            )
        if len(self._made) >= FILES:
            raise UsageError(
                f"sources: more than {FILES} files, at {shown(place)}; name less, and give data as "
                "workspace or input"
            )
        target = self._destination / place
        for folder in reversed(target.relative_to(self._destination).parents):
            path = self._destination / folder
            if path not in self._folders:
                path.mkdir(exist_ok=True)
                self._folders.add(path)
        self._made[place] = (origin, self._copy(descriptor, target, place))

    def _copy(self, descriptor: int, target: Path, place: str) -> str:
        digest = sha256()
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with _descriptor(os.open(target, flags, 0o644)) as copy:
            while chunk := os.read(descriptor, _CHUNK):
                self._size += len(chunk)
                # checked as it is read: a file that grows under us must not fill the disk
                if self._size > SIZE:
                    raise UsageError(
                        f"sources: more than {SIZE // MIB} MiB, at {shown(place)}; name less, and "
                        "give data as workspace or input"
                    )
                digest.update(chunk)
                view = memoryview(chunk)
                while view:
                    view = view[os.write(copy, view) :]
            os.fchmod(copy, 0o644)
            os.fsync(copy)
        return digest.hexdigest()


def _open(place: str, name: str, folder: int) -> int:
    # O_NONBLOCK: opening a FIFO would wait for its writer
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    try:
        return os.open(name, flags, dir_fd=folder)
    except OSError as error:
        # ENXIO is how Linux refuses to open a socket
        reason = "it is a socket" if error.errno == 6 else error.strerror
        raise UsageError(f"sources: {shown(place)} cannot be read: {reason}") from error


@contextmanager
def _descriptor(descriptor: int) -> Iterator[int]:
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    with _descriptor(os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as descriptor:
        os.fsync(descriptor)
