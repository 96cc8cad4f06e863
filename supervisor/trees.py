"""Walking a folder that a task wrote, whatever it made of it.

Depth first with a stack of our own, from open folders, a name at a time and never through a link:
nothing in such a folder can lead outside, hold us up or overflow anything. Descriptors are held for
the lowest few levels alone. Going up beyond those is by `..`, and only if that is the folder we
came from: a living task may move folders while they are walked (its layer's size is sampled), which
ends the walk with ESTALE.

As an ordinary user the folders are our own, and a task may have closed them (mode 000): those that
lack what a walk `needs` are opened up on the way in and closed again on the way out.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum, auto
from itertools import islice
from typing import TypeVar

from ..protocol.errors import RemoteViolation

__all__ = [
    "ENTRIES",
    "PATH_SIZE",
    "Moment",
    "Step",
    "Syncer",
    "UnkeepableTree",
    "Walk",
    "change_mode",
    "copy_attributes",
    "copy_content",
    "is_out_of_reach",
    "open_folder",
    "open_regular",
    "opened",
    "overlay_attributes",
    "remove_tree",
    "user_attributes",
    "with_access",
]

# What one layer may hold. A name and what is noted of it weigh about 300 bytes here, and a
# million of them are already more than a checkout of the largest public repositories.
ENTRIES = 1_000_000

# No program opens a longer path in one piece (PATH_MAX), so nothing can be done with what lies
# deeper; and paths of all levels of one tree a million folders deep would be terabytes.
PATH_SIZE = 4095

# Open folders of one walk.
_KEPT = 32

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_CHUNK = 1 << 20
_OVERLAY = "user.overlay."
_FICLONE = 0x40049409  # linux/fs.h: share the blocks, where the file system can

_T = TypeVar("_T")


class UnkeepableTree(RemoteViolation):
    """The task left more than can be kept: too many entries, or too deep."""


class Moment(Enum):
    ENTER = auto()  # a folder, before what is in it
    LEAVE = auto()  # the same, after it
    ENTRY = auto()  # anything else


@dataclass(slots=True)
class Step:
    moment: Moment
    at: int  # the open folder it is in
    name: str
    path: str  # from where the walk began; empty in walks without paths
    status: os.stat_result
    inside: int = -1  # a folder itself, open


class _Level:
    __slots__ = ("fd", "mode", "name", "names", "path", "status")

    def __init__(
        self,
        fd: int,
        name: str,
        path: str,
        status: os.stat_result,
        names: Iterator[str],
        mode: int | None = None,
    ) -> None:
        self.fd, self.name, self.path, self.status = fd, name, path, status
        self.names = names
        self.mode = mode  # to be given back


def is_out_of_reach(error: OSError) -> bool:
    """It is gone, is something else by now, or is not ours to see. Any other error (no descriptor
    left, a disk that fails) must not be taken for a file that is not there."""
    return error.errno in (
        errno.ENOENT,
        errno.ENOTDIR,
        errno.ELOOP,
        errno.EACCES,
        errno.EPERM,
    )


def open_folder(name: str | os.PathLike[str], at: int | None = None) -> int:
    return os.open(name, _FOLDER, dir_fd=at)


@contextlib.contextmanager
def opened(name: str | os.PathLike[str], at: int | None = None) -> Iterator[int]:
    fd = open_folder(name, at)
    try:
        yield fd
    finally:
        os.close(fd)


class Walk:
    """`for step in Walk(fd)`. After ENTER of a folder, `skip()` leaves out what is in it, and its
    LEAVE. `tolerant`: a folder that cannot be opened, or is gone, counts as empty."""

    def __init__(
        self,
        root: int,
        *,
        paths: bool = True,
        needs: int = 0o700,
        tolerant: bool = False,
        most: int = ENTRIES,
    ) -> None:
        self._root = root
        self._paths = paths
        self._needs = needs if os.geteuid() != 0 else 0
        self._tolerant = tolerant
        self._most = most
        self._skipped = False

    def skip(self) -> None:
        self._skipped = True

    def __iter__(self) -> Iterator[Step]:
        levels = [_Level(self._root, "", "", os.fstat(self._root), self._names(self._root))]
        seen = 0
        try:
            while True:
                level = levels[-1]
                name = next(level.names, None)
                if name is None:
                    if len(levels) == 1:
                        return
                    above = self._ascend(levels)
                    _give_back(level, self._needs)
                    yield Step(
                        Moment.LEAVE, above.fd, level.name, level.path, level.status, level.fd
                    )
                    os.close(level.fd)
                    levels.pop()
                    continue
                try:
                    status = os.stat(name, dir_fd=level.fd, follow_symlinks=False)
                except OSError as error:
                    if self._tolerant and is_out_of_reach(error):
                        continue
                    raise
                seen += 1
                if seen > self._most:
                    raise UnkeepableTree(f"more than {self._most} files and folders")
                path = self._join(level.path, name)
                if not stat.S_ISDIR(status.st_mode):
                    yield Step(Moment.ENTRY, level.fd, name, path, status)
                    continue
                fd, mode = self._open(level.fd, name, status)
                below = _Level(fd, name, path, status, iter(()), mode)
                levels.append(below)
                if fd >= 0:
                    below.names = self._names(fd)
                yield Step(Moment.ENTER, level.fd, name, path, status, fd)
                if self._skipped or fd < 0:
                    self._skipped = False
                    levels.pop()
                    _close(below, self._needs)
                elif len(levels) > _KEPT + 1:
                    parted = levels[-_KEPT - 1]
                    if parted is not levels[0]:
                        os.close(parted.fd)
                        parted.fd = -1
        finally:
            with contextlib.suppress(OSError):
                while len(levels) > 1:
                    self._ascend(levels)
                    _close(levels.pop(), self._needs)
            for level in levels[1:]:
                if level.fd >= 0:
                    os.close(level.fd)

    def _join(self, folder: str, name: str) -> str:
        if not self._paths:
            return ""
        path = f"{folder}/{name}" if folder else name
        if len(path) > PATH_SIZE // 4 and len(os.fsencode(path)) > PATH_SIZE:
            raise UnkeepableTree(f"a path of more than {PATH_SIZE} bytes: {path[:60]!r}...")
        return path

    def _names(self, fd: int) -> Iterator[str]:
        try:
            with os.scandir(fd) as entries:
                return iter([entry.name for entry in islice(entries, self._most + 1)])
        except OSError as error:
            if self._tolerant and is_out_of_reach(error):
                return iter(())
            raise

    def _open(self, at: int, name: str, status: os.stat_result) -> tuple[int, int | None]:
        """(descriptor, the mode to be given back); -1 where the walk is tolerant."""
        mode = stat.S_IMODE(status.st_mode)
        try:
            if mode & self._needs != self._needs and status.st_uid == os.geteuid():
                change_mode(at, name, mode | self._needs)
                return open_folder(name, at), mode
            return open_folder(name, at), None
        except OSError as error:
            if self._tolerant and is_out_of_reach(error):
                return -1, None
            raise

    def _ascend(self, levels: list[_Level]) -> _Level:
        above = levels[-2]
        if above.fd < 0:
            fd = open_folder("..", levels[-1].fd)
            found = os.fstat(fd)
            if (found.st_dev, found.st_ino) != (above.status.st_dev, above.status.st_ino):
                os.close(fd)
                raise OSError(errno.ESTALE, "a folder was moved while it was walked")
            above.fd = fd
        return above


def _give_back(level: _Level, needs: int) -> None:
    # unless a living task changed it meanwhile
    if level.mode is not None:
        if stat.S_IMODE(os.fstat(level.fd).st_mode) == level.mode | needs:
            os.fchmod(level.fd, level.mode)
        level.mode = None


def _close(level: _Level, needs: int) -> None:
    if level.fd >= 0:
        _give_back(level, needs)
        os.close(level.fd)


def change_mode(at: int, name: str, mode: int) -> None:
    """chmod of what `name` is, be it closed to us. The kernel has fchmodat without following since
    6.6; /proc names an open file, whatever its mode, in all of them."""
    fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)
    try:
        if stat.S_ISLNK(os.fstat(fd).st_mode):
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), name)
        os.chmod(f"/proc/self/fd/{fd}", mode)
    finally:
        os.close(fd)


def open_regular(name: str, at: int) -> int:
    """A regular file for reading, be it closed to us; anything else in its place is an OSError."""
    try:
        fd = os.open(name, _FILE, dir_fd=at)
    except PermissionError:
        status = os.stat(name, dir_fd=at, follow_symlinks=False)
        if os.geteuid() == 0 or status.st_uid != os.geteuid() or not stat.S_ISREG(status.st_mode):
            raise
        mode = stat.S_IMODE(status.st_mode)
        change_mode(at, name, mode | 0o400)
        try:
            fd = os.open(name, _FILE, dir_fd=at)
        finally:
            change_mode(at, name, mode)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "not a regular file", name)
    return fd


def with_access(root: int, path: str, act: Callable[[int, str], _T]) -> _T:
    """`act(open folder, last name)` on `path` beneath `root`; closed folders of ours on the way
    are open meanwhile."""
    folder, _, name = path.rpartition("/")
    at = os.dup(root)
    changed: list[tuple[int, int]] = []
    try:
        for part in folder.split("/") if folder else ():
            status = os.stat(part, dir_fd=at, follow_symlinks=False)
            mode = stat.S_IMODE(status.st_mode)
            locked = os.geteuid() != 0 and mode & 0o500 != 0o500 and status.st_uid == os.geteuid()
            if locked:
                change_mode(at, part, mode | 0o500)
            below = open_folder(part, at)
            if locked:
                changed.append((os.dup(below), mode))
            os.close(at)
            at = below
        return act(at, name)
    finally:
        os.close(at)
        for fd, mode in reversed(changed):
            os.fchmod(fd, mode)
            os.close(fd)


def remove_tree(at: int, name: str) -> int:
    """Remove `name` in the open folder `at`, a file or a folder with all in it, if it is there. The
    bytes that frees: a file's, where that was its last name."""
    try:
        status = os.stat(name, dir_fd=at, follow_symlinks=False)
    except FileNotFoundError:
        return 0
    if not stat.S_ISDIR(status.st_mode):
        return _unlink(at, name, status)
    if os.geteuid() != 0 and status.st_mode & 0o700 != 0o700:
        change_mode(at, name, 0o700)
    root = open_folder(name, at)
    freed = 0
    try:
        again = True
        while again:  # a folder of more entries than one listing takes
            again = False
            try:
                for step in Walk(root, paths=False):
                    if step.moment is Moment.ENTRY:
                        freed += _unlink(step.at, step.name, step.status)
                    elif step.moment is Moment.LEAVE:
                        os.rmdir(step.name, dir_fd=step.at)
            except UnkeepableTree:
                again = True
    finally:
        os.close(root)
    os.rmdir(name, dir_fd=at)
    return freed


def _unlink(at: int, name: str, status: os.stat_result) -> int:
    os.unlink(name, dir_fd=at)
    return status.st_blocks * 512 if status.st_nlink == 1 else 0


# --- durability ----------------------------------------------------------------------------------

# Descriptors of one batch, and threads: disks and the journals of file systems take what is to be
# flushed at the same time together, so that ten cost about as much as one or two.
_BATCH = 64
_POOL = ThreadPoolExecutor(8, "sync")


class Syncer:
    """Makes what it is given durable, in batches; `finish` for the last. It owns the descriptors.

    fsync of each, since syncfs would wait for everything that anybody wrote to that file system.
    """

    def __init__(self) -> None:
        self._batch: list[int] = []

    def add(self, fd: int) -> None:
        """`fd` is copied."""
        self._batch.append(os.dup(fd))
        if len(self._batch) >= _BATCH:
            self.finish()

    def finish(self) -> None:
        batch, self._batch = self._batch, []
        try:
            if len(batch) > 1:
                # all of them have ended before any error is told: they use our descriptors
                waiting = [_POOL.submit(os.fsync, fd) for fd in batch]
                errors = [error for each in waiting if (error := each.exception()) is not None]
                if errors:
                    raise errors[0]
            else:
                for fd in batch:
                    os.fsync(fd)
        finally:
            for fd in batch:
                os.close(fd)

    def drop(self) -> None:
        """Something failed: close what is left."""
        while self._batch:
            os.close(self._batch.pop())


# --- copying -------------------------------------------------------------------------------------


def copy_content(source: int, target: int) -> None:
    """Blocks are shared where the file system can; holes stay holes."""
    try:
        fcntl.ioctl(target, _FICLONE, source)
        return
    except OSError:
        pass
    size = os.fstat(source).st_size
    place = 0
    while place < size:
        try:
            start = os.lseek(source, place, os.SEEK_DATA)
            end = os.lseek(source, start, os.SEEK_HOLE)
        except OSError as error:
            if error.errno == errno.ENXIO:
                break  # only a hole is left
            start, end = place, size
        _copy_range(source, target, start, end)
        place = end
    os.ftruncate(target, size)


def _copy_range(source: int, target: int, start: int, end: int) -> None:
    kernel = True
    while start < end:
        if kernel:
            try:
                copied = os.copy_file_range(source, target, end - start, start, start)
            except OSError as error:
                if error.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
                    raise
                kernel = False
                continue
            if copied == 0:
                kernel = False  # some file systems say so of what they cannot do
                continue
        else:
            piece = os.pread(source, min(_CHUNK, end - start), start)
            if not piece:
                return
            copied = os.pwrite(target, piece, start)
        start += copied


def user_attributes(fd: int) -> dict[str, bytes]:
    """Extended attributes that are a task's own, without those by which overlayfs works: one that
    it wrote itself would change what the layers above and below mean."""
    try:
        try:
            return _read_attributes(fd)
        except PermissionError:
            # Of a file that was opened in spite of its mode, which is asked again here.
            status = os.fstat(fd)
            if not status.st_uid == os.geteuid() != 0:
                raise
            os.fchmod(fd, stat.S_IMODE(status.st_mode) | 0o400)
            try:
                return _read_attributes(fd)
            finally:
                os.fchmod(fd, stat.S_IMODE(status.st_mode))
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EACCES, errno.ENODATA, errno.EPERM):
            return {}
        raise


def _read_attributes(fd: int) -> dict[str, bytes]:
    return {
        name: os.getxattr(fd, name)
        for name in os.listxattr(fd)
        if name.startswith("user.") and not name.startswith(_OVERLAY)
    }


def overlay_attributes(fd: int) -> list[str]:
    """The names of those by which overlayfs works."""
    try:
        return [name for name in os.listxattr(fd) if name.startswith(_OVERLAY)]
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            return []
        raise


def copy_attributes(source: int, target: int) -> None:
    for name, value in user_attributes(source).items():
        os.setxattr(target, name, value)
