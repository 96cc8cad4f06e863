"""Change the limits of the sandbox's init.

Source: prlimit(2).
"""

from typing import Any

from ..inside import BAD, ask_kernel

EXPECTED = "PermissionError"
WALLS = ("seccomp",)
RUNS_OUTSIDE = True


def attack(target: dict[str, Any]) -> object:
    return ask_kernel("prlimit64", 1, 7, BAD, 0)
