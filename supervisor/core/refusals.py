"""What a wall refused, and which setting would have allowed it: one sentence each, for whoever
mends the task, a person or an agent.

The facts come from inside the sandbox (`protocol/refusals.py`) and may be made up by a hostile
task. So the words are ours and the task's own stand in quotes, escaped; and a wall that did not
stand (the network, where it is the host's) is never said to have refused anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from msgspec import structs

from ...protocol.events import ErrorKind, TaskError
from ...protocol.pipeline import Limits
from ...protocol.refusals import Refusal, Wall
from ...protocol.units import format_size

__all__ = ["ARGUMENTS", "FLAGS", "KEYS", "Settings", "explained"]


# What was met does not tell which call it was: so this stands beside the sentence on calls.
_UNOWNED = (
    "if that was memfd_create, shmget, msgget or semget: they are given where a cgroup holds "
    "limits.memory, which `casemate doctor` says how to have"
)


@dataclass(frozen=True, slots=True)
class Settings:
    """How those who read it call what would have allowed it."""

    limit: str  # of a limit, by its name
    clock: str
    network: str
    read: str
    write: str
    proc: str


KEYS = Settings(
    limit="limits.{}",
    clock="timeouts.{}",
    network="`network: host`, where the operator allows `network`,",
    read="`ro: [PATH]`, where the operator allows `path:DIR`,",
    write="`rw: [PATH]`, where the operator allows `rw:DIR`,",
    proc="`proc: readonly`, where the operator allows `proc`,",
)
ARGUMENTS = Settings(
    limit="limits.{}",
    clock="timeouts.{}",
    network='network="host"',
    read="ro=[PATH]",
    write="rw=[PATH]",
    proc='proc="readonly"',
)
FLAGS = Settings(
    limit="--{}",
    clock="--{}",
    network="--net host",
    read="--ro PATH",
    write="--rw PATH",
    proc="--proc readonly",
)


def explained(
    error: TaskError,
    met: Iterable[Refusal],
    limits: Limits,
    *,
    is_cut_off: bool,
    unowned_memory: bool,
    settings: Settings = KEYS,
) -> TaskError:
    """`error` with its `refused`. `is_cut_off`: the sandbox had a network of its own, which leads
    nowhere. `unowned_memory`: memory that no process maps was given, for a cgroup counts it."""
    met = tuple(met)
    told = list(_of_kind(error.kind, met, limits, settings))
    for each in met:
        if is_cut_off or each.wall not in (Wall.NETWORK, Wall.NAME):
            told.append(_sentence(each, limits, settings))
            if each.wall is Wall.CALL and not unowned_memory:
                told.append(_UNOWNED)
    return structs.replace(error, refused=tuple(dict.fromkeys(told))) if told else error


def _of_kind(
    kind: ErrorKind, met: tuple[Refusal, ...], limits: Limits, settings: Settings
) -> Iterator[str]:
    """Of what the kernel or we have counted."""
    if kind is ErrorKind.MEMORY:
        size = format_size(limits.memory)
        yield f"more memory: {_larger(settings, 'memory', size)}"
    elif kind is ErrorKind.PIDS:
        yield f"another process or thread: {_larger(settings, 'pids', str(limits.pids))}"


def _sentence(met: Refusal, limits: Limits, settings: Settings) -> str:
    on = f" {met.subject!a}" if met.subject else ""
    match met.wall:
        case Wall.NETWORK:
            what = f"connecting to{on}" if on else "reaching the network"
            return f"{what}: this sandbox has no network; {settings.network} would allow it"
        case Wall.NAME:
            what = (
                f"resolving the name{on}" if on else "asking a name server, or who else takes UDP"
            )
            return f"{what}: this sandbox has no network; {settings.network} would allow it"
        case Wall.SOCKET:
            return (
                f"a socket{_of(on)}: only those of families UNIX, INET and INET6 are given; "
                "no setting allows others"
            )
        case Wall.PATH:
            return _not_shown(met.subject, on, settings)
        case Wall.WRITE:
            return (
                f"changing{on}: it is read-only here; files go to the workspace and /tmp, or "
                f"{settings.write} would allow it"
            )
        case Wall.PRIVILEGE:
            return f"what takes a privilege{_of(on)}: no setting gives one to a sandbox"
        case Wall.CALL:
            return f"a system call that is not given to sandboxes{_of(on)}: no setting allows it"
        case Wall.SCRATCH:
            size = format_size(limits.tmp)
            return f"room in /tmp and /dev/shm{_of(on)}: {_larger(settings, 'tmp', size)}"
        case Wall.SIZE:
            size = format_size(limits.disk)
            return f"a file{_of(on)} of that size: {_larger(settings, 'disk', size)}"
        case Wall.FILES:
            return f"another open file{_of(on)}: {_larger(settings, 'files', str(limits.files))}"


def _of(on: str) -> str:
    return f" ({on.strip()})" if on else ""


def _not_shown(subject: str, on: str, settings: Settings) -> str:
    if subject.startswith("/proc/"):
        return (
            f"opening{on}: /proc shows this sandbox's processes alone; {settings.proc} shows more"
        )
    if subject.startswith("/dev/"):
        return f"opening{on}: no setting shows devices beyond null, zero, full and random"
    return (
        f"opening{on}: what the host has there is not shown in the sandbox; {settings.read} would "
        "show it"
    )


def _larger(settings: Settings, limit: str, value: str) -> str:
    return f"{settings.limit.format(limit)} is {value}; a larger one would allow it"
