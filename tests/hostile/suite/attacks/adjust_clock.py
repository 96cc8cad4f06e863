"""Make the host's clock run wrong.

Source: adjtimex(2).
"""

from typing import Any

from ..inside import ask_kernel

EXPECTED = "PermissionError"
WALLS = ("seccomp", "capabilities")
RUNS_OUTSIDE = True


def attack(target: dict[str, Any]) -> object:
    ask_kernel("adjtimex")
    return ask_kernel("clock_adjtime")
