"""Taking back files that a task wrote: never follow what it planted.

The outbox is a folder of the sandbox's own tmpfs, held by a descriptor that init sent before the
task's code ran. By the time anything is read the whole tree is dead, so nothing can change any more
what was checked. Opened beneath that folder, without links of any kind; a regular file, with one
name, of the size and digest that the guest told. What a file of a task's is called by it (an
artifact's name) is never a path here: it lies under a number.
"""

from __future__ import annotations

import os
import stat
from hashlib import sha256

from msgspec import Raw

from ..protocol import codec
from ..protocol.errors import RemoteViolation
from ..protocol.events import TaskArtifact
from ..protocol.limits import VALUE_SIZE
from ..protocol.messages import Artifact, Result
from ..sandbox import syscalls

__all__ = ["take_artifact", "take_output"]


def take_output(outbox: int | None, result: Result) -> Raw:
    """The value that `result` says lies in the outbox. Raises RemoteViolation where it does not."""
    value = _take(outbox, "output", "its output", result.size, result.digest)
    # Spliced into maps from here on: what is not exactly one value could forge its neighbours.
    return codec.checked_raw(bytes(value))


def take_artifact(outbox: int | None, number: int, told: Artifact) -> TaskArtifact:
    """The file that `told` says lies in the outbox. Raises RemoteViolation where it does not."""
    subject = f"its artifact {told.name!a}"
    content = _take(outbox, f"artifact-{number}", subject, told.size, told.digest)
    value = Raw(codec.encode_value(bytes(content)))
    return TaskArtifact(told.name, told.size, told.digest.hex(), value)


def _take(
    outbox: int | None, name: str, subject: str, size: int | None, digest: bytes | None
) -> bytearray:
    if outbox is None or size is None or size > VALUE_SIZE:
        raise RemoteViolation(f"{subject} of {size} bytes, of at most {VALUE_SIZE}")
    try:
        fd = syscalls.openat2(
            outbox,
            name.encode(),
            # NONBLOCK: a FIFO in its place must not hold us up.
            os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK,
            resolve=syscalls.RESOLVE_BENEATH
            | syscalls.RESOLVE_NO_SYMLINKS
            | syscalls.RESOLVE_NO_MAGICLINKS,
        )
    except OSError as error:
        raise RemoteViolation(f"{subject} cannot be opened: {error}") from error
    try:
        seen = os.fstat(fd)
        if not stat.S_ISREG(seen.st_mode) or seen.st_nlink != 1:
            raise RemoteViolation(f"{subject} is not a regular file with one name")
        if seen.st_size != size:
            raise RemoteViolation(f"{subject} has {seen.st_size} bytes, not {size} as told")
        value = bytearray()
        while len(value) < size and (piece := os.read(fd, size - len(value))):
            value += piece
    finally:
        os.close(fd)
    if sha256(value).digest() != digest:
        raise RemoteViolation(f"{subject} does not have the digest it told")
    return value
