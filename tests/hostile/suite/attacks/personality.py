"""Have every readable page executable, and no address random.

Source: personality(2): READ_IMPLIES_EXEC, ADDR_NO_RANDOMIZE.
"""

from typing import Any

from ..inside import ask_kernel

EXPECTED = "PermissionError"
WALLS = ("seccomp",)
RUNS_OUTSIDE = True


def attack(target: dict[str, Any]) -> object:
    ask_kernel("personality", 0x0040000)
    return ask_kernel("personality", 0x0400000)
