"""chroot, to walk out of it again.

Source: chroot(2), which says itself how to leave one: chroot deeper, and fchdir out.
"""

import os
from typing import Any

EXPECTED = "PermissionError"
WALLS = ("seccomp", "capabilities")
RUNS_OUTSIDE = False


def attack(target: dict[str, Any]) -> object:
    os.chroot("/tmp")
    return "chrooted"
