"""A folder held open, and paths below it that lead nowhere else.

Every path is opened from the held descriptor by openat2, which refuses symbolic links in *any*
component: a link that a task planted, or that somebody put into the workspace a moment ago, is an
error and not a way out. What is opened to be read is a regular file or refused: a FIFO would wait
for its writer, a device do whatever devices do when they are opened.

`look` answers what a tree has at a path in the sense of a version control system: below a file or
a symbolic link there is nothing, wherever the link leads.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from errno import ELOOP, ENOENT, ENOTDIR
from functools import partial
from pathlib import Path
from typing import Self

from ..protocol.errors import CasemateError, LocalViolation, UsageError
from ..sandbox import syscalls
from .trees import change_mode, with_access

__all__ = ["ABSENT", "Beneath", "Found", "NotRegularError", "OwnBeneath", "opened", "reason"]

_RESOLVE = syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_SYMLINKS | syscalls.RESOLVE_NO_MAGICLINKS

# The kernel takes 4096 bytes in one call; a tree that a loop made can be deeper.
_PATH_SIZE = 4000

_ODD = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class NotRegularError(CasemateError):
    """Where a regular file was to be read is something else."""


@dataclass(frozen=True, slots=True)
class Found:
    """What lies at a path. `kind`: file, folder, link, absent, or `a FIFO` and the like."""

    kind: str
    mode: int = 0
    size: int = 0
    target: str | None = None

    @property
    def is_odd(self) -> bool:
        return self.kind not in ("file", "folder", "link", "absent")


ABSENT = Found("absent")


def reason(error: OSError | CasemateError) -> str:
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return str(error)


@contextmanager
def opened(descriptor: int) -> Iterator[int]:
    """`descriptor`, closed at the end."""
    try:
        yield descriptor
    finally:
        os.close(descriptor)


class Beneath:
    def __init__(self, root: Path) -> None:
        """`root` itself must be a folder, not a link to one: it was resolved when it was named."""
        try:
            self.root = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise UsageError(
                f"{root}: expected a folder, and no link to one: {error.strerror}"
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.root)

    def open(self, path: str, flags: int) -> int:
        """A descriptor of `path`; `""` is the root."""
        if path == "":
            path = "."
        elif any(part in ("", ".", "..") for part in path.split("/")) or "\0" in path:
            raise LocalViolation(f"{path!a} is not a path below a folder")
        rest = os.fsencode(path)
        folder = self.root
        try:
            while len(rest) > _PATH_SIZE:
                # names are at most 255 bytes, so there is always a slash to cut at
                cut = rest.rindex(b"/", 0, _PATH_SIZE)
                above, folder = folder, _open(folder, rest[:cut], os.O_PATH | os.O_DIRECTORY)
                if above != self.root:
                    os.close(above)
                rest = rest[cut + 1 :]
            return _open(folder, rest, flags)
        finally:
            if folder != self.root:
                os.close(folder)

    @contextmanager
    def parent(self, path: str) -> Iterator[tuple[int, bytes]]:
        """The folder around `path`, and its name there."""
        above, _, name = path.rpartition("/")
        with opened(self.open(above, os.O_PATH | os.O_DIRECTORY)) as folder:
            yield folder, os.fsencode(name)

    def look(self, path: str) -> Found:
        try:
            return self._look(path)
        except OSError as error:
            if error.errno in (ENOENT, ENOTDIR, ELOOP):
                return ABSENT
            raise

    def _look(self, path: str) -> Found:
        with self.parent(path) as (folder, name):
            return _found(folder, name)

    @contextmanager
    def file(self, path: str) -> Iterator[int]:
        """A regular file, to read. NotRegularError where it is none, OSError where it is not
        readable."""
        found = self.look(path)
        if found.kind not in ("file", "absent"):
            raise NotRegularError(_not_regular(found.kind))
        # NONBLOCK and the second look: what was looked at may be a FIFO by now.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
        with opened(self.open(path, flags)) as descriptor:
            mode = os.fstat(descriptor).st_mode
            if not stat.S_ISREG(mode):
                raise NotRegularError(_not_regular(_ODD.get(stat.S_IFMT(mode), "a folder")))
            yield descriptor

    def names(self, path: str) -> list[str]:
        """What a folder holds, sorted."""
        with opened(self.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)) as folder:
            return sorted(os.listdir(folder))


class OwnBeneath(Beneath):
    """The same of files that are ours, as layers are: what a task closed to everybody (mode 000) is
    open while it is opened. Nobody else counts on its mode."""

    def open(self, path: str, flags: int) -> int:
        try:
            return super().open(path, flags)
        except PermissionError:
            return with_access(self.root, path, partial(_open_closed, flags=flags))

    def _look(self, path: str) -> Found:
        try:
            return super()._look(path)
        except PermissionError:
            return with_access(self.root, path, _found)


def _found(folder: int, name: str | bytes) -> Found:
    seen = os.stat(name, dir_fd=folder, follow_symlinks=False)
    mode = stat.S_IMODE(seen.st_mode)
    if stat.S_ISREG(seen.st_mode):
        return Found("file", mode, seen.st_size)
    if stat.S_ISDIR(seen.st_mode):
        return Found("folder", mode)
    if stat.S_ISLNK(seen.st_mode):
        target = os.readlink(os.fsencode(name), dir_fd=folder)
        return Found("link", mode, seen.st_size, os.fsdecode(target))
    return Found(_ODD.get(stat.S_IFMT(seen.st_mode), "no file"), mode)


def _open_closed(folder: int, name: str, *, flags: int) -> int:
    try:
        return _open(folder, os.fsencode(name), flags)
    except PermissionError:
        seen = os.stat(name, dir_fd=folder, follow_symlinks=False)
        is_ours = seen.st_uid == os.geteuid() != 0
        if not is_ours or not (stat.S_ISREG(seen.st_mode) or stat.S_ISDIR(seen.st_mode)):
            raise
        mode = stat.S_IMODE(seen.st_mode)
        change_mode(folder, name, mode | 0o400)
        try:
            return _open(folder, os.fsencode(name), flags)
        finally:
            change_mode(folder, name, mode)


def _open(folder: int, path: bytes, flags: int) -> int:
    return syscalls.openat2(folder, path, flags | os.O_CLOEXEC, resolve=_RESOLVE)


def _not_regular(kind: str) -> str:
    return f"is {'a symbolic link' if kind == 'link' else kind}, not a regular file"
