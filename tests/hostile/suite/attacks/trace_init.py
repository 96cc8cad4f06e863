"""Trace the sandbox's init.

Source: ptrace(2) of one's own uid.
"""

import ctypes
from typing import Any

EXPECTED = "PermissionError"
WALLS = ("seccomp", "dumpable")
RUNS_OUTSIDE = False


def attack(target: dict[str, Any]) -> object:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.ptrace(16, 1, None, None):  # PTRACE_ATTACH
        raise OSError(ctypes.get_errno(), "ptrace")
    return "attached"
