"""Set the host's clock.

Source: no namespace holds the real time (time_namespaces(7)).
"""

from typing import Any

from ..inside import ask_kernel

EXPECTED = "PermissionError"
WALLS = ("seccomp", "capabilities")
RUNS_OUTSIDE = True


def attack(target: dict[str, Any]) -> object:
    ask_kernel("clock_settime")
    return ask_kernel("settimeofday")
