"""The table of limits, and what it does to a process."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

from casemate.protocol.limits import MIB
from casemate.protocol.pipeline import Limits
from casemate.sandbox import rlimits
from forked import forked

LIMITS = Limits(
    memory=512 * MIB, cpu=None, pids=64, files=256, tmp=64 * MIB, disk=10 * MIB, output=MIB
)


def as_dict(table: rlimits.Table) -> dict[int, tuple[int, int]]:
    return {kind: (soft, hard) for kind, soft, hard in table}


def test_the_table_follows_the_limits() -> None:
    table = as_dict(rlimits.table(LIMITS))
    assert table[resource.RLIMIT_NOFILE] == (256, 256)
    assert table[resource.RLIMIT_FSIZE] == (10 * MIB, 10 * MIB)
    for none in (resource.RLIMIT_MSGQUEUE, resource.RLIMIT_RTPRIO, resource.RLIMIT_NICE):
        assert table[none] == (0, 0)


def test_no_core_reaches_a_handler_either() -> None:
    # 0 would stop core files alone; see the comment beside the value.
    assert as_dict(rlimits.table(LIMITS))[resource.RLIMIT_CORE] == (1, 1)


def test_what_a_cgroup_backs_is_not_limited_per_process() -> None:
    table = as_dict(rlimits.table(LIMITS))
    assert resource.RLIMIT_DATA not in table
    assert resource.RLIMIT_NPROC not in table


def test_what_is_sampled_is() -> None:
    table = as_dict(rlimits.table(LIMITS, sampled=frozenset({"memory", "pids"})))
    assert table[resource.RLIMIT_DATA] == (512 * MIB, 512 * MIB)
    assert table[resource.RLIMIT_NPROC] == (65, 65)  # and the sandbox's init
    assert resource.RLIMIT_NPROC not in as_dict(
        rlimits.table(LIMITS, sampled=frozenset({"memory"}))
    )


def test_address_space_is_never_limited() -> None:
    everything = rlimits.table(LIMITS, sampled=frozenset({"memory", "pids"}))
    assert resource.RLIMIT_AS not in as_dict(everything)


def test_the_limits_are_in_force_after_apply() -> None:
    table = rlimits.table(LIMITS, sampled=frozenset({"memory"}))

    def work() -> dict[int, tuple[int, int]]:
        rlimits.apply(table)
        return {kind: resource.getrlimit(kind) for kind, _, _ in table}

    assert forked(work) == as_dict(table)


def test_a_lower_limit_of_the_host_stays() -> None:
    table = rlimits.table(LIMITS)

    def work() -> tuple[tuple[int, int], tuple[int, int]]:
        resource.setrlimit(resource.RLIMIT_NOFILE, (40, 100))
        resource.setrlimit(resource.RLIMIT_STACK, (MIB, 2 * MIB))
        rlimits.apply(table)
        return (
            resource.getrlimit(resource.RLIMIT_NOFILE),
            resource.getrlimit(resource.RLIMIT_STACK),
        )

    assert forked(work) == ((100, 100), (2 * MIB, 2 * MIB))


def test_what_a_parent_has_set_holds_in_its_children() -> None:
    table = rlimits.table(LIMITS)

    def work() -> dict[int, tuple[int, int]]:
        rlimits.apply(rlimits.COMMON)

        def child() -> dict[int, tuple[int, int]]:
            rlimits.apply(table)
            return {kind: resource.getrlimit(kind) for kind, _, _ in table}

        return forked(child)

    assert forked(work) == as_dict(table)


def test_a_process_runs_into_them(tmp_path: Path) -> None:
    table = rlimits.table(LIMITS, sampled=frozenset({"memory"}))

    def work() -> dict[str, str]:
        rlimits.apply(table)
        met: dict[str, str] = {}
        descriptors = []
        try:
            while True:
                descriptors.append(os.dup(0))
        except OSError as error:
            met["files"] = errno.errorcode[error.errno or 0]
        for fd in descriptors:
            os.close(fd)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        with (tmp_path / "large").open("wb", buffering=0) as stream:
            try:
                while True:
                    stream.write(bytes(MIB))
            except OSError as error:
                met["disk"] = errno.errorcode[error.errno or 0]
            met["size"] = str(stream.tell())
        try:
            bytearray(600 * MIB)
        except MemoryError:
            met["memory"] = "MemoryError"
        return met

    assert forked(work) == {
        "files": "EMFILE",
        "disk": "EFBIG",
        "size": str(10 * MIB),
        "memory": "MemoryError",
    }


def test_a_crash_leaves_no_core_file(tmp_path: Path) -> None:
    def work() -> int:
        rlimits.apply(rlimits.table(LIMITS))
        return subprocess.run(
            [sys.executable, "-c", "import os; os.abort()"], cwd=tmp_path, check=False
        ).returncode

    assert forked(work) == -signal.SIGABRT
    assert list(tmp_path.iterdir()) == []
