"""Move a mount to another place.

Source: move_mount(2).
"""

from typing import Any

from ..inside import ask_kernel

EXPECTED = "PermissionError"
WALLS = ("seccomp", "capabilities")
RUNS_OUTSIDE = True
NEEDS = "sys_admin"


def attack(target: dict[str, Any]) -> object:
    return ask_kernel("move_mount")
