"""Mount a file system of its own over /tmp.

Source: mount(2); mount_namespaces(7).
"""

import ctypes
import os
from typing import Any

from ..inside import in_own_namespaces

EXPECTED = "PermissionError"
WALLS = ("seccomp", "capabilities")


def attack(target: dict[str, Any]) -> object:
    return mount_on("/tmp")


def outside(target: dict[str, Any]) -> object:
    in_own_namespaces()
    return mount_on(target["workspace"])


def mount_on(folder: str) -> object:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"none", os.fsencode(folder), b"tmpfs", 0, None):
        raise OSError(ctypes.get_errno(), "mount")
    return "mounted"
