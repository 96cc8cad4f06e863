"""Which walls the code of a sandbox has met, as far as it is known and not guessed.

`met_by` looks at the exception that ended a task and at those it was raised from: their errno says
what was refused, the path or address in them on what. A file that is not there counts only where
the sandbox does not show what the host has in that place: there the nearest folder above it is the
template's own. A missing file of the workspace is the task's own affair.

Of programs in other languages nothing is known but what the kernel counts. `met_by_programs` reads
the counters of the network namespace, which is the sandbox's alone, and how full its one tmpfs is.
What a program was refused otherwise, its own words on stderr say, and we do not read them.
"""

from __future__ import annotations

import errno
import os
import socket
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from ..protocol.limits import REFUSALS
from ..protocol.refusals import Refusal, Wall

__all__ = ["met_by", "met_by_programs"]

# The task's own, or a tmpfs that is: what is refused there is no wall's doing.
OWN = ("/workspace", "/tmp", "/dev/shm", "/casemate")

UNREACHABLE = {
    errno.ENETUNREACH,
    errno.EHOSTUNREACH,
    errno.ENETDOWN,
    errno.EHOSTDOWN,
    errno.ECONNREFUSED,
}
NO_FAMILY = {errno.EAFNOSUPPORT, errno.ESOCKTNOSUPPORT, errno.EPROTONOSUPPORT}

STDLIB = os.path.dirname(os.__file__) + os.sep

# Exceptions that one was raised from, looked at: enough for any library's layers.
CHAIN = 32


def met_by(error: BaseException) -> tuple[Refusal, ...]:
    """Of the exception that ended a task. Never raises: a task's exceptions are what they like."""
    found: dict[Refusal, None] = {}
    try:
        for each in _chain(error):
            if (refusal := _refusal(each)) is not None:
                found[refusal] = None
    except BaseException:  # attributes that are properties, of whatever mind
        return ()
    return tuple(found)[:REFUSALS]


def met_by_programs() -> tuple[Refusal, ...]:
    """Of all that has run in this sandbox."""
    found = []
    without_route, without_listener = _counted()
    if without_route:
        found.append(Refusal(Wall.NETWORK))
    if without_listener:
        found.append(Refusal(Wall.NAME))
    if _is_scratch_full():
        found.append(Refusal(Wall.SCRATCH))
    return tuple(found)


def _chain(error: BaseException) -> Iterator[BaseException]:
    waiting, seen = [error], set[int]()
    while waiting and len(seen) < CHAIN:
        each = waiting.pop(0)
        if id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        before = each.__cause__
        if before is None and not each.__suppress_context__:
            before = each.__context__
        if before is not None:
            waiting.append(before)
        if isinstance(each, BaseExceptionGroup):
            waiting += each.exceptions


def _refusal(error: BaseException) -> Refusal | None:
    if not isinstance(error, OSError):
        return None
    if isinstance(error, socket.gaierror):
        return Refusal(Wall.NAME, _text(_local(error, ("host",), str)))
    number = error.errno
    path = _path(error)
    if number in UNREACHABLE:
        address = _local(error, ("sa", "address"), tuple)
        return Refusal(Wall.NETWORK, _text(address))
    if number in NO_FAMILY:
        return Refusal(Wall.SOCKET, _line(error))
    if number == errno.ENOSYS:
        return Refusal(Wall.CALL, path or _line(error))
    if number == errno.EMFILE:
        return Refusal(Wall.FILES, path)
    if number == errno.EROFS:
        return Refusal(Wall.WRITE, path or _line(error))
    if number in (errno.ENOSPC, errno.EDQUOT):
        is_scratch = _is_below(path, OWN[1:]) if path else _is_scratch_full()
        return Refusal(Wall.SCRATCH, path) if is_scratch else None
    if number == errno.EFBIG:
        return Refusal(Wall.SIZE, path)
    if number == errno.ENOENT:
        return Refusal(Wall.PATH, path) if path and not _is_shown(path) else None
    if number == errno.EPERM:
        return Refusal(Wall.PRIVILEGE, path or _line(error))
    if number == errno.EACCES and path and not _is_below(path, OWN):
        return Refusal(Wall.WRITE if _is_readable(path) else Wall.PATH, path)
    return None


def _path(error: OSError) -> str:
    """The path it is about, absolute; of two (a rename), the second where the first is there."""
    names = [n for n in (error.filename, error.filename2) if isinstance(n, str | bytes)]
    paths = [os.path.abspath(os.fsdecode(name)) for name in names]
    absent = [path for path in paths if not os.path.lexists(path)]
    return (absent or paths or [""])[-1]


def _is_below(path: str, folders: tuple[str, ...]) -> bool:
    return any(path == folder or path.startswith(folder + "/") for folder in folders)


def _is_shown(path: str) -> bool:
    """Whether a file that is not there would be, were it on the host in this place."""
    if _is_below(path, ("/proc",)):
        return False
    above = os.path.dirname(path)
    while not os.path.isdir(above):
        above = os.path.dirname(above)
    return os.stat(above).st_dev != os.stat("/").st_dev


def _is_readable(path: str) -> bool:
    return os.access(path if os.path.lexists(path) else os.path.dirname(path), os.R_OK)


def _frames(trace: TracebackType | None) -> list[TracebackType]:
    frames = []
    while trace is not None:
        frames.append(trace)
        trace = trace.tb_next
    return frames[::-1]


def _local(error: BaseException, names: tuple[str, ...], kind: type) -> object:
    """What the innermost functions were about, by the names that the standard library uses."""
    for trace in _frames(error.__traceback__)[:CHAIN]:
        for name in names:
            value = trace.tb_frame.f_locals.get(name)
            if type(value) is kind:
                return value
    return None


def _text(value: object) -> str:
    """An address as people write it."""
    if type(value) is str:
        return value
    if type(value) is tuple and len(value) >= 2:
        host, port = value[:2]
        if type(host) is str and type(port) is int:
            return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return ""


def _line(error: BaseException) -> str:
    """The innermost line of code that is not the standard library's."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.line for frame in frames if not frame.filename.startswith(STDLIB)]
    return (lines[-1] or "") if lines else ""


def _counted() -> tuple[int, int]:
    """(sent or connected without a route, datagrams that nobody listened for)."""
    devices = [line.partition(":")[0].strip() for line in _read("dev")[2:]]
    if devices != ["lo"]:
        return 0, 0  # a network of others, who are counted too
    return (
        _counter("snmp", "Ip:", "OutNoRoutes") + _counter6("Ip6OutNoRoutes"),
        _counter("snmp", "Udp:", "NoPorts") + _counter6("Udp6NoPorts"),
    )


def _counter(file: str, group: str, name: str) -> int:
    rows = [line.split() for line in _read(file) if line.startswith(group)]
    return int(dict(zip(*rows, strict=False)).get(name, 0)) if len(rows) == 2 else 0


def _counter6(name: str) -> int:
    return next((int(row[1]) for row in map(str.split, _read("snmp6")) if row[:1] == [name]), 0)


def _read(name: str) -> list[str]:
    try:
        return Path("/proc/self/net", name).read_text("ascii").splitlines()
    except OSError:  # a kernel without IPv6; a program that holds every descriptor there is
        return []


def _is_scratch_full() -> bool:
    """No page is left of it, or no inode."""
    try:
        seen = os.statvfs("/tmp")
    except OSError:
        return False
    return seen.f_blocks > 0 and (seen.f_bavail == 0 or seen.f_files > 0 == seen.f_favail)
