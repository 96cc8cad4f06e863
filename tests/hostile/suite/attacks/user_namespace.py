"""Become root of a new user namespace.

Source: CVE-2022-0185 and most kernel exploits since begin here; bubblewrap's --disable-userns.
"""

import ctypes
from typing import Any

EXPECTED = "PermissionError"
WALLS = ("seccomp",)
RUNS_OUTSIDE = True


def attack(target: dict[str, Any]) -> object:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(0x10000000):
        raise OSError(ctypes.get_errno(), "unshare")
    return "unshared"
