"""Push the supervisor off its processors."""

import os
from typing import Any

EXPECTED = "ProcessLookupError"
RUNS_OUTSIDE = True


def attack(target: dict[str, Any]) -> object:
    os.sched_setaffinity(target["pid"], os.sched_getaffinity(target["pid"]))
    return "reached"
