"""Run a function in a forked child: what it does to itself (walls) ends with it."""

from __future__ import annotations

import faulthandler
import os
import pickle
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from casemate.sandbox import syscalls

Result = TypeVar("Result")


class ChildFailedError(AssertionError):
    """The child raised, or died without an answer."""


def _fork() -> int:
    """A fork that other tests' threads (a ZeroMQ context, an executor) may live beside: the child
    here calls the kernel, writes to a pipe and ends."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def forked(work: Callable[[], Result]) -> Result:
    """The result of work() in a child; ChildFailedError when it raised."""
    reader, writer = os.pipe()
    pid = _fork()
    if pid == 0:
        try:
            answer: tuple[bool, object] = (True, work())
        except BaseException:
            answer = (False, traceback.format_exc())
        try:
            with os.fdopen(writer, "wb") as stream:
                pickle.dump(answer, stream)
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        sent = stream.read()
    status = os.waitpid(pid, 0)[1]
    if not sent:
        raise ChildFailedError(f"the child died without an answer, wait status {status:#x}")
    succeeded, value = pickle.loads(sent)
    if not succeeded:
        raise ChildFailedError(f"in the child:\n{value}")
    result: Result = value
    return result


def wait_status(work: Callable[[], object]) -> int:
    """The wait status of a child that ran work(), for what is expected to kill it."""
    pid = _fork()
    if pid == 0:
        faulthandler.disable()  # a death that is expected needs no traceback of pytest's
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(99)
        os._exit(0)
    return os.waitpid(pid, 0)[1]


def enter_user_namespace(more: int = 0) -> None:
    """A new user namespace that maps the caller's own ids, and the other namespaces asked for:
    gives every capability over them, to root and to anyone else alike."""
    uid, gid = os.geteuid(), os.getegid()
    syscalls.unshare(syscalls.CLONE_NEWUSER | more)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
    Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")
