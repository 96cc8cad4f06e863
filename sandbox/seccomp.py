"""The seccomp filter: which system calls exist inside, written as named lists with a reason each.

Every name of the tables in `syscalls.py` stands in exactly one place below: ALLOWED (in a group,
with why honest programs need it), CHECKED (allowed by its arguments), FORBIDDEN (EPERM: a program
learns that it was refused), or ABSENT (ENOSYS: a program sees an older kernel and falls back).
Numbers without a name are ENOSYS too. Calls of a foreign architecture, and x32's, kill the
process: their numbers mean other calls.

`build` turns the lists into classic BPF. The space of numbers is cut into ranges of equal outcome
and searched as a binary tree: the kernel (5.11 and later) runs a new filter once for every call
number to find those that are always allowed, so a tree installs in half the time of a list, and
those calls then cost nothing. Arguments are compared by their low 32 bits where the kernel looks at
no more (int and unsigned int parameters: the high half is then noise a caller may set at will), and
by both halves where a pointer is tested for NULL.

The filter signs itself: two numbers that no kernel has are answered with twelve bits each of the
digest of all other answers, so that a process can ask the kernel which filter it stands behind
(`read_signature`); who installed what is not believed but read back.

The program is emitted from its end, so that every jump's target is already placed; what lies
beyond the 8 bits of a conditional jump is reached by a `ja`, or copied when it is one `ret`.
"""

from __future__ import annotations

import ctypes
import hashlib
import struct
from dataclasses import dataclass
from errno import (
    EAFNOSUPPORT,
    EINVAL,
    ENOMEM,
    ENOPROTOOPT,
    ENOSYS,
    ENOTTY,
    EOPNOTSUPP,
    EPERM,
    EPROTONOSUPPORT,
)

from ..protocol.errors import LocalViolation
from . import syscalls
from .syscalls import Arch

__all__ = [
    "ABSENT",
    "ALLOW",
    "ALLOWED",
    "CHECKED",
    "FORBIDDEN",
    "IOCTLS",
    "KILL",
    "PLAIN_MODES",
    "WHY_CHECKED",
    "Flags",
    "Group",
    "IsNull",
    "Outcome",
    "Program",
    "Switch",
    "build",
    "fail",
    "install",
    "read_signature",
]

# Outcomes ----------------------------------------------------------------------------------------

KILL = 0x8000_0000  # SECCOMP_RET_KILL_PROCESS
ALLOW = 0x7FFF_0000
_ERRNO = 0x0005_0000


def fail(errno: int) -> int:
    """The call does nothing and returns this errno; 0 makes it a success that did nothing."""
    return _ERRNO | errno


@dataclass(frozen=True, slots=True)
class Switch:
    """Decide by the low half of an argument, masked: the first case whose range holds it."""

    argument: int
    cases: tuple[tuple[int, int, Outcome], ...]  # first, last (inclusive), outcome
    otherwise: Outcome
    mask: int = 0xFFFF_FFFF


@dataclass(frozen=True, slots=True)
class Flags:
    """Decide by whether any bit of the mask is set in the low half of an argument."""

    argument: int
    mask: int
    any_set: Outcome
    none_set: Outcome


@dataclass(frozen=True, slots=True)
class IsNull:
    """Decide by whether all 64 bits of an argument are zero."""

    argument: int
    null: Outcome
    other: Outcome


Outcome = int | Switch | Flags | IsNull


def _among(argument: int, values: tuple[int, ...], then: Outcome, otherwise: Outcome) -> Switch:
    return Switch(argument, tuple((value, value, then) for value in values), otherwise)


# The policy --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Group:
    name: str
    reason: str
    calls: tuple[str, ...]


def _group(name: str, reason: str, calls: str) -> Group:
    return Group(name, reason, tuple(calls.split()))


ALLOWED = (
    _group(
        "files",
        "reading and writing what the mount namespace, Landlock and file modes let a task see",
        """
        open openat openat2 creat close close_range read write readv writev pread64 pwrite64
        preadv pwritev preadv2 pwritev2 lseek dup dup2 dup3 flock truncate ftruncate fallocate
        fadvise64 readahead fsync fdatasync sync_file_range copy_file_range sendfile splice tee
        pipe pipe2 umask
        """,
    ),
    _group(
        "names",
        "walking, making and removing directories, links and names",
        """
        stat fstat lstat newfstatat statx statfs fstatfs access faccessat faccessat2 getdents
        getdents64 getcwd chdir fchdir rename renameat renameat2 mkdir mkdirat rmdir link linkat
        unlink unlinkat symlink symlinkat readlink readlinkat
        """,
    ),
    _group(
        "attributes",
        "modes, times, owners and extended attributes of own files (git, tar, make)",
        """
        chmod fchmod fchmodat fchmodat2 chown fchown lchown fchownat utime utimes utimensat
        futimesat setxattr lsetxattr fsetxattr setxattrat getxattr lgetxattr fgetxattr getxattrat
        listxattr llistxattr flistxattr listxattrat removexattr lremovexattr fremovexattr
        removexattrat
        """,
    ),
    _group(
        "waiting",
        "event loops, timers and file watches (asyncio, libuv, the JVM, libzmq, pytest plugins)",
        """
        poll ppoll select pselect6 epoll_create epoll_create1 epoll_ctl epoll_wait epoll_pwait
        epoll_pwait2 eventfd eventfd2 signalfd signalfd4 timerfd_create timerfd_settime
        timerfd_gettime inotify_init inotify_init1 inotify_add_watch inotify_rm_watch
        nanosleep clock_nanosleep pause alarm getitimer setitimer timer_create timer_settime
        timer_gettime timer_getoverrun timer_delete
        """,
    ),
    _group(
        "clocks",
        "reading the time, where the vDSO does not",
        "time gettimeofday clock_gettime clock_getres times",
    ),
    _group(
        "memory",
        "allocators, JITs and thread stacks; mlock is bounded by RLIMIT_MEMLOCK",
        """
        brk munmap mremap mprotect madvise msync mincore mlock mlock2 munlock mlockall
        munlockall pkey_alloc pkey_free pkey_mprotect mseal map_shadow_stack membarrier
        """,
    ),
    _group(
        "numa",
        "numeric libraries place their own pages; acts on the caller alone",
        "get_mempolicy set_mempolicy mbind set_mempolicy_home_node",
    ),
    _group(
        "threads",
        "locks, thread exit and registration; glibc aborts without most of them",
        """
        futex futex_wait futex_wake futex_requeue futex_waitv set_robust_list get_robust_list
        set_tid_address rseq gettid arch_prctl exit exit_group restart_syscall
        """,
    ),
    _group(
        "processes",
        "starting and awaiting programs; the pid namespace and the pids limit bound them",
        """
        fork vfork execve execveat wait4 waitid getpid getppid getpgid getpgrp setpgid getsid
        setsid pidfd_open
        """,
    ),
    _group(
        "signals",
        "reach only the own pid namespace",
        """
        kill tkill tgkill pidfd_send_signal rt_sigaction rt_sigprocmask rt_sigreturn
        rt_sigpending rt_sigsuspend rt_sigtimedwait rt_sigqueueinfo rt_tgsigqueueinfo sigaltstack
        """,
    ),
    _group(
        "scheduling",
        "libzmq aborts unless sched_setscheduler answers as the kernel does; RLIMIT_RTPRIO 0 and "
        "RLIMIT_NICE keep a task from raising itself",
        """
        sched_yield sched_getaffinity sched_setaffinity sched_getparam sched_setparam
        sched_getscheduler sched_setscheduler sched_getattr sched_setattr
        sched_get_priority_max sched_get_priority_min sched_rr_get_interval getpriority
        setpriority ioprio_get ioprio_set getcpu
        """,
    ),
    _group(
        "identity",
        "asking who one is; changing it is refused by the kernel to a process without capabilities",
        """
        getuid geteuid getgid getegid getresuid getresgid getgroups setuid setgid setreuid
        setregid setresuid setresgid setfsuid setfsgid setgroups capget capset
        """,
    ),
    _group(
        "facts",
        "what the kernel tells every process",
        "uname sysinfo getrlimit getrusage getrandom",
    ),
    _group(
        "sockets",
        "on sockets that `socket` below let be made; what they reach is the network namespace's",
        """
        bind listen accept accept4 connect shutdown getsockname getpeername getsockopt recvfrom
        recvmsg recvmmsg
        """,
    ),
    _group(
        "ipc",
        "System V and POSIX queues of the own ipc namespace (RLIMIT_MSGQUEUE 0 forbids the latter; "
        "msgget and semget only where a cgroup counts what is in them)",
        """
        shmat shmctl shmdt semget semop semtimedop semctl msgget msgsnd msgrcv msgctl
        mq_open mq_unlink mq_timedsend mq_timedreceive mq_notify mq_getsetattr
        """,
    ),
    _group(
        "self-restriction",
        "a program may put further walls around itself (xz does)",
        "landlock_create_ruleset landlock_add_rule landlock_restrict_self",
    ),
)

# clone's namespace flags. Its low byte is the exit signal: CLONE_NEWTIME (0x80) lies there and can
# only be asked of clone3 and unshare.
_NEW_NAMESPACE = (
    syscalls.CLONE_NEWNS
    | syscalls.CLONE_NEWCGROUP
    | syscalls.CLONE_NEWUTS
    | syscalls.CLONE_NEWIPC
    | syscalls.CLONE_NEWUSER
    | syscalls.CLONE_NEWPID
    | syscalls.CLONE_NEWNET
)

_AF_UNIX, _AF_INET, _AF_INET6 = 1, 2, 10
_STREAM, _DGRAM, _SEQPACKET = 1, 2, 5
_TYPE_MASK = 0xF  # the rest is SOCK_CLOEXEC and SOCK_NONBLOCK
_IPPROTO_IP, _IPPROTO_TCP, _IPPROTO_UDP = 0, 6, 17

# Other protocols would load SCTP, DCCP, L2TP, MPTCP or SMC into the host's kernel on demand, each
# with a record of its own. Raw sockets need a capability anyway; EPERM is what the kernel says.
_INTERNET_SOCKET = Switch(
    1,
    (
        (
            _STREAM,
            _DGRAM,
            _among(2, (_IPPROTO_IP, _IPPROTO_TCP, _IPPROTO_UDP), ALLOW, fail(EPROTONOSUPPORT)),
        ),
    ),
    fail(EPERM),
    mask=_TYPE_MASK,
)
_UNIX_SOCKET = Switch(
    1,
    ((_STREAM, _DGRAM, ALLOW), (_SEQPACKET, _SEQPACKET, ALLOW)),
    fail(EPERM),
    mask=_TYPE_MASK,
)

_SOL_SOCKET, _SOL_TCP = 1, 6
_SO_ATTACH_FILTER, _SO_ATTACH_BPF, _SO_ATTACH_REUSEPORT_EBPF = 26, 50, 52
_TCP_ULP = 31
_SOL_UDP, _UDP_ENCAP = 17, 100

_MSG_OOB = 1
# Urgent data on unix sockets gave a browser's sandbox away (CVE-2025-38236). EOPNOTSUPP is what a
# kernel built without it answers; receiving needs no check when nothing can be sent.
_NO_URGENT_DATA = fail(EOPNOTSUPP)

# Huge pages come from a pool of the whole host, and a memory limit does not count them unless the
# host mounted its cgroups so (memory_hugetlb_accounting). ENOMEM is the answer of an empty pool.
_MAP_HUGETLB, _MFD_HUGETLB, _SHM_HUGETLB = 0x4_0000, 0x4, 0o4000
_NO_HUGE_PAGES = fail(ENOMEM)


@dataclass(frozen=True, slots=True)
class Requests:
    """ioctl requests of one outcome: ranges, first and last."""

    name: str
    reason: str
    outcome: int
    ranges: tuple[tuple[int, int], ...]


def _requests(name: str, reason: str, outcome: int, *ranges: int | tuple[int, int]) -> Requests:
    pairs = tuple(each if isinstance(each, tuple) else (each, each) for each in ranges)
    return Requests(name, reason, outcome, pairs)


# What is not here is answered ENOTTY, as by a file that does not know the request: behind it lie
# the file systems' own (subvolumes, encryption, defragmenting), and for a socket requests that load
# modules into the host's kernel before anyone asks for a capability (SIOCGIFBR: bridge,
# SIOCGIFVLAN: 8021q). The numbers are those of asm-generic, which both architectures use.
IOCTLS = (
    _requests(
        "terminals",
        "a terminal given as stdin is asked what it is, how large, and set to raw and back",
        ALLOW,
        (0x5401, 0x5411),  # TCGETS to TIOCOUTQ: attributes, flow, the foreground group
        (0x5413, 0x5414),  # TIOCGWINSZ, TIOCSWINSZ
        0x5422,  # TIOCNOTTY
        0x5424,  # TIOCGETD
        0x5429,  # TIOCGSID
        0x802C_542A,  # TCGETS2, and its three ways of setting
        (0x402C_542B, 0x402C_542D),
        0x8004_5430,  # TIOCGPTN: ttyname
    ),
    _requests(
        "descriptors",
        "how much there is to read, and the flags that fcntl sets as well",
        ALLOW,
        0x541B,  # FIONREAD
        0x5421,  # FIONBIO
        (0x5450, 0x5452),  # FIONCLEX, FIOCLEX, FIOASYNC
        0x5460,  # FIOQSIZE
    ),
    _requests(
        "files",
        "copies that share blocks, within what may be read and written anyway (cp, libuv); flags "
        "are read (lsattr) and not set",
        ALLOW,
        0x4004_9409,  # FICLONE
        0x4020_940D,  # FICLONERANGE
        0x8008_6601,  # FS_IOC_GETFLAGS
    ),
    _requests(
        "sockets",
        "their owner, their marks and times; names and addresses of interfaces are read (Java)",
        ALLOW,
        (0x8901, 0x8907),  # FIOSETOWN to SIOCGSTAMPNS
        0x8910,  # SIOCGIFNAME
        (0x8912, 0x8913),  # SIOCGIFCONF, SIOCGIFFLAGS
        0x8915,  # SIOCGIFADDR
        0x8917,  # SIOCGIFDSTADDR
        0x8919,  # SIOCGIFBRDADDR
        0x891B,  # SIOCGIFNETMASK
        0x891D,  # SIOCGIFMETRIC
        0x8921,  # SIOCGIFMTU
        0x8927,  # SIOCGIFHWADDR
        0x8933,  # SIOCGIFINDEX
        0x8942,  # SIOCGIFTXQLEN
        0x894B,  # SIOCOUTQNSD
        (0x8010_8906, 0x8010_8907),  # SIOCGSTAMP and SIOCGSTAMPNS of 64 bits
    ),
    _requests("randomness", "how much there is, which is always enough", ALLOW, 0x8004_5200),
    _requests(
        "network cards",
        "drivers of the host; psutil takes this answer for a card that has nothing to say",
        fail(EOPNOTSUPP),
        0x8946,  # SIOCETHTOOL
    ),
    _requests(
        "the terminal behind stdin",
        "must not be typed into (TIOCSTI, TIOCLINUX), taken over (TIOCCONS), given another line "
        "discipline (TIOCSETD, which loads modules), or driven as a console (KD*, VT*)",
        fail(EPERM),
        (0x4B00, 0x4BFF),
        0x5412,
        (0x541C, 0x541D),
        0x5423,
        (0x5600, 0x56FF),
    ),
)

_F_SETLEASE, _F_SETDELEG = 1024, 1040

_S_IFMT, _S_IFCHR, _S_IFBLK = 0xF000, 0x2000, 0x6000

_RLIMIT_CORE = 4
# RLIMIT_CORE is 1, the one value that keeps the kernel from piping a core to the host's handler
# (0 only stops files; being non-dumpable ends with the first exec). A program that sets it to 0,
# as gpg and many daemons do and insist on, is told that it did.
_KEEP_CORE_LIMIT = fail(0)

_PERSONALITY_QUERY = 0xFFFF_FFFF

_PRCTL_ALLOWED = (
    1,  # PR_SET_PDEATHSIG
    2,  # PR_GET_PDEATHSIG
    3,  # PR_GET_DUMPABLE
    7,  # PR_GET_KEEPCAPS
    15,  # PR_SET_NAME
    16,  # PR_GET_NAME
    21,  # PR_GET_SECCOMP
    23,  # PR_CAPBSET_READ
    27,  # PR_GET_SECUREBITS
    29,  # PR_SET_TIMERSLACK
    30,  # PR_GET_TIMERSLACK
    36,  # PR_SET_CHILD_SUBREAPER
    37,  # PR_GET_CHILD_SUBREAPER
    38,  # PR_SET_NO_NEW_PRIVS: can only be set
    39,  # PR_GET_NO_NEW_PRIVS
    41,  # PR_SET_THP_DISABLE
    42,  # PR_GET_THP_DISABLE
    50,  # PR_SVE_SET_VL, and until 56 what glibc and JITs need on aarch64
    51,  # PR_SVE_GET_VL
    52,  # PR_GET_SPECULATION_CTRL
    53,  # PR_SET_SPECULATION_CTRL
    54,  # PR_PAC_RESET_KEYS
    55,  # PR_SET_TAGGED_ADDR_CTRL
    56,  # PR_GET_TAGGED_ADDR_CTRL
    60,  # PR_PAC_SET_ENABLED_KEYS
    61,  # PR_PAC_GET_ENABLED_KEYS
    65,  # PR_SET_MDWE
    66,  # PR_GET_MDWE
    0x5356_4D41,  # PR_SET_VMA: allocators name their mappings
)
_PRCTL_SET_DUMPABLE = 4
_PRCTL_FORBIDDEN = (
    8,  # PR_SET_KEEPCAPS
    22,  # PR_SET_SECCOMP
    24,  # PR_CAPBSET_DROP
    28,  # PR_SET_SECUREBITS
    35,  # PR_SET_MM
    47,  # PR_CAP_AMBIENT
    59,  # PR_SET_SYSCALL_USER_DISPATCH
    62,  # PR_SCHED_CORE
    67,  # PR_SET_MEMORY_MERGE: merged pages can be told apart by timing
)

CHECKED: dict[str, Outcome] = {
    "clone": Flags(0, _NEW_NAMESPACE, any_set=fail(EPERM), none_set=ALLOW),
    "socket": Switch(
        0,
        (
            (_AF_UNIX, _AF_UNIX, _UNIX_SOCKET),
            (_AF_INET, _AF_INET, _INTERNET_SOCKET),
            (_AF_INET6, _AF_INET6, _INTERNET_SOCKET),
        ),
        fail(EAFNOSUPPORT),
    ),
    "socketpair": _among(0, (_AF_UNIX,), ALLOW, fail(EAFNOSUPPORT)),
    # No BPF through the side door, no protocol modules loaded by name (kTLS, SMC), and none put
    # behind a socket (IPsec, L2TP).
    "setsockopt": Switch(
        1,
        (
            (
                _SOL_SOCKET,
                _SOL_SOCKET,
                Switch(
                    2,
                    (
                        (_SO_ATTACH_FILTER, _SO_ATTACH_FILTER, fail(EPERM)),
                        (_SO_ATTACH_BPF, _SO_ATTACH_REUSEPORT_EBPF, fail(EPERM)),
                    ),
                    ALLOW,
                ),
            ),
            (_SOL_TCP, _SOL_TCP, _among(2, (_TCP_ULP,), fail(ENOPROTOOPT), ALLOW)),
            (_SOL_UDP, _SOL_UDP, _among(2, (_UDP_ENCAP,), fail(ENOPROTOOPT), ALLOW)),
        ),
        ALLOW,
    ),
    "sendto": Flags(3, _MSG_OOB, _NO_URGENT_DATA, ALLOW),
    "sendmsg": Flags(2, _MSG_OOB, _NO_URGENT_DATA, ALLOW),
    "sendmmsg": Flags(3, _MSG_OOB, _NO_URGENT_DATA, ALLOW),
    "mmap": Flags(3, _MAP_HUGETLB, _NO_HUGE_PAGES, ALLOW),
    "memfd_create": Flags(1, _MFD_HUGETLB, _NO_HUGE_PAGES, ALLOW),
    "shmget": Flags(2, _SHM_HUGETLB, _NO_HUGE_PAGES, ALLOW),
    "ioctl": Switch(
        1,
        tuple(
            (first, last, requests.outcome)
            for requests in IOCTLS
            for first, last in requests.ranges
        ),
        fail(ENOTTY),
    ),
    # A lease on a file of the workspace would stall the user's own editor for 45 seconds.
    "fcntl": _among(1, (_F_SETLEASE, _F_SETDELEG), fail(EPERM), ALLOW),
    # FIFOs and sockets; a device, or the character device 0:0 that overlayfs takes for a deletion,
    # has no place in a layer.
    "mknod": Switch(
        1,
        ((_S_IFCHR, _S_IFCHR, fail(EPERM)), (_S_IFBLK, _S_IFBLK, fail(EPERM))),
        ALLOW,
        mask=_S_IFMT,
    ),
    "mknodat": Switch(
        2,
        ((_S_IFCHR, _S_IFCHR, fail(EPERM)), (_S_IFBLK, _S_IFBLK, fail(EPERM))),
        ALLOW,
        mask=_S_IFMT,
    ),
    "prctl": Switch(
        0,
        (
            *((option, option, ALLOW) for option in _PRCTL_ALLOWED),
            *((option, option, fail(EPERM)) for option in _PRCTL_FORBIDDEN),
            (_PRCTL_SET_DUMPABLE, _PRCTL_SET_DUMPABLE, _among(1, (0,), ALLOW, fail(EPERM))),
        ),
        # As a kernel that does not know the option.
        fail(EINVAL),
    ),
    # READ_IMPLIES_EXEC, MMAP_PAGE_ZERO and ADDR_NO_RANDOMIZE undo the kernel's own hardening.
    "personality": _among(0, (0, _PERSONALITY_QUERY), ALLOW, fail(EPERM)),
    "setrlimit": _among(0, (_RLIMIT_CORE,), _KEEP_CORE_LIMIT, ALLOW),
    # Reading limits is free. Setting those of another process reaches the sandbox's init.
    "prlimit64": IsNull(
        2,
        null=ALLOW,
        other=_among(0, (0,), _among(1, (_RLIMIT_CORE,), _KEEP_CORE_LIMIT, ALLOW), fail(EPERM)),
    ),
}

# Why each is let through at all, and what of it is not, for the table of all calls (SYSCALLS.md).
WHY_CHECKED = {
    "clone": "threads and processes; no flag of a new namespace",
    "socket": "unix, and TCP and UDP over IPv4 and IPv6; no other family, protocol or raw socket",
    "socketpair": "unix alone",
    "setsockopt": "all but BPF programs, and protocols loaded by name or put behind a socket",
    "sendto": "no urgent data: CVE-2025-38236",
    "sendmsg": "no urgent data: CVE-2025-38236",
    "sendmmsg": "no urgent data: CVE-2025-38236",
    "mmap": "no huge pages: they are the whole host's",
    "memfd_create": "no huge pages: they are the whole host's; not where looking holds `memory`",
    "shmget": "no huge pages: they are the whole host's; not where looking holds `memory`",
    "ioctl": "the requests listed below",
    "fcntl": "no leases: they would stall who opens the file on the host",
    "mknod": "FIFOs, sockets and files; no devices",
    "mknodat": "FIFOs, sockets and files; no devices",
    "prctl": "options that act on the caller and take no wall away",
    "personality": "asking, and the ordinary one",
    "setrlimit": "all but core dumps, which stay off whatever is asked",
    "prlimit64": "reading; setting one's own, but core dumps stay off",
}

# What makes memory that no process need map, so that looking at processes does not see it: answered
# as by a kernel that was built without it, where looking is all that holds the limit.
UNOWNED = ("memfd_create", "shmget", "msgget", "semget")

_O_CREAT, _TMPFILE = 0o100, 0o20000000
_S_ISUID, _S_ISGID = 0o4000, 0o2000


def _plain_mode(argument: int) -> Flags:
    return Flags(argument, _S_ISUID | _S_ISGID, any_set=fail(EPERM), none_set=ALLOW)


# In the place of what stands above, where a task writes to folders of the host: a setuid program
# that it leaves there would be their owner's, root perhaps, to whoever else is on this host. (A
# layer's owner is nobody, and its bits are taken away when it is committed.) Not for all, for bits
# of directories are honest work: `git init --shared`, an unpacked package. The mode of an open
# counts only where it makes a file; openat2 hides it behind a pointer, and its callers fall back.
PLAIN_MODES: dict[str, Outcome] = {
    "chmod": _plain_mode(1),
    "fchmod": _plain_mode(1),
    "fchmodat": _plain_mode(2),
    "fchmodat2": _plain_mode(2),
    "creat": _plain_mode(1),
    "open": Flags(1, _O_CREAT | _TMPFILE, any_set=_plain_mode(2), none_set=ALLOW),
    "openat": Flags(2, _O_CREAT | _TMPFILE, any_set=_plain_mode(3), none_set=ALLOW),
    "openat2": fail(ENOSYS),
    **{
        name: Flags(mode, _S_ISUID | _S_ISGID, any_set=fail(EPERM), none_set=CHECKED[name])
        for name, mode in (("mknod", 1), ("mknodat", 2))
    },
}

FORBIDDEN = (
    _group(
        "io_uring",
        "does other calls' work out of the filter's sight",
        "io_uring_setup io_uring_enter io_uring_register",
    ),
    _group(
        "kernel programs and tracing",
        "the kernel's most exploited interfaces",
        "bpf perf_event_open userfaultfd",
    ),
    _group(
        "keyrings",
        "are not divided by namespaces",
        "keyctl add_key request_key",
    ),
    _group(
        "other processes",
        "their memory, descriptors and identity; the sandbox's init has the same uid",
        """
        ptrace process_vm_readv process_vm_writev process_madvise kcmp pidfd_getfd migrate_pages
        move_pages
        """,
    ),
    _group(
        "mounts",
        "what is visible was decided before the task began",
        """
        mount umount2 pivot_root chroot open_tree open_tree_attr move_mount fsopen fsconfig fsmount
        fspick mount_setattr
        """,
    ),
    _group(
        "namespaces",
        "a new user namespace would give capabilities over a fresh copy of the kernel's interfaces",
        "unshare setns",
    ),
    _group(
        "handles",
        "open files by inode number, past every path",
        "open_by_handle_at",
    ),
    _group(
        "filters",
        "a further filter could hand calls to a listener",
        "seccomp",
    ),
    _group(
        "watching whole file systems",
        "sees more than paths allow",
        "fanotify_init fanotify_mark",
    ),
    _group(
        "the host",
        "modules, kernels, clocks, swap, accounting, quotas, names, ports, the kernel's log",
        """
        init_module finit_module delete_module kexec_load kexec_file_load reboot swapon swapoff acct
        quotactl quotactl_fd settimeofday clock_settime adjtimex clock_adjtime sethostname
        setdomainname iopl ioperm syslog vhangup
        """,
    ),
)

ABSENT = (
    _group(
        "flags behind a pointer",
        "a filter cannot read clone3's flags; libc falls back to clone",
        "clone3",
    ),
    _group(
        "the whole disk",
        "flush all that the host has not yet written; sync() cannot fail as libc has it",
        "sync syncfs",
    ),
    _group(
        "trampolines",
        "the kernel's own; it lets them past every filter since 6.14, and only from its code",
        "uretprobe uprobe",
    ),
    _group(
        "better done otherwise",
        "each has had holes, and a portable program has another way",
        """
        io_setup io_destroy io_submit io_cancel io_getevents io_pgetevents vmsplice
        remap_file_pages memfd_secret process_mrelease cachestat modify_ldt
        name_to_handle_at
        """,
    ),
    _group(
        "questions about the host",
        "mounts, namespaces and security modules are nothing to a task",
        """
        statmount listmount listns lsm_get_self_attr lsm_set_self_attr lsm_list_modules
        lookup_dcookie ustat sysfs
        """,
    ),
    _group(
        "new",
        "no libc uses them yet",
        "file_getattr file_setattr",
    ),
    _group(
        "gone",
        "numbers that no 64-bit kernel of today serves",
        """
        uselib _sysctl create_module get_kernel_syms query_module nfsservctl getpmsg putpmsg
        afs_syscall tuxcall security set_thread_area get_thread_area epoll_ctl_old epoll_wait_old
        vserver
        """,
    ),
)

# On x86-64 the same AUDIT_ARCH also carries x32, marked by this bit. Numbers above the range (-1
# among them) are no x32 calls but errors, and answered as such.
_X32 = (0x4000_0000, 0x7FFF_FFFF)


def _outcomes(arch: Arch, special_modes: bool, unowned_memory: bool) -> dict[int, Outcome]:
    """The outcome of every number that has a name."""
    outcomes: dict[int, Outcome] = {}
    placed: set[str] = set()
    lists: list[tuple[Outcome, tuple[str, ...]]] = [
        *((ALLOW, group.calls) for group in ALLOWED),
        *((outcome, (name,)) for name, outcome in CHECKED.items()),
        *((fail(EPERM), group.calls) for group in FORBIDDEN),
        *((fail(ENOSYS), group.calls) for group in ABSENT),
    ]
    for outcome, names in lists:
        for name in names:
            if name in placed:
                raise LocalViolation(f"system call {name} stands in the filter's lists twice")
            placed.add(name)
            if name in arch.numbers:
                outcomes[arch.numbers[name]] = outcome
    missing = arch.numbers.keys() - placed
    if not special_modes:
        outcomes |= {
            arch.numbers[name]: outcome
            for name, outcome in PLAIN_MODES.items()
            if name in arch.numbers
        }
    if not unowned_memory:
        outcomes |= {arch.numbers[name]: fail(ENOSYS) for name in UNOWNED if name in arch.numbers}
    if missing:
        raise LocalViolation(f"the filter's lists say nothing of {', '.join(sorted(missing))}")
    return outcomes


# Where the filter answers with its own digest: below x32's bit, and far above what kernels number.
_SIGNED = (0x2CA5_E000, 0x2CA5_E001)
_DIGITS = 3  # of the digest in each answer: SECCOMP_RET_ERRNO carries up to 4095
_HEX = f"%0{_DIGITS}x"


# The emitter -------------------------------------------------------------------------------------

_LD = 0x20  # BPF_LD | BPF_W | BPF_ABS
_AND = 0x54  # BPF_ALU | BPF_AND | BPF_K
_JA = 0x05
_JEQ = 0x15
_JGE = 0x35
_JSET = 0x45
_RET = 0x06
_INSTRUCTION = struct.Struct("=HBBI")
_FAR = 255  # the reach of a conditional jump

_NUMBER = 0  # struct seccomp_data: nr, arch, instruction_pointer, args[6]
_ARCH = 4


def _low(argument: int) -> int:
    return 16 + 8 * argument


def _high(argument: int) -> int:
    return 20 + 8 * argument


# Where an instruction stands, counted from the end of the program: the last one is 0.
_Place = int


class _Emitter:
    """Instructions from last to first. `place` methods return where control may enter."""

    def __init__(self) -> None:
        self._reversed: list[bytes] = []
        self._placed: dict[Outcome, _Place] = {}

    def code(self) -> bytes:
        return b"".join(reversed(self._reversed))

    def _emit(self, code: int, jt: int, jf: int, k: int) -> _Place:
        self._reversed.append(_INSTRUCTION.pack(code, jt, jf, k))
        return len(self._reversed) - 1

    def _distance(self, target: _Place) -> int:
        """How many instructions the next one emitted would skip to reach the target."""
        return len(self._reversed) - target - 1

    def load(self, offset: int, then: _Place) -> _Place:
        self.reach(then, 0)
        return self._emit(_LD, 0, 0, offset)

    def reach(self, target: _Place, distance: int) -> _Place:
        """A place that leads to the target and lies at most `distance` ahead of the next
        instruction: the target itself, or a new `ja` to it."""
        if self._distance(target) <= distance:
            return target
        return self._emit(_JA, 0, 0, self._distance(target))

    def branch(self, code: int, k: int, true: _Place, false: _Place) -> _Place:
        # A `ja` emitted for one side moves the other away by one.
        true = self.reach(true, _FAR - 1)
        false = self.reach(false, _FAR)
        return self._emit(code, self._distance(true), self._distance(false), k)

    def outcome(self, outcome: Outcome) -> _Place:
        """Where to go for this outcome; equal outcomes share their instructions."""
        known = self._placed.get(outcome)
        if isinstance(outcome, int):
            # Copying one `ret` costs as much as a `ja` to it, and runs one step less.
            if known is None or self._distance(known) > _FAR - 1:
                known = self._emit(_RET, 0, 0, outcome)
        elif known is None:
            known = self._decision(outcome)
        self._placed[outcome] = known
        return known

    def _decision(self, decision: Switch | Flags | IsNull) -> _Place:
        if isinstance(decision, Flags):
            none_set = self.outcome(decision.none_set)
            any_set = self.outcome(decision.any_set)
            test = self.branch(_JSET, decision.mask, any_set, none_set)
            return self.load(_low(decision.argument), test)
        if isinstance(decision, IsNull):
            other = self.outcome(decision.other)
            null = self.outcome(decision.null)
            high = self.load(_high(decision.argument), self.branch(_JEQ, 0, null, other))
            low = self.branch(_JEQ, 0, high, self.outcome(decision.other))
            return self.load(_low(decision.argument), low)
        search = self.search(_ranges(decision.cases, decision.otherwise))
        if decision.mask != 0xFFFF_FFFF:
            self.reach(search, 0)
            search = self._emit(_AND, 0, 0, decision.mask)
        return self.load(_low(decision.argument), search)

    def search(self, ranges: list[tuple[int, Outcome]]) -> _Place:
        """A binary tree over ranges, given by their first value each, in order."""
        if len(ranges) == 1:
            return self.outcome(ranges[0][1])
        if len(ranges) == 3 and ranges[0][1] == ranges[2][1]:
            first, last = ranges[1][0], ranges[2][0] - 1
            if first == last:  # one value: one comparison
                false = self.outcome(ranges[0][1])
                return self.branch(_JEQ, first, self.outcome(ranges[1][1]), false)
        middle = len(ranges) // 2
        above = self.search(ranges[middle:])
        below = self.search(ranges[:middle])
        return self.branch(_JGE, ranges[middle][0], above, below)


def _ranges(
    cases: tuple[tuple[int, int, Outcome], ...], otherwise: Outcome
) -> list[tuple[int, Outcome]]:
    """All of 0..2**32-1 as [(first value, outcome)], neighbours of equal outcome joined."""
    ranges: list[tuple[int, Outcome]] = [(0, otherwise)]

    def begin(value: int, outcome: Outcome) -> None:
        if ranges[-1][0] == value:
            ranges.pop()
        if not ranges or ranges[-1][1] != outcome:
            ranges.append((value, outcome))

    end = -1
    for first, last, outcome in sorted(cases, key=lambda case: case[0]):
        if first <= end or last < first:
            raise LocalViolation(f"the filter's cases {first}..{last} and ..{end} overlap")
        begin(first, outcome)
        if last < 0xFFFF_FFFF:
            begin(last + 1, otherwise)
        end = last
    return ranges


# The kernel's BPF_MAXINSNS.
MAXIMUM_LENGTH = 4096


@dataclass(frozen=True, slots=True)
class Program:
    """A filter as the kernel takes it. `digest`: of all that it answers but its signature."""

    arch: str
    code: bytes
    digest: str

    @property
    def length(self) -> int:
        return len(self.code) // _INSTRUCTION.size

    @property
    def signature(self) -> str:
        """What `read_signature` reads from a kernel that has it installed."""
        return self.digest[: len(_SIGNED) * _DIGITS]


def build(arch: Arch, *, special_modes: bool = True, unowned_memory: bool = True) -> Program:
    """The filter for one architecture; pure, and the same bytes every time. `special_modes`: files
    may be made setuid and setgid. `unowned_memory`: there may be some that no process has mapped,
    for a cgroup counts it."""
    outcomes = _outcomes(arch, special_modes, unowned_memory)
    cases = [(number, number, outcome) for number, outcome in outcomes.items()]
    if arch is syscalls.X86_64:
        cases.append((*_X32, KILL))
    digest = hashlib.sha256(_compile(arch, cases)).hexdigest()
    for index, number in enumerate(_SIGNED):
        digits = digest[index * _DIGITS : (index + 1) * _DIGITS]
        cases.append((number, number, fail(int(digits, 16))))
    program = Program(arch.name, _compile(arch, cases), digest)
    if program.length > MAXIMUM_LENGTH:
        raise LocalViolation(
            f"the filter has {program.length} instructions, the kernel takes {MAXIMUM_LENGTH}"
        )
    return program


def _compile(arch: Arch, cases: list[tuple[int, int, Outcome]]) -> bytes:
    emitter = _Emitter()
    tree = emitter.search(_ranges(tuple(cases), fail(ENOSYS)))
    numbered = emitter.load(_NUMBER, tree)
    start = emitter.branch(_JEQ, arch.audit, numbered, emitter.outcome(KILL))
    emitter.load(_ARCH, start)
    return emitter.code()


_FPROG = struct.Struct("HxxxxxxP")  # struct sock_fprog: length, address


def install(program: Program) -> None:
    """Put the calling thread, and all that it starts, behind the filter for good.

    no_new_privs must be set. One call; a failure leaves the thread as it was.
    """
    address = ctypes.cast(ctypes.c_char_p(program.code), ctypes.c_void_p).value
    syscalls.seccomp(syscalls.SECCOMP_SET_MODE_FILTER, 0, _FPROG.pack(program.length, address))


def read_signature() -> str:
    """Asked of the kernel: the beginning of the digest of the filter that the calling thread stands
    behind, the newest if there are several. A filter that is none of ours has another one."""
    return "".join([_HEX % syscalls.refusal(number) for number in _SIGNED])
