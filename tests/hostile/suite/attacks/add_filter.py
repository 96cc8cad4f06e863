"""Put a filter of its own over the sandbox's.

Source: CVE-2019-2054's kind: filters and tracers that undo one another (seccomp(2)).
"""

from typing import Any

from ..inside import BAD, ask_kernel

EXPECTED = "PermissionError"
WALLS = ("seccomp",)
RUNS_OUTSIDE = True


def attack(target: dict[str, Any]) -> object:
    return ask_kernel("seccomp", 1, 0, BAD)
