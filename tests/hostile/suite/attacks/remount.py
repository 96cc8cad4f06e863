"""Make the root writable.

Source: CVE-2023-27561, runc: what masks /proc was undone.
"""

import ctypes
from typing import Any

EXPECTED = "PermissionError"
WALLS = ("seccomp", "capabilities")
RUNS_OUTSIDE = False


def attack(target: dict[str, Any]) -> object:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(None, b"/", None, 0x1020, None):  # MS_REMOUNT | MS_BIND
        raise OSError(ctypes.get_errno(), "mount")
    return "remounted"
