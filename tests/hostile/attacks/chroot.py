"""chroot, to walk out of it again."""

import os
from typing import Any

EXPECTED = "PermissionError"
RUNS_OUTSIDE = False


def attack(target: dict[str, Any]) -> object:
    os.chroot("/tmp")
    return "chrooted"
