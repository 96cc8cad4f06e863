"""Trace the sandbox's init.

Source: ptrace(2) of one's own uid.
"""

import ctypes
from typing import Any

from ..inside import a_child

EXPECTED = "PermissionError"
WALLS = ("seccomp", "dumpable")


def attack(target: dict[str, Any]) -> object:
    return attach(1)


def outside(target: dict[str, Any]) -> object:
    with a_child() as child:
        return attach(child)


def attach(pid: int) -> object:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.ptrace(16, pid, None, None):  # PTRACE_ATTACH
        raise OSError(ctypes.get_errno(), "ptrace")
    return "attached"
