"""A zygote in which the n-th call of a spawn fails, for tests of every n: what `main` here starts.

Every function of `os` that asks the kernel, every system call that goes through `syscalls.py`, and
the few of other modules that a spawn makes, count while a sandbox is built: in the zygote, then in
init, then in the guest until its program begins. `SpawnRequest.fail_step` says which one fails
(`call 17`), once and with EIO; `count` fails none, and has the guest write how many there were.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import posix
import resource
import signal
import socket
from collections.abc import Callable
from types import BuiltinFunctionType
from typing import Any, cast

from casemate.sandbox import init, packets, syscalls, zygote
from casemate.sandbox.spec import Ready, SpawnRequest, StatusRecord

__all__ = ["BOOTSTRAP", "main"]

BOOTSTRAP = "from nth_call import main; main()"

# What asks nothing of the kernel, or ends the process.
INNOCENT = {"_exit", "abort", "fspath", "strerror", "waitstatus_to_exitcode", "register_at_fork",
            "getpid", "getppid", "putenv", "unsetenv", "WCOREDUMP", "WEXITSTATUS", "WIFCONTINUED",
            "WIFEXITED", "WIFSIGNALED", "WIFSTOPPED", "WSTOPSIG", "WTERMSIG", "major", "minor",
            "makedev", "_path_normpath"}  # fmt: skip


class Counted:
    """Of the spawn under way."""

    is_armed = False
    number = 0
    fails_at = 0
    counts = False


def is_due() -> bool:
    if not Counted.is_armed:
        return False
    Counted.number += 1
    return Counted.number == Counted.fails_at


def failure(name: str) -> OSError:
    return OSError(errno.EIO, f"{name}: call {Counted.number}, which a test wants to fail")


def raising(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def called(*arguments: Any, **named: Any) -> Any:
        if not is_due():
            return function(*arguments, **named)
        if function is CLOSE:  # the one call that is done even when it fails
            CLOSE(*arguments)
        raise failure(name)

    return called


CLOSE = posix.close


def returning(function: Callable[..., Any]) -> Callable[..., Any]:
    """A foreign function, which says by -1 and errno that it failed."""

    def called(*arguments: Any) -> Any:
        if is_due():
            ctypes.set_errno(errno.EIO)
            return -1
        return function(*arguments)

    return called


def patch() -> None:
    for name, function in vars(posix).items():
        if (
            isinstance(function, BuiltinFunctionType)
            and name not in INNOCENT
            and vars(os).get(name) is function
        ):
            setattr(os, name, raising(name, cast(Callable[..., Any], function)))
    for module, names in (
        (fcntl, ("ioctl", "fcntl")),
        (packets, ("send",)),
        (resource, ("getrlimit", "setrlimit")),
        (signal, ("pthread_sigmask",)),
        (socket, ("socketpair",)),
        (syscalls, ("_libc_fork",)),
    ):
        for name in names:
            setattr(module, name, raising(name, getattr(module, name)))
    for name in ("_syscall", "_capbset"):
        setattr(syscalls, name, returning(getattr(syscalls, name)))

    make_socket = raising("socket", socket.socket)
    socket_of = socket.socket  # around a descriptor that is there already nothing is asked

    def counted_socket(*arguments: Any, **named: Any) -> Any:
        made = len(arguments) > 3 or "fileno" in named
        return (socket_of if made else make_socket)(*arguments, **named)

    socket.socket = counted_socket  # type: ignore[assignment,misc]

    spawn, report, tend = zygote.spawn, init.report, init.tend

    def counted_spawn(request: SpawnRequest, fds: list[int], workshop: zygote.Workshop) -> int:
        asked = request.fail_step or ""
        Counted.number = 0
        Counted.counts = asked == "count"
        Counted.fails_at = int(asked.removeprefix("call ")) if asked.startswith("call ") else 0
        Counted.is_armed = bool(asked)
        try:
            return spawn(request, fds, workshop)
        finally:
            Counted.is_armed = False

    def counted_report(status: int, record: StatusRecord, fds: tuple[int, ...] = ()) -> None:
        report(status, record, fds)
        if isinstance(record, Ready) and Counted.counts:
            Counted.is_armed = False
            os.write(1, b"%d\n" % Counted.number)

    def uncounted_tend(*arguments: Any, **named: Any) -> None:
        Counted.is_armed = False
        tend(*arguments, **named)

    zygote.spawn, init.report = counted_spawn, counted_report
    init.tend = uncounted_tend  # type: ignore[assignment]  # of a function that does not return


def main() -> None:
    patch()
    zygote.main()
