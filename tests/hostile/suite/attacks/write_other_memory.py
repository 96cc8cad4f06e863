"""Write into another process without ptrace.

Source: process_vm_writev(2).
"""

from typing import Any

from ..inside import ask_kernel

EXPECTED = "PermissionError"
WALLS = ("seccomp", "dumpable")
RUNS_OUTSIDE = True


def attack(target: dict[str, Any]) -> object:
    ask_kernel("process_vm_readv")
    return ask_kernel("process_vm_writev")
