"""System calls by name and number, and thin wrappers for those the standard library lacks.

The tables are complete up to Linux 6.19: the seccomp filter is written in names and must know every
number it refuses by name. What comes later has no name here and is answered ENOSYS, as by an older
kernel. Everything goes through libc's `syscall()`, called with the GIL held (`PyDLL`): the callers
are single-threaded, and the child of a raw `clone3` must not find the GIL in another state than the
one it was forked with.

A wrapper raises `OSError` whose message begins with the name of the call, and nothing else of
the package touches ctypes for a system call.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass

from ..protocol.errors import SetupRefused

__all__ = [
    "AARCH64",
    "ARCH",
    "ARCHES",
    "AT_EMPTY_PATH",
    "AT_FDCWD",
    "AT_RECURSIVE",
    "CAPABILITY_VERSION_3",
    "CLONE_INTO_CGROUP",
    "CLONE_NEWCGROUP",
    "CLONE_NEWIPC",
    "CLONE_NEWNET",
    "CLONE_NEWNS",
    "CLONE_NEWPID",
    "CLONE_NEWTIME",
    "CLONE_NEWUSER",
    "CLONE_NEWUTS",
    "CLONE_PIDFD",
    "CLONE_SIGHAND",
    "CLONE_THREAD",
    "CLONE_VM",
    "FSCONFIG_CMD_CREATE",
    "FSCONFIG_SET_FLAG",
    "FSCONFIG_SET_STRING",
    "FSMOUNT_CLOEXEC",
    "FSOPEN_CLOEXEC",
    "LANDLOCK_CREATE_RULESET_VERSION",
    "LANDLOCK_RULE_PATH_BENEATH",
    "LAST_FD",
    "MNT_DETACH",
    "MOUNT_ATTR_IDMAP",
    "MOUNT_ATTR_NODEV",
    "MOUNT_ATTR_NOEXEC",
    "MOUNT_ATTR_NOSUID",
    "MOUNT_ATTR_RDONLY",
    "MOVE_MOUNT_F_EMPTY_PATH",
    "MOVE_MOUNT_T_EMPTY_PATH",
    "MS_NODEV",
    "MS_NOSUID",
    "MS_PRIVATE",
    "MS_REC",
    "MS_SLAVE",
    "OPEN_TREE_CLOEXEC",
    "OPEN_TREE_CLONE",
    "PR_CAPBSET_DROP",
    "PR_CAPBSET_READ",
    "PR_CAP_AMBIENT",
    "PR_CAP_AMBIENT_CLEAR_ALL",
    "PR_CAP_AMBIENT_RAISE",
    "PR_GET_DUMPABLE",
    "PR_GET_KEEPCAPS",
    "PR_GET_SECUREBITS",
    "PR_SET_DUMPABLE",
    "PR_SET_KEEPCAPS",
    "PR_SET_NAME",
    "PR_SET_NO_NEW_PRIVS",
    "PR_SET_PDEATHSIG",
    "PR_SET_SECCOMP",
    "PR_SET_SECUREBITS",
    "RESOLVE_BENEATH",
    "RESOLVE_NO_MAGICLINKS",
    "RESOLVE_NO_SYMLINKS",
    "SECCOMP_FILTER_FLAG_NEW_LISTENER",
    "SECCOMP_SET_MODE_FILTER",
    "X86_64",
    "Arch",
    "Argument",
    "capget",
    "capset",
    "clone3",
    "close_all_but",
    "close_range",
    "detect",
    "drop_bounding_set",
    "fork",
    "fsconfig",
    "fsmount",
    "fsopen",
    "landlock_add_rule",
    "landlock_create_ruleset",
    "landlock_restrict_self",
    "mount",
    "mount_setattr",
    "move_mount",
    "open_tree",
    "openat2",
    "pidfd_open",
    "pidfd_send_signal",
    "pivot_root",
    "prctl",
    "refusal",
    "seccomp",
    "sethostname",
    "setns",
    "syscall",
    "umount2",
    "unshare",
]


def _table(runs: dict[int, str]) -> dict[str, int]:
    """{first number: names in order} as {name: number}."""
    return {
        name: first + offset
        for first, names in runs.items()
        for offset, name in enumerate(names.split())
    }


# fmt: off
_X86_64 = _table({
    0: """
        read write open close stat fstat lstat poll lseek mmap mprotect munmap brk rt_sigaction
        rt_sigprocmask rt_sigreturn ioctl pread64 pwrite64 readv writev access pipe select
        sched_yield mremap msync mincore madvise shmget shmat shmctl dup dup2 pause nanosleep
        getitimer alarm setitimer getpid sendfile socket connect accept sendto recvfrom sendmsg
        recvmsg shutdown bind listen getsockname getpeername socketpair setsockopt getsockopt
        clone fork vfork execve exit wait4 kill uname semget semop semctl shmdt msgget msgsnd
        msgrcv msgctl fcntl flock fsync fdatasync truncate ftruncate getdents getcwd chdir fchdir
        rename mkdir rmdir creat link unlink symlink readlink chmod fchmod chown fchown lchown
        umask gettimeofday getrlimit getrusage sysinfo times ptrace getuid syslog getgid setuid
        setgid geteuid getegid setpgid getppid getpgrp setsid setreuid setregid getgroups
        setgroups setresuid getresuid setresgid getresgid getpgid setfsuid setfsgid getsid capget
        capset rt_sigpending rt_sigtimedwait rt_sigqueueinfo rt_sigsuspend sigaltstack utime mknod
        uselib personality ustat statfs fstatfs sysfs getpriority setpriority sched_setparam
        sched_getparam sched_setscheduler sched_getscheduler sched_get_priority_max
        sched_get_priority_min sched_rr_get_interval mlock munlock mlockall munlockall vhangup
        modify_ldt pivot_root _sysctl prctl arch_prctl adjtimex setrlimit chroot sync acct
        settimeofday mount umount2 swapon swapoff reboot sethostname setdomainname iopl ioperm
        create_module init_module delete_module get_kernel_syms query_module quotactl nfsservctl
        getpmsg putpmsg afs_syscall tuxcall security gettid readahead setxattr lsetxattr fsetxattr
        getxattr lgetxattr fgetxattr listxattr llistxattr flistxattr removexattr lremovexattr
        fremovexattr tkill time futex sched_setaffinity sched_getaffinity set_thread_area io_setup
        io_destroy io_getevents io_submit io_cancel get_thread_area lookup_dcookie epoll_create
        epoll_ctl_old epoll_wait_old remap_file_pages getdents64 set_tid_address restart_syscall
        semtimedop fadvise64 timer_create timer_settime timer_gettime timer_getoverrun
        timer_delete clock_settime clock_gettime clock_getres clock_nanosleep exit_group
        epoll_wait epoll_ctl tgkill utimes vserver mbind set_mempolicy get_mempolicy mq_open
        mq_unlink mq_timedsend mq_timedreceive mq_notify mq_getsetattr kexec_load waitid add_key
        request_key keyctl ioprio_set ioprio_get inotify_init inotify_add_watch inotify_rm_watch
        migrate_pages openat mkdirat mknodat fchownat futimesat newfstatat unlinkat renameat
        linkat symlinkat readlinkat fchmodat faccessat pselect6 ppoll unshare set_robust_list
        get_robust_list splice tee sync_file_range vmsplice move_pages utimensat epoll_pwait
        signalfd timerfd_create eventfd fallocate timerfd_settime timerfd_gettime accept4
        signalfd4 eventfd2 epoll_create1 dup3 pipe2 inotify_init1 preadv pwritev rt_tgsigqueueinfo
        perf_event_open recvmmsg fanotify_init fanotify_mark prlimit64 name_to_handle_at
        open_by_handle_at clock_adjtime syncfs sendmmsg setns getcpu process_vm_readv
        process_vm_writev kcmp finit_module sched_setattr sched_getattr renameat2 seccomp
        getrandom memfd_create kexec_file_load bpf execveat userfaultfd membarrier mlock2
        copy_file_range preadv2 pwritev2 pkey_mprotect pkey_alloc pkey_free statx io_pgetevents
        rseq uretprobe uprobe
    """,
    424: """
        pidfd_send_signal io_uring_setup io_uring_enter io_uring_register open_tree move_mount
        fsopen fsconfig fsmount fspick pidfd_open clone3 close_range openat2 pidfd_getfd
        faccessat2 process_madvise epoll_pwait2 mount_setattr quotactl_fd landlock_create_ruleset
        landlock_add_rule landlock_restrict_self memfd_secret process_mrelease futex_waitv
        set_mempolicy_home_node cachestat fchmodat2 map_shadow_stack futex_wake futex_wait
        futex_requeue statmount listmount lsm_get_self_attr lsm_set_self_attr lsm_list_modules
        mseal setxattrat getxattrat listxattrat removexattrat open_tree_attr file_getattr
        file_setattr listns
    """,
})

# asm-generic/unistd.h with what arm64 asks of it (renameat, newfstatat, getrlimit, clone3,
# memfd_secret).
_AARCH64 = _table({
    0: """
        io_setup io_destroy io_submit io_cancel io_getevents setxattr lsetxattr fsetxattr getxattr
        lgetxattr fgetxattr listxattr llistxattr flistxattr removexattr lremovexattr fremovexattr
        getcwd lookup_dcookie eventfd2 epoll_create1 epoll_ctl epoll_pwait dup dup3 fcntl
        inotify_init1 inotify_add_watch inotify_rm_watch ioctl ioprio_set ioprio_get flock mknodat
        mkdirat unlinkat symlinkat linkat renameat umount2 mount pivot_root nfsservctl statfs
        fstatfs truncate ftruncate fallocate faccessat chdir fchdir chroot fchmod fchmodat
        fchownat fchown openat close vhangup pipe2 quotactl getdents64 lseek read write readv
        writev pread64 pwrite64 preadv pwritev sendfile pselect6 ppoll signalfd4 vmsplice splice
        tee readlinkat newfstatat fstat sync fsync fdatasync sync_file_range timerfd_create
        timerfd_settime timerfd_gettime utimensat acct capget capset personality exit exit_group
        waitid set_tid_address unshare futex set_robust_list get_robust_list nanosleep getitimer
        setitimer kexec_load init_module delete_module timer_create timer_gettime timer_getoverrun
        timer_settime timer_delete clock_settime clock_gettime clock_getres clock_nanosleep syslog
        ptrace sched_setparam sched_setscheduler sched_getscheduler sched_getparam
        sched_setaffinity sched_getaffinity sched_yield sched_get_priority_max
        sched_get_priority_min sched_rr_get_interval restart_syscall kill tkill tgkill sigaltstack
        rt_sigsuspend rt_sigaction rt_sigprocmask rt_sigpending rt_sigtimedwait rt_sigqueueinfo
        rt_sigreturn setpriority getpriority reboot setregid setgid setreuid setuid setresuid
        getresuid setresgid getresgid setfsuid setfsgid times setpgid getpgid getsid setsid
        getgroups setgroups uname sethostname setdomainname getrlimit setrlimit getrusage umask
        prctl getcpu gettimeofday settimeofday adjtimex getpid getppid getuid geteuid getgid
        getegid gettid sysinfo mq_open mq_unlink mq_timedsend mq_timedreceive mq_notify
        mq_getsetattr msgget msgctl msgrcv msgsnd semget semctl semtimedop semop shmget shmctl
        shmat shmdt socket socketpair bind listen accept connect getsockname getpeername sendto
        recvfrom setsockopt getsockopt shutdown sendmsg recvmsg readahead brk munmap mremap
        add_key request_key keyctl clone execve mmap fadvise64 swapon swapoff mprotect msync mlock
        munlock mlockall munlockall mincore madvise remap_file_pages mbind get_mempolicy
        set_mempolicy migrate_pages move_pages rt_tgsigqueueinfo perf_event_open accept4 recvmmsg
    """,
    260: """
        wait4 prlimit64 fanotify_init fanotify_mark name_to_handle_at open_by_handle_at
        clock_adjtime syncfs setns sendmmsg process_vm_readv process_vm_writev kcmp finit_module
        sched_setattr sched_getattr renameat2 seccomp getrandom memfd_create bpf execveat
        userfaultfd membarrier mlock2 copy_file_range preadv2 pwritev2 pkey_mprotect pkey_alloc
        pkey_free statx io_pgetevents rseq kexec_file_load
    """,
    424: """
        pidfd_send_signal io_uring_setup io_uring_enter io_uring_register open_tree move_mount
        fsopen fsconfig fsmount fspick pidfd_open clone3 close_range openat2 pidfd_getfd
        faccessat2 process_madvise epoll_pwait2 mount_setattr quotactl_fd landlock_create_ruleset
        landlock_add_rule landlock_restrict_self memfd_secret process_mrelease futex_waitv
        set_mempolicy_home_node cachestat fchmodat2 map_shadow_stack futex_wake futex_wait
        futex_requeue statmount listmount lsm_get_self_attr lsm_set_self_attr lsm_list_modules
        mseal setxattrat getxattrat listxattrat removexattrat open_tree_attr file_getattr
        file_setattr listns
    """,
})
# fmt: on


@dataclass(frozen=True, slots=True)
class Arch:
    """An architecture the filter can be built for. `audit` is what seccomp_data.arch holds."""

    name: str
    audit: int
    numbers: dict[str, int]


X86_64 = Arch("x86_64", 0xC000003E, _X86_64)
AARCH64 = Arch("aarch64", 0xC00000B7, _AARCH64)
ARCHES = {arch.name: arch for arch in (X86_64, AARCH64)}


def detect(platform: str, machine: str, pointer_bits: int) -> Arch:
    """The architecture of a process, or why casemate cannot seal one there."""
    if not platform.startswith("linux"):
        raise SetupRefused(f"sandboxes need Linux, this is {platform}: run casemate in a Linux VM")
    if machine not in ARCHES:
        raise SetupRefused(
            f"sandboxes need an x86-64 or aarch64 kernel, this one says {machine}: "
            "no seccomp filter is known for it"
        )
    if pointer_bits != 64:
        # A 32-bit (or x32) interpreter on a 64-bit kernel calls through another table.
        raise SetupRefused(
            f"sandboxes need a 64-bit Python, this one has {pointer_bits}-bit pointers: "
            f"install a {machine} build"
        )
    return ARCHES[machine]


ARCH = detect(sys.platform, os.uname().machine, 8 * struct.calcsize("P"))

_libc = ctypes.PyDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long
# c_void_p takes int (negative too, whole 64 bits), None, bytes and every ctypes pointer. Without
# argtypes an int would be passed as 32 bits.
_syscall.argtypes = (ctypes.c_long, *(ctypes.c_void_p,) * 6)

# An address is an int (ctypes.addressof), bytes, or a buffer the kernel may write to.
Argument = int | bytes | ctypes.Array[ctypes.c_char] | None


def syscall(
    call: str | int,
    a: Argument = 0,
    b: Argument = 0,
    c: Argument = 0,
    d: Argument = 0,
    e: Argument = 0,
    f: Argument = 0,
) -> int:
    """The result of the call; OSError naming it when it fails. Bytes pass their address and end
    in a NUL of their own; they must not be written to by the kernel."""
    number = ARCH.numbers[call] if isinstance(call, str) else call
    result: int = _syscall(number, a, b, c, d, e, f)
    if result == -1:
        errno = ctypes.get_errno()
        raise OSError(errno, f"{call}: {os.strerror(errno)}")
    return result


def refusal(number: int) -> int:
    """The errno that a call without arguments fails with, 0 if it does not. Without an exception,
    which in a fresh fork costs 50 µs."""
    return ctypes.get_errno() if _syscall(number, 0, 0, 0, 0, 0, 0) == -1 else 0


# Processes and namespaces ------------------------------------------------------------------------

CLONE_VM = 0x00000100
CLONE_SIGHAND = 0x00000800
CLONE_PIDFD = 0x00001000
CLONE_THREAD = 0x00010000
CLONE_NEWTIME = 0x00000080
CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
CLONE_INTO_CGROUP = 0x2_0000_0000

# flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, set_tid, set_tid_size,
# cgroup (CLONE_ARGS_SIZE_VER2)
_CLONE_ARGS = struct.Struct("11Q")


def clone3(flags: int, exit_signal: int, cgroup: int | None = None) -> tuple[int, int]:
    """(pid, pidfd) in the parent, (0, -1) in the child; the pidfd is -1 without CLONE_PIDFD.

    Like fork(): never with CLONE_VM. The bare call, since libc knows neither pidfds nor
    CLONE_INTO_CGROUP; the interpreter is told as by os.fork().
    """
    pidfd = ctypes.c_int(-1)
    if cgroup is not None:
        flags |= CLONE_INTO_CGROUP
    arguments = _CLONE_ARGS.pack(
        flags, ctypes.addressof(pidfd), 0, 0, exit_signal, 0, 0, 0, 0, 0, cgroup or 0
    )
    pid = _forked(lambda: syscall("clone3", arguments, _CLONE_ARGS.size))
    return pid, (pidfd.value if pid else -1)


def fork() -> int:
    """os.fork() for a process of one thread. Since Python 3.12 that one counts the threads in
    /proc/self/stat afterwards, to warn: a look that a sandbox's init has no need of, and that
    leaves an entry for /proc/1 in the kernel's cache, where a guest can tell it from nothing."""
    return _forked(_libc_fork)


def _libc_fork() -> int:
    pid: int = _libc.fork()
    if pid == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"fork: {os.strerror(number)}")
    return pid


def _forked(call: Callable[[], int]) -> int:
    """Run a call that returns twice, with what os.fork() does around it."""
    interpreter = ctypes.pythonapi
    interpreter.PyOS_BeforeFork()
    try:
        pid = call()
    except OSError:
        interpreter.PyOS_AfterFork_Parent()
        raise
    if pid == 0:
        interpreter.PyOS_AfterFork_Child()
    else:
        interpreter.PyOS_AfterFork_Parent()
    return pid


def unshare(flags: int) -> None:
    syscall("unshare", flags)


def setns(fd: int, kind: int) -> None:
    """`kind`: the CLONE_NEW* flag that the fd must be of; 0 for any."""
    syscall("setns", fd, kind)


def sethostname(name: bytes) -> None:
    syscall("sethostname", name, len(name))


def pidfd_open(pid: int, flags: int = 0) -> int:
    return syscall("pidfd_open", pid, flags)


def pidfd_send_signal(pidfd: int, signal: int) -> None:
    syscall("pidfd_send_signal", pidfd, signal, None, 0)


LAST_FD = 0xFFFF_FFFF


def close_range(first: int, last: int = LAST_FD, flags: int = 0) -> None:
    syscall("close_range", first, last, flags)


def close_all_but(keep: tuple[int, ...]) -> None:
    """Close every descriptor that is not listed: one call for each gap."""
    first = 0
    for fd in sorted(set(keep)):
        if fd > first:
            close_range(first, fd - 1)
        first = fd + 1
    close_range(first)


PR_SET_PDEATHSIG = 1
PR_GET_DUMPABLE = 3
PR_SET_DUMPABLE = 4
PR_GET_KEEPCAPS = 7
PR_SET_KEEPCAPS = 8
PR_SET_NAME = 15
PR_SET_SECCOMP = 22
PR_CAPBSET_READ = 23
PR_CAPBSET_DROP = 24
PR_GET_SECUREBITS = 27
PR_SET_SECUREBITS = 28
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_RAISE = 2
PR_CAP_AMBIENT_CLEAR_ALL = 4


def prctl(option: int, b: Argument = 0, c: Argument = 0, d: Argument = 0, e: Argument = 0) -> int:
    return syscall("prctl", option, b, c, d, e)


# Called once for each capability there is, in every sandbox: with two arguments to convert instead
# of seven it takes 0.7 µs instead of 1.1. The kernel reads no more of them for this option.
_capbset = _libc.prctl
_capbset.restype = ctypes.c_int
_capbset.argtypes = (ctypes.c_int, ctypes.c_ulong)


def drop_bounding_set(last: int) -> None:
    """Capabilities 0 to `last` out of the bounding set; needs CAP_SETPCAP."""
    for capability in range(last + 1):
        if _capbset(PR_CAPBSET_DROP, capability):
            errno = ctypes.get_errno()
            raise OSError(errno, f"prctl(PR_CAPBSET_DROP, {capability}): {os.strerror(errno)}")


CAPABILITY_VERSION_3 = 0x2008_0522
_CAP_HEADER = struct.Struct("Ii")
_CAP_DATA = struct.Struct("6I")


def capset(effective: int, permitted: int, inheritable: int) -> None:
    """Sets as masks of 64 bits, of the calling thread."""
    low = 0xFFFF_FFFF
    syscall(
        "capset",
        _CAP_HEADER.pack(CAPABILITY_VERSION_3, 0),
        _CAP_DATA.pack(
            effective & low,
            permitted & low,
            inheritable & low,
            effective >> 32,
            permitted >> 32,
            inheritable >> 32,
        ),
    )


def capget() -> tuple[int, int, int]:
    """(effective, permitted, inheritable) of the calling thread."""
    header = ctypes.create_string_buffer(
        _CAP_HEADER.pack(CAPABILITY_VERSION_3, 0), _CAP_HEADER.size
    )
    data = ctypes.create_string_buffer(_CAP_DATA.size)
    syscall("capget", header, data)
    e0, p0, i0, e1, p1, i1 = _CAP_DATA.unpack(data.raw)
    return e0 | e1 << 32, p0 | p1 << 32, i0 | i1 << 32


# Mounts ------------------------------------------------------------------------------------------

AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000

MS_NOSUID = 2
MS_NODEV = 4
MS_REC = 16384
MS_PRIVATE = 1 << 18
MS_SLAVE = 1 << 19

MNT_DETACH = 2


def mount(
    source: bytes | None,
    target: bytes,
    kind: bytes | None = None,
    flags: int = 0,
    data: bytes | None = None,
) -> None:
    syscall("mount", source, target, kind, flags, data)


def umount2(target: bytes, flags: int = 0) -> None:
    syscall("umount2", target, flags)


def pivot_root(new_root: bytes, put_old: bytes) -> None:
    syscall("pivot_root", new_root, put_old)


OPEN_TREE_CLONE = 1
OPEN_TREE_CLOEXEC = os.O_CLOEXEC


def open_tree(dirfd: int, path: bytes, flags: int = OPEN_TREE_CLOEXEC) -> int:
    return syscall("open_tree", dirfd, path, flags)


MOVE_MOUNT_F_EMPTY_PATH = 0x04
MOVE_MOUNT_T_EMPTY_PATH = 0x40


def move_mount(
    from_fd: int,
    to_path: bytes,
    flags: int = MOVE_MOUNT_F_EMPTY_PATH,
    *,
    from_path: bytes = b"",
    to_fd: int = AT_FDCWD,
) -> None:
    syscall("move_mount", from_fd, from_path, to_fd, to_path, flags)


MOUNT_ATTR_RDONLY = 0x01
MOUNT_ATTR_NOSUID = 0x02
MOUNT_ATTR_NODEV = 0x04
MOUNT_ATTR_NOEXEC = 0x08
MOUNT_ATTR_IDMAP = 0x0010_0000

_MOUNT_ATTR = struct.Struct("4Q")  # attr_set, attr_clr, propagation, userns_fd


def mount_setattr(
    dirfd: int,
    path: bytes = b"",
    flags: int = AT_EMPTY_PATH,
    *,
    attr_set: int = 0,
    attr_clr: int = 0,
    propagation: int = 0,
    userns_fd: int = 0,
) -> None:
    attributes = _MOUNT_ATTR.pack(attr_set, attr_clr, propagation, userns_fd)
    syscall("mount_setattr", dirfd, path, flags, attributes, _MOUNT_ATTR.size)


FSOPEN_CLOEXEC = 1
FSCONFIG_SET_FLAG = 0
FSCONFIG_SET_STRING = 1
FSCONFIG_CMD_CREATE = 6
FSMOUNT_CLOEXEC = 1


def fsopen(kind: bytes, flags: int = FSOPEN_CLOEXEC) -> int:
    return syscall("fsopen", kind, flags)


def fsconfig(
    fd: int, command: int, key: bytes | None = None, value: bytes | None = None, auxiliary: int = 0
) -> None:
    syscall("fsconfig", fd, command, key, value, auxiliary)


def fsmount(fd: int, attributes: int = 0, flags: int = FSMOUNT_CLOEXEC) -> int:
    """An open tree of the file system made by fsconfig, not yet attached anywhere."""
    return syscall("fsmount", fd, flags, attributes)


# Files -------------------------------------------------------------------------------------------

RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08

_OPEN_HOW = struct.Struct("3Q")  # flags, mode, resolve


def openat2(dirfd: int, path: bytes, flags: int, *, mode: int = 0, resolve: int = 0) -> int:
    how = _OPEN_HOW.pack(flags | os.O_CLOEXEC, mode, resolve)
    return syscall("openat2", dirfd, path, how, _OPEN_HOW.size)


# seccomp and Landlock ----------------------------------------------------------------------------

SECCOMP_SET_MODE_FILTER = 1
SECCOMP_FILTER_FLAG_NEW_LISTENER = 1 << 3


def seccomp(operation: int, flags: int, arguments: Argument) -> int:
    return syscall("seccomp", operation, flags, arguments)


LANDLOCK_CREATE_RULESET_VERSION = 1
LANDLOCK_RULE_PATH_BENEATH = 1


def landlock_create_ruleset(attributes: bytes | None, size: int, flags: int = 0) -> int:
    return syscall("landlock_create_ruleset", attributes, size, flags)


def landlock_add_rule(ruleset: int, kind: int, attributes: bytes) -> None:
    syscall("landlock_add_rule", ruleset, kind, attributes, 0)


def landlock_restrict_self(ruleset: int, flags: int = 0) -> None:
    syscall("landlock_restrict_self", ruleset, flags)
