"""Make the supervisor slow.

Source: setpriority(2) takes any pid.
"""

import os
from typing import Any

EXPECTED = "ProcessLookupError"
WALLS = ("pid",)
RUNS_OUTSIDE = True


def attack(target: dict[str, Any]) -> object:
    os.setpriority(os.PRIO_PROCESS, target["pid"], os.getpriority(os.PRIO_PROCESS, target["pid"]))
    return "reached"
