"""Write into the memory of the sandbox's init."""

from typing import Any

EXPECTED = "PermissionError"
RUNS_OUTSIDE = False


def attack(target: dict[str, Any]) -> object:
    return open("/proc/1/mem", "r+b").fileno()
