"""Answer system calls in the kernel's place (SECCOMP_FILTER_FLAG_NEW_LISTENER).

Source: seccomp_unotify(2).
"""

from typing import Any

from ..inside import BAD, ask_kernel

EXPECTED = "PermissionError"
WALLS = ("seccomp",)
RUNS_OUTSIDE = True


def attack(target: dict[str, Any]) -> object:
    return ask_kernel("seccomp", 1, 8, BAD)
