"""Take /proc away, to see what is below.

Source: CVE-2023-27561, runc: /proc uncovered.
"""

import ctypes
from typing import Any

EXPECTED = "PermissionError"
WALLS = ("seccomp", "capabilities")
RUNS_OUTSIDE = False


def attack(target: dict[str, Any]) -> object:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(b"/proc", 2):
        raise OSError(ctypes.get_errno(), "umount2")
    return "uncovered"
