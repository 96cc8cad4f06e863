"""The zygote: a clean process that turns plans into sandboxes by forking.

    engine ── launcher ── zygote ── sandbox (init ── guest)

The engine execs the *launcher* with a scrubbed environment, /dev/null for stdio and one socket at
descriptor 3. It makes the zygote's namespaces (namespaces.py) and forks: the child is the *zygote*,
pid 1 of its own pid namespace, so that its death, whatever the cause, takes every sandbox along.
The launcher only waits, since the kernel's parent-death signal needs a parent: engine dies →
launcher is killed → zygote is killed. The end of the engine's socket says the same a second way.

The zygote has one thread and no secrets, and waits for one thing: the engine's next request. It
never waits for a sandbox: what can block (paths of the host, cgroups, mounts) happens in the
child. It has the kernel reap (SIGCHLD ignored). After each spawn it closes all it was sent.

Started as `python -I -S -c` with process.BOOTSTRAP; the engine's first packet is the module path
(not an argument: /proc/self/cmdline shows through to the guest), the second a `ZygoteConfig`.
"""

from __future__ import annotations

import gc
import importlib
import os
import select
import signal
import site
import socket
import sys
from dataclasses import dataclass, field
from typing import NoReturn

import msgspec

from ..protocol.errors import LocalViolation
from . import mounts, namespaces, packets, posture, seccomp, syscalls
from .init import Building, build_and_tend
from .spec import (
    ENGINE_FD,
    REQUEST_SIZE,
    WORKSPACE,
    FdRole,
    Plan,
    SpawnReply,
    SpawnRequest,
    ZygoteConfig,
    ZygoteHello,
    base_environment,
)

__all__ = ["main"]

# status, three for stdio, link, one cgroup of v2 or about six of v1; the kernel's own limit is 253.
MAX_FDS = 32

# User namespaces kept for idmapped mounts. One is a descriptor (of 1024, usually) and a few KiB of
# the kernel's; making one takes 1 ms. An engine reuses its slots, so few are ever needed at once.
IDMAPS = 256


def main() -> None:
    engine = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, fileno=ENGINE_FD)
    config = msgspec.msgpack.decode(engine.recv(REQUEST_SIZE), type=ZygoteConfig)
    engine_pid = os.getppid()
    step = "user"
    try:
        if config.unprivileged:
            namespaces.enter_zygote_user()
        step = "pid and mount namespaces"
        syscalls.unshare(syscalls.CLONE_NEWPID | syscalls.CLONE_NEWNS)
        # What the host mounts later shows up here; what is mounted here stays here.
        syscalls.mount(None, b"/", None, syscalls.MS_REC | syscalls.MS_SLAVE)
    except OSError as error:
        refuse(engine, step, error)
    # After the user namespace: a change of credentials clears it.
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != engine_pid:
        os._exit(1)
    launcher_lives, launcher_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
        os.close(launcher_end)
        if select.select([launcher_lives], [], [], 0)[0]:
            os._exit(1)  # it died before we could ask to be told
        os.close(launcher_lives)
        serve(engine, config)
    engine.close()  # else the engine would not see the zygote's end of it close
    os.close(launcher_lives)
    os.waitpid(pid, 0)
    os._exit(0)


def refuse(engine: socket.socket, step: str, error: Exception) -> NoReturn:
    number = (error.errno or 0) if isinstance(error, OSError) else 0
    engine.send(msgspec.msgpack.encode(ZygoteHello(error=str(error), step=step, errno=number)))
    os._exit(1)


@dataclass(slots=True)
class Workshop:
    """What is made once and used for every sandbox."""

    template: mounts.Template
    programs: dict[tuple[bool, bool], seccomp.Program]  # by special_modes, unowned_memory
    namespaces: list[str]  # our own, which a sandbox shall not be in
    # (owner, host id) → user namespace, in order of last use.
    idmaps: dict[tuple[tuple[int, int], int], int] = field(default_factory=dict)

    def idmaps_for(self, plan: Plan) -> dict[tuple[int, int], int]:
        """The user namespaces this plan's binds and layers need, by owner."""
        found: dict[tuple[int, int], int] = {}
        owners = [bind.owner for bind in plan.binds]
        if plan.layer is not None:
            owners += [plan.layer.base_owner, plan.layer.owner]
        for owner in owners:
            if owner is None or plan.host_id is None:
                continue
            key = (owner, plan.host_id)
            fd = self.idmaps.pop(key, None)
            if fd is None:
                fd = namespaces.make_idmap(owner, plan.host_id)
            self.idmaps[key] = found[owner] = fd
        while len(self.idmaps) > max(IDMAPS, len(found)):
            os.close(self.idmaps.pop(next(iter(self.idmaps))))
        return found


def serve(engine: socket.socket, config: ZygoteConfig) -> NoReturn:
    """The zygote proper: prepare, say hello, then one request after the other."""
    step = "preload"
    try:
        prepare_interpreter(config)
        for name in config.preload:
            importlib.import_module(name)
        step = "template"
        template = mounts.make_template((*config.prefixes, *package_folders()))
        workshop = Workshop(
            template,
            {
                (modes, memory): seccomp.build(
                    syscalls.ARCH, special_modes=modes, unowned_memory=memory
                )
                for modes in (True, False)
                for memory in (True, False)
            },
            posture.namespaces(),
        )
    except Exception as error:  # whatever it is, the engine must hear of it
        refuse(engine, step, error)
    # Nothing of what is loaded shall be collected, nor its pages be touched by a collector, in
    # any child: each touched page is a copied one.
    gc.disable()
    gc.collect()
    gc.freeze()
    engine.send(msgspec.msgpack.encode(ZygoteHello()))
    while True:
        packet, fds, is_whole = packets.receive(engine, REQUEST_SIZE, MAX_FDS)
        if not packet:
            os._exit(0)  # the engine is gone; so are, with us, all sandboxes
        try:
            answer(engine, packet, fds, is_whole, workshop)
        finally:
            for fd in fds:
                os.close(fd)


def prepare_interpreter(config: ZygoteConfig) -> None:
    # What site.py would have done, for code that expects exit() and sys.prefix of its virtualenv.
    # Not site.main(): it runs lines of .pth files.
    site.setquit()
    site.setcopyright()
    site.sethelper()
    sys.prefix = sys.exec_prefix = config.prefix
    # pid 1 is immune to every signal without a handler; Python's for SIGINT would be one.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    os.environ.update(base_environment(config.prefix))
    os.chdir("/")


def package_folders() -> set[str]:
    """Where casemate's own modules really lie, whichever way it was installed: an editable install
    is a tree of links."""
    folders: set[str] = set()
    pending = [os.path.abspath(path) for path in sys.modules["casemate"].__path__]
    while pending:
        folder = pending.pop()
        folders |= {folder, os.path.realpath(folder)}
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir() and entry.name != "__pycache__":
                    pending.append(entry.path)
                elif entry.name.endswith(".py"):
                    folders.add(os.path.dirname(os.path.realpath(entry.path)))
    return folders


def answer(
    engine: socket.socket, packet: bytes, fds: list[int], is_whole: bool, workshop: Workshop
) -> None:
    request = msgspec.msgpack.decode(packet, type=SpawnRequest)
    if not is_whole or len(fds) != len(request.fds):
        raise LocalViolation(
            f"request {request.id}: {len(fds)} descriptors came, {len(request.fds)} were named"
        )
    try:
        pidfd = spawn(request, fds, workshop)
    except OSError as error:
        reply = SpawnReply(id=request.id, error=str(error), errno=error.errno or 0)
        engine.send(msgspec.msgpack.encode(reply))
        return
    packets.send(engine, msgspec.msgpack.encode(SpawnReply(id=request.id)), [pidfd])
    os.close(pidfd)


def make_mount_points(plan: Plan, template: mounts.Template) -> None:
    """For binds at paths of their own; those inside another bind must find theirs there."""
    own = (*mounts.SCRATCH, WORKSPACE) if plan.layer is not None else mounts.SCRATCH
    for bind in plan.binds:
        outer = (*own, *(b.inside for b in plan.binds if b.inside != bind.inside))
        if not any(mounts.is_below(bind.inside, folder) for folder in outer):
            mounts.ensure_mount_point(template, bind.inside, folder=not bind.host_is_file)


def spawn(request: SpawnRequest, fds: list[int], workshop: Workshop) -> int:
    """Fork the sandbox's init; its pidfd."""
    plan = request.plan
    by_role: dict[FdRole, list[int]] = {role: [] for role in FdRole}
    for role, fd in zip(request.fds, fds, strict=True):
        by_role[role].append(fd)
    links, folders = by_role[FdRole.LINK], by_role[FdRole.CGROUP_DIR]
    build = Building(
        plan=plan,
        template=workshop.template,
        program=workshop.programs[plan.special_modes, plan.unowned_memory],
        idmaps=workshop.idmaps_for(plan),
        status=by_role[FdRole.STATUS][0],
        stdio=(
            by_role[FdRole.STDIN][0],
            by_role[FdRole.STDOUT][0],
            by_role[FdRole.STDERR][0],
        ),
        link=links[0] if links else None,
        cgroup_tasks=tuple(by_role[FdRole.CGROUP_TASKS]),
        outer=workshop.namespaces,
    )
    make_mount_points(plan, workshop.template)
    pid, pidfd = syscalls.clone3(
        plan.clone_flags | syscalls.CLONE_PIDFD,
        signal.SIGCHLD,
        folders[0] if folders else None,
    )
    if pid == 0:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        build_and_tend(build, request.fail_step)
    return pidfd
