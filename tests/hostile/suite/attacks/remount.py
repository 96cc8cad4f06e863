"""Make the root writable.

Source: CVE-2014-5206: a remount in a user namespace cleared read-only.
"""

import ctypes
import os
from typing import Any

from ..inside import in_own_namespaces

EXPECTED = "PermissionError"
WALLS = ("seccomp", "capabilities")


def attack(target: dict[str, Any]) -> object:
    return remount(b"/")


def outside(target: dict[str, Any]) -> object:
    in_own_namespaces()
    libc = ctypes.CDLL(None, use_errno=True)
    folder = os.fsencode(target["workspace"])
    if libc.mount(b"none", folder, b"tmpfs", 1, None):  # MS_RDONLY
        raise OSError(ctypes.get_errno(), "mount")
    return remount(folder)


def remount(folder: bytes) -> object:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(None, folder, None, 0x1020, None):  # MS_REMOUNT | MS_BIND
        raise OSError(ctypes.get_errno(), "mount")
    return "remounted"
