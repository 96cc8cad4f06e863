"""Large values of one run, each in a file that is named by the SHA-256 of its content.

    values/<2 hex>/<64 hex>      complete, synced, never changed
    values/tmp/<random>          being written; swept when the next owner begins

Write to tmp → fsync the file → rename → fsync the directory: a name that exists has its whole
content on disk, whatever is pulled out of the wall in between. Equal values are one file, so a
chain of tasks that hands on an unchanged megabyte stores it once. Reading checks the digest: a
damaged file is reported, never handed on.

One owner writes (see state.py); any process may read.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import stat
from collections.abc import Collection
from pathlib import Path

from ..protocol.errors import CasemateError, LocalViolation
from ..protocol.limits import VALUE_SIZE
from .state import fsync_directory

__all__ = ["DamagedValueError", "ValueStore"]

# One write call. Large writes hold the file's lock and, interrupted, tell us little.
_CHUNK = 4 * 1024 * 1024

_NAME = re.compile("[0-9a-f]{64}")


class DamagedValueError(CasemateError):
    """A stored value is missing, or is not what its digest promises."""


class ValueStore:
    def __init__(self, root: Path, limit: int = VALUE_SIZE) -> None:
        self._root = root
        self._tmp = root / "tmp"
        self._limit = limit

    def sweep(self) -> None:
        """Remove what a dead owner was writing. For the owner alone."""
        if self._tmp.is_dir():
            for leftover in self._tmp.iterdir():
                leftover.unlink(missing_ok=True)

    def leftovers(self, used: Collection[bytes]) -> list[Path]:
        """Files that are no value in `used`: of events that came to nothing, or are another run's
        (a fork gets all values of its source), and what a dead owner was writing."""
        names = {digest.hex() for digest in used}
        return sorted(
            file
            for folder in self._root.iterdir()
            if folder.is_dir()
            for file in folder.iterdir()
            if folder == self._tmp or (_NAME.fullmatch(file.name) and file.name not in names)
        )

    def path(self, digest: bytes) -> Path:
        name = digest.hex()
        return self._root / name[:2] / name

    def put(self, value: bytes | memoryview) -> bytes:
        """Store `value` durably; its SHA-256."""
        if len(value) > self._limit:
            raise LocalViolation(
                f"value of {len(value)} bytes: expected at most {self._limit}, "
                "its bound is to be held where it enters"
            )
        digest = hashlib.sha256(value).digest()
        target = self.path(digest)
        if not self._holds(target, len(value)):
            self._write(target, value)
        # Also where file and folder were there already: who made them may have died between that
        # and the sync. A directory that is clean costs microseconds.
        fsync_directory(target.parent)
        fsync_directory(self._root)
        return digest

    def _holds(self, target: Path, size: int) -> bool:
        try:
            seen = os.lstat(target)
        except FileNotFoundError:
            return False
        return stat.S_ISREG(seen.st_mode) and seen.st_size == size

    def _write(self, target: Path, value: bytes | memoryview) -> None:
        for folder in (self._root, self._tmp, target.parent):
            folder.mkdir(mode=0o700, exist_ok=True)
        building = self._tmp / secrets.token_hex(8)
        descriptor = os.open(
            building, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o400
        )
        try:
            try:
                rest = memoryview(value)
                while rest:
                    rest = rest[os.write(descriptor, rest[:_CHUNK]) :]
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            os.rename(building, target)
        except OSError:
            # The first error is the one to tell; a tmp that stays is swept by the next owner.
            with contextlib.suppress(OSError):
                building.unlink()
            raise

    def get(self, digest: bytes, size: int) -> bytes:
        """The value, checked. DamagedValueError where it is gone or not itself."""
        if size > self._limit:
            raise DamagedValueError(f"value {digest.hex()}: {size} bytes, more than {self._limit}")
        target = self.path(digest)
        try:
            descriptor = os.open(target, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            raise DamagedValueError(
                f"value {digest.hex()}: no such file below {self._root}"
            ) from None
        with os.fdopen(descriptor, "rb") as file:
            # One byte more than promised: a longer file shows without being read whole.
            value = file.read(size + 1)
        if len(value) != size or hashlib.sha256(value).digest() != digest:
            raise DamagedValueError(f"value {digest.hex()}: its file {target} is damaged")
        return value
