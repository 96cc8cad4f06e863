"""Load a kernel module.

Source: init_module(2).
"""

from typing import Any

from ..inside import ask_kernel

EXPECTED = "PermissionError"
WALLS = ("seccomp", "capabilities")
RUNS_OUTSIDE = True
NEEDS = "sys_module"


def attack(target: dict[str, Any]) -> object:
    ask_kernel("init_module")
    return ask_kernel("finit_module")
