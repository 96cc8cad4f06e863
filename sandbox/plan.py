"""From what is asked and what the host gives, to what will be done: pure, or a refusal.

A plan is an ordered list of step names (init.py holds how each is done) and the numbers they need.
The order is the order of the walls, and it is load-bearing:

    what needs the host's view of files  binds, proc, scratch
    what needs power over namespaces     root, mounts, hostname, loopback
    giving up identity                   identity, then the user namespace, last of all namespaces
    giving up everything else            rlimits, no_new_privs, capabilities, Landlock (after which
                                         nothing can be mounted), descriptors, seccomp

A wall the host cannot give is a refusal that names it and the remedy, unless the operator named it
in `degrade`; a wall it can give is built even then. `Plan.walls` says what stands, and goes into
`task.started` and every report.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msgspec import Struct

from ..protocol.errors import SetupRefused, UsageError
from ..protocol.pipeline import Network
from . import landlock, rlimits, syscalls
from .cgroup import Backing
from .mounts import is_below
from .overlay import UPPER, WORK
from .probe import Probe
from .spec import (
    DEGRADABLE,
    FIRST_RESERVED_ID,
    INPUT_FILE,
    OWN_NETWORK,
    SLOTS,
    SOURCES,
    WORKSPACE,
    Bind,
    LayerSpec,
    Mode,
    Plan,
    PlannedBind,
    PlannedLayer,
    ProcView,
    SandboxSpec,
    base_environment,
)

__all__ = [
    "RESOLVER",
    "PathFact",
    "binds_of",
    "check_host",
    "look_at",
    "make_plan",
    "reserved_place",
]

RESOLVER = "/etc/resolv.conf"

# What may not be covered: the sandbox's own machinery.
RESERVED_INSIDE = ("/proc", "/dev", "/casemate")
SHARED_MEMORY = "/dev/shm"

# A file of a tmpfs costs the kernel about this much beside its pages, so an inode for each page
# that the size allows is what an honest tree of small files can use.
BYTES_PER_INODE = 4096
LEAST_INODES = 1024

# Overlayfs reads its layers from one page of options, where each takes a number and a colon, and
# walks them all to find that a name is not there. The supervisor flattens long before this.
MOST_LAYERS = 200
LAYER_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,199}")

# Before it an overlay does not look through mapped owners, which under root every layer has.
MAPPED_LAYERS_KERNEL = (5, 19)


class PathFact(Struct, frozen=True):
    """What is at a host path that a spec names."""

    exists: bool
    is_file: bool = False
    owner: tuple[int, int] = (0, 0)
    is_public: bool = False  # everyone may read it
    is_open: bool = False  # a folder that everyone may enter


def look_at(spec: SandboxSpec) -> dict[str, PathFact]:
    """The one part that looks: at every host path of the spec."""
    paths = [bind.host for bind in binds_of(spec)]
    if spec.layer is not None:
        paths += paths_of(spec.layer)
    return {path: look(path) for path in paths}


def look(path: str) -> PathFact:
    try:
        status = Path(path).stat()
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return PathFact(exists=False)
    is_folder = stat.S_ISDIR(status.st_mode)
    return PathFact(
        exists=True,
        is_file=not is_folder,
        owner=(status.st_uid, status.st_gid),
        is_public=bool(status.st_mode & stat.S_IROTH),
        is_open=is_folder and bool(status.st_mode & stat.S_IXOTH),
    )


def paths_of(layer: LayerSpec) -> list[str]:
    """What must be there; before each upper folder those that lead to it."""
    own = os.path.join(layer.folder, layer.upper)
    return [
        layer.base,
        layer.folder,
        own,
        os.path.join(own, UPPER),
        os.path.join(own, WORK),
        *(os.path.join(layer.folder, name, UPPER) for name in layer.lower),
    ]


def binds_of(spec: SandboxSpec) -> tuple[Bind, ...]:
    """Everything of the host that a spec shows, in the order of mounting."""
    own = (
        (spec.workspace, WORKSPACE, spec.workspace_writable),
        (spec.sources, SOURCES, False),
        (spec.input_file, INPUT_FILE, False),
        (RESOLVER if spec.network is Network.HOST else None, RESOLVER, False),
    )
    named = tuple(Bind(host, inside, rw) for host, inside, rw in own if host is not None)
    return named + spec.binds


def make_plan(
    spec: SandboxSpec,
    probe: Probe,
    paths: Mapping[str, PathFact],
    backing: Mapping[str, Backing],
) -> Plan:
    """`backing`: what holds each limit, as the cgroup manager says."""
    check(spec)
    walls = Walls(spec, probe)
    clone_flags = syscalls.CLONE_NEWPID
    unshare_flags = syscalls.CLONE_NEWNS
    check_host(probe)
    walls.in_force["pid"] = "own namespace"
    walls.in_force["mount"] = "own namespace, read-only root"
    walls.in_force["proc"] = (
        "own, hidepid, subset=pid" if spec.proc is ProcView.PIDS else "own, hidepid, read-only"
    )
    for name, flag in (("ipc", syscalls.CLONE_NEWIPC), ("uts", syscalls.CLONE_NEWUTS)):
        if walls.has(name):
            clone_flags |= flag
            walls.in_force[name] = "own namespace"
    if walls.has("cgroup"):
        unshare_flags |= syscalls.CLONE_NEWCGROUP
        walls.in_force["cgroup"] = "own namespace"

    has_loopback = deny_tcp = False
    if spec.network is Network.HOST:
        walls.in_force["net"] = "host"
    elif walls.has("net"):
        clone_flags |= syscalls.CLONE_NEWNET
        has_loopback = True
        walls.in_force["net"] = OWN_NETWORK
    elif probe.landlock_abi >= 4:
        deny_tcp = True
        walls.in_force["net"] = "shared, TCP refused by Landlock"

    host_id = FIRST_RESERVED_ID + spec.slot if probe.privileged else None
    # Without a reserved id, the user namespace is also what the others are made from.
    has_user = not probe.privileged or walls.has("user")
    if has_user:
        outside = "our own uid" if host_id is None else f"reserved uid {host_id}"
        walls.in_force["user"] = f"own namespace, {outside} outside"
    elif host_id is not None:
        walls.in_force["user"] = f"reserved uid {host_id}"
    has_landlock = walls.has("landlock")
    if has_landlock:
        lacking = landlock.lacking(probe.landlock_abi)
        without = f", without: {'; '.join(lacking)}" if lacking else ""
        walls.in_force["landlock"] = f"ABI {probe.landlock_abi}{without}"
    has_seccomp = walls.has("seccomp")
    special_modes = not any(bind.writable for bind in spec.binds)
    sampled = frozenset(name for name, kind in backing.items() if kind is not Backing.CGROUP)
    unowned_memory = "memory" not in sampled
    if has_seccomp:
        without = "" if special_modes else ", no setuid bits"
        without += "" if unowned_memory else ", no memory that no process maps"
        walls.in_force["seccomp"] = f"allow-list{without}"
    walls.in_force["capabilities"] = "none"
    walls.in_force["no_new_privs"] = "set"

    if "cgroup" in spec.strict and sampled:
        raise SetupRefused(
            f"strict: [cgroup]: no cgroup holds the limits on {', '.join(sorted(sampled))}: "
            f"{'; '.join(probe.cgroup.problems)}. Remedy: {probe.cgroup.remedy}"
        )

    layer = plan_layer(spec.layer, probe, paths) if spec.layer is not None else None
    if spec.layer is not None:
        count = len(spec.layer.lower)
        below = f"{count} layer{'' if count == 1 else 's'} over " if count else ""
        walls.in_force["workspace"] = f"overlay, {below}a read-only base"
    elif spec.workspace is not None:
        held = "writable" if spec.workspace_writable else "read-only"
        walls.in_force["workspace"] = f"folder, {held}"

    optional = {
        "hostname": bool(clone_flags & syscalls.CLONE_NEWUTS),  # else it would be the host's
        "loopback": has_loopback,
        "identity": host_id is not None,
        "user": has_user,
        "landlock": has_landlock,
        "seccomp": has_seccomp,
    }
    return Plan(
        steps=tuple(name for name in ORDER if optional.get(name, True)),
        clone_flags=clone_flags,
        unshare_flags=unshare_flags,
        walls={
            **walls.in_force,
            "limits": {name: str(kind) for name, kind in sorted(backing.items())},
            "degraded": sorted(walls.missing),
        },
        mode=spec.mode,
        argv=spec.argv,
        env={**base_environment(probe.prefix), **spec.env},
        cwd=spec.cwd or ("/tmp" if spec.workspace is None and layer is None else WORKSPACE),
        binds=plan_binds(spec, probe, paths),
        layer=layer,
        hostname=spec.hostname,
        proc=spec.proc,
        host_id=host_id,
        tmp_size=spec.limits.tmp,
        tmp_inodes=max(LEAST_INODES, spec.limits.tmp // BYTES_PER_INODE),
        rlimits=rlimits.table(spec.limits, sampled=sampled),
        landlock_abi=probe.landlock_abi,
        unowned_memory=unowned_memory,
        special_modes=special_modes,
        landlock_network=deny_tcp,
        preload=spec.preload,
    )


ORDER = (
    "session",
    "cgroups",
    "oom_score",
    "binds",
    "proc",
    "scratch",
    "root",
    "mounts",
    "hostname",
    "loopback",
    "identity",
    "user",
    "stdio",
    "folder",
    "rlimits",
    "no_new_privs",
    "capabilities",
    "landlock",
    "descriptors",
    "dumpable",
    "seccomp",
)


ESSENTIAL = ("kernel", "pid", "mount", "proc", "python")


def check_host(probe: Probe) -> None:
    """Without these there is nothing left to call a sandbox, nor a zygote to make one. Raises
    SetupRefused, which names the missing one and the remedy."""
    for name in ESSENTIAL if probe.privileged else ("kernel", "user", *ESSENTIAL[1:]):
        require(probe, name)


def require(probe: Probe, name: str) -> None:
    fact = probe.facts[name]
    if not fact.present:
        raise SetupRefused(f"the {name} wall cannot be built: {fact.detail}. {fact.remedy}")


class Walls:
    """Which walls the host gives, against which the operator is ready to go without."""

    def __init__(self, spec: SandboxSpec, probe: Probe) -> None:
        self.degrade = frozenset(spec.degrade)
        self.probe = probe
        self.in_force: dict[str, Any] = {}  # plain strings, for msgpack
        self.missing: set[str] = set()

    def has(self, name: str) -> bool:
        fact = self.probe.facts[name]
        if fact.present:
            return True
        if name not in self.degrade:
            raise SetupRefused(
                f"the {name} wall cannot be built: {fact.detail}. {fact.remedy} "
                f"To run without this wall, name it: degrade: [{name}]"
            )
        self.missing.add(name)
        self.in_force[name] = "missing"
        return False


def check(spec: SandboxSpec) -> None:
    """What no host could do, whatever it gives."""
    unknown = sorted(set(spec.degrade) - DEGRADABLE)
    if unknown:
        raise UsageError(
            f"degrade: {', '.join(unknown)} cannot be given up; "
            f"what can: {', '.join(sorted(DEGRADABLE))}"
        )
    if set(spec.strict) - {"cgroup"}:
        raise UsageError(f"strict: {', '.join(spec.strict)}: only `cgroup` is known")
    if spec.mode is Mode.EXEC and not spec.argv:
        raise UsageError("a sandboxed command needs at least the program's name")
    if not 0 <= spec.slot < SLOTS:
        raise UsageError(f"slot {spec.slot}: there are {SLOTS} reserved ids")
    if not 0 < len(spec.hostname.encode()) <= 64 or "\0" in spec.hostname:
        raise UsageError(f"hostname {spec.hostname!r}: 1 to 64 bytes are allowed")
    texts = (*spec.argv, *spec.env, *spec.env.values(), spec.cwd or "")
    if any("\0" in text for text in texts):
        raise UsageError("argv, env and cwd cannot hold NUL characters")
    if any("=" in name or not name for name in spec.env):
        raise UsageError("names in env cannot be empty or hold '='")
    if spec.layer is not None:
        check_layer(spec, spec.layer)
    for bind in spec.binds:
        inside = bind.inside
        if not inside.startswith("/") or os.path.normpath(inside) != inside or inside == "/":
            raise UsageError(f"bind {inside!r}: an absolute path without `.`, `..` or // is needed")
        if own := reserved_place(inside):
            raise UsageError(f"bind {inside}: {own} belongs to the sandbox itself")


def reserved_place(inside: str) -> str | None:
    """What of the sandbox's own this path lies in; None: anything may be bound there."""
    if is_below(inside, SHARED_MEMORY):
        return None
    return next((own for own in RESERVED_INSIDE if is_below(inside, own)), None)


def check_layer(spec: SandboxSpec, layer: LayerSpec) -> None:
    if spec.workspace is not None:
        raise UsageError("workspace and layer: a sandbox has one of them at /workspace")
    if any(bind.inside == WORKSPACE for bind in spec.binds):
        raise UsageError("layer: a bind at /workspace would cover it")
    if not os.path.isabs(layer.base) or not os.path.isabs(layer.folder):
        raise UsageError(f"layer: {layer.base} and {layer.folder} must be absolute paths")
    names = (layer.upper, *layer.lower)
    for name in names:
        if LAYER_NAME.fullmatch(name) is None:
            raise UsageError(
                f"layer {name!r}: letters, digits, `_`, `-` and `.` inside are allowed"
            )
    if len(set(names)) != len(names):
        raise UsageError(f"layers {', '.join(names)}: each can be there only once")
    if len(layer.lower) > MOST_LAYERS:
        raise UsageError(
            f"{len(layer.lower)} layers below {layer.upper}: at most {MOST_LAYERS} can be mounted "
            "over one another"
        )


def plan_layer(layer: LayerSpec, probe: Probe, paths: Mapping[str, PathFact]) -> PlannedLayer:
    for path in paths_of(layer):
        if not paths[path].exists or paths[path].is_file:
            raise SetupRefused(f"{path} (for the overlay at /workspace) is not a folder")
    if is_below(layer.folder, layer.base):
        raise SetupRefused(f"the layers in {layer.folder} lie inside the base, {layer.base}")
    base_owner = owner = None
    if probe.privileged:
        if probe.kernel < MAPPED_LAYERS_KERNEL:
            least = ".".join(map(str, MAPPED_LAYERS_KERNEL))
            raise SetupRefused(f"layers need Linux {least} or newer where sandboxes have own uids")
        base_owner = paths[layer.base].owner
        own = os.path.join(layer.folder, layer.upper)
        owner = paths[os.path.join(own, UPPER)].owner
        if 0 in owner:
            # A setuid file that a task leaves in its layer would be root's on the host's disk.
            raise SetupRefused(f"{own}/{UPPER} belongs to root: a layer's owner must be nobody")
        for path in (layer.folder, own):
            if not paths[path].is_open and paths[path].owner != owner:
                raise SetupRefused(
                    f"{path}: uid {owner[0]}, who owns the layers, must be able to enter it "
                    "(chmod o+x; a folder above may be closed to everyone)"
                )
    return PlannedLayer(
        base=layer.base,
        folder=layer.folder,
        lower=layer.lower,
        upper=layer.upper,
        base_owner=base_owner,
        owner=owner,
    )


def plan_binds(
    spec: SandboxSpec, probe: Probe, paths: Mapping[str, PathFact]
) -> tuple[PlannedBind, ...]:
    planned = []
    for bind in binds_of(spec):
        fact = paths[bind.host]
        if not fact.exists:
            if bind.inside == RESOLVER:
                continue  # a host without a resolver: the sandbox has none either
            raise SetupRefused(f"{bind.host} (to be seen at {bind.inside}) cannot be found")
        planned.append(
            PlannedBind(
                host=bind.host,
                inside=bind.inside,
                writable=bind.writable,
                host_is_file=fact.is_file,
                is_resolved=bind in spec.binds,
                # As an ordinary user what is bound is ours on disk and the task's inside already;
                # and to read one public file nobody needs to own it.
                owner=None
                if not probe.privileged or (fact.is_file and fact.is_public and not bind.writable)
                else fact.owner,
            )
        )
    return tuple(planned)
