"""Mount the cgroup file system, to leave the sandbox's limits.

Source: CVE-2022-0492, of cgroup v1.
"""

import ctypes
import os
from typing import Any

from ..inside import in_own_namespaces

EXPECTED = "PermissionError"
WALLS = ("seccomp", "capabilities", "cgroup")


def attack(target: dict[str, Any]) -> object:
    return mount_cgroups("/tmp")


def outside(target: dict[str, Any]) -> object:
    in_own_namespaces()
    return mount_cgroups(target["workspace"])


def mount_cgroups(folder: str) -> object:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"none", os.fsencode(folder), b"cgroup2", 0, None):
        raise OSError(ctypes.get_errno(), "mount")
    return "mounted"
