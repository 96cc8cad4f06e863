"""From the first instruction after clone3 to the task's code: building one sandbox, inside it.

The forked child of the zygote walks the plan's steps; the table below is the order of the walls
and the only place that knows how each is made. Then it forks: the child is the guest (or the
program), the parent stays as init, pid 1 of the sandbox, holds nothing but the status socket, reaps
and passes SIGTERM on. Everything is dropped before that fork, so init stands behind the same walls.

A step that fails ends the sandbox with a `setup` record: the task's code never ran. After the last
step the guest reads its posture back from the kernel and reports `ready`; that packet and the
closing of the status socket are the last things before the task's code.

Nothing here asks for the parent's death signal: the zygote is the init of the pid namespace above,
and when it dies the kernel kills whatever lives in it.
"""

from __future__ import annotations

import errno
import os
import resource
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NoReturn

import msgspec

from ..protocol.errors import CasemateError, LocalViolation
from . import (
    caps,
    guest,
    landlock,
    mounts,
    namespaces,
    overlay,
    packets,
    posture,
    refusals,
    rlimits,
    seccomp,
    syscalls,
)
from .spec import (
    INPUT_FILE,
    INSIDE_ID,
    OUTBOX,
    WORKSPACE,
    Exited,
    Mode,
    Plan,
    ProcView,
    Ready,
    SetupFailed,
    StatusRecord,
)

__all__ = ["FIRST_NUDGE", "STEPS", "Building", "build_and_tend"]

# The engine's SIGTERM comes to init, the one process it has a pidfd of. It is waited for and not
# handled: the task may signal init as often as it likes, and a handler of Python's runs inside
# itself until the stack is full, or finds the guest gone.
AWAITED = (signal.SIGCHLD, signal.SIGTERM)

# So long after SIGTERM the guest is nudged (see guest.py), then after twice that, and so on: one is
# enough unless the host is so loaded that the guest has not come to its blocking call yet.
FIRST_NUDGE = 0.05

WRITABLE = ("/tmp", "/dev/shm", OUTBOX)


@dataclass(slots=True)
class Building:
    """What the steps share. Descriptors are those the zygote received for this sandbox."""

    plan: Plan
    template: mounts.Template
    program: seccomp.Program
    idmaps: dict[tuple[int, int], int]
    status: int
    stdio: tuple[int, int, int]
    link: int | None
    cgroup_tasks: tuple[int, ...]
    outer: list[str]  # the zygote's namespaces
    trees: dict[str, int] = field(default_factory=dict)
    layers: overlay.Trees | None = None
    outbox: int | None = None
    own: int = -1  # our folder in the host's /proc
    cgroup: bytes = b""  # the text of /proc/self/cgroup
    landlock: bytes = b""  # the ruleset, as the kernel took it
    refused: bool = False  # by Landlock, what it should


def start_session(build: Building) -> None:
    """A process group of our own: kill(0, ...) inside would reach the zygote otherwise, for
    groups, unlike pids, cross namespaces."""
    os.setsid()
    os.umask(0o022)
    # Of the zygote's descriptors what this plan needs: it may keep more of them (user namespaces
    # for other sandboxes) than RLIMIT_NOFILE will let us have, and then none could be opened. Its
    # 0, 1 and 2 hold the places until `stdio`.
    own = (build.status, *build.stdio, *build.cgroup_tasks, *build.idmaps.values())
    template = (build.template.namespace, build.template.root)
    link = () if build.link is None else (build.link,)
    syscalls.close_all_but((0, 1, 2, *own, *template, *link))
    syscalls.prctl(syscalls.PR_SET_NAME, b"casemate-init")


def join_cgroups(build: Building) -> None:
    """cgroup v1. A process that moves itself does not wait for RCU (0.07 ms against 6 to 14)."""
    for fd in build.cgroup_tasks:
        os.write(fd, b"0")


def offer_to_oom_killer(build: Building) -> None:
    namespaces.write("/proc/self/oom_score_adj", "1000")


def clone_trees(build: Building) -> None:
    """Everything that is taken from the host's view of files, while it is in view."""
    plan = build.plan
    for bind in plan.binds:
        idmap = build.idmaps[bind.owner] if bind.owner is not None else None
        build.trees[bind.inside] = mounts.clone_tree(
            bind.host, writable=bind.writable, idmap=idmap, follow=not bind.is_resolved
        )
    layer = plan.layer
    if layer is not None:
        build.layers = overlay.clone(
            layer.base,
            layer.folder,
            base_idmap=build.idmaps[layer.base_owner] if layer.base_owner is not None else None,
            idmap=build.idmaps[layer.owner] if layer.owner is not None else None,
        )
    for folder in build.template.late:
        build.trees[folder] = mounts.clone_tree(folder, writable=False)


def make_proc(build: Building) -> None:
    build.trees["/proc"] = mounts.fresh_proc(only_pids=build.plan.proc is ProcView.PIDS)
    build.own = namespaces.open_self()


def make_scratch(build: Building) -> None:
    plan = build.plan
    build.trees["/casemate"] = mounts.scratch(
        size=plan.tmp_size, inodes=plan.tmp_inodes, owner=plan.host_id
    )


def enter_root(build: Building) -> None:
    # Now, for in a cgroup namespace of our own every folder we are in is called "/".
    build.cgroup = posture.read_text("/proc/self/cgroup")
    syscalls.setns(build.template.namespace, syscalls.CLONE_NEWNS)
    syscalls.unshare(build.plan.unshare_flags)


def attach_mounts(build: Building) -> None:
    trees = build.trees
    scratch = trees.pop("/casemate")
    mounts.attach_scratch(scratch, [os.path.basename(INPUT_FILE)] if INPUT_FILE in trees else [])
    root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    layer = build.plan.layer
    if layer is not None and build.layers is not None:  # first: a bind may lie inside it
        overlay.mount_overlay(
            build.layers,
            lower=layer.lower,
            upper=layer.upper,
            place=os.path.dirname(OUTBOX),
            target=WORKSPACE,
            owner=build.plan.host_id,
        )
    # Shallow paths first: a bind may lie inside another.
    for inside in sorted(trees, key=lambda path: (path.count("/"), path)):
        tree = trees[inside]
        if any(mounts.is_below(inside, own) for own in ("/tmp", "/dev/shm")):
            mounts.make_parents(
                root, inside, folder=mounts.is_folder(tree), owner=build.plan.host_id
            )
        with mounts.place(inside) as target:
            mounts.attach(tree, target)
    os.close(root)
    trees.clear()
    mounts.seal_scratch()
    build.outbox = os.open(OUTBOX, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


def name_host(build: Building) -> None:
    syscalls.sethostname(build.plan.hostname.encode())


def bring_up_loopback(build: Building) -> None:
    namespaces.bring_up_loopback()


def take_identity(build: Building) -> None:
    """The reserved host id. Capabilities stay for the one step that follows: where
    kernel.unprivileged_userns_clone is 0, making a user namespace takes CAP_SYS_ADMIN."""
    if build.plan.host_id is None:
        raise LocalViolation("step `identity` without a reserved id")
    for fd in build.stdio:
        # Else /dev/stdout, which is opened anew, would be a stranger's pipe. Never a file of the
        # host: a pipe with a name has one.
        if os.readlink(f"fd/{fd}", dir_fd=build.own).startswith("pipe:["):
            os.fchown(fd, build.plan.host_id, build.plan.host_id)
    caps.become(build.plan.host_id, build.plan.host_id)
    syscalls.prctl(syscalls.PR_SET_DUMPABLE, 1)


def enter_user(build: Building) -> None:
    namespaces.enter_sandbox_user(INSIDE_ID, build.own)


def connect_stdio(build: Building) -> None:
    for target, fd in enumerate(build.stdio):
        os.dup2(fd, target)


def enter_folder(build: Building) -> None:
    os.chdir(build.plan.cwd)


def set_rlimits(build: Building) -> None:
    rlimits.apply(build.plan.rlimits)


def set_no_new_privs(build: Building) -> None:
    syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)


def drop_capabilities(build: Building) -> None:
    caps.drop()


def restrict_by_landlock(build: Building) -> None:
    plan = build.plan
    wall = landlock.prepare(plan.landlock_abi, deny_tcp=plan.landlock_network)
    ruleset = wall.ruleset()
    wall.allow(ruleset, b"/", wall.rights.read)
    wall.allow(ruleset, b"/dev", wall.rights.devices)
    writable = [*WRITABLE, *(bind.inside for bind in plan.binds if bind.writable)]
    if plan.layer is not None:
        writable.append(WORKSPACE)
    for path in writable:
        wall.allow(ruleset, os.fsencode(path), wall.rights.write)
    wall.restrict_self(ruleset)
    os.close(ruleset)
    build.landlock = wall.attributes
    build.refused = landlock.try_what_is_refused(OUTBOX)


def close_descriptors(build: Building) -> None:
    keep = [0, 1, 2, build.status]
    keep += [fd for fd in (build.link, build.outbox) if fd is not None]
    syscalls.close_all_but(tuple(keep))


def forbid_dumps(build: Building) -> None:
    syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)


def install_filter(build: Building) -> None:
    seccomp.install(build.program)


STEPS: dict[str, Callable[[Building], None]] = {
    "session": start_session,
    "cgroups": join_cgroups,
    "oom_score": offer_to_oom_killer,
    "binds": clone_trees,
    "proc": make_proc,
    "scratch": make_scratch,
    "root": enter_root,
    "mounts": attach_mounts,
    "hostname": name_host,
    "loopback": bring_up_loopback,
    "identity": take_identity,
    "user": enter_user,
    "stdio": connect_stdio,
    "folder": enter_folder,
    "rlimits": set_rlimits,
    "no_new_privs": set_no_new_privs,
    "capabilities": drop_capabilities,
    "landlock": restrict_by_landlock,
    "descriptors": close_descriptors,
    "dumpable": forbid_dumps,
    "seccomp": install_filter,
}


def build_and_tend(build: Building, fail_step: str | None) -> NoReturn:
    """The whole life of a sandbox's init."""
    try:
        failed = run_steps(build, fail_step)
        if failed is None:
            failed = start_guest(build)
        report(build.status, failed)
    finally:
        os._exit(1)


def run_steps(build: Building, fail_step: str | None) -> SetupFailed | None:
    for name in build.plan.steps:
        try:
            if name == fail_step:
                raise OSError(errno.EIO, "a failure that a test asked for")
            STEPS[name](build)
        except Exception as error:  # whatever it is, it is reported and the code does not run
            return failure(name, error)
    return None


def start_guest(build: Building) -> SetupFailed:
    """Fork; the guest never comes back from here, and init only if there was no fork."""
    # Before there is a guest to be ended: a SIGTERM that init neither blocks nor handles is lost,
    # as it is pid 1, and the engine may send one as soon as it hears `ready`.
    signal.pthread_sigmask(signal.SIG_BLOCK, AWAITED)
    try:
        pid = syscalls.fork()
    except OSError as error:
        return failure("fork", error)
    if pid == 0:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, AWAITED)
        try:
            report(build.status, become_guest(build))
        finally:
            os._exit(1)
    tend(pid, build.status, is_guest=build.plan.mode is Mode.GUEST)
    return None


def failure(step: str, error: Exception) -> SetupFailed:
    number = error.errno if isinstance(error, OSError) and error.errno is not None else 0
    kind = "" if isinstance(error, OSError | CasemateError) else f"{type(error).__name__}: "
    return SetupFailed(step=step, errno=number, message=f"{kind}{error}")


def report(status: int, record: StatusRecord, fds: tuple[int, ...] = ()) -> None:
    packet = msgspec.msgpack.encode(record)
    if not fds:
        os.write(status, packet)
        return
    channel = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, fileno=status)
    try:
        packets.send(channel, packet, fds)
    finally:
        channel.detach()


def become_guest(build: Building) -> SetupFailed:
    plan = build.plan
    try:
        syscalls.prctl(syscalls.PR_SET_NAME, b"casemate-guest")
        if plan.mode is Mode.GUEST:
            set_environment(plan.env)
        outbox = () if build.outbox is None else (build.outbox,)
        found = posture.read(build, os.environ if plan.mode is Mode.GUEST else ())
        signature = build.program.signature
        if wrong := posture.missing(plan, found, signature=signature, outer=build.outer):
            return SetupFailed(step="verify", errno=0, message=f"a wall is missing: {wrong}")
        report(build.status, Ready(posture=found), outbox if plan.mode is Mode.GUEST else ())
        if build.outbox is not None:
            os.close(build.outbox)
    except Exception as error:
        return failure("verify", error)
    if plan.mode is Mode.EXEC:
        return execute(plan)
    os.close(build.status)
    if build.link is None:
        return SetupFailed(step="verify", errno=0, message="a guest without a link")
    guest.main(build.link, preload=plan.preload)
    return None


def set_environment(env: dict[str, str]) -> None:
    """The zygote already has the base, so few variables change: each costs a putenv."""
    for name in set(os.environ) - set(env):
        del os.environ[name]
    for name, value in env.items():
        if os.environ.get(name) != value:
            os.environ[name] = value


def execute(plan: Plan) -> SetupFailed:
    """Returns only if the program could not be started."""
    # What the interpreter ignores must not stay ignored in what it starts.
    for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGCHLD, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execvpe(plan.argv[0], plan.argv, plan.env)
    except (OSError, ValueError) as error:
        return failure("exec", error)


def reap(guest_pid: int) -> int | None:
    """Take all who have ended; the guest's wait status, if it is among them."""
    while True:
        pid, code = os.waitpid(-1, os.WNOHANG)
        if pid == guest_pid:
            return code
        if pid == 0:
            return None


def wait_signal(patience: float | None) -> int | None:
    """None: nothing came."""
    if patience is None:
        return signal.sigwait(AWAITED)
    came = signal.sigtimedwait(AWAITED, patience)
    return None if came is None else came.si_signo


def tend(guest_pid: int, status: int, is_guest: bool) -> NoReturn:
    """Reap until the guest ends, say how it did, and take everything else along by exiting."""
    syscalls.close_all_but((status,))
    nudge_after: float | None = None  # from SIGTERM on
    while (code := reap(guest_pid)) is None:
        came = wait_signal(nudge_after)
        if came == signal.SIGTERM:
            os.kill(guest_pid, signal.SIGTERM)
            nudge_after = FIRST_NUDGE if is_guest else None
        elif came is None and nudge_after is not None:
            os.kill(guest_pid, guest.NUDGE)
            nudge_after *= 2
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    record = Exited(
        status=code,
        cpu=used.ru_utime + used.ru_stime,
        memory=used.ru_maxrss * 1024,
        # A guest speaks for itself.
        refused=refusals.met_by_programs() if code and not is_guest else (),
    )
    try:
        report(status, record)
    finally:
        os._exit(0)
