"""Push the supervisor off its processors.

Source: sched_setaffinity(2) takes any pid.
"""

import os
from typing import Any

EXPECTED = "ProcessLookupError"
WALLS = ("pid",)
RUNS_OUTSIDE = True


def attack(target: dict[str, Any]) -> object:
    os.sched_setaffinity(target["pid"], os.sched_getaffinity(target["pid"]))
    return "reached"
