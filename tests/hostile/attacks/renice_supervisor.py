"""Make the supervisor slow."""

import os
from typing import Any

EXPECTED = "ProcessLookupError"
RUNS_OUTSIDE = True


def attack(target: dict[str, Any]) -> object:
    os.setpriority(os.PRIO_PROCESS, target["pid"], os.getpriority(os.PRIO_PROCESS, target["pid"]))
    return "reached"
