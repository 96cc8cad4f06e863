"""Take /proc away, to see what is below.

Source: CVE-2014-9717: umount2 with MNT_DETACH showed what lay beneath a locked mount.
"""

import ctypes
import os
from typing import Any

from ..inside import in_own_namespaces

EXPECTED = "PermissionError"
WALLS = ("seccomp", "capabilities")


def attack(target: dict[str, Any]) -> object:
    return uncover(b"/proc")


def outside(target: dict[str, Any]) -> object:
    in_own_namespaces()
    libc = ctypes.CDLL(None, use_errno=True)
    folder = os.fsencode(target["workspace"])
    if libc.mount(b"none", folder, b"tmpfs", 0, None):
        raise OSError(ctypes.get_errno(), "mount")
    return uncover(folder)


def uncover(folder: bytes) -> object:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(folder, 2):
        raise OSError(ctypes.get_errno(), "umount2")
    return "uncovered"
