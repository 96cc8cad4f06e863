"""Copy a descriptor out of the sandbox's init: the status socket.

Source: pidfd_getfd(2).
"""

import ctypes
import os
from typing import Any

from ..inside import a_child

EXPECTED = "PermissionError"
WALLS = ("seccomp", "dumpable", "pid")


def attack(target: dict[str, Any]) -> object:
    return steal_from(1)


def outside(target: dict[str, Any]) -> object:
    with a_child() as child:
        return steal_from(child)


def steal_from(pid: int) -> object:
    libc = ctypes.CDLL(None, use_errno=True)
    handle = os.pidfd_open(pid)
    for number in range(64):
        if libc.syscall(438, handle, number, 0) >= 0:  # pidfd_getfd, by the same number everywhere
            return number
    raise OSError(ctypes.get_errno(), "pidfd_getfd")
