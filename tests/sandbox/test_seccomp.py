"""The filter, decided by an evaluator for both architectures, and then in force in a child.

What the filter ought to say is read from its lists by an interpreter of its own (`decide`) and, so
that a mistake in the lists shows too, from names written out here by hand.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import errno
import importlib.util
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bpf
import pytest
from casemate.sandbox import caps, seccomp, syscalls
from casemate.sandbox.seccomp import ABSENT, ALLOWED, CHECKED, FORBIDDEN, Flags, IsNull, Switch
from casemate.sandbox.syscalls import AARCH64, ARCH, ARCHES, X86_64, Arch
from forked import enter_user_namespace, forked, wait_status

PROGRAMS = {name: seccomp.build(arch) for name, arch in ARCHES.items()}
DECODED = {name: bpf.decode(program.code) for name, program in PROGRAMS.items()}

both = pytest.mark.parametrize("arch", ARCHES.values(), ids=lambda arch: arch.name)

ALL_BITS = 2**64 - 1
HIGH = 0xDEAD_BEEF_0000_0000  # noise above an int argument
PATTERNS = (
    (0,) * 6,
    (1,) * 6,
    (ALL_BITS,) * 6,
    (HIGH,) * 6,
    (0xFFFF_FFFF,) * 6,
    (0x8000_0000,) * 6,
    (syscalls.CLONE_NEWUSER,) * 6,
    (0x5401,) * 6,  # TCGETS: of ioctl's requests those of a list alone are let through
)


def answer(arch: Arch, call: str | int, *arguments: int) -> bpf.Answer:
    number = arch.numbers[call] if isinstance(call, str) else call
    return bpf.evaluate(DECODED[arch.name], arch.audit, number, arguments)


def says(arch: Arch, call: str | int, *arguments: int) -> str:
    """`allow`, `kill`, or the errno's name; EOK is a success that did nothing."""
    given = answer(arch, call, *arguments)
    if given.value == bpf.ALLOW:
        return "allow"
    if given.value == bpf.KILL:
        return "kill"
    assert given.errno is not None, f"unknown action {given.value:#x}"
    return errno.errorcode[given.errno] if given.errno else "EOK"


def names(groups: tuple[seccomp.Group, ...]) -> list[str]:
    return [name for group in groups for name in group.calls]


# The lists ---------------------------------------------------------------------------------------


@both
def test_every_name_stands_in_exactly_one_list(arch: Arch) -> None:
    placed = [*names(ALLOWED), *CHECKED, *names(FORBIDDEN), *names(ABSENT)]
    assert len(placed) == len(set(placed))
    assert set(arch.numbers) <= set(placed)


def test_every_listed_name_exists_somewhere() -> None:
    placed = {*names(ALLOWED), *CHECKED, *names(FORBIDDEN), *names(ABSENT)}
    assert placed <= X86_64.numbers.keys() | AARCH64.numbers.keys()


def test_every_group_says_why() -> None:
    for group in (*ALLOWED, *FORBIDDEN, *ABSENT):
        assert group.reason, group.name


@both
def test_allowed_calls_are_allowed_whatever_their_arguments(arch: Arch) -> None:
    for name in set(names(ALLOWED)) & arch.numbers.keys():
        for arguments in PATTERNS:
            assert says(arch, name, *arguments) == "allow", name


@both
def test_forbidden_calls_are_eperm_and_absent_ones_enosys(arch: Arch) -> None:
    for groups, expected in ((FORBIDDEN, "EPERM"), (ABSENT, "ENOSYS")):
        for name in set(names(groups)) & arch.numbers.keys():
            for arguments in PATTERNS:
                assert says(arch, name, *arguments) == expected, name


# By hand, after what container runtimes and systemd refuse; not from the filter's own lists.
DANGEROUS = """
    _sysctl acct add_key adjtimex afs_syscall bpf chroot clock_adjtime clock_settime clone3
    create_module delete_module fanotify_init fanotify_mark finit_module fsconfig fsmount fsopen
    fspick get_kernel_syms init_module io_cancel io_destroy io_getevents io_pgetevents io_setup
    io_submit io_uring_enter io_uring_register io_uring_setup ioperm iopl kcmp kexec_file_load
    kexec_load keyctl listmount listns lookup_dcookie memfd_secret migrate_pages modify_ldt mount
    mount_setattr move_mount move_pages name_to_handle_at nfsservctl open_by_handle_at open_tree
    open_tree_attr perf_event_open pidfd_getfd pivot_root process_madvise process_mrelease
    process_vm_readv process_vm_writev ptrace query_module quotactl quotactl_fd reboot request_key
    seccomp security set_thread_area setdomainname sethostname setns settimeofday statmount
    swapoff swapon sync syncfs sysfs syslog tuxcall umount2 unshare uprobe uretprobe uselib
    userfaultfd ustat vhangup vmsplice vserver
"""


@both
def test_no_dangerous_call_reaches_the_kernel(arch: Arch) -> None:
    chance = random.Random(1)
    for name in DANGEROUS.split():
        if name not in arch.numbers:
            continue
        for arguments in (*PATTERNS, tuple(chance.randrange(2**64) for _ in range(6))):
            assert says(arch, name, *arguments) in ("EPERM", "ENOSYS"), name


@both
def test_every_number_is_allowed_on_purpose_or_refused(arch: Arch) -> None:
    named = {number: name for name, number in arch.numbers.items()}
    may_pass = {*names(ALLOWED), *CHECKED}
    for number in range(601):
        reached = any(answer(arch, number, *arguments).value == bpf.ALLOW for arguments in PATTERNS)
        assert reached == (named.get(number) in may_pass), f"{number} {named.get(number)}"
        if number not in named:
            assert says(arch, number) == "ENOSYS"


@both
def test_numbers_no_kernel_has_are_enosys(arch: Arch) -> None:
    for number in (471, 1000, 0xFFFF, 0x3FFF_FFFF, 0x8000_0000, 0xFFFF_FFFE, 0xFFFF_FFFF):
        assert says(arch, number) == "ENOSYS", hex(number)


@both
def test_foreign_architectures_are_killed(arch: Arch) -> None:
    foreign = {
        "i386": 0x4000_0003,
        "arm": 0x4000_0028,
        "x86_64": X86_64.audit,
        "aarch64": AARCH64.audit,
        "aarch64_be": 0x8000_00B7,
        "none": 0,
        "all bits": 0xFFFF_FFFF,
    }
    foreign.pop(arch.name)
    for name, audit in foreign.items():
        for number in range(500):
            given = bpf.evaluate(DECODED[arch.name], audit, number)
            assert given.value == bpf.KILL, f"{name} {number}"


def test_x32_calls_are_killed() -> None:
    for number in (*range(0x4000_0000, 0x4000_0000 + 600), 0x7FFF_FFFF):
        assert says(X86_64, number) == "kill"
        assert says(AARCH64, number) == "ENOSYS"  # there the bit means nothing


# Arguments ---------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("noise", [0, HIGH], ids=["clean", "noise above"])
@pytest.mark.parametrize(
    ("call", "arguments", "expected"),
    [
        ("clone", (signal.SIGCHLD,), "allow"),
        # What glibc asks for a thread.
        ("clone", (0x3D0F00,), "allow"),
        ("clone", (syscalls.CLONE_VM | 0x4000 | signal.SIGCHLD,), "allow"),  # vfork
        *(
            ("clone", (flag | signal.SIGCHLD,), "EPERM")
            for flag in (
                syscalls.CLONE_NEWNS,
                syscalls.CLONE_NEWCGROUP,
                syscalls.CLONE_NEWUTS,
                syscalls.CLONE_NEWIPC,
                syscalls.CLONE_NEWUSER,
                syscalls.CLONE_NEWPID,
                syscalls.CLONE_NEWNET,
            )
        ),
        ("socket", (1, 1, 0), "allow"),
        ("socket", (1, 2 | socket.SOCK_CLOEXEC, 0), "allow"),
        ("socket", (1, 5 | socket.SOCK_NONBLOCK, 0), "allow"),
        ("socket", (1, 3, 0), "EPERM"),
        ("socket", (2, 1, 0), "allow"),
        ("socket", (2, 1 | socket.SOCK_CLOEXEC, 6), "allow"),
        ("socket", (10, 2, 17), "allow"),
        ("socket", (2, 3, 1), "EPERM"),  # raw
        ("socket", (2, 10, 0), "EPERM"),  # SOCK_PACKET
        ("socket", (10, 5, 132), "EPERM"),  # SCTP as SEQPACKET
        ("socket", (2, 1, 132), "EPROTONOSUPPORT"),
        ("socket", (2, 1, 262), "EPROTONOSUPPORT"),  # MPTCP
        ("socket", (2, 2, 1), "EPROTONOSUPPORT"),  # ping
        ("socket", (2, 6, 33), "EPERM"),  # DCCP
        *(
            ("socket", (family, kind, 0), "EAFNOSUPPORT")
            for family in (0, 3, 4, 15, 16, 17, 29, 30, 31, 38, 40, 41, 43, 44, 45, 0xFFFF_FFFF)
            for kind in (1, 2, 3)
        ),
        ("socketpair", (1, 1, 0), "allow"),
        ("socketpair", (1, 5 | socket.SOCK_CLOEXEC, 0), "allow"),
        ("socketpair", (2, 1, 0), "EAFNOSUPPORT"),
        ("socketpair", (30, 1, 0), "EAFNOSUPPORT"),  # TIPC
        ("setsockopt", (3, 1, 2), "allow"),  # SO_REUSEADDR
        ("setsockopt", (3, 6, 1), "allow"),  # TCP_NODELAY
        ("setsockopt", (3, 0, 26), "allow"),  # another level's 26
        ("setsockopt", (3, 1, 26), "EPERM"),
        ("setsockopt", (3, 1, 50), "EPERM"),
        ("setsockopt", (3, 1, 51), "EPERM"),
        ("setsockopt", (3, 1, 52), "EPERM"),
        ("setsockopt", (3, 6, 31), "ENOPROTOOPT"),
        ("sendto", (3, 0, 1, 0), "allow"),
        ("sendto", (3, 0, 1, 0x4000), "allow"),  # MSG_NOSIGNAL
        ("sendto", (3, 0, 1, 0x4001), "ENOTSUP"),
        ("sendmsg", (3, 1, 0), "allow"),
        ("sendmsg", (3, 0, 1), "ENOTSUP"),
        ("sendmmsg", (3, 0, 1, 0), "allow"),
        ("sendmmsg", (3, 0, 1, 1), "ENOTSUP"),
        ("mmap", (0, 4096, 3, 0x22), "allow"),
        ("mmap", (0, 4096, 3, 0x4_0022), "ENOMEM"),
        ("memfd_create", (1, 1), "allow"),
        ("memfd_create", (1, 5), "ENOMEM"),
        ("shmget", (0, 4096, 0o1600), "allow"),
        ("shmget", (0, 4096, 0o5600), "ENOMEM"),
        ("ioctl", (0, 0x5401), "allow"),  # TCGETS
        ("ioctl", (0, 0x5411), "allow"),
        ("ioctl", (0, 0x5413), "allow"),  # TIOCGWINSZ
        ("ioctl", (0, 0x541B), "allow"),  # FIONREAD
        ("ioctl", (0, 0x5421), "allow"),  # FIONBIO
        ("ioctl", (0, 0x5451), "allow"),  # FIOCLEX
        ("ioctl", (0, 0x4004_9409), "allow"),  # FICLONE
        ("ioctl", (0, 0x8912), "allow"),  # SIOCGIFCONF
        ("ioctl", (0, 0x8940), "ENOTTY"),  # SIOCGIFBR
        ("ioctl", (0, 0x8982), "ENOTTY"),  # SIOCGIFVLAN
        ("ioctl", (0, 0x8946), "ENOTSUP"),  # SIOCETHTOOL
        ("ioctl", (0, 0x4008_6602), "ENOTTY"),  # FS_IOC_SETFLAGS
        ("ioctl", (0, 0xC018_9436), "ENOTTY"),  # FIDEDUPERANGE
        ("ioctl", (0, 0x4004_6685), "ENOTTY"),  # FS_IOC_ENABLE_VERITY, without its size
        ("ioctl", (0, 0x5412), "EPERM"),  # TIOCSTI
        ("ioctl", (0, 0x541C), "EPERM"),  # TIOCLINUX
        ("ioctl", (0, 0x541D), "EPERM"),  # TIOCCONS
        ("ioctl", (0, 0x5423), "EPERM"),  # TIOCSETD
        ("ioctl", (0, 0x4B47), "EPERM"),  # KDSKBENT
        ("ioctl", (0, 0x5606), "EPERM"),  # VT_ACTIVATE
        ("fcntl", (3, 3), "allow"),
        ("fcntl", (3, 6), "allow"),  # F_SETLK
        ("fcntl", (3, 1030), "allow"),  # F_DUPFD_CLOEXEC
        ("fcntl", (3, 1024), "EPERM"),
        ("fcntl", (3, 1040), "EPERM"),
        ("prctl", (15,), "allow"),
        ("prctl", (38, 1), "allow"),
        ("prctl", (4, 0), "allow"),
        ("prctl", (4, 1), "EPERM"),
        ("prctl", (22, 2), "EPERM"),
        ("prctl", (47, 2), "EPERM"),
        ("prctl", (8, 1), "EPERM"),
        ("prctl", (24, 1), "EPERM"),
        ("prctl", (28, 0), "EPERM"),
        ("prctl", (35, 1), "EPERM"),
        ("prctl", (0x5356_4D41, 0), "allow"),
        ("prctl", (12345,), "EINVAL"),
        ("personality", (0,), "allow"),
        ("personality", (0xFFFF_FFFF,), "allow"),
        ("personality", (0x0040_0000,), "EPERM"),  # READ_IMPLIES_EXEC
        ("personality", (0x0004_0000,), "EPERM"),  # ADDR_NO_RANDOMIZE
        ("personality", (8,), "EPERM"),  # PER_LINUX32
        ("setrlimit", (7, 1), "allow"),
        ("setrlimit", (4, 1), "EOK"),
        ("prlimit64", (0, 7, 1), "allow"),
        ("prlimit64", (0, 4, 1), "EOK"),
        ("prlimit64", (1, 7, 1), "EPERM"),
        ("mknodat", (0, 0, 0o010644), "allow"),
        ("mknodat", (0, 0, 0o140644), "allow"),
        ("mknodat", (0, 0, 0o100644), "allow"),
        ("mknodat", (0, 0, 0o020644), "EPERM"),
        ("mknodat", (0, 0, 0o060644), "EPERM"),
    ],
)
def test_arguments_decide(
    arch: Arch, noise: int, call: str, arguments: tuple[int, ...], expected: str
) -> None:
    assert says(arch, call, *(argument | noise for argument in arguments)) == expected


@both
def test_reading_limits_needs_a_whole_null_pointer(arch: Arch) -> None:
    assert says(arch, "prlimit64", 77, 4, 0, 0x7FFF_0000) == "allow"
    # A pointer whose low half happens to be zero is still a pointer.
    assert says(arch, "prlimit64", 77, 7, 0x7FFF_0000_0000) == "EPERM"
    assert says(arch, "prlimit64", 0, 4, 0x7FFF_0000_0000) == "EOK"


def test_mknod_by_path_refuses_devices_too() -> None:
    assert says(X86_64, "mknod", 0, 0o010644) == "allow"
    assert says(X86_64, "mknod", 0, 0o020644 | HIGH) == "EPERM"


def decide(outcome: seccomp.Outcome, arguments: tuple[int, ...]) -> int:
    """The lists' meaning, without BPF."""
    if isinstance(outcome, int):
        return outcome
    given = arguments[outcome.argument]
    low = given & 0xFFFF_FFFF
    if isinstance(outcome, IsNull):
        return decide(outcome.null if given == 0 else outcome.other, arguments)
    if isinstance(outcome, Flags):
        return decide(outcome.any_set if low & outcome.mask else outcome.none_set, arguments)
    for first, last, then in outcome.cases:
        if first <= low & outcome.mask <= last:
            return decide(then, arguments)
    return decide(outcome.otherwise, arguments)


def interesting(outcome: seccomp.Outcome) -> set[int]:
    """The values at which a decision may turn."""
    if isinstance(outcome, int):
        return set()
    if isinstance(outcome, Switch):
        below = [case[2] for case in outcome.cases] + [outcome.otherwise]
        values = {edge for case in outcome.cases for edge in case[:2]}
    elif isinstance(outcome, Flags):
        below = [outcome.any_set, outcome.none_set]
        values = {1 << bit for bit in range(32) if outcome.mask >> bit & 1}
    else:
        below = [outcome.null, outcome.other]
        values = {0}
    return values.union(*map(interesting, below))


@both
@pytest.mark.parametrize("call", CHECKED)
def test_the_program_means_what_the_lists_say(arch: Arch, call: str) -> None:
    if call not in arch.numbers:
        assert (arch, call) == (AARCH64, "mknod")
        return
    outcome = CHECKED[call]
    edges = sorted(interesting(outcome))
    values = {
        value & ALL_BITS
        for edge in edges
        for near in (edge - 1, edge, edge + 1, edge | 0x80000)
        for value in (near, near | HIGH, near << 32)
    }
    pool = sorted(values | {0, 1, ALL_BITS, 2**31, 2**32, 2**32 - 1, HIGH})
    chance = random.Random(call)
    for _ in range(3000):
        arguments = tuple(chance.choice(pool) for _ in range(6))
        assert answer(arch, call, *arguments).value == decide(outcome, arguments), arguments


PLAIN = {name: seccomp.build(arch, special_modes=False) for name, arch in ARCHES.items()}
PLAIN_DECODED = {name: bpf.decode(program.code) for name, program in PLAIN.items()}


@both
def test_where_the_host_is_written_to_no_file_becomes_setuid(arch: Arch) -> None:
    def refused(call: str, *arguments: int) -> bool:
        given = bpf.evaluate(PLAIN_DECODED[arch.name], arch.audit, arch.numbers[call], arguments)
        assert given.value == bpf.ALLOW or given.errno == errno.EPERM, call
        return given.value != bpf.ALLOW

    makes, tmpfile = os.O_CREAT | os.O_WRONLY, os.O_TMPFILE | os.O_RDWR
    regular, fifo = 0o100000, 0o010000
    for bit in (0o4000, 0o2000):
        bad, good = 0o755 | bit, 0o1777
        for call, *before in (
            ("chmod", 0), ("fchmod", 9), ("fchmodat", 9, 0), ("fchmodat2", 9, 0), ("creat", 0),
            ("open", 0, makes), ("open", 0, tmpfile), ("openat", 9, 0, makes),
            ("openat", 9, 0, tmpfile), ("mknod", 0), ("mknodat", 9, 0),
        ):  # fmt: skip
            if call in arch.numbers:
                assert refused(call, *before, bad | HIGH), call
                assert not refused(call, *before, good | HIGH), call
        # the mode of an open that makes nothing is noise
        assert not refused("openat", 9, 0, os.O_RDONLY, bad)
        assert refused("mknodat", 9, 0, regular | bad) and not refused("mknodat", 9, 0, fifo)
    given = bpf.evaluate(PLAIN_DECODED[arch.name], arch.audit, arch.numbers["openat2"], (0,) * 6)
    assert given.errno == errno.ENOSYS


@both
def test_nothing_else_differs_there(arch: Arch) -> None:
    for name, number in arch.numbers.items():
        if name not in seccomp.PLAIN_MODES:
            for arguments in PATTERNS:
                plain = bpf.evaluate(PLAIN_DECODED[arch.name], arch.audit, number, arguments)
                assert plain.value == answer(arch, number, *arguments).value, name


@both
def test_where_looking_holds_the_limit_there_is_no_memory_that_it_does_not_see(arch: Arch) -> None:
    looked_at = bpf.decode(seccomp.build(arch, unowned_memory=False).code)
    for name, number in arch.numbers.items():
        for arguments in PATTERNS:
            given = bpf.evaluate(looked_at, arch.audit, number, arguments)
            if name in ("memfd_create", "shmget", "msgget", "semget"):
                assert given.errno == errno.ENOSYS, name
            else:
                assert given.value == answer(arch, number, *arguments).value, name


# The program -------------------------------------------------------------------------------------


@both
def test_the_same_lists_give_the_same_bytes(arch: Arch) -> None:
    again = seccomp.build(arch)
    assert again == PROGRAMS[arch.name]
    assert again.digest == PROGRAMS[arch.name].digest
    assert len(again.digest) == 64
    assert len({program.digest for program in PROGRAMS.values()}) == len(PROGRAMS)


@both
def test_the_program_is_small_and_has_no_dead_instruction(arch: Arch) -> None:
    decoded = DECODED[arch.name]
    assert len(decoded) == PROGRAMS[arch.name].length < 400
    reached, ahead = set(), [0]
    while ahead:
        at = ahead.pop()
        if at not in reached:
            reached.add(at)
            ahead.extend(decoded[at].targets(at))
    assert reached == set(range(len(decoded)))


@both
def test_a_call_allowed_always_is_so_by_its_number_alone(arch: Arch) -> None:
    """Such calls end in the kernel's bitmap (Linux 5.11) and are then never filtered again."""
    for name in set(names(ALLOWED)) & arch.numbers.keys():
        given = answer(arch, name)
        assert given.loads == {0, 4}, name
        assert given.steps <= 16, name


def crowd(chance: random.Random, calls: int) -> dict[int, seccomp.Outcome]:
    """A policy of many decisions, few of them alike, some of them pointless."""

    def leaf() -> int:
        return chance.choice((seccomp.ALLOW, seccomp.KILL, seccomp.fail(chance.randrange(100))))

    def outcome(depth: int) -> seccomp.Outcome:
        argument, mask = chance.randrange(6), chance.choice((1, 0xF0, 0xFFFF_FFFF))
        kind = chance.randrange(6) if depth else 5
        if kind == 0:
            return Flags(argument, mask, outcome(depth - 1), outcome(depth - 1))
        if kind == 1:
            return IsNull(argument, outcome(depth - 1), outcome(depth - 1))
        if kind <= 3:
            edges = sorted(chance.sample(range(40), 2 * chance.randrange(4)))
            cases = tuple(
                (first, last, outcome(depth - 1))
                for first, last in zip(edges[::2], edges[1::2], strict=True)
            )
            return Switch(argument, cases, outcome(depth - 1), mask)
        return leaf()

    depth = 3 if calls < 100 else 1  # so that the kernel would take the largest
    return {number: outcome(depth) for number in range(0, 2 * calls, chance.choice((1, 2)))}


@pytest.mark.parametrize("calls", [1, 2, 5, 20, 60, 65, 70, 80, 120, 250, 400])
def test_any_policy_is_compiled_to_what_it_means(calls: int) -> None:
    """Large ones too, where targets lie beyond the 8 bits of a conditional jump."""
    chance = random.Random(calls)
    for _ in range(10):
        outcomes = crowd(chance, calls)
        cases = tuple((number, number, outcome) for number, outcome in outcomes.items())
        emitter = seccomp._Emitter()
        tree = emitter.search(seccomp._ranges(cases, seccomp.fail(errno.ENOSYS)))
        emitter.load(0, tree)
        decoded = bpf.decode(emitter.code())
        for number in (*outcomes, 5000):
            arguments = tuple(
                chance.choice((0, 1, 16, chance.randrange(40), HIGH)) for _ in range(6)
            )
            expected = decide(outcomes.get(number, seccomp.fail(errno.ENOSYS)), arguments)
            assert bpf.evaluate(decoded, 0, number, arguments).value == expected


@pytest.mark.parametrize(
    "code",
    [
        b"",
        bytes.fromhex("2000000040000000 0600000000000000".replace(" ", "")),  # load past the data
        bytes.fromhex("2000000002000000 0600000000000000".replace(" ", "")),  # unaligned
        bytes.fromhex("1500050000000000 0600000000000000".replace(" ", "")),  # jump past the end
        bytes.fromhex("2000000000000000"),  # no return
        bytes.fromhex("0500000001000000 0600000000000000".replace(" ", "")),
        bytes.fromhex("6100000000000000 0600000000000000".replace(" ", "")),  # unknown code
    ],
)
def test_the_evaluator_refuses_what_the_kernel_refuses(code: bytes) -> None:
    with pytest.raises(bpf.MalformedError):
        bpf.decode(code)


# Against libseccomp ------------------------------------------------------------------------------

LIBSECCOMP = ctypes.util.find_library("seccomp")

if LIBSECCOMP:

    class ArgumentCompare(ctypes.Structure):
        """struct scmp_arg_cmp; MASKED_EQ: argument & a == b."""

        _fields_ = (
            ("arg", ctypes.c_uint),
            ("op", ctypes.c_int),
            ("a", ctypes.c_uint64),
            ("b", ctypes.c_uint64),
        )

    MASKED_EQ = 7
    LOW = 0xFFFF_FFFF

    def exported(library: Any, arch: Arch, rules: list[tuple[str, int, list[Any]]]) -> bytes:
        """libseccomp's own program for these rules, with ENOSYS for all else."""
        library.seccomp_init.restype = ctypes.c_void_p
        library.seccomp_arch_resolve_name.restype = ctypes.c_uint32
        context = ctypes.c_void_p(library.seccomp_init(ctypes.c_uint32(bpf.ERRNO | errno.ENOSYS)))
        if arch is not ARCH:
            token = library.seccomp_arch_resolve_name(arch.name.encode())
            assert library.seccomp_arch_add(context, ctypes.c_uint32(token)) == 0
            native = library.seccomp_arch_resolve_name(ARCH.name.encode())
            assert library.seccomp_arch_remove(context, ctypes.c_uint32(native)) == 0
        for name, action, comparisons in rules:
            number = library.seccomp_syscall_resolve_name(name.encode())
            array = (ArgumentCompare * len(comparisons))(*comparisons)
            failed = library.seccomp_rule_add_array(
                context, ctypes.c_uint32(action), number, len(comparisons), array
            )
            assert failed == 0, f"{name}: {os.strerror(-failed)}"
        with tempfile.TemporaryFile() as file:
            assert library.seccomp_export_bpf(context, file.fileno()) == 0
            library.seccomp_release(context)
            file.seek(0)
            return file.read()

    @both
    def test_libseccomp_makes_a_program_that_means_the_same(arch: Arch) -> None:
        """All calls whose outcome is fixed, clone, socketpair and mknodat, as libseccomp compiles
        them, agree with ours for every number and many arguments."""
        library = ctypes.CDLL(LIBSECCOMP)
        known = {
            name
            for name in arch.numbers
            if library.seccomp_syscall_resolve_name(name.encode()) != -1
        }
        assert len(known) > 300
        rules: list[tuple[str, int, list[Any]]] = []
        for groups, action in ((ALLOWED, bpf.ALLOW), (FORBIDDEN, bpf.ERRNO | errno.EPERM)):
            rules += [(name, action, []) for name in names(groups) if name in known]
        namespaces = 0x7E02_0000
        rules.append(("clone", bpf.ALLOW, [ArgumentCompare(0, MASKED_EQ, namespaces, 0)]))
        rules.append(("socketpair", bpf.ALLOW, [ArgumentCompare(0, MASKED_EQ, LOW, 1)]))
        for kind in range(0, 0x10000, 0x1000):
            if kind not in (0x2000, 0x6000):
                rules.append(("mknodat", bpf.ALLOW, [ArgumentCompare(2, MASKED_EQ, 0xF000, kind)]))
        theirs = bpf.decode(exported(library, arch, rules))
        # libseccomp answers what no rule matched with its default: read their ENOSYS there as our
        # errno.
        ours_otherwise = {"clone": errno.EPERM, "socketpair": errno.EAFNOSUPPORT}
        ours_otherwise["mknodat"] = errno.EPERM
        compared = (set(names(ALLOWED)) | set(names(FORBIDDEN)) | set(names(ABSENT))) & known
        chance = random.Random(3)
        interesting = (0, 1, 2, namespaces, 0x2000, 0x6000, 0xA000, HIGH, ALL_BITS)
        for name in sorted(compared | ours_otherwise.keys()):
            number = arch.numbers[name]
            for _ in range(50):
                arguments = tuple(
                    chance.choice(interesting) | chance.choice((0, HIGH, 1 << 17)) for _ in range(6)
                )
                expected = bpf.evaluate(theirs, arch.audit, number, arguments)
                if expected.errno == errno.ENOSYS and name in ours_otherwise:
                    assert answer(arch, name, *arguments).errno == ours_otherwise[name]
                else:
                    assert answer(arch, name, *arguments).value == expected.value, name


# In force ----------------------------------------------------------------------------------------


def enter() -> None:
    syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
    seccomp.install(PROGRAMS[ARCH.name])


def errno_of(call: str | int, *arguments: int) -> int:
    """What a raw call fails with; 0 when it succeeds."""
    try:
        syscalls.syscall(call, *arguments)
    except OSError as error:
        assert error.errno is not None
        return error.errno
    return 0


def test_the_kernel_takes_the_filter_and_says_so() -> None:
    def work() -> tuple[int, int]:
        before = caps.read_status().seccomp
        enter()
        return before, caps.read_status().seccomp

    before, after = forked(work)
    assert after == 2
    assert before in (0, 2)  # 2 where the test itself runs inside a container's filter


def test_without_no_new_privs_a_user_cannot_install_it() -> None:
    def work() -> int | None:
        enter_user_namespace()
        syscalls.capset(0, 0, 0)
        try:
            seccomp.install(PROGRAMS[ARCH.name])
        except OSError as error:
            return error.errno
        return None

    if caps.read_status().no_new_privs:
        pytest.fail("the test process already has no_new_privs: run it without")
    assert forked(work) == errno.EACCES


# call, arguments that do no harm, what the kernel itself answers to one who holds every capability
# over namespaces of his own: EFAULT, EBADF and kin say that the call reached it.
BAD = -1
PROBES: list[tuple[str, tuple[int, ...], set[int]]] = [
    ("unshare", (0,), {0}),
    ("setns", (BAD, 0), {errno.EBADF}),
    ("mount", (1, 1, 1, 0, 0), {errno.EFAULT}),
    ("umount2", (1, 0), {errno.EFAULT}),
    ("pivot_root", (1, 1), {errno.EFAULT}),
    ("chroot", (1,), {errno.EFAULT}),
    ("open_tree", (BAD, 1, 0), {errno.EFAULT}),
    ("move_mount", (BAD, 1, BAD, 1, 0), {errno.EFAULT}),
    ("fsopen", (1, 0), {errno.EFAULT}),
    ("fspick", (BAD, 1, 0), {errno.EFAULT}),
    ("fsconfig", (BAD, 6, 0, 0, 0), {errno.EBADF, errno.EINVAL}),
    ("fsmount", (BAD, 1, 0), {errno.EBADF}),
    ("mount_setattr", (BAD, 1, 0, 1, 32), {errno.EFAULT}),
    ("ptrace", (16, 0x7FFF_FFFF, 0, 0), {errno.ESRCH}),
    ("process_vm_readv", (0x7FFF_FFFF, 0, 0, 0, 0, 0), {0, errno.ESRCH}),
    ("process_vm_writev", (0x7FFF_FFFF, 1, 1, 1, 1, 0), {errno.EFAULT}),
    ("pidfd_getfd", (BAD, 0, 0), {errno.EBADF}),
    ("seccomp", (BAD, 0, 0), {errno.EINVAL}),
    ("clone3", (0, 0), {errno.EINVAL}),
    ("keyctl", (BAD,), {errno.EOPNOTSUPP}),
    ("add_key", (1, 1, 0, 0, 0), {errno.EFAULT}),
    ("request_key", (1, 1, 0, 0), {errno.EFAULT}),
    ("bpf", (BAD, 0, 0), {errno.EINVAL, errno.EPERM}),
    ("perf_event_open", (1, 0, BAD, BAD, 0), {errno.EFAULT, errno.EACCES, errno.EPERM}),
    ("vmsplice", (BAD, 1, 1, 0), {errno.EBADF}),
    ("io_setup", (1, 1), {errno.EFAULT}),
    ("migrate_pages", (0x7FFF_FFFF, 0, 0, 0), {errno.ESRCH}),
    ("move_pages", (0x7FFF_FFFF, 1, 0, 0, 0, 0), {errno.ESRCH}),
    ("sethostname", (1, 1), {errno.EFAULT}),
    ("sync", (), {0}),
    ("syncfs", (BAD,), {errno.EBADF}),
    ("name_to_handle_at", (BAD, 1, 1, 1, 0), {errno.EFAULT}),
    ("remap_file_pages", (1, 0, 1, 0, 0), {errno.EINVAL}),
]
# Kernels may be built without these; asked of this one first, so that nothing is taken on trust.
OPTIONAL = {"keyctl", "add_key", "request_key", "bpf", "perf_event_open", "migrate_pages"}
OPTIONAL |= {"move_pages", "io_setup", "process_vm_readv", "process_vm_writev"}
OPTIONAL |= {"remap_file_pages", "name_to_handle_at"}


def test_the_probed_calls_reach_the_kernel_without_the_filter() -> None:
    def work() -> dict[str, int]:
        enter_user_namespace(syscalls.CLONE_NEWNS | syscalls.CLONE_NEWUTS)
        return {call: errno_of(call, *arguments) for call, arguments, _ in PROBES}

    outside = forked(work)
    for call, _, expected in PROBES:
        if call in OPTIONAL:
            expected = expected | {errno.ENOSYS}
        assert outside[call] in expected, f"{call}: {errno.errorcode.get(outside[call])}"


def test_no_probed_call_reaches_the_kernel_behind_the_filter() -> None:
    """The same calls by the same user, every capability still held: the filter alone refuses."""

    def work() -> dict[str, int]:
        enter_user_namespace(syscalls.CLONE_NEWNS | syscalls.CLONE_NEWUTS)
        enter()
        return {call: errno_of(call, *arguments) for call, arguments, _ in PROBES}

    inside = forked(work)
    expected = dict.fromkeys(names(FORBIDDEN), errno.EPERM)
    expected |= dict.fromkeys(names(ABSENT), errno.ENOSYS)
    assert inside == {call: expected[call] for call, _, _ in PROBES}


def test_every_refused_call_of_this_machine_is_refused() -> None:
    refused = dict.fromkeys(names(FORBIDDEN), errno.EPERM)
    refused |= dict.fromkeys(names(ABSENT), errno.ENOSYS)
    refused = {call: expected for call, expected in refused.items() if call in ARCH.numbers}
    # The kernel keeps these two from every filter (6.14), lest a filter break traced programs.
    # Called from anywhere but their own trampolines they fail, or end the caller.
    trampolines = [call for call in ("uprobe", "uretprobe") if refused.pop(call, None)]

    def work() -> dict[str, int]:
        enter()
        return {call: errno_of(call, BAD, BAD, BAD, BAD, BAD, BAD) for call in refused}

    assert forked(work) == refused

    for call in trampolines:

        def sealed(call: str = call) -> None:
            enter()
            os._exit(errno_of(call))

        status = wait_status(sealed)
        refusals = (errno.ENOSYS << 8, errno.ENXIO << 8, signal.SIGILL)
        assert status in refusals, call


def test_numbers_without_a_name_are_enosys() -> None:
    known = set(ARCH.numbers.values())
    unknown = [number for number in range(700) if number not in known]

    def work() -> set[int]:
        enter()
        return {errno_of(number, BAD, BAD, BAD) for number in unknown}

    assert forked(work) == {errno.ENOSYS}


def test_an_allowed_call_reaches_the_kernel() -> None:
    probes: dict[str, int] = {
        "read": errno.EBADF,
        "ioctl": errno.EBADF,
        "fcntl": errno.EBADF,
        "sendmsg": errno.EBADF,
        "setsockopt": errno.EBADF,
        "epoll_pwait": errno.EINVAL,
        "copy_file_range": errno.EBADF,
        "statx": errno.EBADF,
        "pidfd_open": errno.EINVAL,
        "landlock_restrict_self": errno.EINVAL,
    }

    def work() -> dict[str, int]:
        enter()
        return {call: errno_of(call, BAD, 0, 0, 0, 0, 0) for call in probes}

    reached = forked(work)
    assert errno.ENOSYS not in reached.values()
    assert errno.EPERM not in reached.values()
    assert reached["read"] == reached["sendmsg"] == errno.EBADF


def test_a_namespace_cannot_be_had() -> None:
    """The one call that a process without capabilities could still gain them by."""

    def attack() -> dict[str, int]:
        flags = syscalls.CLONE_NEWUSER | signal.SIGCHLD
        got: dict[str, int] = {}
        for call, noise in (("clone", 0), ("noise", HIGH)):
            try:
                pid = syscalls.syscall("clone", flags | noise, 0, 0, 0, 0)
            except OSError as error:
                got[call] = error.errno or 0
                continue
            if pid == 0:
                os._exit(0)
            got[call] = 0
            os.waitpid(pid, 0)
        try:
            pid, _ = syscalls.clone3(syscalls.CLONE_NEWUSER, signal.SIGCHLD)
            if pid == 0:
                os._exit(0)
            got["clone3"] = 0
            os.waitpid(pid, 0)
        except OSError as error:
            got["clone3"] = error.errno or 0
        got["unshare"] = errno_of("unshare", syscalls.CLONE_NEWUSER)
        return got

    def sealed() -> dict[str, int]:
        enter()
        return attack()

    assert forked(attack) == {"clone": 0, "noise": 0, "clone3": 0, "unshare": 0}
    assert forked(sealed) == {
        "unshare": errno.EPERM,
        "clone": errno.EPERM,
        "noise": errno.EPERM,
        "clone3": errno.ENOSYS,
    }


def test_no_further_filter_and_no_listener() -> None:
    def attack() -> tuple[int, int]:
        syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
        allow = ctypes.create_string_buffer(bytes.fromhex("060000000000ff7f"), 8)
        program = seccomp._FPROG.pack(1, ctypes.addressof(allow))
        listener = stacked = 0
        try:
            syscalls.seccomp(
                syscalls.SECCOMP_SET_MODE_FILTER,
                syscalls.SECCOMP_FILTER_FLAG_NEW_LISTENER,
                program,
            )
        except OSError as error:
            listener = error.errno or 0
        try:
            syscalls.prctl(syscalls.PR_SET_SECCOMP, 2, program)
        except OSError as error:
            stacked = error.errno or 0
        return listener, stacked

    def sealed() -> tuple[int, int]:
        enter()
        return attack()

    assert forked(attack) == (0, 0)
    assert forked(sealed) == (errno.EPERM, errno.EPERM)


def test_sockets_of_other_families_cannot_be_made() -> None:
    def work() -> dict[int, int]:
        enter()
        return {
            family: errno_of("socket", family, kind, 0)
            for family in (socket.AF_NETLINK, socket.AF_PACKET, 38, 40, 44)
            for kind in (socket.SOCK_DGRAM, socket.SOCK_RAW)
        }

    assert set(forked(work).values()) == {errno.EAFNOSUPPORT}
    assert forked(lambda: errno_of("socket", socket.AF_NETLINK, socket.SOCK_RAW, 0)) == 0


def test_urgent_data_on_a_unix_socket_cannot_be_sent() -> None:
    def attack() -> int:
        left, right = socket.socketpair()
        try:
            left.send(b"x", socket.MSG_OOB)
        except OSError as error:
            return error.errno or 0
        finally:
            right.close()
        return 0

    def sealed() -> int:
        enter()
        return attack()

    assert forked(attack) in (0, errno.EOPNOTSUPP)  # as the kernel was built
    assert forked(sealed) == errno.EOPNOTSUPP


def test_the_terminal_cannot_be_typed_into() -> None:
    """Compared by the low half: the kernel's command is an unsigned int."""

    def work() -> list[int]:
        leader, follower = os.openpty()
        enter()
        return [errno_of("ioctl", follower, 0x5412 | noise, 0) for noise in (0, 1 << 32, HIGH)] + [
            errno_of("ioctl", leader, 0x541B, 0)
        ]

    assert forked(work) == [errno.EPERM] * 3 + [errno.EFAULT]


def test_a_lease_on_a_file_cannot_be_taken(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")

    def attack() -> int:
        fd = os.open(tmp_path / "file", os.O_RDONLY)
        return errno_of("fcntl", fd, 1024, 0)  # F_SETLEASE, F_RDLCK

    def sealed() -> int:
        enter()
        return attack()

    assert forked(attack) == 0
    assert forked(sealed) == errno.EPERM


def test_the_core_limit_stays_whatever_a_program_is_told() -> None:
    def work() -> tuple[tuple[int, int], tuple[int, int]]:
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (1, 1))
        enter()
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_NOFILE, (50, 50))
        return (
            resource.getrlimit(resource.RLIMIT_CORE),
            resource.getrlimit(resource.RLIMIT_NOFILE),
        )

    assert forked(work) == ((1, 1), (50, 50))


if ARCH is X86_64:

    def native_code(code: bytes) -> Callable[[], int]:
        """A function of these machine instructions."""
        import mmap

        area = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        area.write(code)
        address = ctypes.addressof(ctypes.c_char.from_buffer(area))
        function = ctypes.PYFUNCTYPE(ctypes.c_int)(address)
        return lambda: int(function())

    def call_through_int80() -> int:
        return native_code(bytes.fromhex("53 b814000000 cd80 5b c3".replace(" ", "")))()  # getpid

    def test_the_32_bit_entry_kills() -> None:
        def sealed() -> None:
            enter()
            call_through_int80()

        outside = wait_status(call_through_int80)
        # Kernels without 32-bit emulation have no such entry: a fault there, a kill here as well.
        assert outside == 0 or os.WTERMSIG(outside) == signal.SIGSEGV
        inside = wait_status(sealed)
        assert os.WIFSIGNALED(inside)
        if outside == 0:
            assert os.WTERMSIG(inside) == signal.SIGSYS

    def test_an_x32_call_kills() -> None:
        def sealed() -> None:
            enter()
            errno_of(0x4000_0000 + ARCH.numbers["getpid"])

        assert os.WTERMSIG(wait_status(sealed)) == signal.SIGSYS


def test_a_thread_made_later_stands_behind_it_too() -> None:
    def work() -> list[tuple[int, int]]:
        enter()
        seen: list[tuple[int, int]] = []

        def look() -> None:
            seen.append(
                (caps.read_status(b"/proc/thread-self/status").seccomp, errno_of("unshare", 0))
            )

        threads = [threading.Thread(target=look) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return seen

    assert forked(work) == [(2, errno.EPERM)] * 4


# Honest work -------------------------------------------------------------------------------------

PYTHON = """
import asyncio, concurrent.futures, ctypes, mmap, multiprocessing, os, sqlite3, subprocess, tempfile
import threading, time, select, selectors, signal, socket, resource, shutil, fcntl
with concurrent.futures.ThreadPoolExecutor(4) as pool:
    assert sum(pool.map(abs, range(-50, 50))) == 2500
with multiprocessing.get_context("fork").Pool(2) as pool:
    assert pool.map(abs, [-1, -2]) == [1, 2]
async def main():
    process = await asyncio.create_subprocess_exec("true")
    assert await process.wait() == 0
    server = await asyncio.start_server(lambda r, w: w.close(), "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    assert await reader.read() == b""
    writer.close()
    server.close()
asyncio.run(main())
with tempfile.TemporaryDirectory() as folder:
    base = sqlite3.connect(folder + "/db")
    base.execute("pragma journal_mode=wal")
    base.execute("create table t(a)")
    with base:
        base.executemany("insert into t values (?)", [(i,) for i in range(100)])
    assert base.execute("select count(*) from t").fetchone() == (100,)
    base.close()
    os.mkfifo(folder + "/fifo")
    shutil.copytree(folder, folder + "-copy", ignore=shutil.ignore_patterns("fifo"))
    shutil.rmtree(folder + "-copy")
os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
os.sched_setaffinity(0, os.sched_getaffinity(0))
os.sync()
signal.setitimer(signal.ITIMER_REAL, 10)
signal.setitimer(signal.ITIMER_REAL, 0)
print("done")
"""

JAVA = """
public class Work {
    public static void main(String[] arguments) throws Exception {
        Thread[] threads = new Thread[4];
        for (int i = 0; i < 4; i++) (threads[i] = new Thread(System::nanoTime)).start();
        for (Thread thread : threads) thread.join();
        System.gc();
        System.out.println("done");
    }
}
"""

NODE = """
const {Worker, isMainThread} = require('worker_threads')
const fs = require('fs'), os = require('os'), child = require('child_process')
fs.writeFileSync('x', 'x'); fs.copyFileSync('x', 'y'); fs.watch('.').close()
child.execFileSync('true')
new Worker('require("crypto").pbkdf2Sync("a", "b", 1000, 64, "sha512")', {eval: true})
  .on('exit', () => require('net').createServer().listen(0, '127.0.0.1', function () {
    this.close(() => console.log('done'))
  }))
"""

SHELL = {
    "bash": "set -euo pipefail; seq 1 1000 | sort -rn | head -1 <(true) - | grep -q 1000 || true; "
    "ulimit -c 0; mkfifo p; (echo done > p) & cat p; wait",
    "git": "git init -q .; git config user.email a@b; git config user.name a; echo x > x; "
    "git add x; git commit -qm x; git gc -q; git clone -q . copy; git -C copy log > log; "
    "git worktree add -q tree; echo done",
    "gcc": "printf '#include <stdio.h>\\n#include <pthread.h>\\nvoid *f(void *a) {return a;}\\n"
    'int main() {pthread_t t; pthread_create(&t, 0, f, 0); pthread_join(t, 0); puts("done");}\''
    " > a.c; gcc -O2 -pipe -o a a.c; ./a",
    "make": "printf 'all: a b\\na b:\\n\\t@sleep 0.01\\n' > Makefile; make -s -j4; echo done",
    "rg": "mkdir d; for i in 1 2 3; do echo needle > d/$i; done; test $(rg -c needle d | wc -l) = 3"
    "; echo done",
    "sqlite3": "sqlite3 db 'create table t(a); insert into t values (1); select \"done\"'",
    "tar": "echo x > x; mkfifo p; tar cpf a.tar x p; mkdir o; tar xpf a.tar -C o; echo done",
    "perl": "perl -e 'use threads; print \"done\\n\"' || perl -e 'print \"done\\n\"'",
    "gpg": "gpg --homedir . --version >/dev/null; echo done",
}
COMMANDS: dict[str, list[str]] = {
    "python": [sys.executable, "-I", "-c", PYTHON],
    **{tool: ["bash", "-c", script] for tool, script in SHELL.items()},
    "node": ["node", "-e", NODE],
    "java": ["java", "-Xmx64m", "Work.java"],
}
# What is not installed is not collected; Python, bash and tar are on every machine that runs this.
HONEST = [tool for tool in COMMANDS if tool == "python" or shutil.which(tool)]


def run_sealed(command: list[str], folder: Path) -> tuple[int, str]:
    """Exit code and output of a command behind the filter."""
    out = folder / "output"

    def work() -> int:
        with out.open("wb") as stream:
            os.dup2(stream.fileno(), 1)
            os.dup2(stream.fileno(), 2)
        os.chdir(folder)
        os.environ["HOME"] = str(folder)
        enter()
        os.execvp(command[0], command)

    status = wait_status(work)
    return os.waitstatus_to_exitcode(status), out.read_text()


@pytest.mark.parametrize("tool", HONEST)
def test_honest_work_is_not_hindered(tool: str, tmp_path: Path) -> None:
    (tmp_path / "Work.java").write_text(JAVA)
    code, output = run_sealed(COMMANDS[tool], tmp_path)
    assert (code, output.strip()) == (0, "done")


@pytest.mark.parametrize(
    ("module", "script"),
    [
        case
        for case in (
            (
                "numpy",
                "import numpy, threading; a = numpy.ones((300, 300)); "
                "t = [threading.Thread(target=a.dot, args=(a,)) for _ in range(4)]; "
                "[x.start() for x in t]; [x.join() for x in t]; assert (a @ a)[0, 0] == 300",
            ),
            (
                "zmq",
                "import zmq; c = zmq.Context(); a = c.socket(zmq.PAIR); b = c.socket(zmq.PAIR); "
                "a.bind('ipc://link'); b.connect('ipc://link'); a.send(b'x'); "
                "assert b.recv() == b'x'; c.destroy()",
            ),
            (
                "pytest",
                "import pytest, sys; sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', "
                "'test_one.py']))",
            ),
        )
        if importlib.util.find_spec(case[0])
    ],
    ids=lambda value: value if value.isidentifier() else "script",
)
def test_honest_libraries_are_not_hindered(module: str, script: str, tmp_path: Path) -> None:
    (tmp_path / "test_one.py").write_text("def test_one(tmp_path): assert tmp_path.exists()")
    code, output = run_sealed([sys.executable, "-c", script], tmp_path)
    assert code == 0, output
