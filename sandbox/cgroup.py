"""Control groups: what bounds, counts and kills a whole process tree.

A host mounts its controllers in one of three ways: all in one tree (v2), each in a tree of its own
(v1), or on v1 with a controller-less v2 tree beside them (hybrid), whose cgroup.kill, cgroup.freeze
and cpu.stat work all the same. A `Branch` is one tree of which we use something. `probe` finds the
branches by reading /proc/self/mountinfo and /proc/self/cgroup, and makes and removes one folder in
each: only the attempt tells whether the place is writable (container, user namespace, security
module).

In each branch the engine owns one folder, named by boot, pid namespace, pid and start time, so that
what an engine left behind when it died can be told from what a living one uses (`sweep`). Below it
lies one folder per attempt:

    /sys/fs/cgroup/memory/<our own>/casemate-6ea55f84-4026531836-812-90113-0/<attempt>/

Nothing is ever moved by us: writing another process's pid to cgroup.procs stalls 6-14 ms in an RCU
wait (kernel 6.18). A sandbox's first process joins alone, before it runs a line of the task: it is
born in the v2 folder (clone3 with CLONE_INTO_CGROUP) and writes "0" to the v1 `tasks` files, of
which it gets open descriptors (`Cgroup.join`).

On v2 only a folder without processes of its own may hand controllers to its children, so we cannot
use our own one unless it is the root of all: see `unified_base`.

A removed memory group lives on in the kernel while page cache is charged to it (6 KB each on two
cores, 6.18). It is left so: memory.force_empty before the removal takes 1-24 ms and throws out
what the next attempt is about to read; the kernel drops both when it needs the memory.

Everything here returns at once, except what is called `wait_...`, `close`, `sweep` and `settle`.
"""

from __future__ import annotations

import errno
import itertools
import os
import re
import select
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from ..protocol.errors import LocalViolation
from ..protocol.pipeline import Limits

__all__ = [
    "Backing",
    "Branch",
    "Cgroup",
    "CgroupFacts",
    "CgroupManager",
    "Hierarchy",
    "Join",
    "Measured",
    "Mount",
    "Swept",
    "engine_name",
    "locate",
    "own_cpu_quota",
    "own_memory_limit",
    "own_memory_room",
    "parse_membership",
    "parse_mountinfo",
    "probe",
    "settle",
    "sweep",
]

# What we use. cpuacct is v1's name for what v2 always counts.
LIMITING = ("memory", "pids", "cpu")
CONTROLLERS = frozenset({*LIMITING, "cpuacct"})

# The kernel's own default period: quotas of 1 ms (its least) then mean a hundredth of a core.
CPU_PERIOD = 100_000
CPU_QUOTA_LEAST = 1_000

# v1 has no cgroup.kill: rounds of reading and signalling until nobody new is found. With pids.max
# at 0 nobody is born, so the second round finds nobody; without that controller a fork bomb might
# outrun us for ever, and the death of its pid namespace's init ends it instead.
KILL_ROUNDS = 100

# How long `close` and `sweep` wait for killed processes to be gone. Killing 100 descendants takes
# 15 ms; a process in uninterruptible sleep may take any time and is then reported.
REMOVAL_PATIENCE = 5.0

# One read of an interface file. cgroup.procs is the only one that grows; it is read to its end.
READ_SIZE = 64 * 1024

FOLDER = re.compile(r"casemate-(?P<boot>[0-9a-f]{8})-(?P<ns>\d+)-(?P<pid>\d+)-(?P<start>\d+)-\d+")
ATTEMPT = re.compile(r"[A-Za-z0-9_-]{1,200}")

_counter = itertools.count()


class Hierarchy(StrEnum):
    V2 = "v2"
    V1 = "v1"
    HYBRID = "hybrid"
    NONE = "none"


class Backing(StrEnum):
    """How a limit is held: by the kernel, by rlimits and polling, or not at all."""

    CGROUP = "cgroup"
    SAMPLED = "sampled"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Mount:
    """One cgroup mount of /proc/self/mountinfo."""

    point: str
    root: str  # which folder of the tree is mounted here
    unified: bool
    controllers: frozenset[str]  # v1 only, and only those we use
    writable: bool


@dataclass(frozen=True, slots=True)
class Branch:
    """One tree, and the folder in it below which ours can be made."""

    base: Path
    unified: bool
    controllers: frozenset[str]  # that a folder below ours has
    enable: frozenset[str] = frozenset()  # v2: to be switched on in `base` first
    can_kill: bool = False  # v2: cgroup.kill (kernel 5.14)


@dataclass(frozen=True, slots=True)
class CgroupFacts:
    hierarchy: Hierarchy
    branches: tuple[Branch, ...]
    problems: tuple[str, ...] = ()  # what is not to be had, and why
    remedy: str = ""  # how to get it
    settle_in: Path | None = None  # a delegated folder that only our own presence makes unusable
    has_swap: bool = False

    @property
    def controllers(self) -> frozenset[str]:
        return frozenset[str]().union(*(branch.controllers for branch in self.branches))

    @property
    def can_kill(self) -> bool:
        return any(branch.can_kill for branch in self.branches)

    def backing(self, limits: Limits) -> dict[str, Backing]:
        return backing(self.controllers, limits)


def backing(controllers: frozenset[str], limits: Limits) -> dict[str, Backing]:
    """What holds each limit that is set. A cpu ceiling cannot be polled into being: without the
    controller nothing holds it."""
    kept = {
        "memory": Backing.CGROUP if "memory" in controllers else Backing.SAMPLED,
        "pids": Backing.CGROUP if "pids" in controllers else Backing.SAMPLED,
    }
    if limits.cpu is not None:
        kept["cpu"] = Backing.CGROUP if "cpu" in controllers else Backing.NONE
    return kept


# --- what this host has ------------------------------------------------------------------------


def parse_mountinfo(text: str) -> tuple[Mount, ...]:
    """The cgroup mounts that can be reached; in proc_pid_mountinfo(5) format:
    `31 23 0:28 <root> <point> <options> <optional>... - <type> <source> <super options>`."""
    mounts = []
    lines = [line.partition(" - ") for line in text.splitlines()]
    entries = [(head.split(" "), tail.split(" ")) for head, _, tail in lines]
    entries = [(head, tail) for head, tail in entries if len(head) >= 6 and len(tail) >= 3]
    for fields, kind in entries:
        if kind[0] not in ("cgroup", "cgroup2") or _is_covered(fields, entries):
            continue
        unified = kind[0] == "cgroup2"
        options = set(kind[2].split(","))
        controllers = frozenset() if unified else CONTROLLERS & options
        if not unified and not controllers:
            continue  # name=systemd and the controllers we have no use for
        writable = "ro" not in options and "ro" not in fields[5].split(",")
        mounts.append(
            Mount(_unescape(fields[4]), _unescape(fields[3]), unified, controllers, writable)
        )
    return tuple(mounts)


def _is_covered(mount: list[str], entries: list[tuple[list[str], list[str]]]) -> bool:
    """Something was mounted on top of it, or earlier on the way that leads to it."""
    by_id = {fields[0]: fields for fields, _ in entries}
    way = [mount]  # up to the root's mount
    while (above := by_id.get(way[-1][1])) is not None and above not in way:
        way.append(above)
    return any(
        (other[1] == mount[0] and other[4] == mount[4])
        or any(
            other[1] == step[1] and step[4].startswith(other[4].rstrip("/") + "/") for step in way
        )
        for other, _ in entries
        if other not in way
    )


def _unescape(path: str) -> str:
    """mountinfo writes space, tab, newline and backslash as three octal digits."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), path)


def parse_membership(text: str) -> dict[str, str]:
    """/proc/self/cgroup: controller → the folder we are in; "" is v2's."""
    folders = {}
    for line in text.splitlines():
        number, _, rest = line.partition(":")
        names, separator, folder = rest.partition(":")
        if not separator:
            continue
        for name in names.split(",") if number != "0" else [""]:
            folders[name] = folder
    return folders


def locate(mount: Mount, membership: dict[str, str]) -> str | None:
    """The path of our own folder in this mount; None where the mount does not show it (a bind of
    some other part of the tree, or a cgroup namespace made elsewhere: paths with `..`)."""
    key = "" if mount.unified else min(mount.controllers)
    folder = membership.get(key)
    if folder is None or ".." in folder.split("/") or ".." in mount.root.split("/"):
        return None
    if mount.root != "/":
        if folder != mount.root and not folder.startswith(mount.root + "/"):
            return None
        folder = folder[len(mount.root) :]
    return (mount.point.rstrip("/") + "/" + folder.strip("/")).rstrip("/")


def probe(root: Path = Path("/")) -> CgroupFacts:
    """What this host gives. Leaves nothing behind."""
    try:
        mounts = parse_mountinfo((root / "proc/self/mountinfo").read_text(errors="surrogateescape"))
        membership = parse_membership((root / "proc/self/cgroup").read_text())
    except OSError as error:
        return CgroupFacts(Hierarchy.NONE, (), (f"/proc/self is not readable: {error}",))
    branches: list[Branch] = []
    problems: list[str] = []
    settle_in: Path | None = None
    seen: set[str] = set()
    for mount in sorted(mounts, key=lambda m: m.unified):  # v1 first: v2 then adds what is missing
        names = frozenset({""}) if mount.unified else mount.controllers
        if names & seen:
            continue  # the same tree, bound to a second place
        own = locate(mount, membership)
        label = "cgroup v2" if mount.unified else "cgroup v1 " + ",".join(sorted(names))
        if own is None:
            problems.append(f"{label}: {mount.point} does not show our own folder")
            continue
        if not mount.writable:
            problems.append(f"{label}: {mount.point} is mounted read-only")
            continue
        folder = root / own.lstrip("/")
        try:
            if mount.unified:
                found, settle_in = unified_base(folder, root / mount.point.lstrip("/"))
            else:
                _try_folder(folder)
                found = Branch(folder, unified=False, controllers=mount.controllers)
        except OSError as error:
            problems.append(f"{label}: no folder can be made below {own}: {error.strerror}")
            continue
        seen |= names
        branches.append(found)
    hierarchy = _hierarchy(mounts)
    had = frozenset[str]().union(*(branch.controllers for branch in branches))
    missing = [name for name in LIMITING if name not in had]
    if hierarchy is Hierarchy.NONE:
        problems.append("no cgroup hierarchy is mounted")
    elif missing:
        problems.append(f"controllers not to be had: {', '.join(missing)}")
    else:
        settle_in = None
    systemd = (root / "run/systemd/system").is_dir()
    remedy = _remedy(hierarchy, systemd, os.geteuid() == 0, settle_in) if missing else ""
    swaps = root / "proc/swaps"  # a heading, and a line for each
    has_swap = swaps.exists() and len(swaps.read_text(errors="replace").splitlines()) > 1
    return CgroupFacts(hierarchy, tuple(branches), tuple(problems), remedy, settle_in, has_swap)


def _hierarchy(mounts: Iterable[Mount]) -> Hierarchy:
    kinds = {mount.unified for mount in mounts}
    if kinds == {True, False}:
        return Hierarchy.HYBRID
    if not kinds:
        return Hierarchy.NONE
    return Hierarchy.V2 if True in kinds else Hierarchy.V1


def unified_base(own: Path, mount_point: Path) -> tuple[Branch, Path | None]:
    """Where on v2 our folder may be made, and the folder to settle in (see `settle`) if that would
    give more.

    `own` holds at least us, so unless it is the root of the whole tree it may not hand controllers
    to children. Its parent may, when it holds no process itself or has them switched on already:
    so it is for a unit's sibling under root, or for the sub-folder of a delegated unit. No higher:
    what the administrator set on the parent still counts for us there.
    """
    candidates = [own] if own == mount_point else [own, own.parent]
    best: Branch | None = None
    refused: OSError | None = None
    for folder in candidates:
        try:
            names = _try_folder(folder)
        except OSError as error:
            refused = refused or error
            continue
        given, enable = _given(folder)
        found = Branch(folder, True, given, enable, "cgroup.kill" in names)
        if best is None or len(found.controllers) > len(best.controllers):
            best = found
    if best is None:
        assert refused is not None
        raise refused
    settle_in = None
    offered = _words(own / "cgroup.controllers") & set(LIMITING)
    if len(offered) > len(best.controllers) and _is_alone(own) and _is_writable(own):
        settle_in = own
    return best, settle_in


def _given(folder: Path) -> tuple[frozenset[str], frozenset[str]]:
    """(controllers that children of `folder` can have, those to be switched on for it)."""
    on = _words(folder / "cgroup.subtree_control") & set(LIMITING)
    offered = _words(folder / "cgroup.controllers") & set(LIMITING)
    is_root = not (folder / "cgroup.type").exists()  # the root alone has no type
    if offered > on and (is_root or not _words(folder / "cgroup.procs")) and _is_writable(folder):
        return frozenset(offered), frozenset(offered - on)
    return frozenset(on), frozenset()


def _is_writable(folder: Path) -> bool:
    return os.access(folder / "cgroup.subtree_control", os.W_OK, effective_ids=True)


def _is_alone(folder: Path) -> bool:
    return _words(folder / "cgroup.procs") == {str(os.getpid())}


def _words(path: Path) -> set[str]:
    try:
        return set(path.read_text().split())
    except OSError:
        return set()


def _try_folder(base: Path) -> frozenset[str]:
    """Make and remove a folder; the names of the files that were in it."""
    trial = f"casemate-probe-{os.getpid()}-{next(_counter)}"
    fd = os.open(base, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _mkdir(trial, fd)
        try:
            return frozenset(os.listdir(base / trial))
        finally:
            _rmdir(trial, fd)
    finally:
        os.close(fd)


def _remedy(hierarchy: Hierarchy, systemd: bool, is_root: bool, settle_in: Path | None) -> str:
    if hierarchy is Hierarchy.NONE:
        return "mount cgroup v2 on /sys/fs/cgroup (in a container: start it with cgroups)"
    if settle_in is not None:
        return f"let casemate move itself to a folder of its own below {settle_in} (settle)"
    if hierarchy is not Hierarchy.V2:
        if is_root:
            return "remount the v1 controllers read-write (in a container: -v /sys/fs/cgroup:rw)"
        return "run as root, or boot with cgroup v2 (systemd.unified_cgroup_hierarchy=1)"
    if systemd and not is_root:
        return (
            "let a systemd manager run for this user (loginctl enable-linger), of which casemate "
            "asks a delegated scope, or start it in one: systemd-run --user --scope "
            "-p Delegate=yes casemate ...; if cpu is still missing, delegate it: "
            "Delegate=cpu memory pids in /etc/systemd/system/user@.service.d/delegate.conf"
        )
    if systemd:
        return (
            "start casemate in a delegated scope: systemd-run --scope -p Delegate=yes casemate ..."
        )
    if is_root:
        return (
            "make the cgroup tree writable and let casemate be the only process in its folder "
            "(in a container: --cgroupns=private with /sys/fs/cgroup read-write)"
        )
    return (
        "let the administrator make a cgroup folder, give it to this user (chown of the folder, "
        "cgroup.procs and cgroup.subtree_control), and start casemate as the only process in it"
    )


def settle(facts: CgroupFacts, root: Path = Path("/")) -> CgroupFacts:
    """Move *this* process to a leaf below the delegated folder that it occupies, so that the folder
    can hand controllers to the sandboxes, and probe again. For a command that was started in a
    scope of its own; never for an embedding process, which did not ask to be moved."""
    if facts.settle_in is None:
        return facts
    leaf = facts.settle_in / f"casemate-supervisor-{os.getpid()}"
    leaf.mkdir(exist_ok=True)
    try:
        (leaf / "cgroup.procs").write_text("0")
    except OSError:
        leaf.rmdir()
        raise
    return probe(root)


def own_memory_room(root: Path = Path("/")) -> int | None:
    """Bytes that our own group, and those above it that we can see, still let us use; None: none
    of them sets a limit. Page cache that the kernel would give up counts as free."""
    return min(_asked("memory", _memory_room, root), default=None)


def own_memory_limit(root: Path = Path("/")) -> int | None:
    """The lowest limit of our own group and those above it, whatever is used of it."""
    return min(_asked("memory", _memory_limit, root), default=None)


def own_cpu_quota(root: Path = Path("/")) -> float | None:
    """Cores that our own group, and those above it that we can see, may keep busy; None: none of
    them sets a quota. Which cores (cpuset) is not asked here: affinity tells that."""
    return min(_asked("cpu", _cpu_quota, root), default=None)


Answer = TypeVar("Answer", int, float)


def _asked(
    controller: str, question: Callable[[int, bool], Answer | None], root: Path
) -> list[Answer]:
    """What our own group and all above it that we can see answer, wherever they say anything."""
    try:
        mounts = parse_mountinfo((root / "proc/self/mountinfo").read_text(errors="surrogateescape"))
        membership = parse_membership((root / "proc/self/cgroup").read_text())
    except OSError:
        return []
    answers: list[Answer] = []
    for mount in mounts:
        own = locate(mount, membership)
        if own is None or not (mount.unified or controller in mount.controllers):
            continue
        point, folder = root / mount.point.lstrip("/"), root / own.lstrip("/")
        while folder.is_relative_to(point):
            with suppress(OSError):
                fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                try:
                    answer = question(fd, mount.unified)
                finally:
                    os.close(fd)
                if answer is not None:
                    answers.append(answer)
            folder = folder.parent
    return answers


def _memory_limit(fd: int, unified: bool) -> int | None:
    limit = _number(_read("memory.max" if unified else "memory.limit_in_bytes", fd))
    # v1 says "no limit" as the largest whole page below 2**63.
    return None if limit is None or limit >= 2**62 else limit


def _memory_room(fd: int, unified: bool) -> int | None:
    limit = _memory_limit(fd, unified)
    if limit is None:
        return None
    used = _number(_read("memory.current" if unified else "memory.usage_in_bytes", fd)) or 0
    cache = _table(_read("memory.stat", fd))
    spare = cache.get("inactive_file" if unified else "total_inactive_file", 0)
    return max(0, limit - max(0, used - spare))


def _cpu_quota(fd: int, unified: bool) -> float | None:
    if unified:  # "max 100000", "50000 100000"
        words = (_read("cpu.max", fd) or b"").split()
        quota, period = (_number(word) for word in words) if len(words) == 2 else (None, None)
    else:
        quota, period = (_number(_read(f"cpu.cfs_{each}_us", fd)) for each in ("quota", "period"))
    return quota / period if quota is not None and quota > 0 and period else None  # -1: none


# --- one engine's folders ----------------------------------------------------------------------


# Seams for the tests, whose fake trees must fill a folder as the kernel does.
def _mkdir(name: str, dir_fd: int) -> None:
    os.mkdir(name, 0o755, dir_fd=dir_fd)


def _rmdir(name: str, dir_fd: int) -> None:
    os.rmdir(name, dir_fd=dir_fd)


def _write(path: str, text: str, dir_fd: int) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        os.write(fd, text.encode())
    except OSError as error:
        raise OSError(error.errno, f"writing {text!r}: {error.strerror}", path) from error
    finally:
        os.close(fd)


def _write_if_there(path: str, text: str, dir_fd: int) -> None:
    try:
        _write(path, text, dir_fd)
    except OSError as error:  # removed before the open, or after it
        if error.errno not in (errno.ENOENT, errno.ENODEV):
            raise


def _read(path: str, dir_fd: int) -> bytes | None:
    """None where there is no such file: an older kernel, a missing controller, a removed folder."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=dir_fd)
    except FileNotFoundError:
        return None
    try:
        data = chunk = os.read(fd, READ_SIZE)
        # Single figures and short tables come in one read; cgroup.procs in pages.
        while chunk and path.endswith(".procs"):
            chunk = os.read(fd, READ_SIZE)
            data += chunk
        return data
    except OSError as error:
        if error.errno == errno.ENODEV:  # removed between open and read
            return None
        raise
    finally:
        os.close(fd)


def _number(data: bytes | None) -> int | None:
    text = (data or b"").strip()
    return int(text) if text.isdigit() else None


def _table(data: bytes | None) -> dict[str, int]:
    """`key value` lines."""
    pairs = (line.split() for line in (data or b"").decode().splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}


@dataclass(slots=True)
class _Parent:
    """The engine's folder in one branch, held open: attempts' folders are made relative to it."""

    path: Path
    fd: int
    unified: bool
    controllers: frozenset[str]
    can_kill: bool
    has_swap_limit: bool = False
    has_swappiness: bool = False

    def make(self, name: str, limits: Limits, oom_event: int | None) -> None:
        _mkdir(name, self.fd)
        try:
            for file, text in self._settings(limits):
                _write(f"{name}/{file}", text, self.fd)
            if "cpu" in self.controllers and limits.cpu is not None:
                self._limit_cpu(name, limits.cpu)
            if oom_event is not None:
                self._watch(name, oom_event)
        except BaseException:
            _rmdir(name, self.fd)
            raise

    def _settings(self, limits: Limits) -> Iterator[tuple[str, str]]:
        if "memory" in self.controllers and self.unified:
            yield "memory.max", str(limits.memory)
            if self.has_swap_limit:
                yield "memory.swap.max", "0"
            yield "memory.oom.group", "1"
        elif "memory" in self.controllers:
            yield "memory.limit_in_bytes", str(limits.memory)
            if self.has_swap_limit:  # after the limit: it may never be the smaller of the two
                yield "memory.memsw.limit_in_bytes", str(limits.memory)
            elif self.has_swappiness:
                yield "memory.swappiness", "0"
        if "pids" in self.controllers:
            yield "pids.max", str(limits.pids)

    def files(self) -> Iterator[str]:
        """Those that tell of limits."""
        if "memory" in self.controllers and self.unified:
            yield from ("memory.max", "memory.oom.group")
            if self.has_swap_limit:
                yield "memory.swap.max"
        elif "memory" in self.controllers:
            yield "memory.limit_in_bytes"
            if self.has_swap_limit:
                yield "memory.memsw.limit_in_bytes"
        if "pids" in self.controllers:
            yield "pids.max"
        if "cpu" in self.controllers:
            yield from ("cpu.max",) if self.unified else ("cpu.cfs_quota_us", "cpu.cfs_period_us")

    def _limit_cpu(self, name: str, cores: float) -> None:
        quota = max(CPU_QUOTA_LEAST, int(cores * CPU_PERIOD))
        if self.unified:
            _write(f"{name}/cpu.max", f"{quota} {CPU_PERIOD}", self.fd)
            return
        try:
            _write(f"{name}/cpu.cfs_quota_us", str(quota), self.fd)
        except OSError as error:
            # v1 refuses a share above the parent's: then the parent's holds, and it is the tighter.
            if error.errno != errno.EINVAL:
                raise

    def _watch(self, name: str, oom_event: int) -> None:
        """v1's OOM notice: `<eventfd> <fd of memory.oom_control>` to cgroup.event_control."""
        fd = os.open(f"{name}/memory.oom_control", os.O_RDONLY | os.O_CLOEXEC, dir_fd=self.fd)
        try:
            _write(f"{name}/cgroup.event_control", f"{oom_event} {fd}", self.fd)
        finally:
            os.close(fd)

    def members(self, name: str) -> list[int]:
        """Pids as we see them; those of processes outside our pid namespace read 0: left out."""
        data = _read(f"{name}/cgroup.procs", self.fd) or b""
        return [int(word) for word in data.split() if word != b"0"]

    def is_empty(self, name: str) -> bool:
        if self.unified:
            return _table(_read(f"{name}/cgroup.events", self.fd)).get("populated", 0) == 0
        return not (_read(f"{name}/cgroup.procs", self.fd) or b"").strip()

    def kill(self, name: str) -> None:
        if self.can_kill:
            _write_if_there(f"{name}/cgroup.kill", "1", self.fd)
            return
        if "pids" in self.controllers:
            _write_if_there(f"{name}/pids.max", "0", self.fd)
        done: set[int] = set()
        for _ in range(KILL_ROUNDS):
            fresh = set(self.members(name)) - done
            if not fresh:
                return
            for batch in _batches(fresh):
                done |= self._signal(name, batch)

    def freeze(self, name: str, frozen: bool) -> bool:
        """False: there is no cgroup.freeze here (v1, or before kernel 5.2), or no folder any more.
        It takes effect on each process as it next enters the kernel or leaves it."""
        try:
            _write(f"{name}/cgroup.freeze", str(int(frozen)), self.fd)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENODEV):
                raise
            return False
        return True

    def is_frozen(self, name: str) -> bool:
        return _table(_read(f"{name}/cgroup.events", self.fd)).get("frozen", 0) == 1

    def _signal(self, name: str, pids: list[int]) -> set[int]:
        """SIGKILL to those that are still ours once we hold a handle: a number read from a file may
        belong to somebody else by now, a handle whose number is then still listed may not."""
        handles: dict[int, int] = {}
        try:
            for pid in pids:
                with suppress(ProcessLookupError):
                    handles[pid] = os.pidfd_open(pid)
            still = handles.keys() & set(self.members(name))
            for pid in still:
                with suppress(ProcessLookupError):
                    signal.pidfd_send_signal(handles[pid], signal.SIGKILL)
            return still
        finally:
            for handle in handles.values():
                os.close(handle)

    def wait_empty(self, name: str, deadline: float) -> bool:
        """Wait on the members' own handles; for those outside our pid namespace, or on their way
        out, on v2's cgroup.events (which tells up to 10 ms late)."""
        while not self.is_empty(name):
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            members = self.members(name)
            if members:
                try:
                    handle = os.pidfd_open(members[0])
                except ProcessLookupError:
                    continue
                try:
                    _poll(handle, select.POLLIN, left)
                finally:
                    os.close(handle)
            elif self.unified:
                self._wait_for_event(name, left)
            else:
                time.sleep(min(left, 0.001))
        return True

    def _wait_for_event(self, name: str, left: float) -> None:
        try:
            fd = os.open(f"{name}/cgroup.events", os.O_RDONLY | os.O_CLOEXEC, dir_fd=self.fd)
        except FileNotFoundError:
            return
        try:
            # What happened before this read is in it; what happens after it wakes the poll.
            if _table(os.read(fd, READ_SIZE)).get("populated"):
                _poll(fd, select.POLLPRI, left)
        finally:
            os.close(fd)


def _poll(fd: int, events: int, seconds: float) -> None:
    poller = select.poll()
    poller.register(fd, events)
    poller.poll(max(1, int(seconds * 1000)))


def _batches(pids: set[int], size: int = 64) -> Iterator[list[int]]:
    """Few enough descriptors at a time."""
    ordered = sorted(pids)
    for start in range(0, len(ordered), size):
        yield ordered[start : start + size]


@dataclass(frozen=True, slots=True)
class Measured:
    """What was measured of one attempt; None where nothing here can tell. Sizes in bytes."""

    memory: int | None = None
    memory_peak: int | None = None
    cpu: float | None = None  # seconds, over all processes that ever lived in it
    pids: int | None = None  # processes and threads
    pids_peak: int | None = None


@dataclass(frozen=True, slots=True)
class Join:
    """Open descriptors by which the sandbox's first process joins. Close once it has them."""

    tasks: tuple[int, ...]  # v1: it writes "0" to each
    unified: int | None  # v2: for clone3's CLONE_INTO_CGROUP

    def close(self) -> None:
        for fd in (*self.tasks, *(() if self.unified is None else (self.unified,))):
            os.close(fd)

    def __enter__(self) -> Join:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class Cgroup:
    """One attempt's folders, one per branch in use. On a host without cgroups there are none, and
    then it bounds, measures and proves nothing: `folders` is empty."""

    def __init__(self, name: str, parents: list[_Parent], oom_fd: int | None) -> None:
        self.name = name
        # v1: readable when the group ran out of memory (for add_reader; then ask `oom_killed`).
        # The kernel takes one process there, and nobody else would tell us.
        self.oom_fd = oom_fd
        self._parents = parents
        self._pids_hit_before_kill: bool | None = None
        self._ran_out = False

    @property
    def folders(self) -> tuple[Path, ...]:
        return tuple(parent.path / self.name for parent in self._parents)

    def in_force(self) -> dict[str, str]:
        """The limits that hold for it, as its own files say."""
        return {
            file: (_read(f"{self.name}/{file}", parent.fd) or b"").decode().strip()
            for parent in self._parents
            for file in parent.files()
        }

    def join(self) -> Join:
        tasks: list[int] = []
        unified: int | None = None
        try:
            for parent in self._parents:
                if parent.unified:
                    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
                    unified = os.open(self.name, flags, dir_fd=parent.fd)
                else:
                    flags = os.O_WRONLY | os.O_CLOEXEC
                    tasks.append(os.open(f"{self.name}/tasks", flags, dir_fd=parent.fd))
        except BaseException:
            Join(tuple(tasks), unified).close()
            raise
        return Join(tuple(tasks), unified)

    def kill(self) -> None:
        """SIGKILL to everything in it; returns before they are gone (`is_empty`)."""
        # Asked first, and once: without cgroup.kill the ceiling on forks is lowered to nothing,
        # and whoever forks from then on would count as having hit it.
        if self._pids_hit_before_kill is None:
            self._pids_hit_before_kill = self.pids_hit()
        killers = [parent for parent in self._parents if parent.can_kill]
        for parent in killers or self._parents:
            parent.kill(self.name)

    def freeze_nowait(self) -> bool:
        """Stop everything in it, and whatever joins or is born in it later, by v2's cgroup.freeze,
        which hybrid hosts have too. False: not to be had here. Never by the v1 freezer: what it
        has frozen cannot be killed."""
        return self._freeze(True)

    def thaw_nowait(self) -> bool:
        return self._freeze(False)

    def _freeze(self, frozen: bool) -> bool:
        unified = [parent for parent in self._parents if parent.unified]  # one at most
        return any(parent.freeze(self.name, frozen) for parent in unified)

    def is_frozen(self) -> bool:
        """All of it stands still, by `freeze_nowait`."""
        return any(parent.is_frozen(self.name) for parent in self._parents if parent.unified)

    def members(self) -> list[int]:
        """The pids in it, in order, as this process sees them."""
        found: set[int] = set()
        for parent in self._parents:
            found.update(parent.members(self.name))
        return sorted(found)

    def is_empty(self) -> bool:
        return all(parent.is_empty(self.name) for parent in self._parents)

    def wait_empty(self, timeout: float) -> bool:
        """Blocks until nothing lives in it; False: something still does."""
        deadline = time.monotonic() + timeout
        return all(parent.wait_empty(self.name, deadline) for parent in self._parents)

    def usage(self) -> Measured:
        memory = memory_peak = pids = pids_peak = None
        cpu: float | None = None
        for parent in self._parents:
            name, fd, has = self.name, parent.fd, parent.controllers
            if "memory" in has:
                current, peak = (
                    ("memory.current", "memory.peak")
                    if parent.unified
                    else ("memory.usage_in_bytes", "memory.max_usage_in_bytes")
                )
                memory = _number(_read(f"{name}/{current}", fd))
                memory_peak = _number(_read(f"{name}/{peak}", fd))
            if "pids" in has:
                pids = _number(_read(f"{name}/pids.current", fd))
                pids_peak = _number(_read(f"{name}/pids.peak", fd))
            if parent.unified:  # counted with and without the controller
                micro = _table(_read(f"{name}/cpu.stat", fd)).get("usage_usec")
                cpu = cpu if micro is None else micro / 1e6
            elif "cpuacct" in has:
                nano = _number(_read(f"{name}/cpuacct.usage", fd))
                cpu = cpu if nano is None else nano / 1e9
        return Measured(memory, memory_peak, cpu, pids, pids_peak)

    def oom_killed(self) -> bool:
        """Did the kernel kill for memory here, or is it about to? Not asked of failcnt: it counts
        every touch of the limit, and reclaim deals with most."""
        # v1's notice comes before the kill is counted, so it is kept. Reading it here also stops
        # `oom_fd` from being readable.
        if self.oom_fd is not None and not self._ran_out:
            with suppress(BlockingIOError):
                self._ran_out = os.eventfd_read(self.oom_fd) > 0
        if self._ran_out:
            return True
        for parent in self._parents:
            if "memory" in parent.controllers:
                file = "memory.events" if parent.unified else "memory.oom_control"
                counts = _table(_read(f"{self.name}/{file}", parent.fd))
                self._ran_out = counts.get("oom_kill", 0) + counts.get("oom_group_kill", 0) > 0
        return self._ran_out

    def pids_hit(self) -> bool:
        """Was a fork or a thread refused for the ceiling on processes, before any `kill`?"""
        if self._pids_hit_before_kill is not None:
            return self._pids_hit_before_kill
        for parent in self._parents:
            if "pids" in parent.controllers:
                counts = _table(_read(f"{self.name}/pids.events", parent.fd))
                return counts.get("max", 0) > 0
        return False

    def remove_nowait(self) -> tuple[Path, ...]:
        """Remove its folders; what could not be removed yet (still populated, or busy for a moment
        after the last exit). May be called again."""
        self._close_event()
        kept = []
        for parent in self._parents:
            try:
                _rmdir(self.name, parent.fd)
            except FileNotFoundError:
                continue
            except OSError as error:
                if error.errno != errno.EBUSY:
                    raise
                kept.append(parent)
        self._parents = kept
        return self.folders

    def _close_event(self) -> None:
        if self.oom_fd is not None:
            os.close(self.oom_fd)
            self.oom_fd = None


class CgroupManager:
    """One engine's folder in each branch, and the attempts' below. Not for use after `close`."""

    def __init__(self, facts: CgroupFacts, name: str | None = None) -> None:
        self.name = name or engine_name()
        self.problems: list[str] = []
        self._parents: list[_Parent] = []
        self._leftovers: list[Cgroup] = []
        try:
            for branch in facts.branches:
                self._open(branch, facts.has_swap)
        except BaseException:
            self.close()
            raise
        counted = any(parent.unified for parent in self._parents)
        # A tree that only counts cpu time is not needed where v2's cpu.stat does, nor one that
        # bounds it for an attempt without a ceiling: each folder costs 0.02-0.1 ms a spawn.
        self._always = [
            parent
            for parent in self._parents
            if parent.unified
            or parent.controllers & {"memory", "pids"}
            or ("cpuacct" in parent.controllers and not counted)
        ]
        bounding = [parent for parent in self._parents if "cpu" in parent.controllers]
        self._with_cpu = [
            parent for parent in self._parents if parent in self._always or parent in bounding
        ]

    def _open(self, branch: Branch, has_swap: bool) -> None:
        base = os.open(branch.base, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._enable(branch.enable, "cgroup.subtree_control", base)
            _mkdir(self.name, base)
            try:
                fd = os.open(self.name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=base)
            except BaseException:
                _rmdir(self.name, base)
                raise
        finally:
            os.close(base)
        parent = _Parent(
            branch.base / self.name, fd, branch.unified, branch.controllers, branch.can_kill
        )
        self._parents.append(parent)  # from here on `close` undoes it
        if branch.unified:
            # Switched on here, they cannot be taken away above us: the kernel refuses (EBUSY).
            parent.controllers = self._enable(branch.controllers, "cgroup.subtree_control", fd)
        # On v2 the folder itself shows what its children will have.
        names = set(os.listdir(parent.path))
        swap = "memory.swap.max" if branch.unified else "memory.memsw.limit_in_bytes"
        parent.has_swap_limit = swap in names
        parent.has_swappiness = "memory.swappiness" in names
        if has_swap and "memory" in parent.controllers and not parent.has_swap_limit:
            self.problems.append("memory: swap is not bounded here; boot with swapaccount=1")

    def _enable(self, controllers: frozenset[str], path: str, dir_fd: int) -> frozenset[str]:
        """One by one: what is refused is reported and the rest still counts."""
        enabled = set()
        for controller in sorted(controllers):
            try:
                _write(path, f"+{controller}", dir_fd)
            except OSError as error:
                self.problems.append(f"cgroup v2: {controller} cannot be enabled: {error}")
            else:
                enabled.add(controller)
        return frozenset(enabled)

    @property
    def controllers(self) -> frozenset[str]:
        return frozenset[str]().union(*(parent.controllers for parent in self._parents))

    def backing(self, limits: Limits) -> dict[str, Backing]:
        return backing(self.controllers, limits)

    def create(self, name: str, limits: Limits) -> Cgroup:
        """Folders for one attempt, its limits set. All or nothing."""
        if not ATTEMPT.fullmatch(name):
            raise LocalViolation(f"cgroup of an attempt: {name!r} is not a plain name")
        parents = self._always if limits.cpu is None else self._with_cpu
        watched = [p for p in parents if "memory" in p.controllers and not p.unified]
        oom_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) if watched else None
        made: list[_Parent] = []
        try:
            for parent in parents:
                parent.make(name, limits, oom_fd if parent in watched else None)
                made.append(parent)
        except BaseException:
            Cgroup(name, made, oom_fd).remove_nowait()
            raise
        return Cgroup(name, made, oom_fd)

    def discard(self, cgroup: Cgroup) -> None:
        """Remove an attempt's folders now, or as soon as `collect` can."""
        if cgroup.remove_nowait():
            self._leftovers.append(cgroup)

    def collect(self) -> tuple[Path, ...]:
        """Try what `discard` had to leave again; what is still there."""
        self._leftovers = [cgroup for cgroup in self._leftovers if cgroup.remove_nowait()]
        return tuple(folder for cgroup in self._leftovers for folder in cgroup.folders)

    def close(self, patience: float = REMOVAL_PATIENCE) -> tuple[Path, ...]:
        """Kill and remove everything below our folders, and these; what could not be removed."""
        left: list[Path] = []
        for parent in self._parents:
            left += _clear(parent, patience)
            os.close(parent.fd)
        self._parents = self._always = self._with_cpu = []
        self._leftovers = []
        return tuple(left)


def _clear(parent: _Parent, patience: float) -> list[Path]:
    """Kill what lives in the attempts of one engine's folder; remove them and it; what is left."""
    deadline = time.monotonic() + patience
    try:
        with os.scandir(parent.path) as entries:
            names = sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
    except FileNotFoundError:  # another engine sweeps too
        return []
    for name in names:
        parent.kill(name)
    left = []
    for name in names:
        parent.wait_empty(name, deadline)
        if not _remove(name, parent.fd, deadline):
            left.append(parent.path / name)
    base = os.open(parent.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if not _remove(parent.path.name, base, deadline):
            left.append(parent.path)
    finally:
        os.close(base)
    return left


def _remove(name: str, dir_fd: int, deadline: float) -> bool:
    while True:
        try:
            _rmdir(name, dir_fd)
        except FileNotFoundError:
            return True
        except OSError as error:
            # Busy: for a moment after the last exit; for good with a folder or a process in it.
            if error.errno not in (errno.EBUSY, errno.ENOTEMPTY):
                raise
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.001)
        else:
            return True


# --- leftovers of engines that died ------------------------------------------------------------


def engine_name(root: Path = Path("/")) -> str:
    """This process, so that no later one is taken for it; and a number, for a second manager."""
    boot, namespace = _scope(root)
    start = _start_time(os.getpid(), root)
    return f"casemate-{boot}-{namespace}-{os.getpid()}-{start}-{next(_counter)}"


def _scope(root: Path) -> tuple[str, int]:
    """Where a pid means something: the boot, and the pid namespace."""
    boot = (root / "proc/sys/kernel/random/boot_id").read_text()[:8]
    return boot, (root / "proc/self/ns/pid").stat().st_ino


def _start_time(pid: int, root: Path) -> int | None:
    """Clock ticks since boot (field 22 of /proc/pid/stat); None: no such process, or a zombie."""
    try:
        stat = (root / f"proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat.rpartition(b")")[2].split()  # the name before it may hold anything
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


@dataclass(frozen=True, slots=True)
class Swept:
    removed: tuple[Path, ...]
    left: tuple[Path, ...]


def sweep(facts: CgroupFacts, patience: float = REMOVAL_PATIENCE, root: Path = Path("/")) -> Swept:
    """Kill and remove what dead engines left where we would make our own folder. Only a name made
    in this boot and this pid namespace can be judged; a container's engine, seen from here, bears
    a pid that means nothing to us, and is left alone."""
    boot, namespace = _scope(root)
    removed: list[Path] = []
    left: list[Path] = []
    for branch in facts.branches:
        for folder in sorted(branch.base.glob("casemate-*")):
            match = FOLDER.fullmatch(folder.name)
            if match is None or (match["boot"], int(match["ns"])) != (boot, namespace):
                continue
            if _start_time(int(match["pid"]), root) == int(match["start"]):
                continue
            try:
                fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
            try:
                remains = _clear(
                    _Parent(folder, fd, branch.unified, branch.controllers, branch.can_kill),
                    patience,
                )
            finally:
                os.close(fd)
            left += remains
            if not remains:
                removed.append(folder)
    return Swept(tuple(removed), tuple(left))
