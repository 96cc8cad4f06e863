"""Make the root writable."""

import ctypes
from typing import Any

EXPECTED = "PermissionError"
RUNS_OUTSIDE = False


def attack(target: dict[str, Any]) -> object:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(None, b"/", None, 0x1020, None):  # MS_REMOUNT | MS_BIND
        raise OSError(ctypes.get_errno(), "mount")
    return "remounted"
