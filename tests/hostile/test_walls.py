"""What the kernel refuses to a task, and what it says of every thread of one."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from casemate import Pipeline, Task
from casemate.hostile.arena import Arena
from casemate.hostile.seen import Seen
from casemate.sandbox import syscalls

TESTS = Path(__file__).resolve().parent.parent

# Only turns a hang into a failure.
PATIENCE = 60.0

BAD = -1  # a bad descriptor, pid, flag and address alike

_CLONE_NEW = {
    "time": 0x80, "mnt": 0x20000, "cgroup": 0x2000000, "uts": 0x4000000, "ipc": 0x8000000,
    "user": 0x10000000, "pid": 0x20000000, "net": 0x40000000,
}  # fmt: skip

_REFUSED_WHATEVER = """
    io_uring_setup io_uring_enter io_uring_register bpf perf_event_open userfaultfd
    keyctl add_key request_key ptrace process_vm_readv process_vm_writev process_madvise kcmp
    pidfd_getfd migrate_pages move_pages mount umount2 pivot_root chroot open_tree move_mount fsopen
    fsconfig fsmount fspick mount_setattr setns open_by_handle_at name_to_handle_at seccomp
    fanotify_init fanotify_mark init_module finit_module delete_module kexec_load kexec_file_load
    reboot swapon swapoff acct quotactl quotactl_fd settimeofday clock_settime adjtimex
    clock_adjtime sethostname setdomainname iopl ioperm syslog vhangup clone3 memfd_secret vmsplice
    remap_file_pages io_setup lookup_dcookie statmount listmount lsm_list_modules modify_ldt
"""

# What no task may reach, written down here a second time: a name that drops out of the filter's own
# lists shows. Called with arguments that the kernel itself would complain of.
FORBIDDEN: dict[str, list[tuple[int, ...]]] = {
    **{name: [(BAD,) * 6] for name in _REFUSED_WHATEVER.split()},
    "unshare": [(BAD,), *((flag,) for flag in _CLONE_NEW.values())],
    # Without a stack; the low byte is the exit signal, so CLONE_NEWTIME cannot be asked for here.
    "clone": [(flag | 17, 0, 0, 0, 0) for name, flag in _CLONE_NEW.items() if name != "time"],
    # Netlink, packet, key, RDS, CAN, TIPC, Bluetooth, ALG, NFC, vsock, KCM, Qualcomm, SMC, XDP; and
    # protocols of the internet family that live in modules.
    "socket": [
        *((family, 2, 0) for family in (16, 17, 15, 21, 29, 30, 31, 38, 39, 40, 41, 42, 43, 44)),
        (2, 3, 1),
    ],
    "personality": [(0x0040000,), (0x0400000,)],
    "prctl": [(22, 2, BAD), (35, 1, BAD), (8, 1), (59, 1), (24, 0), (28, 0)],
    "ioctl": [(0, request, BAD) for request in (0x5412, 0x541C, 0x541D, 0x5423, 0x4B4E, 0x5601)],
    "setsockopt": [(BAD, 1, 26, BAD, 16), (BAD, 1, 50, BAD, 4)],
    "prlimit64": [(1, 7, BAD, 0)],
    "mknod": [(BAD, 0o020600, 0), (BAD, 0o060600, 0)],
    "mknodat": [(BAD, BAD, 0o020600, 0), (BAD, BAD, 0o060600, 0)],
}

REFUSED = {errno.EPERM, errno.ENOSYS, errno.EAFNOSUPPORT}

# What an ordinary user's process reaches everywhere, in most containers too.
REACHED_OUTSIDE = ("ptrace", "seccomp", "process_vm_readv")


def known(names: dict[str, list[tuple[int, ...]]]) -> dict[str, list[list[int]]]:
    """{name: [number and arguments]} of what this architecture has."""
    return {
        name: [[syscalls.ARCH.numbers[name], *arguments] for arguments in calls]
        for name, calls in names.items()
        if name in syscalls.ARCH.numbers
    }


@pytest.fixture(scope="module")
def probed(arena: Arena) -> dict[str, Seen]:
    pipeline = Pipeline("walls", root=TESTS)
    calls = known(FORBIDDEN)
    pipeline.add_task(Task("calls", "hostile/look.py:call", spec={"calls": calls}))
    pipeline.add_task(Task("threads", "hostile/look.py:threads"))
    pipeline.add_task(Task("environment", "hostile/look.py:environment", env={"ANSWER": "42"}))
    return arena.run(pipeline)


def names(answers: list[int]) -> list[str]:
    return [errno.errorcode.get(answer, str(answer)) for answer in answers]


@pytest.mark.parametrize("name", known(FORBIDDEN))
def test_a_dangerous_call_does_not_reach_the_kernel(probed: dict[str, Seen], name: str) -> None:
    answers: list[int] = probed["calls"].output[name]
    assert len(answers) == len(FORBIDDEN[name])
    assert set(answers) <= REFUSED, names(answers)


def test_the_same_probe_reaches_the_kernel_outside() -> None:
    calls = {name: known(FORBIDDEN)[name] for name in REACHED_OUTSIDE}
    code = (
        "import json, sys\n"
        f"sys.path.insert(0, {str(TESTS)!r})\n"
        "from hostile.look import errors_of\n"
        "print(json.dumps(errors_of(json.load(sys.stdin))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(calls),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    )
    for name, answers in json.loads(done.stdout).items():
        assert not REFUSED & set(answers), (name, names(answers))


def test_every_thread_is_bare(probed: dict[str, Seen]) -> None:
    threads: list[dict[str, Any]] = probed["threads"].output
    # The main thread, libzmq's two, and the two that the task started.
    assert len(threads) == 5
    for thread in threads:
        assert thread["Uid"] == ["1000"] * 4
        assert thread["Gid"] == ["1000"] * 4
        for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
            assert int(thread[name][0], 16) == 0, name
        assert thread["NoNewPrivs"] == ["1"]
        assert thread["Seccomp"] == ["2"]


def test_the_environment_is_what_was_given(arena: Arena, probed: dict[str, Seen]) -> None:
    environment = dict(probed["environment"].output)
    assert environment.pop("ANSWER") == "42"
    ours = {"CASEMATE_RUN", "CASEMATE_TASK", "CASEMATE_ATTEMPT", "CASEMATE_SANDBOX"}
    base = {"PATH", "LANG", "HOME", "TMPDIR", "PYTHONDONTWRITEBYTECODE"}
    assert set(environment) == ours | base
    for secret in arena.target.environment.values():
        assert secret not in str(environment)
