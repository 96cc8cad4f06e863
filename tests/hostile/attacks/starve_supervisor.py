"""Take open files from the supervisor (prlimit)."""

import resource
from typing import Any

EXPECTED = "ProcessLookupError"
RUNS_OUTSIDE = True


def attack(target: dict[str, Any]) -> object:
    return resource.prlimit(target["pid"], resource.RLIMIT_NOFILE)
