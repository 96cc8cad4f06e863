"""Reserved host uids, one per live sandbox, shared out among all supervisors of this host.

A root supervisor runs each sandbox under a host uid that nobody else has (`sandbox/spec.py`). Two
supervisors must not hand out the same one, so the uids are leased in blocks: a lock on
`/run/casemate/uids-<block>` that the kernel drops with its holder, however that ends. By then its
sandboxes are gone too: they die with their supervisor. An ordinary user's sandboxes run under the
user's own uid, and need none of this.
"""

from __future__ import annotations

import errno
import fcntl
import heapq
import os
import struct
from pathlib import Path

from ..protocol.errors import SetupRefused
from ..sandbox.spec import SLOTS

__all__ = ["BLOCK", "Slots"]

# Sandboxes of one lease. More than one supervisor commonly has alive, so that a second lease is
# rare, and 390 of them fit into the reserved range.
BLOCK = 256

FOLDER = Path("/run/casemate")

# struct flock on 64-bit Linux: an OFD lock, which belongs to the descriptor and not to the process.
_LOCK = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)


class Slots:
    """The lowest free slot first, so that few idmaps are ever made for them."""

    def __init__(self, *, shared: bool, folder: Path = FOLDER) -> None:
        """`shared`: whether slots mean host uids here. Raises SetupRefused, see `take`."""
        self._folder = folder if shared else None
        self._free: list[int] = []
        self._next = 0  # where nothing is shared
        self._held: list[int] = []
        self._tried = 0
        if shared:
            self._lease()  # before anything is begun that a refusal would have to end

    def take(self) -> int:
        """Raises SetupRefused where no uid can be had."""
        if not self._free:
            self._lease()
        return heapq.heappop(self._free)

    def give_back(self, slot: int) -> None:
        """Nothing that ran under it may be alive any more."""
        heapq.heappush(self._free, slot)

    def close(self) -> None:
        for fd in self._held:
            os.close(fd)
        self._held.clear()
        self._free.clear()

    def _lease(self) -> None:
        if self._folder is None:
            self._free.append(self._next)
            self._next += 1
            return
        try:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            while self._tried < SLOTS // BLOCK:
                block = self._tried
                self._tried += 1
                if self._lock(self._folder / f"uids-{block}"):
                    self._free += range(block * BLOCK, (block + 1) * BLOCK)
                    return
        except OSError as error:
            raise SetupRefused(
                f"reserved uids cannot be leased in {self._folder}: {error}; root must be able "
                "to write there"
            ) from error
        raise SetupRefused("every reserved uid is in use: too many supervisors live on this host")

    def _lock(self, path: Path) -> bool:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        fd = os.open(path, flags, 0o600)
        try:
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _LOCK)
        except OSError as error:
            os.close(fd)
            if error.errno in (errno.EACCES, errno.EAGAIN):
                return False
            raise
        self._held.append(fd)
        return True
