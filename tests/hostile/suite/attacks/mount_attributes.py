"""Undo read-only for a whole mount tree in one call.

Source: mount_setattr(2).
"""

from typing import Any

from ..inside import BAD, ask_kernel

EXPECTED = "PermissionError"
WALLS = ("seccomp", "capabilities")
RUNS_OUTSIDE = True


def attack(target: dict[str, Any]) -> object:
    return ask_kernel("mount_setattr", BAD, BAD, BAD, BAD, 32)
