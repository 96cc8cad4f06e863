"""Do system calls where no filter looks.

Source: CVE-2022-29582 and the many since; ChromeOS and Android refuse io_uring.
"""

from typing import Any

from ..inside import ask_kernel

EXPECTED = "PermissionError"
WALLS = ("seccomp",)
RUNS_OUTSIDE = True


def attack(target: dict[str, Any]) -> object:
    ask_kernel("io_uring_setup")
    ask_kernel("io_uring_enter")
    return ask_kernel("io_uring_register")
