"""What a live attempt uses, and what this host has to give.

A `Meter` asks the attempt's cgroup first. What that cannot tell (no controller, no cgroup) is
sampled from /proc, over the tree that hangs from the sandbox's init. One reading of a cgroup takes
0.04 ms, of a process 0.045 (Python 3.11, kernel 6.18): twenty sandboxes of three processes, ten
times a second, cost 0.8 or 2.7 % of a core. `psutil.Process.children` reads every process of the
host for each sandbox (1.5 ms at 93 processes: 30 % of a core), so the tree is walked by the
kernel's own `children` files, and psutil serves where these are not compiled in.

Memory of a tree is RssAnon + RssShmem + VmSwap + VmPTE (page tables), summed. Plain RSS would
charge every process for the libraries it shares with all others, USS leaves out shared memory,
which a task may allocate without bound, and both PSS and USS need smaps_rollup: 0.5 ms for 50 MB of
pages, and closed to an ordinary user's supervisor, for a sandbox is non-dumpable. The sum counts
pages that forked processes still share once for each; so only where it exceeds the limit, and there
is more than one process, PSS is asked for, and believed if it may be read. Where it may not, a
process that looks like a fork of its parent (the same command line) is taken to share all that its
parent has. A task can feign that, so no more than the limit is forgiven: an honest tree of workers
lives, a hostile one gets at most twice its limit where nothing but looking holds it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import psutil

from ..protocol.events import ErrorKind
from ..protocol.pipeline import Limits
from ..sandbox.cgroup import (
    Backing,
    Cgroup,
    Measured,
    own_cpu_quota,
    own_memory_limit,
    own_memory_room,
)

__all__ = ["Meter", "cpu_budget", "exceeded", "memory_budget"]

# A sampled tree is walked no further: beyond it, it is over any sane ceiling, and the walk would
# take longer than a tenth of a second.
WALK_SIZE = 4096

# What the tasks' limits together may not claim: page cache for everybody, the supervisor's own
# processes, and what the rest of the host asks for after we looked.
RESERVE_SHARE = 0.1

# A host whose memory is taken when we look is not so for ever, and limits are ceilings that tasks
# seldom reach: so much of all it has may be claimed in any case.
LEAST_SHARE = 0.25

TICK = 1.0 / os.sysconf("SC_CLK_TCK")
HAS_CHILDREN_FILES = Path(f"/proc/self/task/{os.getpid()}/children").exists()


def memory_budget() -> int:
    """Bytes that limits may add up to: what is available on this host, or in the cgroups that this
    process lives in, whichever is less; less a reserve."""
    limit, room = own_memory_limit(), own_memory_room()
    try:
        host = psutil.virtual_memory()
        free, whole = host.available, host.total
    except FileNotFoundError:  # a /proc of processes alone, as inside a sandbox
        page = os.sysconf("SC_PAGE_SIZE")
        free, whole = os.sysconf("SC_AVPHYS_PAGES") * page, os.sysconf("SC_PHYS_PAGES") * page
    free = free if room is None else min(free, room)
    whole = whole if limit is None else min(whole, limit)
    return int(max(free * (1 - RESERVE_SHARE), whole * LEAST_SHARE))


def cpu_budget() -> float:
    """Cores that ceilings may add up to: those this process may run on, or the quota of the cgroups
    that it lives in, whichever is less."""
    cores, quota = len(psutil.Process().cpu_affinity()), own_cpu_quota()
    return cores if quota is None else min(cores, quota)


def exceeded(measured: Measured, limits: Limits, backing: Mapping[str, str]) -> ErrorKind | None:
    """Which limit that only sampling holds is passed. What a cgroup holds, the kernel enforces.
    `backing`: the manager's, or as it stands in the walls in force."""
    if backing.get("memory") == Backing.SAMPLED and (measured.memory or 0) > limits.memory:
        return ErrorKind.MEMORY
    if backing.get("pids") == Backing.SAMPLED and (measured.pids or 0) > limits.pids:
        return ErrorKind.PIDS
    return None


Number = TypeVar("Number", int, float)


@dataclass(frozen=True, slots=True)
class _Process:
    """One reading of /proc/<pid>/stat and status."""

    parent: int
    start: int
    own_cpu: int  # ticks
    children_cpu: int  # of the children it waited for
    threads: int
    memory: int


class Meter:
    """One attempt's measurements. Peaks and cpu time never go back, whatever the source."""

    def __init__(self, pid: int, cgroup: Cgroup, limits: Limits) -> None:
        """`pid`: the sandbox's init, as this process sees it."""
        self._pid = pid
        self._cgroup = cgroup
        self._limits = limits
        first = _read_process(pid)
        self._start = None if first is None else first.start
        self._seen: dict[tuple[int, int], int] = {}  # (pid, start) of the living → own ticks
        self._gone = 0  # ticks of those that were seen and are no more
        self._last = Measured()

    @property
    def last(self) -> Measured:
        """The newest sample: after the end, the whole attempt's."""
        return self._last

    def sample(self) -> Measured:
        now = self._cgroup.usage()
        if now.memory is None or now.cpu is None or now.pids is None:
            tree = self._tree()
            now = Measured(
                tree.memory if now.memory is None else now.memory,
                now.memory_peak,
                tree.cpu if now.cpu is None else now.cpu,
                tree.pids if now.pids is None else now.pids,
                now.pids_peak,
            )
        before = self._last
        self._last = Measured(
            now.memory,
            _most(before.memory_peak, now.memory_peak, now.memory),
            _most(before.cpu, now.cpu),
            now.pids,
            _most(before.pids_peak, now.pids_peak, now.pids),
        )
        return self._last

    def _tree(self) -> Measured:
        processes = dict(self._walk())
        if not processes:
            return Measured()
        memory = sum(process.memory for process in processes.values())
        if memory > self._limits.memory and len(processes) > 1:
            memory = _shared_once(processes, memory, self._limits.memory)
        return Measured(
            memory=memory,
            cpu=self._cpu(processes) * TICK,
            pids=sum(process.threads for process in processes.values()),
        )

    def _walk(self) -> Iterator[tuple[int, _Process]]:
        """The members of the cgroup where there is one, else init and all below it. What ends
        while we look is missed, or found a child of init at the next sample."""
        members = self._cgroup.members()
        if members:
            for pid in members[:WALK_SIZE]:
                process = _read_process(pid)
                if process is not None:
                    yield pid, process
            return
        waiting, found = [self._pid], 0
        while waiting and found < WALK_SIZE:
            pid = waiting.pop()
            process = _read_process(pid)
            if process is None or (pid == self._pid and process.start != self._start):
                continue
            found += 1
            yield pid, process
            if HAS_CHILDREN_FILES:
                waiting += _children(pid, process.threads)
            elif pid == self._pid:
                waiting += _descendants(pid)

    def _cpu(self, processes: dict[int, _Process]) -> int:
        """Ticks so far. Two lower bounds, each blind to something: what the living report with the
        children they waited for misses children reaped automatically (SIGCHLD ignored); what was
        seen of each process itself misses those that lived between two samples."""
        living = {(pid, process.start): process.own_cpu for pid, process in processes.items()}
        self._gone += sum(ticks for key, ticks in self._seen.items() if key not in living)
        self._seen = living
        reported = sum(p.own_cpu + p.children_cpu for p in processes.values())
        return max(reported, self._gone + sum(living.values()))


def _most(*values: Number | None) -> Number | None:
    return max((value for value in values if value is not None), default=None)


def _read(path: str) -> bytes | None:
    """None: the process is gone, or hidden from us."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return os.read(fd, 65536)
    except OSError:
        return None
    finally:
        os.close(fd)


def _read_process(pid: int) -> _Process | None:
    stat, status = _read(f"/proc/{pid}/stat"), _read(f"/proc/{pid}/status")
    if not stat or not status:
        return None
    fields = stat.rpartition(b")")[2].split()  # the name before it may hold anything
    return _Process(
        parent=int(fields[1]),
        start=int(fields[19]),
        own_cpu=int(fields[11]) + int(fields[12]),
        children_cpu=int(fields[13]) + int(fields[14]),
        threads=int(fields[17]),
        memory=_kilobytes(status, (b"RssAnon", b"RssShmem", b"VmSwap", b"VmPTE")),
    )


def _kilobytes(text: bytes, names: tuple[bytes, ...]) -> int:
    """The sum, in bytes, of `Name:   123 kB` lines. The first line of status is the task's own
    choice of a name, but newlines in it are escaped by the kernel."""
    total = 0
    for line in text.splitlines():
        name, _, value = line.partition(b":")
        if name in names:
            total += int(value.split()[0]) * 1024
    return total


def _shared_once(processes: dict[int, _Process], most: int, limit: int) -> int:
    """Pages that several processes share counted once between them; else a guess (see above)."""
    total = forgiven = 0
    for pid, process in processes.items():
        text = _read(f"/proc/{pid}/smaps_rollup")
        if text:
            total += _kilobytes(text, (b"Pss_Anon", b"Pss_Shmem", b"SwapPss"))
            continue
        total += process.memory
        parent = processes.get(process.parent)
        if parent is not None and _command_line(pid) == _command_line(process.parent):
            forgiven += min(process.memory, parent.memory)
    return min(total, most) - min(forgiven, limit)


def _command_line(pid: int) -> bytes | None:
    return _read(f"/proc/{pid}/cmdline")


def _children(pid: int, threads: int) -> list[int]:
    """Every thread has children of its own."""
    tids = [str(pid)]
    if threads > 1:
        try:
            tids = os.listdir(f"/proc/{pid}/task")
        except OSError:
            return []
    found: list[int] = []
    for tid in tids:
        found += map(int, (_read(f"/proc/{pid}/task/{tid}/children") or b"").split())
    return found


def _descendants(pid: int) -> list[int]:
    try:
        return [child.pid for child in psutil.Process(pid).children(recursive=True)]
    except psutil.Error:
        return []
