"""Reboot the host.

Source: reboot(2); with wrong magic numbers, which it must complain of.
"""

from typing import Any

from ..inside import ask_kernel

EXPECTED = "PermissionError"
WALLS = ("seccomp", "capabilities")
RUNS_OUTSIDE = True
NEEDS = "sys_boot"


def attack(target: dict[str, Any]) -> object:
    return ask_kernel("reboot")
