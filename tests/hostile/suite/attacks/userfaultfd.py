"""Hold the kernel in the middle of a copy.

Source: CVE-2021-22555 and most races exploited before FUSE replaced it.
"""

from typing import Any

from ..inside import ask_kernel

EXPECTED = "PermissionError"
WALLS = ("seccomp",)
RUNS_OUTSIDE = True


def attack(target: dict[str, Any]) -> object:
    return ask_kernel("userfaultfd")
