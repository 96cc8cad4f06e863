"""Resource limits of each process in a sandbox: what the kernel counts per process or per user.

They back up the cgroup, which counts the tree, and stand in for it where there is none (backing
`sampled`): RLIMIT_NPROC, which since Linux 5.14 counts within the sandbox's own user namespace, and
RLIMIT_DATA. RLIMIT_AS is never used: 512 MiB of it break Node and the JVM, which reserve far more
than they touch.
"""

from __future__ import annotations

import resource

from ..protocol.limits import KIB, MIB
from ..protocol.pipeline import Limits

__all__ = ["COMMON", "Table", "apply", "table"]

Table = tuple[tuple[int, int, int], ...]  # resource, soft, hard

# Not 0: with a core_pattern that pipes to a program the kernel ignores the limit, except for the
# value 1, which it takes for a handler that crashed itself and so dumps nothing (fs/coredump.c).
# No file comes of it either: every binary format asks for a page at least.
_CORE = 1

# The kernel's own default since 5.16; what is locked counts as memory anyway.
_MEMLOCK = 8 * MIB

# The usual 8 MiB, which is also what glibc gives each thread; a program that recurses deeply may
# ask for more.
_STACK_SOFT = 8 * MIB
_STACK_HARD = 64 * MIB

# Queued signals and POSIX timers, which are kernel memory.
_SIGPENDING = 4 * KIB

# The sandbox's init is one of the processes of its user namespace.
_INIT = 1


# The same for every sandbox.
COMMON: Table = (
    (resource.RLIMIT_CORE, _CORE, _CORE),
    (resource.RLIMIT_MEMLOCK, _MEMLOCK, _MEMLOCK),
    (resource.RLIMIT_STACK, _STACK_SOFT, _STACK_HARD),
    (resource.RLIMIT_SIGPENDING, _SIGPENDING, _SIGPENDING),
    (resource.RLIMIT_MSGQUEUE, 0, 0),
    (resource.RLIMIT_RTPRIO, 0, 0),
    (resource.RLIMIT_NICE, 0, 0),
)

# What `apply` has set in this process or in one that it was forked from: limits are inherited and
# can only be lowered, so a row found here is in force. A zygote that applies COMMON once spares
# every child these calls.
_in_force: set[tuple[int, int, int]] = set()


def table(limits: Limits, *, sampled: frozenset[str] = frozenset()) -> Table:
    """What to set; `sampled` names the limits (`memory`, `pids`) that no cgroup backs."""
    rows = [
        *COMMON,
        (resource.RLIMIT_NOFILE, limits.files, limits.files),
        (resource.RLIMIT_FSIZE, limits.disk, limits.disk),
    ]
    if "memory" in sampled:
        rows.append((resource.RLIMIT_DATA, limits.memory, limits.memory))
    if "pids" in sampled:
        rows.append((resource.RLIMIT_NPROC, limits.pids + _INIT, limits.pids + _INIT))
    return tuple(rows)


def apply(rows: Table) -> None:
    """Set them on the calling process.

    A limit that is already lower stays: raising a hard limit takes a capability over the host.
    """
    for row in rows:
        if row in _in_force:
            continue
        kind, soft, hard = row
        ceiling = resource.getrlimit(kind)[1]
        if ceiling != resource.RLIM_INFINITY:
            hard = min(hard, ceiling)
        resource.setrlimit(kind, (min(soft, hard), hard))
        _in_force.add(row)
