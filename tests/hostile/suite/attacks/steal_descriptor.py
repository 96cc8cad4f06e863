"""Copy a descriptor out of the sandbox's init: the status socket.

Source: pidfd_getfd(2).
"""

import ctypes
import os
from typing import Any

EXPECTED = "PermissionError"
WALLS = ("seccomp", "dumpable", "pid")
RUNS_OUTSIDE = False


def attack(target: dict[str, Any]) -> object:
    libc = ctypes.CDLL(None, use_errno=True)
    handle = os.pidfd_open(1)
    for number in range(64):
        if libc.syscall(438, handle, number, 0) >= 0:  # pidfd_getfd, by the same number everywhere
            return number
    raise OSError(ctypes.get_errno(), "pidfd_getfd")
