"""Signal the supervisor's process group.

Source: kill(2).
"""

import os
from typing import Any

EXPECTED = "ProcessLookupError"
WALLS = ("pid", "landlock")
RUNS_OUTSIDE = True


def attack(target: dict[str, Any]) -> object:
    os.killpg(target["group"], 0)
    return "reached"
