"""Capabilities: none in any set, and no way back.

A process in a new user namespace holds every capability over it. `drop` takes them in the one
order that works: the bounding set and the securebits while CAP_SETPCAP is still held, the ambient
set, and the three sets of the process last. With the bounding set empty and the securebits locked
not even a program that is setuid root inside gains one.

`become` is the step before: under a root supervisor a sandbox takes a host uid of its own and
needs its capabilities a moment longer, to make its user namespace.

`read_status` reads back what the kernel says of the process, because a wall is what is in force and
not what was asked for.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from errno import EINVAL

from . import syscalls
from .syscalls import prctl

__all__ = ["LAST", "SECUREBITS", "Status", "become", "drop", "parse_status", "read_status"]

# SECBIT_NOROOT, NO_SETUID_FIXUP and NO_CAP_AMBIENT_RAISE, each locked; KEEP_CAPS locked off.
SECUREBITS = 0x01 | 0x02 | 0x04 | 0x08 | 0x20 | 0x40 | 0x80


def _last() -> int:
    """The highest capability this kernel knows. Asked of the kernel and not of
    /proc/sys/kernel/cap_last_cap, which a sandbox's /proc does not have."""
    for capability in range(64):
        try:
            prctl(syscalls.PR_CAPBSET_READ, capability)
        except OSError as error:
            if error.errno != EINVAL:
                break  # nothing is told: to drop them fails as well, and that is a refusal in words
            return capability - 1
    return 63


LAST = _last()


def drop() -> None:
    """Every capability of the calling thread, for good; needs CAP_SETPCAP."""
    syscalls.drop_bounding_set(LAST)
    prctl(syscalls.PR_SET_SECUREBITS, SECUREBITS)
    prctl(syscalls.PR_CAP_AMBIENT, syscalls.PR_CAP_AMBIENT_CLEAR_ALL)
    syscalls.capset(0, 0, 0)


def become(uid: int, gid: int) -> None:
    """Take another identity, without groups, and keep the permitted capabilities effective.

    The kernel makes the process non-dumpable on the way, which hands /proc/self to root: the
    caller sets PR_SET_DUMPABLE again before it writes its own uid_map.
    """
    _, permitted, _ = syscalls.capget()
    prctl(syscalls.PR_SET_KEEPCAPS, 1)
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)  # clears the effective set, KEEPCAPS or not
    syscalls.capset(permitted, permitted, 0)
    prctl(syscalls.PR_SET_KEEPCAPS, 0)


@dataclass(frozen=True, slots=True)
class Status:
    """What /proc says of a thread's privileges. Capability sets are masks."""

    inheritable: int
    permitted: int
    effective: int
    bounding: int
    ambient: int
    no_new_privs: bool
    seccomp: int  # 0: none, 1: strict, 2: a filter

    @property
    def is_bare(self) -> bool:
        """No capability is left in any set: what must hold before a task's code runs."""
        return not (
            self.inheritable | self.permitted | self.effective | self.bounding | self.ambient
        )


# Seven lines that the kernel writes one after the other (fs/proc/array.c). The process's name, on
# the first line of the file, cannot forge them: a newline in it is written escaped.
_LINES = re.compile(
    rb"\nCapInh:\t([0-9a-f]{16})\nCapPrm:\t([0-9a-f]{16})\nCapEff:\t([0-9a-f]{16})"
    rb"\nCapBnd:\t([0-9a-f]{16})\nCapAmb:\t([0-9a-f]{16})"
    rb"\nNoNewPrivs:\t([01])\nSeccomp:\t([0-2])\n"
)


def parse_status(text: bytes) -> Status:
    """A /proc/<pid>/status; ValueError when it does not say all that is asked of it."""
    lines = _LINES.search(text)
    if lines is None:
        raise ValueError("/proc/self/status tells no capabilities, no_new_privs or seccomp mode")
    inheritable, permitted, effective, bounding, ambient, no_new_privs, seccomp = lines.groups()
    return Status(
        int(inheritable, 16),
        int(permitted, 16),
        int(effective, 16),
        int(bounding, 16),
        int(ambient, 16),
        no_new_privs == b"1",
        int(seccomp),
    )


def read_status(path: bytes = b"/proc/self/status") -> Status:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        # One read: without supplementary groups the file is a third of this.
        return parse_status(os.read(fd, 4096))
    finally:
        os.close(fd)
