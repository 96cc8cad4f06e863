"""Take a copy of the mount tree as a descriptor.

Source: open_tree(2); flatpak's CVE-2021-41133.
"""

from typing import Any

from ..inside import ask_kernel

EXPECTED = "PermissionError"
WALLS = ("seccomp", "capabilities")
RUNS_OUTSIDE = True


def attack(target: dict[str, Any]) -> object:
    return ask_kernel("open_tree")
