"""Boot another kernel.

Source: kexec_load(2).
"""

from typing import Any

from ..inside import ask_kernel

EXPECTED = "PermissionError"
WALLS = ("seccomp", "capabilities")
RUNS_OUTSIDE = True
NEEDS = "sys_boot"


def attack(target: dict[str, Any]) -> object:
    return ask_kernel("kexec_load")
