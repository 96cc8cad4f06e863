"""Landlock: which files a sandbox may read, run and write, whatever the mounts around it say.

A ruleset handles every right the host's ABI knows and then grants some beneath given paths; what is
handled and not granted is refused, at every open, for the process and all that it starts. A rule
holds for an inode and what lies below it on the way a path was reached: rights granted on the
sandbox's own root do not reach a host file behind a leaked descriptor, whose way up ends at the
host's root. The walk skips a directory that is mounted over, so what is mounted needs a rule on its
own root (or on the parent of its mount point) and not on the mount point.

`prepare` is done once; a child then makes its ruleset (one call, one more for each path) and enters
it. A ruleset that holds no per-child path can be made once and entered by every child; the object
behind its descriptor is shared, so nothing may be added to it afterwards.

Landlock must come after the mounts: a process inside it can no longer mount.
"""

from __future__ import annotations

import os
import stat
import struct
from dataclasses import dataclass
from errno import EACCES, EINVAL, EIO

from . import syscalls

__all__ = [
    "ABI",
    "Rights",
    "Wall",
    "abi",
    "lacking",
    "prepare",
    "rights",
    "try_what_is_refused",
]

# LANDLOCK_ACCESS_FS_*
EXECUTE = 1 << 0
WRITE_FILE = 1 << 1
READ_FILE = 1 << 2
READ_DIR = 1 << 3
REMOVE_DIR = 1 << 4
REMOVE_FILE = 1 << 5
MAKE_CHAR = 1 << 6
MAKE_DIR = 1 << 7
MAKE_REG = 1 << 8
MAKE_SOCK = 1 << 9
MAKE_FIFO = 1 << 10
MAKE_BLOCK = 1 << 11
MAKE_SYM = 1 << 12
REFER = 1 << 13  # ABI 2
TRUNCATE = 1 << 14  # ABI 3
IOCTL_DEV = 1 << 15  # ABI 5

# LANDLOCK_ACCESS_NET_*, ABI 4
BIND_TCP = 1 << 0
CONNECT_TCP = 1 << 1

# LANDLOCK_SCOPE_*, ABI 6
ABSTRACT_UNIX_SOCKET = 1 << 0
SIGNAL = 1 << 1

# LANDLOCK_RESTRICT_SELF_*, ABI 7
LOG_SAME_EXEC_OFF = 1 << 0
LOG_SUBDOMAINS_OFF = 1 << 2

# The newest ABI whose rights are known here; a newer host is treated as this one.
ABI = 7

_FILE = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV  # what a rule on a file may hold
_READ = EXECUTE | READ_FILE | READ_DIR
_WRITE = (
    _READ
    | WRITE_FILE
    | TRUNCATE
    | REFER
    | REMOVE_DIR
    | REMOVE_FILE
    | MAKE_DIR
    | MAKE_REG
    | MAKE_SOCK
    | MAKE_FIFO
    | MAKE_SYM
)
_DEVICES = READ_FILE | READ_DIR | WRITE_FILE | TRUNCATE | IOCTL_DEV


@dataclass(frozen=True, slots=True)
class Rights:
    """What an ABI can refuse, and what the three kinds of grant mean there.

    Devices are never to be made, so no grant holds MAKE_CHAR or MAKE_BLOCK.
    """

    fs: int
    tcp: int
    scopes: int
    restrict_flags: int
    read: int  # read and list and run
    write: int  # read, and all else a task does to files of its own
    devices: int  # use device files that are there


def rights(version: int) -> Rights:
    """The table of ABI `version` (1 or more); pure."""
    fs = (1 << 13) - 1
    tcp = scopes = flags = 0
    if version >= 2:
        fs |= REFER
    if version >= 3:
        fs |= TRUNCATE
    if version >= 4:
        tcp = BIND_TCP | CONNECT_TCP
    if version >= 5:
        fs |= IOCTL_DEV
    if version >= 6:
        scopes = ABSTRACT_UNIX_SOCKET | SIGNAL
    if version >= 7:
        # A task that is refused a million times must not fill the host's audit log.
        flags = LOG_SAME_EXEC_OFF | LOG_SUBDOMAINS_OFF
    return Rights(fs, tcp, scopes, flags, _READ & fs, _WRITE & fs, _DEVICES & fs)


# What each ABI brought: before it Landlock cannot refuse it, and other walls stand alone. (TCP is
# asked of it only where there is no network namespace. REFER before ABI 2 is refused always.)
_BROUGHT = {
    3: "truncating what may not be written",
    5: "requests to devices",
    6: "signals and abstract sockets to the outside",
}


def lacking(version: int) -> tuple[str, ...]:
    """What the ABI does not cover, in words."""
    return tuple(what for since, what in _BROUGHT.items() if version < since)


def abi() -> tuple[int, int]:
    """The host's, or 0 and why: ENOSYS where Landlock is not built in, EOPNOTSUPP where it is not
    switched on, and another errno where somebody around us refuses the question."""
    version = syscalls.LANDLOCK_CREATE_RULESET_VERSION
    try:
        return syscalls.landlock_create_ruleset(None, 0, version), 0
    except OSError as error:
        return 0, error.errno or EIO


_PATH_BENEATH = struct.Struct("=Qi")  # struct landlock_path_beneath_attr, packed


@dataclass(frozen=True, slots=True)
class Wall:
    """Rulesets of one shape, for the ABI they were prepared for."""

    version: int
    rights: Rights
    attributes: bytes  # struct landlock_ruleset_attr, as long as the ABI knows it

    def ruleset(self) -> int:
        """A new ruleset without rules; a close-on-exec descriptor."""
        return syscalls.landlock_create_ruleset(self.attributes, len(self.attributes))

    def allow(self, ruleset: int, path: bytes, granted: int) -> None:
        """Grant rights (of `self.rights`) on a file, or beneath a directory."""
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            self.allow_fd(ruleset, fd, granted)
        finally:
            os.close(fd)

    def allow_fd(self, ruleset: int, fd: int, granted: int) -> None:
        for rights_granted in (granted, granted & _FILE):
            try:
                syscalls.landlock_add_rule(
                    ruleset,
                    syscalls.LANDLOCK_RULE_PATH_BENEATH,
                    _PATH_BENEATH.pack(rights_granted, fd),
                )
                return
            except OSError as error:
                # A file cannot take rights over folders. Asking fstat first would cost each of the
                # folders, which is nearly all there is, a call.
                if error.errno != EINVAL or rights_granted & ~_FILE == 0:
                    raise

    def restrict_self(self, ruleset: int) -> None:
        """Enter the ruleset for good; no_new_privs must be set."""
        syscalls.landlock_restrict_self(ruleset, self.rights.restrict_flags)


def prepare(version: int, *, deny_tcp: bool = False) -> Wall:
    """A wall for an ABI of at least 1 (as told by `abi`), with all scopes it has.

    `deny_tcp` refuses every bind and connect, for a sandbox that had to share the host's network;
    it needs ABI 4 and is otherwise not to be had (`wall.rights.tcp` says so).
    """
    version = min(version, ABI)
    table = rights(version)
    tcp = table.tcp if deny_tcp else 0
    if version >= 6:
        attributes = struct.pack("=QQQ", table.fs, tcp, table.scopes)
    elif version >= 4:
        attributes = struct.pack("=QQ", table.fs, tcp)
    else:
        attributes = struct.pack("=Q", table.fs)
    return Wall(version, table, attributes)


def try_what_is_refused(folder: str) -> bool:
    """Does the wall around us stand? The kernel does not tell which rules hold for a process, so
    one is tried that every ABI has: to make a block device in a folder of ours. Landlock is asked
    first, and says EACCES; the capability that it takes, and that we have not, is EPERM. (Not of a
    character device 0:0, which takes none: kernels such as 6.12.117 count that whiteout as a
    regular file, which may be made there.)"""
    path = os.path.join(folder, "device")
    try:
        os.mknod(path, stat.S_IFBLK)
    except OSError as error:
        return error.errno == EACCES
    os.unlink(path)
    return False
