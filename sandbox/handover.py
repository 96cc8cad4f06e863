"""A copy of a file of the task's, in the outbox: what becomes an artifact.

The file is opened once, without following a link or waiting for anybody, and only then looked at:
it is a regular file, or refused. What is told, size and digest, is of the copy. A file that
changes while it is read is whatever was read of it, and one that grows is given up at the bound.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat

from ..protocol.limits import MIB

__all__ = ["copy_out"]


def copy_out(path: str, target: str, room: int) -> tuple[int, bytes]:
    """(size, SHA-256) of the copy at `target`. ValueError where `path` is no file that can be
    handed over, or has more than `room` bytes; OSError where it cannot be read or copied."""
    import hashlib  # OpenSSL: 3.5 MiB that few tasks need

    source = _opened(path)
    try:
        seen = os.fstat(source)
        if not stat.S_ISREG(seen.st_mode):
            raise ValueError(f"artifact {path!r}: {_kind(seen.st_mode)}, not a regular file")
        if seen.st_size > room:  # a hole counts: it would be read as zeros
            raise ValueError(_too_large(path, seen.st_size, room))
        with contextlib.suppress(FileNotFoundError):
            os.unlink(target)
        copy = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        size, digest = 0, hashlib.sha256()
        try:
            while piece := os.read(source, MIB):
                size += len(piece)
                if size > room:
                    raise ValueError(_too_large(path, size, room))
                digest.update(piece)
                left = memoryview(piece)
                while left:
                    left = left[os.write(copy, left) :]
        except BaseException:
            os.unlink(target)
            raise
        finally:
            os.close(copy)
        return size, digest.digest()
    finally:
        os.close(source)


def _opened(path: str) -> int:
    # NONBLOCK: a FIFO would wait for its writer.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
    try:
        return os.open(path, flags)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise ValueError(f"artifact {path!r}: a symbolic link; name the file itself") from None
        if error.errno == errno.ENXIO:
            raise ValueError(f"artifact {path!r}: a socket, not a regular file") from None
        raise


def _kind(mode: int) -> str:
    if stat.S_ISDIR(mode):
        return "a folder (hand over its files, or an archive of them)"
    return "a FIFO" if stat.S_ISFIFO(mode) else "a device"


def _too_large(path: str, size: int, room: int) -> str:
    return (
        f"artifact {path!r}: {size} bytes; {room} are left of what an attempt may hand over; large "
        "results stay in the workspace"
    )
