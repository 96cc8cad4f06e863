"""Keep secrets, and find others', in the kernel's keyrings.

Source: CVE-2016-0728; before Linux 5.3 no namespace held keyrings of one uid.
"""

from typing import Any

from ..inside import ask_kernel

EXPECTED = "PermissionError"
WALLS = ("seccomp",)
RUNS_OUTSIDE = True


def attack(target: dict[str, Any]) -> object:
    ask_kernel("add_key")
    return ask_kernel("keyctl")
