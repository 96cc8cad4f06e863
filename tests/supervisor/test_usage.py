"""Measuring live process trees, with and without a cgroup; and the host's memory budget."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from casemate.protocol.events import ErrorKind
from casemate.protocol.pipeline import Limits
from casemate.sandbox.cgroup import (
    Backing,
    Cgroup,
    CgroupFacts,
    CgroupManager,
    Hierarchy,
    Measured,
    probe,
)
from casemate.supervisor import usage
from casemate.supervisor.usage import Meter, cpu_budget, exceeded, memory_budget

MIB = 1024 * 1024
WITHOUT = CgroupFacts(Hierarchy.NONE, ())


def limits(memory: int = 512 * MIB, pids: int = 64) -> Limits:
    return Limits(memory=memory, cpu=None, pids=pids, files=64, tmp=MIB, disk=MIB, output=MIB)


class Family:
    """A process of ours with whatever its code starts; all of it dies with the test."""

    def __init__(self) -> None:
        self.children: list[subprocess.Popen[bytes]] = []

    def start(self, code: str, group: Cgroup | None = None) -> subprocess.Popen[bytes]:
        """Runs `code`, in `group` if given, and waits until it prints a line."""
        head, fds = "import os, signal, sys, threading, time\n", []
        join = None if group is None else group.join()
        if join is not None:
            fds = [*join.tasks, *([] if join.unified is None else [join.unified])]
            head += f"for fd in {join.tasks}: os.write(fd, b'0')\n"
            if join.unified is not None:
                head += f"open('/proc/self/fd/{join.unified}/cgroup.procs', 'w').write('0')\n"
        child = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", head + code],
            pass_fds=fds,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        if join is not None:
            join.close()
        self.children.append(child)
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        return child

    def end(self, child: subprocess.Popen[bytes]) -> None:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        assert child.stdout is not None
        child.stdout.close()
        self.children.remove(child)


@pytest.fixture
def family() -> Iterator[Family]:
    family = Family()
    yield family
    for child in list(family.children):
        family.end(child)


@pytest.fixture
def alone() -> Cgroup:
    """A host without cgroups."""
    return CgroupManager(WITHOUT).create("a-1", limits())


def wait_until(claim: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not claim():
        assert time.monotonic() < deadline, "waited 30 s for what never came"
        time.sleep(0.002)


READY = "print('ready', flush=True); time.sleep(1000)\n"


def test_a_tree_without_a_cgroup_is_counted_whole(family: Family, alone: Cgroup) -> None:
    child = family.start(
        "r, w = os.pipe()\n"
        "for _ in range(3):\n"
        "    if os.fork() == 0:\n"
        "        x = bytearray(20 << 20)\n"
        "        if os.fork() == 0: y = bytearray(10 << 20)\n"
        "        os.write(w, b'x')\n"
        "        time.sleep(1000)\n"
        "for _ in range(6): os.read(r, 1)\n" + READY
    )
    measured = Meter(child.pid, alone, limits()).sample()
    assert measured.pids == 7
    assert measured.memory is not None
    # 3 x (20 + 10) MB of their own, and between 3 and 6 times the first 20 according to how pages
    # shared by fork are counted: below the limit nobody asks.
    assert 90 * MIB <= measured.memory <= 260 * MIB
    assert measured.cpu is not None


def test_threads_count_as_pids(family: Family, alone: Cgroup) -> None:
    child = family.start(
        "for _ in range(4):\n"
        "    threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()\n" + READY
    )
    assert Meter(child.pid, alone, limits()).sample().pids == 5


def test_children_of_any_thread_are_found(family: Family, alone: Cgroup) -> None:
    child = family.start(
        "def fork():\n"
        "    if os.fork() == 0: time.sleep(1000)\n"
        "    time.sleep(1000)\n"
        "threading.Thread(target=fork, daemon=True).start()\n" + READY
    )
    meter = Meter(child.pid, alone, limits())
    wait_until(lambda: (meter.sample().pids or 0) >= 3)


def test_libraries_that_all_share_are_not_charged(family: Family, alone: Cgroup) -> None:
    child = family.start(READY)
    meter = Meter(child.pid, alone, limits())
    measured = meter.sample()
    assert measured.memory is not None
    assert measured.memory < psutil.Process(child.pid).memory_info().rss


def test_shared_anonymous_memory_is_charged(family: Family, alone: Cgroup) -> None:
    child = family.start(
        "import mmap\nm = mmap.mmap(-1, 40 << 20)\nfor i in range(0, 40 << 20, 4096): m[i] = 1\n"
        + READY
    )
    measured = Meter(child.pid, alone, limits()).sample()
    assert measured.memory is not None
    assert measured.memory >= 40 * MIB


FORKED_SHARE = (
    "x = bytearray(40 << 20)\nfor _ in range(5):\n    if os.fork() == 0: time.sleep(1000)\n" + READY
)


def test_pages_shared_by_fork_are_no_reason_to_kill(family: Family, alone: Cgroup) -> None:
    """Six processes over one 40 MiB block: 240 MiB by the sum, against a limit of 100."""
    child = family.start(FORKED_SHARE)
    wide = Meter(child.pid, alone, limits()).sample()
    assert wide.memory is not None
    assert wide.memory >= 240 * MIB
    tight = limits(memory=100 * MIB)
    measured = Meter(child.pid, alone, tight).sample()
    assert exceeded(measured, tight, WITHOUT.backing(tight)) is None
    assert measured.memory is not None
    assert 40 * MIB <= measured.memory <= 100 * MIB


@pytest.mark.parametrize(
    ("limit", "kind"), [(150 * MIB, None), (100 * MIB, ErrorKind.MEMORY)], ids=["once", "twice"]
)
def test_where_shares_may_not_be_read_a_fork_is_forgiven_up_to_the_limit(
    family: Family,
    alone: Cgroup,
    monkeypatch: pytest.MonkeyPatch,
    limit: int,
    kind: ErrorKind | None,
) -> None:
    """The sum is 240 MiB: less than twice 150, more than twice 100."""
    child = family.start(FORKED_SHARE)
    read = usage._read
    monkeypatch.setattr(usage, "_read", lambda p: None if "smaps" in p else read(p))
    tight = limits(memory=limit)
    measured = Meter(child.pid, alone, tight).sample()
    assert exceeded(measured, tight, WITHOUT.backing(tight)) is kind


def test_cpu_of_waited_for_and_of_forgotten_children_counts(family: Family, alone: Cgroup) -> None:
    burn = "until = time.process_time() + 0.3\nwhile time.process_time() < until: pass\n"
    indented = burn.replace("\n", "\n    ").rstrip(" ")
    waited = family.start(
        "if os.fork() == 0:\n    " + indented + "    os._exit(0)\nos.wait()\n" + READY
    )
    measured = Meter(waited.pid, alone, limits()).sample()
    assert measured.cpu is not None
    assert measured.cpu >= 0.29
    assert measured.pids == 1

    # Reaped by the kernel on the parent's wish: nobody is charged for it but who saw it alive.
    forgotten = family.start(
        "signal.signal(signal.SIGCHLD, signal.SIG_IGN)\nr, w = os.pipe()\n"
        "if os.fork() == 0:\n    " + indented + "    os.write(w, b'x'); time.sleep(1000)\n"
        "os.read(r, 1)\n" + READY
    )
    meter = Meter(forgotten.pid, alone, limits())
    meter.sample()
    [child] = psutil.Process(forgotten.pid).children()
    child.kill()
    wait_until(lambda: meter.sample().pids == 1)
    assert meter.last.cpu is not None
    assert meter.last.cpu >= 0.29


def test_peaks_and_cpu_never_go_back(family: Family, alone: Cgroup) -> None:
    child = family.start(
        "pids = []\n"
        "for _ in range(4):\n"
        "    pids.append(os.fork())\n"
        "    if pids[-1] == 0: x = bytearray(20 << 20); time.sleep(1000)\n" + READY
    )
    meter = Meter(child.pid, alone, limits())
    wait_until(lambda: (meter.sample().memory or 0) > 80 * MIB)
    full = meter.last
    for found in psutil.Process(child.pid).children():
        found.kill()
    # Killed and not waited for: zombies, which hold a pid and no memory.
    wait_until(lambda: (meter.sample().memory or 0) < 40 * MIB)
    assert meter.last.pids == 5
    assert (meter.last.memory_peak or 0) >= (full.memory or 0)
    assert meter.last.pids_peak == 5
    family.end(child)
    last = meter.sample()
    assert (last.memory, last.pids) == (None, None)
    assert (last.memory_peak, last.pids_peak) == (meter.last.memory_peak, 5)
    assert (last.cpu or 0) >= (full.cpu or 0)


def test_a_pid_that_was_given_to_another_is_not_measured(family: Family, alone: Cgroup) -> None:
    child = family.start(READY)
    meter = Meter(child.pid, alone, limits())
    assert meter._start is not None
    meter._start -= 1
    assert meter.sample() == Measured()


def test_a_kernel_without_children_files_is_served_by_psutil(
    family: Family, alone: Cgroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = family.start(
        "for _ in range(3):\n    if os.fork() == 0:\n        os.fork(); time.sleep(1000)\n" + READY
    )
    monkeypatch.setattr(usage, "HAS_CHILDREN_FILES", False)
    monkeypatch.setattr(usage, "_children", lambda pid, threads: pytest.fail("asked for"))
    meter = Meter(child.pid, alone, limits())
    wait_until(lambda: meter.sample().pids == 7)


def test_what_a_cgroup_knows_is_taken_from_it_and_the_rest_is_sampled(family: Family) -> None:
    facts = probe()
    manager = CgroupManager(facts)
    try:
        group = manager.create("metered", limits())
        code = (
            "r, w = os.pipe()\n"
            "for _ in range(3):\n"
            "    if os.fork() == 0: x = bytearray(20 << 20); os.write(w, b'x'); time.sleep(1000)\n"
            "for _ in range(3): os.read(r, 1)\n" + READY
        )
        child = family.start(code, group)
        meter = Meter(child.pid, group, limits())
        measured = meter.sample()
        assert measured.pids == 4
        assert measured.memory is not None
        assert 60 * MIB <= measured.memory <= 160 * MIB
        assert measured.cpu is not None
        assert (measured.memory_peak or 0) >= measured.memory
        if "memory" in facts.controllers:
            assert abs(measured.memory - (group.usage().memory or 0)) < 8 * MIB
        assert exceeded(measured, limits(), facts.backing(limits())) is None
        family.end(child)
    finally:
        assert manager.close() == ()


def test_only_sampled_limits_are_ours_to_judge() -> None:
    both = limits(memory=100, pids=5)
    over = Measured(memory=101, pids=6)
    sampled = dict.fromkeys(("memory", "pids"), Backing.SAMPLED)
    held = dict.fromkeys(("memory", "pids"), Backing.CGROUP)
    assert exceeded(over, both, sampled) is ErrorKind.MEMORY
    assert exceeded(replace(over, memory=100), both, sampled) is ErrorKind.PIDS
    assert exceeded(replace(over, memory=100, pids=5), both, sampled) is None
    assert exceeded(over, both, held) is None
    assert exceeded(over, both, {"memory": "sampled"}) is ErrorKind.MEMORY  # as in task.started
    assert exceeded(Measured(), both, sampled) is None


def test_the_budget_is_the_lesser_of_the_hosts_and_the_cgroups(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    free = psutil.virtual_memory()
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)
    monkeypatch.setattr(usage, "own_memory_limit", lambda: None)
    monkeypatch.setattr(usage, "own_memory_room", lambda: None)
    assert memory_budget() == int(free.available * 0.9)
    monkeypatch.setattr(usage, "own_memory_room", lambda: 1000)
    monkeypatch.setattr(usage, "own_memory_limit", lambda: 2000)
    assert memory_budget() == 900
    monkeypatch.setattr(usage, "own_memory_room", lambda: 10)
    assert memory_budget() == 500  # it will not be full for ever
    monkeypatch.setattr(usage, "own_memory_limit", lambda: None)
    monkeypatch.setattr(usage, "own_memory_room", lambda: 1 << 60)
    assert memory_budget() == int(free.available * 0.9)


def test_the_cores_are_those_we_may_run_on_or_the_quotas(monkeypatch: pytest.MonkeyPatch) -> None:
    cores = len(os.sched_getaffinity(0))
    monkeypatch.setattr(usage, "own_cpu_quota", lambda: None)
    assert cpu_budget() == cores
    monkeypatch.setattr(usage, "own_cpu_quota", lambda: 0.5)
    assert cpu_budget() == 0.5
    monkeypatch.setattr(usage, "own_cpu_quota", lambda: cores + 3.0)
    assert cpu_budget() == cores


def test_a_processs_name_cannot_forge_its_numbers(
    family: Family, alone: Cgroup, tmp_path: Path
) -> None:
    """comm may hold anything: brackets, blanks, newlines, what looks like a line of status."""
    child = family.start("open('/proc/self/comm', 'wb').write(b') S 0\\nVmSwap:9\\xff')\n" + READY)
    measured = Meter(child.pid, alone, limits()).sample()
    assert measured.pids == 1
    assert 0 < (measured.memory or 0) < 100 * MIB
