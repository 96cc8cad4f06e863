"""Take open files from the supervisor (prlimit).

Source: our own: its limits, through /proc or prlimit.
"""

import resource
from typing import Any

EXPECTED = "ProcessLookupError"
WALLS = ("pid", "proc")
RUNS_OUTSIDE = True


def attack(target: dict[str, Any]) -> object:
    return resource.prlimit(target["pid"], resource.RLIMIT_NOFILE)
