"""What is in force in a sandbox: read back from the kernel, never from what we meant to do.

    zygote     its own namespaces, once                                          (`namespaces`)
    init       its cgroups, while the host's names for them are in view; what Landlock refused
    guest      the kernel's texts, behind all walls and before the task's code   (`read`)
    engine     what they say, and what the cgroups' own files say                (`told`)

The texts travel as they are. In a fork of the zygote each Python object that is touched costs a
page that is copied, so the guest compares them with the plan by bytes (`missing`), and leaves
taking them apart to the engine. A wall that does not stand ends the sandbox as `setup`, before the
task's code; what only the engine looks at (`unlike`: limits, descriptors) ends it a moment later.
"""

from __future__ import annotations

import os
import re
import resource
import struct
from collections.abc import Iterable
from functools import cache
from typing import Any, Protocol

from . import caps, landlock, seccomp, syscalls
from .cgroup import CONTROLLERS, parse_membership
from .spec import INSIDE_ID, Mode, Plan, Posture

__all__ = ["missing", "namespaces", "read", "read_text", "told", "unlike"]

# `time` is never a sandbox's own, and is said to be shared.
NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts")
_LINKS = tuple(f"/proc/self/ns/{name}" for name in NAMESPACES)

_FLAGS = {
    "cgroup": syscalls.CLONE_NEWCGROUP,
    "ipc": syscalls.CLONE_NEWIPC,
    "mnt": syscalls.CLONE_NEWNS,
    "net": syscalls.CLONE_NEWNET,
    "pid": syscalls.CLONE_NEWPID,
    "uts": syscalls.CLONE_NEWUTS,
}

# Files of /proc are made a page at a time; the mounts of an ordinary plan are one.
_PAGE = 4096
# The mounts of a plan with hundreds of binds; a record must fit its packet (handle.RECORD_SIZE).
_MOST = 40 * 1024


def namespaces() -> list[str]:
    """Ours, as the kernel names them: `pid:[4026531836]`. Equal names are the same namespace."""
    return [os.readlink(link) for link in _LINKS]


def read_text(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        text = chunk = os.read(fd, _PAGE)
        while len(chunk) > _PAGE // 2 and len(text) < _MOST:  # else it was the whole of it
            chunk = os.read(fd, _PAGE)
            text += chunk
        return text
    finally:
        os.close(fd)


class Known(Protocol):
    """What init knows and the guest inherits (init.Building)."""

    status: int
    link: int | None
    outbox: int | None
    cgroup: bytes
    landlock: bytes
    refused: bool


def read(build: Known, env: Iterable[str]) -> Posture:
    """What the kernel says of this process now."""
    status = read_text("/proc/self/status")
    return Posture(
        status=status,
        uid_map=read_text("/proc/self/uid_map"),
        gid_map=read_text("/proc/self/gid_map"),
        rlimits=read_text("/proc/self/limits"),
        mounts=read_text("/proc/self/mounts"),
        cgroup=build.cgroup,
        namespaces=namespaces(),
        fds=os.listdir("/proc/self/fd"),
        env=list(env),
        dumpable=syscalls.prctl(syscalls.PR_GET_DUMPABLE),
        filter=seccomp.read_signature() if b"\nSeccomp:\t2\n" in status else "",
        landlock=build.landlock,
        refused=build.refused,
        status_fd=build.status,
        link=-1 if build.link is None else build.link,
        outbox=-1 if build.outbox is None else build.outbox,
    )


def identity(own: int) -> bytes:
    """The lines of a status whose every id is this one."""
    ids = b"\t%d" % own * 4
    return b"\nUid:" + ids + b"\nGid:" + ids + b"\n"


_INSIDE = identity(INSIDE_ID)
_SETS = (b"Inh", b"Prm", b"Eff", b"Bnd", b"Amb")
_BARE = b"".join([b"Cap%s:\t%016x\n" % (name, 0) for name in _SETS])


def missing(plan: Plan, found: Posture, *, signature: str, outer: list[str]) -> str:
    """The walls of the plan that do not stand, in words; empty: none. `signature`: of the filter
    that was to be installed. `outer`: the zygote's namespaces."""
    has_user, has_seccomp = "user" in plan.steps, "seccomp" in plan.steps
    status, wrong = found.status, ""
    outside = plan.host_id
    if (_INSIDE if has_user or outside is None else identity(outside)) not in status:
        wrong += "uid and gid are not its own; "
    if has_user and outside is not None:
        # Inside it calls itself what the map says, whoever it is to the host.
        maps = (found.uid_map, found.gid_map)
        if any(each.split()[1:2] != [b"%d" % outside] for each in maps):
            wrong += "it is another to the host than its reserved id; "
    if outside is not None and b"\nGroups:\t \n" not in status:
        wrong += "it is in groups; "
    if _BARE not in status:
        wrong += "it has capabilities; "
    if b"\nNoNewPrivs:\t1\n" not in status:
        wrong += "no_new_privs is not set; "
    if has_seccomp and found.filter != signature:
        wrong += f"the filter is {found.filter} and not {signature}; "
    if "landlock" in plan.steps and not found.refused:
        wrong += "Landlock refuses nothing; "
    if found.dumpable:
        wrong += "it can be dumped; "
    flags = plan.clone_flags | plan.unshare_flags
    for name, own, theirs in zip(NAMESPACES, found.namespaces, outer, strict=True):
        if own == theirs and (has_user if name == "user" else flags & _FLAGS.get(name, 0)):
            wrong += f"the {name} namespace is not its own; "
    return wrong


# --- for whoever reads of it -------------------------------------------------------------------

host_namespaces = cache(namespaces)

# "Max open files            1024                 524288               files"
_LIMIT = re.compile(r"Max (.{22})(\d+|unlimited) +(\d+|unlimited) ")
_LIMITS = {
    "cpu time": "cpu",
    "file size": "fsize",
    "data size": "data",
    "stack size": "stack",
    "core file size": "core",
    "resident set": "rss",
    "processes": "nproc",
    "open files": "nofile",
    "locked memory": "memlock",
    "address space": "as",
    "file locks": "locks",
    "pending signals": "sigpending",
    "msgqueue size": "msgqueue",
    "nice priority": "nice",
    "realtime priority": "rtprio",
    "realtime timeout": "rttime",
}

# Of a mount's options those that are walls; of our own file systems their sizes and views too.
_OPTIONS = frozenset({"ro", "rw", "nosuid", "nodev", "noexec"})
_OWN_KINDS = frozenset({"proc", "tmpfs"})
_OWN_OPTIONS = ("size=", "nr_inodes=", "mode=", "hidepid=", "subset=")


def told(plan: Plan, found: Posture) -> dict[str, Any]:
    """For events and reports: plain data. Raises ValueError or LookupError where the texts are none
    of the kernel's."""
    status = dict(line.split(":\t", 1) for line in found.status.decode().splitlines())
    held = caps.parse_status(found.status)
    uids, gids = (tuple(map(int, status[name].split()[:3])) for name in ("Uid", "Gid"))
    host = host_namespaces()
    return {
        "uid": uids,
        "gid": gids,
        "groups": tuple(map(int, status["Groups"].split())),
        "uid_map": " ".join(found.uid_map.decode().split()),
        "gid_map": " ".join(found.gid_map.decode().split()),
        "is_bare": held.is_bare,
        "capabilities": {
            "inheritable": held.inheritable,
            "permitted": held.permitted,
            "effective": held.effective,
            "bounding": held.bounding,
            "ambient": held.ambient,
        },
        "no_new_privs": held.no_new_privs,
        "dumpable": bool(found.dumpable),
        "seccomp": held.seccomp,
        "filters": int(status["Seccomp_filters"]),
        "filter": found.filter,
        "landlock": landlock_rights(plan, found),
        "namespaces": {
            name: int(link.partition("[")[2].rstrip("]"))
            for name, link in zip(NAMESPACES, found.namespaces, strict=True)
        },
        "shared": [
            name
            for name, own, theirs in zip(NAMESPACES, found.namespaces, host, strict=True)
            if own == theirs
        ],
        "cgroup": {
            name or "unified": folder
            for name, folder in parse_membership(found.cgroup.decode()).items()
            if not name or name in CONTROLLERS
        },
        "rlimits": dict(map(limit, found.rlimits.decode().splitlines()[1:])),
        "mounts": dict(map(mount, found.mounts.decode(errors="backslashreplace").splitlines())),
        "fds": descriptors(plan, found),
        "env": sorted(plan.env if plan.mode is Mode.EXEC else found.env),
    }


def landlock_rights(plan: Plan, found: Posture) -> dict[str, Any] | None:
    """The masks of struct landlock_ruleset_attr, as long as the ABI knows it."""
    if not found.landlock:
        return None
    fs, tcp, scopes = struct.unpack("=QQQ", found.landlock[:24].ljust(24, b"\0"))
    return {
        "abi": min(plan.landlock_abi, landlock.ABI),
        "fs": fs,
        "tcp": tcp,
        "scopes": scopes,
        "refused": found.refused,
    }


def limit(line: str) -> tuple[str, tuple[int, int]]:
    fields = _LIMIT.match(line)
    if fields is None:
        raise ValueError(f"{line!r} is no line of /proc/self/limits")
    soft, hard = (-1 if word == "unlimited" else int(word) for word in fields.groups()[1:])
    return _LIMITS[fields[1].strip()], (soft, hard)


def mount(line: str) -> tuple[str, str]:
    """`<source> <where> <type> <options> 0 0` as (where, "type options")."""
    _source, where, kind, options, _dump, _pass = line.split(" ")
    kept = [
        option
        for option in options.split(",")
        if option in _OPTIONS or (kind in _OWN_KINDS and option.startswith(_OWN_OPTIONS))
    ]
    return where, f"{kind} {','.join(kept)}"


def descriptors(plan: Plan, found: Posture) -> dict[str, str]:
    """What it holds when the task's code begins. Of the numbers that /proc listed one is that of
    the listing; the status socket and the outbox are closed before."""
    names = {"0": "stdin", "1": "stdout", "2": "stderr"}
    if plan.mode is Mode.GUEST:
        names[str(found.link)] = "link"
    passing = {str(found.status_fd), str(found.outbox)}
    others = sorted(set(found.fds) - passing - names.keys(), key=int)
    return {
        **{fd: name for fd, name in names.items() if fd in found.fds},
        **dict.fromkeys(others[1:], "unknown"),
    }


def unlike(plan: Plan, posture: dict[str, Any]) -> str:
    """How what was told differs from the plan, where the guest has not looked; empty: nowhere."""
    wrong = ""
    for kind, soft, hard in plan.rlimits:
        name = _NAMES[kind]
        if not is_within(posture["rlimits"][name], (soft, hard)):
            wrong += f"rlimit {name} is {posture['rlimits'][name]} and not {(soft, hard)}; "
    if "unknown" in posture["fds"].values():
        wrong += f"descriptors it should not have: {posture['fds']}; "
    return wrong


_NAMES = {getattr(resource, f"RLIMIT_{name.upper()}", -1): name for name in _LIMITS.values()}


def is_within(limits: tuple[int, int], planned: tuple[int, int]) -> bool:
    """Ours may have been lower already."""
    return all(0 <= own <= most for own, most in zip(limits, planned, strict=True))
