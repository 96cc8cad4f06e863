"""What a sandbox is asked to be, and what crosses from engine to zygote to make it.

The engine fills a `SandboxSpec`; `plan.py` turns it, with what the host gives, into a `Plan`:
ordered step names and every number the steps need, so that the zygote decides nothing. A
`SpawnRequest` is one plan, sent to the zygote in one packet beside the descriptors that
`SpawnRequest.fds` names. On the sandbox's own status socket, three records come back.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from msgspec import Struct

from ..protocol.pipeline import Bind, Limits, Network, ProcView
from ..protocol.refusals import Refusal

__all__ = [
    "DEGRADABLE",
    "ENGINE_FD",
    "FIRST_RESERVED_ID",
    "INPUT_FILE",
    "INSIDE_ID",
    "LAYER_OWNER",
    "OUTBOX",
    "OWN_NETWORK",
    "REQUEST_SIZE",
    "SLOTS",
    "SOURCES",
    "SYSTEM_PATH",
    "WORKSPACE",
    "Bind",
    "Exited",
    "FdRole",
    "LayerSpec",
    "Mode",
    "Plan",
    "PlannedBind",
    "PlannedLayer",
    "Posture",
    "ProcView",
    "Ready",
    "SandboxSpec",
    "SetupFailed",
    "SpawnReply",
    "SpawnRequest",
    "StatusRecord",
    "ZygoteConfig",
    "ZygoteHello",
    "base_environment",
]

# Who the task is inside: not 0, so that programs do not take themselves for root.
INSIDE_ID = 1000

# Host ids that belong to no account: systemd's UIDS-GIDS.md leaves 1879048192..2147483646 unused.
# One per live sandbox, so that two sandboxes are strangers to each other outside the namespaces
# as well. Only a root supervisor can hand them out.
FIRST_RESERVED_ID = 1_900_000_000
SLOTS = 100_000

# Whom layers belong to on disk, under root: nobody. The last of the reserved ids, which no sandbox
# is ever given: slots go out in blocks of 256.
LAYER_OWNER = FIRST_RESERVED_ID + SLOTS - 1

WORKSPACE = "/workspace"
SOURCES = "/sources"
OUTBOX = "/casemate/out"
INPUT_FILE = "/casemate/input"

# One packet to the zygote: below the kernel's default socket buffer (net.core.wmem_max, 208 KiB),
# for a packet must fit whole. Almost all of it is argv and environment.
REQUEST_SIZE = 160 * 1024

# Where the zygote finds the engine's socket.
ENGINE_FD = 3

# Walls the operator may give up by name where the host cannot build them. Private mounts, pids
# and the read-only root are not here: without them there is nothing left to call a sandbox.
DEGRADABLE = frozenset({"user", "net", "ipc", "uts", "cgroup", "seccomp", "landlock"})


# What the walls in force say of a network that leads nowhere.
OWN_NETWORK = "own namespace, only lo"


class Mode(StrEnum):
    GUEST = "guest"  # casemate's guest, speaking over the link
    EXEC = "exec"  # argv, with the given stdio


class LayerSpec(Struct, frozen=True, kw_only=True):
    """An overlay at /workspace: this attempt's layer over earlier ones over the base."""

    base: str  # host folder, lowest, read-only
    folder: str  # host folder with the layers: runs/<run>/layers
    lower: tuple[str, ...]  # names of layers below folder, the topmost first (as overlayfs wants)
    upper: str  # name of this attempt's layer; <folder>/<upper>/{upper,work} exist already


class SandboxSpec(Struct, frozen=True, kw_only=True):
    mode: Mode
    limits: Limits
    argv: tuple[str, ...] = ()
    env: dict[str, str] = {}
    cwd: str | None = None  # None: the workspace if there is one, else /tmp
    network: Network = Network.NONE
    workspace: str | None = None  # host folder, seen at /workspace
    workspace_writable: bool = False
    layer: LayerSpec | None = None  # instead of `workspace`: an overlay, seen at /workspace
    sources: str | None = None  # host folder, seen read-only at /sources
    input_file: str | None = None  # host file, seen read-only at /casemate/input
    binds: tuple[Bind, ...] = ()
    hostname: str = "casemate"
    proc: ProcView = ProcView.PIDS
    slot: int = 0  # which reserved host id, where there are any; one per live sandbox
    degrade: tuple[str, ...] = ()
    strict: tuple[str, ...] = ()  # "cgroup": refuse limits that would only be sampled
    preload: tuple[str, ...] = ()  # modules that the guest imports before it greets


class PlannedBind(Struct, frozen=True, kw_only=True):
    """`owner`: host (uid, gid) that shall look like the task's own (an idmapped mount).
    `is_resolved`: no link is on the way, and one that is there now was put there since: where a
    task may write to the host it could lead the next one's mount anywhere."""

    host: str
    inside: str
    writable: bool
    host_is_file: bool = False
    is_resolved: bool = False
    owner: tuple[int, int] | None = None


class PlannedLayer(Struct, frozen=True, kw_only=True):
    """A `LayerSpec`, and under root the owners (uid, gid) on disk that are mapped to the task's."""

    base: str
    folder: str
    lower: tuple[str, ...]
    upper: str
    base_owner: tuple[int, int] | None = None
    owner: tuple[int, int] | None = None


class Plan(Struct, frozen=True, kw_only=True):
    """Everything the zygote needs; see `plan.py` for how it comes about."""

    steps: tuple[str, ...]
    clone_flags: int
    unshare_flags: int
    walls: dict[str, Any]  # ours: what `task.started` says is in force
    mode: Mode
    argv: tuple[str, ...]
    env: dict[str, str]
    cwd: str
    binds: tuple[PlannedBind, ...]
    layer: PlannedLayer | None
    hostname: str
    proc: ProcView
    host_id: int | None  # the reserved id; None: the supervisor's own
    tmp_size: int
    tmp_inodes: int
    rlimits: tuple[tuple[int, int, int], ...]  # resource, soft, hard
    landlock_abi: int
    unowned_memory: bool  # there may be memory that no process has mapped: a cgroup counts it
    special_modes: bool  # setuid and setgid bits may be set: nothing of the host is written to
    landlock_network: bool  # refuse TCP by Landlock: there is no network namespace to do it
    preload: tuple[str, ...] = ()  # modules that the guest imports, behind all walls


class FdRole(StrEnum):
    """What each passed descriptor is for."""

    STATUS = "status"
    STDIN = "stdin"
    STDOUT = "stdout"
    STDERR = "stderr"
    LINK = "link"
    CGROUP_TASKS = "cgroup_tasks"  # cgroup v1: init writes itself into each
    CGROUP_DIR = "cgroup_dir"  # cgroup v2: clone3 starts in it


class SpawnRequest(Struct, frozen=True, kw_only=True):
    """`fail_step`: let that step fail with EIO, for the tests of every step's failure."""

    id: int
    plan: Plan
    fds: tuple[FdRole, ...]
    fail_step: str | None = None


class SpawnReply(Struct, frozen=True, kw_only=True):
    """The zygote's answer; the pidfd of the sandbox's init comes with it when `error` is None."""

    id: int
    error: str | None = None
    errno: int = 0


class ZygoteConfig(Struct, frozen=True, kw_only=True):
    """What the zygote is told once, before it does anything."""

    unprivileged: bool  # it must make a user namespace to own its namespaces
    prefixes: tuple[str, ...]  # the interpreter's folders, seen inside at their own paths
    prefix: str  # sys.prefix as the guest shall see it
    preload: tuple[str, ...]  # modules every guest needs


class ZygoteHello(Struct, frozen=True, kw_only=True):
    """The zygote is ready, or why it cannot be."""

    error: str | None = None
    step: str = ""
    errno: int = 0


class Posture(Struct, frozen=True, kw_only=True):
    """What the kernel said before the task's code, in its own texts; see posture.py, which knows
    what they say."""

    status: bytes
    uid_map: bytes
    gid_map: bytes
    rlimits: bytes
    mounts: bytes
    cgroup: bytes
    namespaces: list[str]
    fds: list[str]
    env: list[str]
    dumpable: int
    filter: str  # what the filter answers of itself
    landlock: bytes  # the ruleset as the kernel took it; empty: none
    refused: bool  # it was tried, and refused what it should
    status_fd: int
    link: int  # -1: none
    outbox: int  # -1: none


class Ready(Struct, frozen=True, tag="ready", tag_field="kind"):
    """Every wall stands, read back from the kernel; the next instruction is the task's code."""

    posture: Posture


class SetupFailed(Struct, frozen=True, tag="setup", tag_field="kind"):
    """A step failed and the task's code never ran. Step `exec`: argv[0] could not be started."""

    step: str
    errno: int
    message: str


class Exited(Struct, frozen=True, tag="exit", tag_field="kind"):
    """The guest, or the program, ended by itself. `cpu` and `memory` as getrusage counts them:
    of the children that were waited for. `refused`: which walls a program met that failed."""

    status: int  # as wait(2) gives it
    cpu: float
    memory: int
    refused: tuple[Refusal, ...] = ()


StatusRecord = Ready | SetupFailed | Exited


SYSTEM_PATH = "/usr/local/bin:/usr/bin:/bin"


def base_environment(prefix: str) -> dict[str, str]:
    """What every program inside starts with. `prefix`: the interpreter's, so that `python` is
    the one casemate runs under, with its packages."""
    return {
        "PATH": f"{prefix}/bin:{SYSTEM_PATH}",
        "LANG": "C.UTF-8",
        "HOME": "/tmp",
        "TMPDIR": "/tmp",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
