"""Swap to a file of its own.

Source: swapon(2).
"""

from typing import Any

from ..inside import ask_kernel

EXPECTED = "PermissionError"
WALLS = ("seccomp", "capabilities")
RUNS_OUTSIDE = True
NEEDS = "sys_admin"


def attack(target: dict[str, Any]) -> object:
    ask_kernel("swapon")
    return ask_kernel("swapoff")
