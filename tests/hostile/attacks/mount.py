"""Mount a file system of its own over /tmp."""

import ctypes
from typing import Any

EXPECTED = "PermissionError"
RUNS_OUTSIDE = False


def attack(target: dict[str, Any]) -> object:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"none", b"/tmp", b"tmpfs", 0, None):
        raise OSError(ctypes.get_errno(), "mount")
    return "mounted"
