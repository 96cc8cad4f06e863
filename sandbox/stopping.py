"""Stopping a process tree by signals, where no cgroup freezes it.

SIGSTOP to init first: from outside its pid namespace it cannot be refused, and a sandbox that is
still being built is nothing but its init. Then to every process of the tree, in rounds: while some
still run they can fork, and wake others by SIGCONT; a round that finds all of them stopped is the
last, for nobody is left to do either. A process that stood still before (a shell's job, by the
task's own will) is not ours, and does not go on with the rest.

Pids are read from a list, and signalled through handles that were checked against the list again:
a number may have passed to somebody else meanwhile.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable
from contextlib import suppress

from . import syscalls

__all__ = ["descendants", "go_on", "stop"]

Members = Callable[[], list[int]]

# A signal takes effect within microseconds on a processor that runs its target; the rest is for
# a task that forks and wakes as fast as it can. What then still runs is stopped at the next call.
ROUNDS = 100


def stop(init: int, members: Members) -> frozenset[int]:
    """The pids that we stopped. `init`: its pidfd."""
    with suppress(ProcessLookupError):
        signal.pidfd_send_signal(init, signal.SIGSTOP)
    stopped: set[int] = set()
    found = members()
    already = {pid for pid in found if not is_running(pid)}
    for _ in range(ROUNDS):
        running = [pid for pid in found if is_running(pid)]
        if not running:
            break
        stopped |= send(signal.SIGSTOP, running, members)
        os.sched_yield()
        found = members()
    # Init may be among those: it was told before they were looked at.
    return frozenset(stopped | (already & told_by_pidfd(init)))


def told_by_pidfd(init: int) -> set[int]:
    with open(f"/proc/self/fdinfo/{init}") as lines:  # noqa: PTH123 - a line at a time
        return {int(line.split()[1]) for line in lines if line.startswith("Pid:")}


def go_on(init: int, stopped: Iterable[int], members: Members) -> None:
    """Those of `stopped` that are still there; init last, as it has nothing to do but reap."""
    send(signal.SIGCONT, stopped, members)
    with suppress(ProcessLookupError):
        signal.pidfd_send_signal(init, signal.SIGCONT)


def is_running(pid: int) -> bool:
    """Neither stopped nor on its way out."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123 - twice as fast, many times
            state = file.read().rpartition(b")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in (b"T", b"Z", b"X")


def send(number: signal.Signals, pids: Iterable[int], members: Members) -> set[int]:
    """To those that are still members once we hold a handle; who they were."""
    told: set[int] = set()
    batch: list[int] = []
    for pid in (*pids, None):
        if pid is not None:
            batch.append(pid)
        if batch and (pid is None or len(batch) == BATCH):
            told |= send_few(number, batch, members)
            batch = []
    return told


# Few enough descriptors at a time.
BATCH = 64


def send_few(number: signal.Signals, pids: list[int], members: Members) -> set[int]:
    handles: dict[int, int] = {}
    try:
        for pid in pids:
            with suppress(ProcessLookupError):
                handles[pid] = syscalls.pidfd_open(pid)
        still = handles.keys() & set(members())
        for pid in still:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(handles[pid], number)
        return still
    finally:
        for handle in handles.values():
            os.close(handle)


def descendants(init: int) -> list[int]:
    """Init and all below it, however they were forked: orphans of a pid namespace are its init's.
    Loaded on demand, for hosts without cgroups alone."""
    import psutil

    try:
        process = psutil.Process(init)
        return [init, *(child.pid for child in process.children(recursive=True))]
    except psutil.NoSuchProcess:
        return []
