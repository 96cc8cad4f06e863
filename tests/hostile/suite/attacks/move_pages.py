"""Move another process's pages about.

Source: move_pages(2).
"""

from typing import Any

from ..inside import ask_kernel

EXPECTED = "PermissionError"
WALLS = ("seccomp",)
RUNS_OUTSIDE = True


def attack(target: dict[str, Any]) -> object:
    return ask_kernel("move_pages")
