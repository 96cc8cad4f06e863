"""The processes of a supervisor, found by descent and never by name alone.

whoever asks → engine → launcher → zygote → init of a sandbox → guest → what the task started
                      → front
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Container, Iterator
from contextlib import contextmanager, suppress

import psutil
from runs import is_alive

__all__ = [
    "adopting",
    "child",
    "children",
    "engine",
    "front",
    "guests",
    "launcher",
    "sandboxes",
    "zygote",
]

_PR_SET_CHILD_SUBREAPER = 36


def children(parent: int) -> list[psutil.Process]:
    """Those that live."""
    with suppress(psutil.NoSuchProcess):
        return [each for each in psutil.Process(parent).children() if is_alive(each.pid)]
    return []


def child(parent: int, words: str, others: Container[int] = ()) -> int:
    """The child of `parent` whose command line has these words in it, and is none of `others`."""
    for each in children(parent):
        if each.pid in others:
            continue
        with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            if words in " ".join(each.cmdline()):
                return each.pid
    raise LookupError(f"process {parent} has no child {words!r}")


def engine(host: int, others: Container[int] = ()) -> int:
    return child(host, "supervisor.embedded", others)


def launcher(engine: int) -> int:
    return child(engine, "sandbox.zygote")


def zygote(engine: int) -> int:
    for each in children(launcher(engine)):
        return each.pid
    raise LookupError("a launcher without a zygote")


def front(engine: int) -> int:
    return child(engine, "supervisor.front")


def sandboxes(engine: int) -> list[int]:
    """The first process of each sandbox."""
    return [each.pid for each in children(zygote(engine))]


def guests(engine: int) -> list[int]:
    return [guest.pid for sandbox in sandboxes(engine) for guest in children(sandbox)]


@contextmanager
def adopting() -> Iterator[None]:
    """Inside, an orphan's parent is this process and not the machine's init: nothing that a dead
    engine left behind can hide among the processes of others."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        yield
    finally:
        libc.prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
        for each in psutil.Process().children():
            with suppress(ChildProcessError, psutil.NoSuchProcess):
                if each.status() == psutil.STATUS_ZOMBIE:
                    os.waitpid(each.pid, os.WNOHANG)
