"""Capabilities are gone from every set and cannot be had back."""

from __future__ import annotations

import errno
import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from casemate.sandbox import caps, syscalls
from forked import enter_user_namespace, forked

SETPCAP = 1 << 8
SYS_ADMIN = 1 << 21


def sealed_status() -> caps.Status:
    enter_user_namespace()
    syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
    caps.drop()
    return caps.read_status()


def test_nothing_is_left_in_any_set() -> None:
    assert forked(sealed_status) == caps.Status(0, 0, 0, 0, 0, True, 0)


def test_without_the_drop_every_capability_would_be_there() -> None:
    def work() -> caps.Status:
        enter_user_namespace()
        return caps.read_status()

    status = forked(work)
    everything = (1 << caps.LAST + 1) - 1
    assert status.effective == status.permitted == status.bounding == everything
    assert not status.is_bare


def test_the_last_capability_is_the_kernels() -> None:
    assert int(Path("/proc/sys/kernel/cap_last_cap").read_text()) == caps.LAST


def test_a_dropped_capability_cannot_be_had_back() -> None:
    def work() -> list[int | None]:
        sealed_status()
        refused: list[int | None] = []
        for attempt in (
            lambda: syscalls.capset(SYS_ADMIN, SYS_ADMIN, 0),
            lambda: syscalls.capset(0, 0, SYS_ADMIN),
            lambda: syscalls.prctl(
                syscalls.PR_CAP_AMBIENT, syscalls.PR_CAP_AMBIENT_RAISE, SYS_ADMIN.bit_length() - 1
            ),
            lambda: syscalls.prctl(syscalls.PR_SET_SECUREBITS, 0),
            lambda: syscalls.prctl(syscalls.PR_SET_KEEPCAPS, 1),
        ):
            try:
                attempt()
            except OSError as error:
                refused.append(error.errno)
            else:
                refused.append(None)
        return refused

    assert forked(work) == [errno.EPERM] * 5


def test_the_securebits_are_locked() -> None:
    def work() -> int:
        sealed_status()
        return syscalls.prctl(syscalls.PR_GET_SECUREBITS)

    assert forked(work) == caps.SECUREBITS == 0xEF


def test_root_of_the_namespace_gains_nothing_by_exec() -> None:
    """uid 0 and an exec give every capability, unless NOROOT holds or the bounding set is empty."""

    def run(drop: bool) -> int:
        def work() -> int:
            uid, gid = os.geteuid(), os.getegid()
            syscalls.unshare(syscalls.CLONE_NEWUSER)
            Path("/proc/self/setgroups").write_text("deny")
            Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
            Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
            if drop:
                caps.drop()
            else:
                syscalls.capset(0, 0, 0)
            reader, writer = os.pipe()
            if os.fork() == 0:
                os.dup2(writer, 1)
                os.execv("/bin/cat", ["cat", "/proc/self/status"])
            os.close(writer)
            with os.fdopen(reader, "rb") as stream:
                return caps.parse_status(stream.read()).effective.bit_count()

        return forked(work)

    assert run(drop=False) > 30
    assert run(drop=True) == 0


def test_dropping_without_the_right_to_is_an_error_and_not_a_shrug() -> None:
    def work() -> int | None:
        enter_user_namespace()
        syscalls.capset(0, 0, 0)
        try:
            caps.drop()
        except OSError as error:
            return error.errno
        return None

    assert forked(work) == errno.EPERM


def test_a_thread_made_after_the_drop_holds_nothing_either() -> None:
    def work() -> list[bool]:
        sealed_status()
        seen: list[bool] = []
        thread = threading.Thread(
            target=lambda: seen.append(caps.read_status(b"/proc/thread-self/status").is_bare)
        )
        thread.start()
        thread.join()
        return seen

    assert forked(work) == [True]


if os.geteuid() == 0:
    # Taking another identity is what only a root supervisor does.

    def test_become_changes_the_identity_and_keeps_the_capabilities() -> None:
        uid = 1_900_000_123

        def work() -> tuple[object, ...]:
            _, before, _ = syscalls.capget()
            os.setgroups([4, 27])
            caps.become(uid, uid)
            effective, permitted, inheritable = syscalls.capget()
            keeps = syscalls.prctl(syscalls.PR_GET_KEEPCAPS)
            return (
                os.getresuid(),
                os.getresgid(),
                os.getgroups(),
                effective == permitted == before != 0,
                inheritable,
                keeps,
            )

        assert forked(work) == ((uid,) * 3, (uid,) * 3, [], True, 0, 0)

    def test_become_then_a_user_namespace_then_the_drop() -> None:
        uid = 1_900_000_124

        def work() -> tuple[caps.Status, int]:
            caps.become(uid, uid)
            syscalls.prctl(syscalls.PR_SET_DUMPABLE, 1)
            enter_user_namespace()
            caps.drop()
            return caps.read_status(), os.stat("/proc/self").st_uid

        status, owner = forked(work)
        assert status.is_bare
        assert owner == uid


STATUS = b"""Name:\tx\\nCapEff:\t0
State:\tR (running)
Groups:\t
ShdPnd:\t0000000000000000
CapInh:\t0000000000000000
CapPrm:\t0000000000000001
CapEff:\t0000000000000002
CapBnd:\t000001ffffffffff
CapAmb:\t0000000000000000
NoNewPrivs:\t1
Seccomp:\t2
Seccomp_filters:\t1
Cpus_allowed:\t3
"""


def test_a_status_is_read_as_the_kernel_writes_it() -> None:
    status = caps.parse_status(STATUS)
    assert status == caps.Status(0, 1, 2, 0x1FF_FFFF_FFFF, 0, True, 2)
    assert not status.is_bare


def test_one_capability_in_any_set_is_one_too_many() -> None:
    good = caps.Status(0, 0, 0, 0, 0, True, 2)
    assert good.is_bare
    for broken in (
        replace(good, inheritable=SETPCAP),
        replace(good, permitted=SETPCAP),
        replace(good, effective=SETPCAP),
        replace(good, bounding=SETPCAP),
        replace(good, ambient=SETPCAP),
    ):
        assert not broken.is_bare


def test_a_status_without_a_line_is_not_taken_for_a_good_one() -> None:
    for field in (b"NoNewPrivs", b"Seccomp:", b"CapBnd", b"CapAmb"):
        text = b"\n".join(line for line in STATUS.split(b"\n") if not line.startswith(field))
        with pytest.raises(ValueError, match="/proc/self/status"):
            caps.parse_status(text)
