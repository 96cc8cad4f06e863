"""Mount a file system of its own over /tmp.

Source: CVE-2021-41133, flatpak: the mount family left open.
"""

import ctypes
from typing import Any

EXPECTED = "PermissionError"
WALLS = ("seccomp", "capabilities")
RUNS_OUTSIDE = False


def attack(target: dict[str, Any]) -> object:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"none", b"/tmp", b"tmpfs", 0, None):
        raise OSError(ctypes.get_errno(), "mount")
    return "mounted"
