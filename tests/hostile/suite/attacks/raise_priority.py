"""Take the processor from everybody (SCHED_FIFO).

Source: sched(7).
"""

import os
from typing import Any

EXPECTED = "PermissionError"
WALLS = ("capabilities", "user", "rlimits")
RUNS_OUTSIDE = False


def attack(target: dict[str, Any]) -> object:
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(50))
    return "raised"
