"""Take the processor from everybody (SCHED_FIFO).

Source: sched(7).
"""

import os
from typing import Any

EXPECTED = "PermissionError"
WALLS = ("capabilities", "user", "rlimits")
NEEDS = "sys_nice"


def attack(target: dict[str, Any]) -> object:
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(50))
    return "raised"


def outside(target: dict[str, Any]) -> object:
    os.setpriority(os.PRIO_PROCESS, 0, -1)
    return "raised"
