"""Take memory that nobody else can look at.

Source: memfd_secret(2).
"""

from typing import Any

from ..inside import ask_kernel

EXPECTED = "OSError"
WALLS = ("seccomp",)
RUNS_OUTSIDE = True


def attack(target: dict[str, Any]) -> object:
    return ask_kernel("memfd_secret")
