"""chroot, to walk out of it again.

Source: chroot(2), which says itself how to leave one: mkdir foo; chroot foo; cd ..
"""

import os
from typing import Any

from ..inside import in_own_namespaces

EXPECTED = "PermissionError"
WALLS = ("seccomp", "capabilities")


def attack(target: dict[str, Any]) -> object:
    os.chroot("/tmp")
    return "chrooted"


def outside(target: dict[str, Any]) -> object:
    in_own_namespaces()
    os.chroot(target["workspace"])
    return "chrooted"
