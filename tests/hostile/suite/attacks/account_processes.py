"""Have the kernel append to a file at every exit.

Source: acct(2).
"""

from typing import Any

from ..inside import ask_kernel

EXPECTED = "PermissionError"
WALLS = ("seccomp", "capabilities")
RUNS_OUTSIDE = True
NEEDS = "sys_pacct"


def attack(target: dict[str, Any]) -> object:
    return ask_kernel("acct")
