"""Open files by their handles, past every mount.

Source: Docker's shocker.c, 2014.
"""

from typing import Any

from ..inside import BAD, ask_kernel

EXPECTED = "PermissionError"
WALLS = ("seccomp", "capabilities")
RUNS_OUTSIDE = True
NEEDS = "dac_read_search"


def attack(target: dict[str, Any]) -> object:
    return ask_kernel("open_by_handle_at", BAD, BAD, BAD)
