"""Put a filter of its own over the sandbox's.

Source: seccomp(2): filters stack, and the strongest answer counts.
"""

from typing import Any

from ..inside import BAD, ask_kernel

EXPECTED = "PermissionError"
WALLS = ("seccomp",)
RUNS_OUTSIDE = True


def attack(target: dict[str, Any]) -> object:
    return ask_kernel("seccomp", 1, 0, BAD)
