"""Watch, and hold up, what others open.

Source: fanotify_init(2).
"""

from typing import Any

from ..inside import BAD, ask_kernel

EXPECTED = "PermissionError"
WALLS = ("seccomp", "capabilities")
RUNS_OUTSIDE = True
NEEDS = "sys_admin"  # as it is asked here; since Linux 5.13 not for every group


def attack(target: dict[str, Any]) -> object:
    return ask_kernel("fanotify_init", BAD, BAD)
