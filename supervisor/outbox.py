"""Taking back a file that a task wrote: never follow what it planted.

The outbox is a folder of the sandbox's own tmpfs, held by a descriptor that init sent before the
task's code ran. By the time anything is read the whole tree is dead, so nothing can change any more
what was checked. Opened beneath that folder, without links of any kind; a regular file, with one
name, of the size and digest that the guest told.
"""

from __future__ import annotations

import os
import stat
from hashlib import sha256

from msgspec import Raw

from ..protocol import codec
from ..protocol.errors import RemoteViolation
from ..protocol.limits import VALUE_SIZE
from ..protocol.messages import Result
from ..sandbox import syscalls

__all__ = ["take_output"]


def take_output(outbox: int | None, result: Result) -> Raw:
    """The value that `result` says lies in the outbox. Raises RemoteViolation where it does not."""
    if outbox is None or result.size is None or result.size > VALUE_SIZE:
        raise RemoteViolation(f"an output of {result.size} bytes, of at most {VALUE_SIZE}")
    try:
        fd = syscalls.openat2(
            outbox,
            b"output",
            # NONBLOCK: a FIFO in its place must not hold us up.
            os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK,
            resolve=syscalls.RESOLVE_BENEATH
            | syscalls.RESOLVE_NO_SYMLINKS
            | syscalls.RESOLVE_NO_MAGICLINKS,
        )
    except OSError as error:
        raise RemoteViolation(f"its output file cannot be opened: {error}") from error
    try:
        seen = os.fstat(fd)
        if not stat.S_ISREG(seen.st_mode) or seen.st_nlink != 1:
            raise RemoteViolation("its output is not a regular file with one name")
        if seen.st_size != result.size:
            raise RemoteViolation(f"its output has {seen.st_size} bytes, not {result.size} as told")
        value = bytearray()
        while len(value) < result.size and (piece := os.read(fd, result.size - len(value))):
            value += piece
    finally:
        os.close(fd)
    if sha256(value).digest() != result.digest:
        raise RemoteViolation("its output does not have the digest it told")
    # Spliced into maps from here on: what is not exactly one value could forge its neighbours.
    return codec.checked_raw(bytes(value))
