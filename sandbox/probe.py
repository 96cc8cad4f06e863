"""What this host can enforce: for each wall whether it is there, why not, and the exact remedy.

Whether namespaces can be had is not asked but tried: a child process does what the zygote and a
sandbox's init will do, in their order, and says which step failed (`try_walls`). Sysctls are read
only to explain a failure. The trial runs in an interpreter of its own, since the caller may have
threads, which a fork does not survive; a caller that has none may say so, and spare 70 ms.

Layers are tried too (overlay.py), but what a folder can hold is its own file system's affair: the
fact speaks of a folder for temporary files, `overlay_works` of the one that is asked about.
"""

from __future__ import annotations

import errno
import os
import platform
import re
import select
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TypeVar

import msgspec
from msgspec import Struct

from ..protocol.errors import SetupRefused
from . import caps, cgroup, landlock, mounts, namespaces, overlay, syscalls
from .spec import FIRST_RESERVED_ID, SLOTS

__all__ = ["Fact", "Probe", "judge", "overlay_works", "probe", "try_walls"]

OLDEST_KERNEL = (5, 13)  # Landlock; mount_setattr came with 5.12


class Fact(Struct, frozen=True, kw_only=True):
    """`detail`: what is there, or why it is not."""

    name: str
    present: bool
    detail: str
    remedy: str = ""


class Tried(Struct, frozen=True):
    """One step of the trial: errno 0 if it worked."""

    errno: int = 0
    message: str = ""


class Probe(Struct, frozen=True, kw_only=True):
    facts: dict[str, Fact]
    privileged: bool  # root over the host's ids: reserved uids, no user namespace for the zygote
    landlock_abi: int
    kernel: tuple[int, int]
    prefix: str  # the interpreter's, as the guest shall see it
    prefixes: tuple[str, ...]
    cgroup: cgroup.CgroupFacts


class Host(Struct, frozen=True, kw_only=True):
    """What was found out, before it is judged: `judge` is pure, so every host can be pretended."""

    kernel: tuple[int, int]
    euid: int
    reserved_ids: bool  # are the reserved host ids ours to hand out
    tried: dict[str, Tried]
    sysctls: dict[str, str]
    landlock_abi: int
    landlock_errno: int = 0  # why there is none
    seccomp_errno: int = (
        errno.EFAULT
    )  # what a filter at no address is answered; EFAULT: it is there
    unreadable: str | None = None  # a path of the interpreter that a stranger cannot read
    container: Container | None = None
    over_proc: tuple[str, ...] = ()  # what is mounted below /proc


class Container(StrEnum):
    """Who started us, as far as it shows: each has its own words for what it must leave open."""

    DOCKER = "docker"
    PODMAN = "podman"
    KUBERNETES = "kubernetes"
    ANOTHER = "another"


def probe(*, alone: bool = False) -> Probe:
    """Look at this host. Takes an interpreter's start (about 70 ms), or a fork (5 ms) where the
    caller knows to be `alone`: one thread, and no ZeroMQ context."""
    check_proc()
    prefix = sys.prefix
    prefixes = interpreter_folders()
    landlock_abi, landlock_errno = landlock.abi()
    reserved = hands_out_ids()
    host = Host(
        kernel=kernel_version(platform.release()),
        euid=os.geteuid(),
        reserved_ids=reserved,
        tried=(fork_trial if alone else run_trial)(unprivileged=not reserved),
        sysctls=read_sysctls(),
        landlock_abi=landlock_abi,
        landlock_errno=landlock_errno,
        seccomp_errno=seccomp_answer(),
        unreadable=first_unreadable() if reserved else None,
        container=find_container(),
        over_proc=mounted_over_proc(Path("/proc/self/mountinfo").read_text(errors="replace")),
    )
    return judge(host, prefix=prefix, prefixes=prefixes, cgroups=cgroup.probe())


def judge(
    host: Host, *, prefix: str, prefixes: tuple[str, ...], cgroups: cgroup.CgroupFacts
) -> Probe:
    facts = [kernel_fact(host), python_fact(host)]
    facts += [trial_fact(name, host) for name in TRIAL]
    facts += [seccomp_fact(host), landlock_fact(host), ids_fact(host)]
    facts += limit_facts(cgroups)
    return Probe(
        facts={fact.name: fact for fact in facts},
        privileged=host.reserved_ids,
        landlock_abi=host.landlock_abi,
        kernel=host.kernel,
        prefix=prefix,
        prefixes=prefixes,
        cgroup=cgroups,
    )


# --- looking -----------------------------------------------------------------------------------


def kernel_version(release: str) -> tuple[int, int]:
    found = re.match(r"(\d+)\.(\d+)", release)
    if found is None:
        raise SetupRefused(f"kernel release {release!r} is not a version")
    return int(found[1]), int(found[2])


def interpreter_folders() -> tuple[str, ...]:
    """Where the interpreter and its packages lie, under the names it uses and the real ones."""
    names = {sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix}
    executable = Path(sys.executable).resolve().parent.parent
    return tuple(sorted(names | {str(Path(name).resolve()) for name in names} | {str(executable)}))


def hands_out_ids() -> bool:
    """Are we root over the reserved ids?"""
    return os.geteuid() == 0 and has_reserved_ids(Path("/proc/self/uid_map").read_text())


def has_reserved_ids(uid_map: str) -> bool:
    for line in uid_map.splitlines():
        inside, _outside, count = (int(word) for word in line.split())
        if inside <= FIRST_RESERVED_ID and inside + count >= FIRST_RESERVED_ID + SLOTS:
            return True
    return False


SYSCTLS = (
    "user/max_user_namespaces",
    "kernel/unprivileged_userns_clone",
    "kernel/apparmor_restrict_unprivileged_userns",
)


def read_sysctls() -> dict[str, str]:
    values = {}
    for name in SYSCTLS:
        try:
            values[name] = Path("/proc/sys", name).read_text().strip()
        except OSError:
            continue  # not every kernel has every one
    return values


def check_proc(proc: Path = Path("/proc")) -> None:
    """Without the whole of it nothing here can be found out, nor be built."""
    if not (proc / "self/status").exists():
        raise SetupRefused("/proc is not mounted. Remedy: mount -t proc proc /proc")
    if not (proc / "sys/kernel").exists():
        raise SetupRefused(
            "/proc shows processes and nothing of the kernel, as inside another sandbox "
            "(subset=pid, or /proc/sys is covered). Remedy: start casemate outside of it, or let "
            "it have the whole of /proc"
        )


def seccomp_answer() -> int:
    """A filter at no address reaches the kernel's filter code, if there is one: EFAULT."""
    try:
        syscalls.seccomp(syscalls.SECCOMP_SET_MODE_FILTER, 0, None)
    except OSError as error:
        return error.errno or errno.EIO
    return 0


def find_container(root: Path = Path("/")) -> Container | None:
    """By the marks that each leaves; by systemd's where it is init inside."""
    if (root / "run/.containerenv").exists():
        return Container.PODMAN
    if (root / "run/secrets/kubernetes.io").exists():
        return Container.KUBERNETES
    if (root / ".dockerenv").exists():
        return Container.DOCKER
    try:
        name = (root / "run/systemd/container").read_text().strip()
    except OSError:
        return None
    return Container(name) if name in set(Container) else Container.ANOTHER


def mounted_over_proc(mountinfo: str) -> tuple[str, ...]:
    """What hides parts of /proc, of which no user namespace is then given a whole one."""
    points = (line.split(" ")[4] for line in mountinfo.splitlines() if line.count(" ") > 4)
    return tuple(sorted({point for point in points if point.startswith("/proc/")}))


def first_unreadable() -> str | None:
    """Under root a sandbox runs as a stranger: the interpreter must be readable to everyone."""
    standard = Path(os.__file__).resolve()
    for path, needed in (
        (Path(sys.executable).resolve(), stat.S_IROTH | stat.S_IXOTH),
        (Path(sys.prefix), stat.S_IROTH | stat.S_IXOTH),
        (standard.parent, stat.S_IROTH | stat.S_IXOTH),
        (standard, stat.S_IROTH),
    ):
        if path.stat().st_mode & needed != needed:
            return str(path)
    return None


# --- trying ------------------------------------------------------------------------------------

T = TypeVar("T")

TRIAL_TIMEOUT = 30.0  # it does a dozen system calls; this is for a host that hangs

TRIAL_PROGRAM = (
    "import sys; sys.path[:] = sys.argv[3:]; "
    "from casemate.sandbox import probe; getattr(probe, sys.argv[1])(sys.argv[2])"
)


def run_alone(function: str, argument: str) -> bytes:
    """What a function of this module prints in an interpreter of its own."""
    path = [os.path.abspath(folder) for folder in sys.path]
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", TRIAL_PROGRAM, function, argument, *path],
        env={"LANG": "C.UTF-8"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=TRIAL_TIMEOUT,
        check=False,
    )
    if done.returncode != 0:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise SetupRefused(
            f"the trial of this host's walls ended with {done.returncode}: {' '.join(last)}"
        )
    return done.stdout


def run_trial(*, unprivileged: bool) -> dict[str, Tried]:
    printed = run_alone("print_trial", "unprivileged" if unprivileged else "privileged")
    return msgspec.json.decode(printed, type=dict[str, Tried])


def overlay_works(folder: Path, base: Path | None = None, *, alone: bool = False) -> str | None:
    """Can layers be kept in `folder`, over `base` if it is named? None: yes; else why not. A real
    one is mounted in a folder of its own there, and used, by an interpreter of its own (about
    90 ms), or by a fork where the caller knows to be `alone`. Blocks; leaves nothing behind."""
    try:
        trial = tempfile.mkdtemp(prefix=".casemate-trial-", dir=folder)
    except OSError as error:
        return str(error)
    asked = OverlayTrial(trial, None if base is None else os.path.realpath(base), hands_out_ids())
    try:
        if alone:
            tried = in_child(lambda: tried_overlay(asked), Tried)
        else:
            printed = run_alone("print_overlay_trial", msgspec.json.encode(asked).decode())
            tried = msgspec.json.decode(printed, type=Tried)
    except (SetupRefused, subprocess.TimeoutExpired) as error:
        return str(error)
    finally:
        overlay.remove_trial(trial)
    return tried.message if tried.errno else None


def fork_trial(*, unprivileged: bool) -> dict[str, Tried]:
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(writer, msgspec.json.encode(try_walls(unprivileged=unprivileged)))
        finally:
            os._exit(0)
    os.close(writer)
    # One write below PIPE_BUF, so one read.
    is_told = bool(select.select([reader], [], [], TRIAL_TIMEOUT)[0])
    answer = os.read(reader, select.PIPE_BUF) if is_told else b""
    os.close(reader)
    if not is_told:
        os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    if not answer:
        raise SetupRefused("the trial of this host's walls did not come to an end")
    return msgspec.json.decode(answer, type=dict[str, Tried])


def print_trial(mode: str) -> None:
    results = try_walls(unprivileged=mode == "unprivileged")
    sys.stdout.buffer.write(msgspec.json.encode(results))


class OverlayTrial(Struct, frozen=True):
    folder: str
    base: str | None
    privileged: bool


def print_overlay_trial(asked: str) -> None:
    trial = msgspec.json.decode(asked, type=OverlayTrial)
    sys.stdout.buffer.write(msgspec.json.encode(tried_overlay(trial)))


def tried_overlay(trial: OverlayTrial) -> Tried:
    """Changes this process for good."""
    try:
        overlay.try_overlay(trial.folder, trial.base, privileged=trial.privileged)
    except OSError as error:
        where = f": {error.filename}" if error.filename is not None else ""
        return Tried(error.errno or errno.EIO, f"{error.strerror or error}{where}")
    return Tried()


def try_overlay_apart(*, unprivileged: bool) -> Tried:
    """In a child, and in a folder for temporary files: one that survives a boot if there is one,
    for a tmpfs holds layers only since Linux 6.6."""
    folder = "/var/tmp" if os.access("/var/tmp", os.W_OK) else None
    try:
        trial = OverlayTrial(
            tempfile.mkdtemp(prefix=".casemate-trial-", dir=folder), None, not unprivileged
        )
    except OSError as error:
        return Tried(error.errno or errno.EIO, str(error))
    try:
        return in_child(lambda: tried_overlay(trial), Tried)
    finally:
        overlay.remove_trial(trial.folder)


def in_child(work: Callable[[], T], kind: type[T]) -> T:
    """What it comes to in a forked child, which it may change for good."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(writer, msgspec.json.encode(work()))
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as pipe:  # noqa: PTH123 - a descriptor
        answer = pipe.read()
    os.waitpid(pid, 0)
    return msgspec.json.decode(answer, type=kind)


def try_walls(*, unprivileged: bool) -> dict[str, Tried]:
    """What the zygote does, then, in a child as pid 1, what a sandbox's init does. Changes this
    process for good."""
    results = {"overlay": try_overlay_apart(unprivileged=unprivileged)}

    def attempt(name: str, step: Callable[[], object]) -> bool:
        try:
            step()
        except OSError as error:
            results[name] = Tried(error.errno or errno.EIO, str(error))
        else:
            results[name] = Tried()
        return not results[name].errno

    def clone() -> None:
        pid, _ = syscalls.clone3(0, signal.SIGCHLD)
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)

    def child() -> dict[str, Tried]:
        # A filter around us may leave unshare and not this, by which sandboxes are made.
        attempt("pid", clone)
        for name, flag in FLAGS.items():
            attempt(name, partial(syscalls.unshare, flag))
        attempt("proc", lambda: os.close(mounts.fresh_proc(only_pids=True)))
        if not unprivileged:
            caps.become(FIRST_RESERVED_ID, FIRST_RESERVED_ID)
        attempt("user", lambda: syscalls.unshare(syscalls.CLONE_NEWUSER))
        return results

    if unprivileged and not attempt("user", namespaces.enter_zygote_user):
        return results
    if not attempt("pid", lambda: syscalls.unshare(syscalls.CLONE_NEWPID)):
        return results
    if not attempt("mount", lambda: syscalls.unshare(syscalls.CLONE_NEWNS)):
        return results
    return in_child(child, dict[str, Tried])


FLAGS = {
    "net": syscalls.CLONE_NEWNET,
    "ipc": syscalls.CLONE_NEWIPC,
    "uts": syscalls.CLONE_NEWUTS,
    "cgroup": syscalls.CLONE_NEWCGROUP,
}

# In the order of trying, with what stands when it worked.
TRIAL = {
    "user": "user namespaces can be made",
    "pid": "own namespace",
    "mount": "own namespace, private root",
    "net": "own namespace",
    "ipc": "own namespace",
    "uts": "own namespace",
    "cgroup": "own namespace",
    "proc": "fresh, hidepid, subset=pid",
    "overlay": "layers can be mounted and written to",
}


# --- judging -----------------------------------------------------------------------------------


def kernel_fact(host: Host) -> Fact:
    version = ".".join(map(str, host.kernel))
    return Fact(
        name="kernel",
        present=host.kernel >= OLDEST_KERNEL,
        detail=f"Linux {version} on {syscalls.ARCH.name}",
        remedy="Linux 5.13 or newer is needed.",
    )


def python_fact(host: Host) -> Fact:
    if host.unreadable is None:
        return Fact(name="python", present=True, detail="readable by sandboxes")
    return Fact(
        name="python",
        present=False,
        detail=f"{host.unreadable} is not readable by everyone, and sandboxes of root run as "
        "nobody in particular",
        remedy=f"chmod -R o+rX on the interpreter's folder, that is on {host.unreadable}.",
    )


def trial_fact(name: str, host: Host) -> Fact:
    tried = host.tried.get(name)
    if tried is None:
        first = next((n for n in TRIAL if host.tried.get(n, Tried()).errno), "user")
        return Fact(
            name=name,
            present=False,
            detail=f"not tried, because the {first} wall failed before it",
            remedy=trial_fact(first, host).remedy if first != name else "",
        )
    if not tried.errno:
        return Fact(name=name, present=True, detail=TRIAL[name])
    return Fact(name=name, present=False, detail=tried.message, remedy=remedy(name, host))


def remedy(name: str, host: Host) -> str:
    """What to do about a step of the trial that failed."""
    sysctl = host.sysctls
    if name == "overlay":
        return (
            "Workspaces are copied instead of layered. For layers: overlayfs (modprobe overlay), "
            f"Linux {'5.19' if host.reserved_ids else '5.13'} or newer, and a state directory on "
            "ext4, xfs or btrfs (in a container: on a volume)."
        )
    number = host.tried[name].errno
    if number == errno.ENOSPC or sysctl.get("user/max_user_namespaces") == "0":
        return f"sysctl -w user.max_{COUNTED.get(name, name)}_namespaces=10000"
    if number == errno.EINVAL and name in CONFIGURED:
        return f"A kernel with {CONFIGURED[name]} is needed."
    if host.container is not None:
        return CONTAINER_REMEDIES[host.container]
    if host.euid != 0:
        if sysctl.get("kernel/unprivileged_userns_clone") == "0":
            return "sysctl -w kernel.unprivileged_userns_clone=1, or run as root."
        if sysctl.get("kernel/apparmor_restrict_unprivileged_userns") == "1":
            return (
                "Ubuntu's AppArmor keeps user namespaces from unconfined programs: add a profile "
                f"with `userns,` for {os.path.realpath(sys.executable)}, or sysctl -w "
                "kernel.apparmor_restrict_unprivileged_userns=0, or run as root."
            )
        if name == "proc":
            what = f" ({', '.join(host.over_proc)})" if host.over_proc else ""
            return f"Something is mounted over parts of /proc{what}: unmount it, or run as root."
    if name == "user":
        return "A kernel with CONFIG_USER_NS is needed."
    if number == errno.ENOSYS:
        return "Linux 5.13 or newer is needed, and no filter of system calls that is older."
    return (
        f"A kernel with namespaces ({name}) and the right to make them are needed: something "
        "around casemate may refuse it (a filter of system calls, a security module)."
    )


# A kernel without answers EINVAL.
CONFIGURED = {
    "user": "CONFIG_USER_NS",
    "pid": "CONFIG_PID_NS",
    "net": "CONFIG_NET_NS",
    "ipc": "CONFIG_IPC_NS",
    "uts": "CONFIG_UTS_NS",
    "cgroup": "CONFIG_CGROUPS",
}
# As user.max_*_namespaces calls them.
COUNTED = {"mount": "mnt", "proc": "user", "overlay": "user"}


# Who is started so may do what a sandbox is made of; what the container keeps of its own walls is
# then the operator's to weigh. Root, who makes no user namespace first, needs CAP_SYS_ADMIN.
CONTAINER_REMEDIES = {
    Container.DOCKER: "In Docker: start the container with --security-opt seccomp=unconfined "
    "--security-opt apparmor=unconfined --security-opt systempaths=unconfined (as root with "
    "--cap-add SYS_ADMIN as well).",
    Container.PODMAN: "In Podman: start the container with --security-opt seccomp=unconfined "
    "--security-opt unmask=ALL --security-opt label=disable (as root with --cap-add SYS_ADMIN as "
    "well).",
    Container.KUBERNETES: "In Kubernetes: give the container securityContext seccompProfile: "
    "{type: Unconfined}, appArmorProfile: {type: Unconfined}, procMount: Unmasked (as root "
    "capabilities: {add: [SYS_ADMIN]} as well).",
    Container.ANOTHER: "In a container: start it without its filter of system calls, without its "
    "security module's profile, and with the whole of /proc.",
}


def seccomp_fact(host: Host) -> Fact:
    answer = host.seccomp_errno
    if answer == errno.EFAULT:
        return Fact(name="seccomp", present=True, detail="filters can be installed")
    if answer in (errno.ENOSYS, errno.EINVAL):
        return Fact(
            name="seccomp",
            present=False,
            detail="this kernel has no seccomp filters",
            remedy="A kernel with CONFIG_SECCOMP_FILTER is needed.",
        )
    return refused_around_us("seccomp", answer, host)


def landlock_fact(host: Host) -> Fact:
    if host.landlock_abi:
        lacking = landlock.lacking(host.landlock_abi)
        without = f", which cannot refuse {'; '.join(lacking)}" if lacking else ""
        return Fact(name="landlock", present=True, detail=f"ABI {host.landlock_abi}{without}")
    if host.landlock_errno == errno.ENOSYS:
        return Fact(
            name="landlock",
            present=False,
            detail="this kernel has no Landlock",
            remedy="Linux 5.13 or newer with CONFIG_SECURITY_LANDLOCK is needed (in a container: "
            "or a filter of system calls that knows it).",
        )
    if host.landlock_errno == errno.EOPNOTSUPP:
        return Fact(
            name="landlock",
            present=False,
            detail="built in, and not switched on",
            remedy="Boot with lsm=landlock,... before the list in /sys/kernel/security/lsm.",
        )
    return refused_around_us("landlock", host.landlock_errno, host)


def refused_around_us(name: str, answer: int, host: Host) -> Fact:
    """Neither the kernel nor its configuration answers so."""
    word = errno.errorcode.get(answer, str(answer))
    return Fact(
        name=name,
        present=False,
        detail=f"its system call is refused ({word}), by a filter that casemate was started behind",
        remedy=CONTAINER_REMEDIES[host.container]
        if host.container is not None
        else "Start casemate outside of that sandbox.",
    )


def ids_fact(host: Host) -> Fact:
    """For the eye only: without them sandboxes share our own uid, behind their namespaces."""
    why = "not root" if host.euid else "root of a container that does not map them"
    return Fact(
        name="reserved ids",
        present=host.reserved_ids,
        detail=f"{FIRST_RESERVED_ID} and up"
        if host.reserved_ids
        else f"{why}: our own uid is used",
        remedy="" if host.reserved_ids else "Run as root for a host uid for each sandbox.",
    )


# What waits in sockets looks like nobody's from outside, and a sandbox's files cannot be read.
_WITHOUT_CGROUP = {
    "memory": "sampled: rlimits and polling, blind to what waits in sockets and pipes",
    "pids": "sampled: rlimits and polling",
    "cpu": "not held at all",
}


def limit_facts(cgroups: cgroup.CgroupFacts) -> list[Fact]:
    """What holds each limit; the first that none of the cgroups holds carries the reasons."""
    facts = []
    reasons = "; ".join(cgroups.problems)
    for name in cgroup.LIMITING:
        if name in cgroups.controllers:
            facts.append(
                Fact(name=f"{name} limit", present=True, detail=f"cgroup ({cgroups.hierarchy})")
            )
            continue
        held = _WITHOUT_CGROUP[name]
        facts.append(
            Fact(
                name=f"{name} limit",
                present=False,
                detail=f"{held} ({reasons})" if reasons else held,
                remedy=cgroups.remedy,
            )
        )
        reasons = ""
    return facts
