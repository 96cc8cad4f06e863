"""Hold the kernel in the middle of a copy.

Source: the exploit of CVE-2019-18683, and most of races before FUSE replaced it.
"""

from typing import Any

from ..inside import ask_kernel

EXPECTED = "PermissionError"
WALLS = ("seccomp",)
RUNS_OUTSIDE = True


def attack(target: dict[str, Any]) -> object:
    return ask_kernel("userfaultfd")
