"""Name the host.

Source: sethostname(2).
"""

from typing import Any

from ..inside import BAD, ask_kernel

EXPECTED = "PermissionError"
WALLS = ("seccomp", "uts")
RUNS_OUTSIDE = True
NEEDS = "sys_admin"


def attack(target: dict[str, Any]) -> object:
    return ask_kernel("sethostname", BAD, 5)
