"""The tables against the host's headers and libseccomp; the wrappers against the kernel."""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from casemate.protocol.errors import SetupRefused
from casemate.sandbox import syscalls
from forked import enter_user_namespace, forked

HEADERS = [
    header
    for pattern in ("/usr/include/asm/unistd_64.h", "/usr/include/x86_64-linux-gnu/asm/unistd_64.h")
    for header in [Path(pattern)]
    if header.exists()
]
# Numbers libseccomp 2.5 does not know are checked against the kernel below.
RESOLVER = shutil.which("scmp_sys_resolver") or ""


def test_no_number_has_two_names() -> None:
    for arch in syscalls.ARCHES.values():
        assert len(set(arch.numbers.values())) == len(arch.numbers), arch.name


def test_both_tables_agree_on_what_came_after_they_were_joined() -> None:
    joined = {
        arch.name: {name: number for name, number in arch.numbers.items() if number >= 424}
        for arch in syscalls.ARCHES.values()
    }
    assert joined["x86_64"] == joined["aarch64"]
    assert sorted(joined["x86_64"].values()) == list(range(424, 471))


@pytest.mark.parametrize(
    ("arch", "known"),
    [
        # From the kernel's own tables, by hand: the first, the last and some around each gap.
        (
            "x86_64",
            {
                "read": 0,
                "pread64": 17,
                "clone": 56,
                "prctl": 157,
                "gettid": 186,
                "openat": 257,
                "seccomp": 317,
                "io_pgetevents": 333,
                "rseq": 334,
                "uprobe": 336,
                "pidfd_send_signal": 424,
                "clone3": 435,
                "mount_setattr": 442,
                "memfd_secret": 447,
                "mseal": 462,
                "listns": 470,
            },
        ),
        (
            "aarch64",
            {
                "io_setup": 0,
                "umount2": 39,
                "openat": 56,
                "read": 63,
                "newfstatat": 79,
                "exit": 93,
                "ptrace": 117,
                "clone": 220,
                "accept4": 242,
                "recvmmsg": 243,
                "wait4": 260,
                "seccomp": 277,
                "rseq": 293,
                "kexec_file_load": 294,
                "pidfd_send_signal": 424,
                "clone3": 435,
                "listns": 470,
            },
        ),
    ],
)
def test_known_numbers(arch: str, known: dict[str, int]) -> None:
    numbers = syscalls.ARCHES[arch].numbers
    assert {name: numbers[name] for name in known} == known


if HEADERS:

    @pytest.mark.parametrize("header", HEADERS, ids=str)
    def test_the_x86_64_table_holds_all_that_the_headers_name(header: Path) -> None:
        named = {
            name: int(number)
            for name, number in re.findall(r"#define __NR_(\w+) (\d+)", header.read_text())
        }
        assert len(named) > 300
        numbers = syscalls.X86_64.numbers
        assert {name: numbers.get(name) for name in named} == named


if RESOLVER:

    @pytest.mark.parametrize("arch", syscalls.ARCHES)
    def test_libseccomp_resolves_every_name_to_the_same_number(arch: str) -> None:
        numbers = syscalls.ARCHES[arch].numbers
        resolved = {}
        for name in numbers:
            answer = subprocess.run(
                [RESOLVER, "-a", arch, name], capture_output=True, text=True, check=True
            )
            resolved[name] = int(answer.stdout)
        known = {name: number for name, number in resolved.items() if number >= 0}
        assert len(known) > 300
        assert {name: numbers[name] for name in known} == known


def test_another_platform_is_refused_with_the_reason() -> None:
    with pytest.raises(SetupRefused, match="need Linux, this is darwin"):
        syscalls.detect("darwin", "arm64", 64)
    with pytest.raises(SetupRefused, match="this one says riscv64"):
        syscalls.detect("linux", "riscv64", 64)
    with pytest.raises(SetupRefused, match="32-bit pointers"):
        syscalls.detect("linux", "x86_64", 32)
    assert syscalls.detect("linux", "aarch64", 64) is syscalls.AARCH64


def test_a_failure_names_the_call() -> None:
    with pytest.raises(FileNotFoundError, match="openat2: No such file"):
        syscalls.openat2(syscalls.AT_FDCWD, b"/no/such/file", os.O_RDONLY)
    with pytest.raises(OSError, match=r"pidfd_open: .*") as caught:
        syscalls.pidfd_open(-1)
    assert caught.value.errno == errno.EINVAL


def test_arguments_pass_with_all_their_bits() -> None:
    fd = os.memfd_create("wide", os.MFD_CLOEXEC)
    try:
        assert syscalls.syscall("lseek", fd, 0x7_1234_5678, os.SEEK_SET) == 0x7_1234_5678
        with pytest.raises(OSError, match="lseek"):
            syscalls.syscall("lseek", fd, -1, os.SEEK_SET)
    finally:
        os.close(fd)


def test_openat2_stays_beneath(tmp_path: Path) -> None:
    (tmp_path / "inside").write_text("x")
    (tmp_path / "link").symlink_to("/etc/passwd")
    directory = os.open(tmp_path, os.O_RDONLY)
    try:
        resolve = syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_SYMLINKS
        os.close(syscalls.openat2(directory, b"inside", os.O_RDONLY, resolve=resolve))
        for name, expected in ((b"../inside", errno.EXDEV), (b"link", errno.ELOOP)):
            with pytest.raises(OSError, match="openat2") as caught:
                syscalls.openat2(directory, name, os.O_RDONLY, resolve=resolve)
            assert caught.value.errno == expected
    finally:
        os.close(directory)


def test_clone3_gives_a_child_and_a_handle_on_it() -> None:
    def work() -> tuple[int, int]:
        pid, pidfd = syscalls.clone3(syscalls.CLONE_PIDFD, signal.SIGCHLD)
        if pid == 0:
            signal.pause()
            os._exit(1)
        syscalls.pidfd_send_signal(pidfd, signal.SIGKILL)
        waited = os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
        assert waited is not None
        return waited.si_pid - pid, waited.si_status

    assert forked(work) == (0, signal.SIGKILL)


def test_clone3_and_unshare_make_namespaces() -> None:
    def work() -> tuple[int, int, int]:
        syscalls.unshare(syscalls.CLONE_NEWUSER)
        effective, permitted, _ = syscalls.capget()
        pid, _ = syscalls.clone3(syscalls.CLONE_NEWPID | syscalls.CLONE_NEWUTS, signal.SIGCHLD)
        if pid == 0:
            syscalls.sethostname(b"inside")
            os._exit(os.getpid() if os.uname().nodename == "inside" else 99)
        return effective, permitted, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    effective, permitted, exited = forked(work)
    assert effective == permitted != 0
    assert exited == 1  # pid 1 of its own namespace


def test_the_mount_calls_build_a_tree_and_attach_it(tmp_path: Path) -> None:
    def work() -> tuple[str, int | None]:
        enter_user_namespace(syscalls.CLONE_NEWNS)
        target = os.fsencode(tmp_path)
        syscalls.mount(None, b"/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
        context = syscalls.fsopen(b"tmpfs")
        syscalls.fsconfig(context, syscalls.FSCONFIG_SET_STRING, b"size", b"1m")
        syscalls.fsconfig(context, syscalls.FSCONFIG_CMD_CREATE)
        tree = syscalls.fsmount(context, syscalls.MOUNT_ATTR_NOSUID)
        syscalls.move_mount(tree, target)
        (tmp_path / "here").write_text("made inside")
        clone = syscalls.open_tree(
            syscalls.AT_FDCWD, target, syscalls.OPEN_TREE_CLONE | syscalls.OPEN_TREE_CLOEXEC
        )
        syscalls.mount_setattr(clone, attr_set=syscalls.MOUNT_ATTR_RDONLY)
        os.mkdir(tmp_path / "again")
        syscalls.move_mount(clone, target + b"/again")
        text = (tmp_path / "again" / "here").read_text()
        try:
            (tmp_path / "again" / "more").write_text("x")
        except OSError as error:
            refused = error.errno
        syscalls.umount2(target + b"/again", syscalls.MNT_DETACH)
        return text, refused

    assert forked(work) == ("made inside", errno.EROFS)
    assert list(tmp_path.iterdir()) == []  # the mounts died with the child


def test_close_all_but_leaves_exactly_the_listed_descriptors() -> None:
    def work() -> list[int]:
        spare = [os.open("/dev/null", os.O_RDONLY) for _ in range(20)]
        listing = os.open("/proc/self/fd", os.O_RDONLY)
        keep = (0, 1, 2, spare[3], spare[4], spare[17], listing)
        syscalls.close_all_but(keep)
        # Listing opens a descriptor of its own (a duplicate), which comes and goes.
        left = sorted(int(name) for name in os.listdir(listing))
        extra = [fd for fd in left if fd not in keep]
        return [len(extra), *(fd in left for fd in keep)]

    # The pipe of `forked` itself is closed too: answer through a file instead.
    path = Path(f"/proc/self/fd/{(out := os.memfd_create('answer'))}")
    pid = os.fork()
    if pid == 0:
        os.dup2(out, 2)
        os.write(2, repr(work()).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    answer = path.read_text()
    os.close(out)
    assert answer == repr([1, *[True] * 7])
